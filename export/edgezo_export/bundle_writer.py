"""Writes a bundle so that it is either there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_export.signature import read_signature
from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.bundle import (
    CAUSAL,
    GENERATE,
    GRAPH,
    LEAN,
    SIDE_FILES,
    WEIGHTS,
    Manifest,
    Parameter,
    write_manifest,
)
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import cannot_write, sha256, sync_folder


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `out` that takes its place at the end, or is removed.

    Raises:
        InputError: `out` exists and is not an empty folder.
        EdgezoError: the folder cannot be written, or the disk is full.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} already exists; remove it or choose another folder with --out")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if out.is_dir():
            out.rmdir()  # Windows does not rename onto an empty folder
        temporary.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise EdgezoError(cannot_write(out, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def complete_bundle(
    folder: Path,
    tensor: Callable[[Parameter], np.ndarray],
    *,
    context_length: int | None,
    task: Mapping[str, Any] | None = None,
    made_with: tuple[str, ...] = (),
    form: Mapping[str, Any] = CAUSAL,
) -> Manifest:
    """Adds the weights and then the manifest to a folder that holds the graphs and side files.

    Args:
        folder: holds `graph.onnx`, and `generate.onnx`, `lean.onnx`, `config.json` and the
            tokenizer's files where there are any.
        tensor: returns a parameter's value, C-contiguous, in storage dtype; called once for each
            parameter in arena order, so that one tensor at a time is in memory.
        context_length: the longest sequence that the model takes, in tokens; None for arrays.
        task: the bundle's default task.
        made_with: packages whose versions decide the bundle's bytes.
        form: what kind of model it is; see `Manifest.form`.
    """
    signature = read_signature(folder / GRAPH)
    parameters = {parameter.name: parameter for parameter in signature.parameters}
    digest = safetensors_file.write_each(
        folder / WEIGHTS,
        [(p.name, dtypes.named(p.dtype), p.shape) for p in signature.parameters],
        lambda name: tensor(parameters[name]),
    )
    files = {GRAPH: sha256(folder / GRAPH), WEIGHTS: digest}
    optional = [name for name in (GENERATE, LEAN, *SIDE_FILES) if (folder / name).is_file()]
    files |= {name: sha256(folder / name) for name in optional}
    manifest = Manifest(
        signature.parameters,
        signature.inputs,
        signature.outputs,
        context_length,
        dict(task or {}),
        files,
        {package: _version(package) for package in ("edgezo", *made_with)},
        form,
    )
    write_manifest(folder, manifest)
    return manifest


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
