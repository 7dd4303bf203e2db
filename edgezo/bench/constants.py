"""A bundle's graph with its weights as constants: what plain inference would load.

A bundle's parameters are graph inputs. Plain inference has them as initializers instead, whose
values lie in `model.safetensors` as external data; those of an adapter, which is in no bundle's
file, are zeros.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.bundle import WEIGHTS, Bundle
from edgezo_runtime.constants import with_constants
from edgezo_runtime.errors import InputError
from edgezo_runtime.safetensors_file import read_header

NAME = "constants.onnx"
_ADAPTER = "adapter.safetensors"


@contextlib.contextmanager
def constants_model(bundle: Bundle) -> Iterator[Path]:
    """Makes a model of `bundle` with its weights as constants, in a folder that does not last.

    ONNX Runtime opens external data only in the model's own folder, and no symbolic link that leads
    out of it: the weights are hard-linked there, or copied where that cannot be.

    Raises:
        InputError: the graph or the weights are damaged.
    """
    graph = constants_graph(bundle)
    with contextlib.ExitStack() as stack:
        folder = _folder_with(bundle.weights, stack)
        model = folder / NAME
        model.write_bytes(_with_adapter(graph, bundle, folder / _ADAPTER))
        yield model


def _with_adapter(graph: bytes, bundle: Bundle, path: Path) -> bytes:
    """Returns the graph's file with zeros, written to `path`, in place of an adapter's inputs."""
    added = [(p.name, dtypes.named(p.dtype), p.shape) for p in bundle.manifest.parameters if p.init]
    if not added:
        return graph
    zeros = [(name, dtype, np.zeros(shape, dtype.storage)) for name, dtype, shape in added]
    safetensors_file.write(path, zeros)
    return with_constants(graph, list(read_header(path).values()), path.name)


def constants_graph(bundle: Bundle, location: str = WEIGHTS) -> bytes:
    """Returns the graph's file with an initializer in place of each parameter of the weights' file.

    Args:
        bundle: whose graph and weights.
        location: path of the weights, relative to where the graph's file will lie.

    Raises:
        InputError: the graph or the weights are damaged, or lack a parameter.
    """
    entries = read_header(bundle.weights)
    names = [parameter.name for parameter in bundle.manifest.stored]
    for name in names:
        if name not in entries:
            raise InputError(f"{bundle.weights} has no tensor {name!r}")
    try:
        return with_constants(
            bundle.graph.read_bytes(), [entries[name] for name in names], location
        )
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{bundle.graph} is not an ONNX graph: {error}") from error


def _folder_with(weights: Path, stack: contextlib.ExitStack) -> Path:
    """Returns a temporary folder that holds `weights`, linked if one can be."""
    weights = weights.resolve()
    for parent in (None, weights.parent.parent):
        try:
            with contextlib.ExitStack() as attempt:
                temporary = tempfile.TemporaryDirectory(prefix="edgezo-bench-", dir=parent)
                folder = Path(attempt.enter_context(temporary))
                os.link(weights, folder / WEIGHTS)
                stack.push(attempt.pop_all())
                return folder
        except OSError:  # another file system, one without hard links, or a read-only folder
            continue
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgezo-bench-")))
    shutil.copyfile(weights, folder / WEIGHTS)
    return folder
