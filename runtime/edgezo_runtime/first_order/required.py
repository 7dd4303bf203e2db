"""The graphs of derivatives that a bundle may have, and what says that one is missing."""

from __future__ import annotations

from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.bundle import GRADIENTS, TANGENTS, Bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.graph import Graph

_KINDS = {GRADIENTS: "gradient", TANGENTS: "tangent"}


def check_graph(bundle: Bundle, name: str) -> None:
    """Raises InputError, which says how to make one, if a bundle lacks the graph `name`."""
    kind = _KINDS[name]
    if name not in bundle.manifest.files:
        raise InputError(
            f"{bundle.folder} has no {kind} graph, which this method needs: make a bundle that "
            f"has one with `edgezo export {bundle.folder} --{kind}s --out NEW`"
        )


def read_graph(bundle: Bundle, name: str) -> Graph:
    """Returns the graph `name` of a bundle; raises InputError if it has none, or a damaged one."""
    check_graph(bundle, name)
    try:
        return Graph(bundle.read_graph(name))
    except (ValueError, IndexError) as error:
        raise InputError(f"{bundle.folder} has a damaged {_KINDS[name]} graph: {error}") from error


def check_differentiable(batch: BaseBatch) -> None:
    """Raises InputError if the loss of `batch` does not follow from one forward pass."""
    if type(batch).loss is not BaseBatch.loss:
        raise InputError(
            f"{type(batch).__name__} is judged by more than one forward pass, which has no "
            "gradient: tune with a method that needs none, such as mezo"
        )
