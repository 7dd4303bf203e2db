"""Adds a graph of derivatives to a bundle; no torch is needed, and no weight is read."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from edgezo_export.bundle_writer import link_or_copy, new_folder
from edgezo_export.gradients.reverse import gradient_graph
from edgezo_export.tangents.forward import tangent_graph
from edgezo_runtime.bundle import GRADIENTS, TANGENTS, Bundle, Manifest, open_bundle, write_manifest
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.graph import Graph

#: The graphs that follow from a bundle's own.
DERIVED = (GRADIENTS, TANGENTS)


def add_to_bundle(
    bundle: Bundle, out: Path, added: str = GRADIENTS, column_row: float = 1.0
) -> None:
    """Writes `bundle` with its graph `added`, one of `DERIVED`, to the new folder `out`.

    The weights are linked where they can be.

    Args:
        bundle: it stays as it is.
        out: must not exist.
        added: the graph's file.
        column_row: of gradients: the fraction of the rows that those of linear layers are
            estimated from.

    Raises:
        InputError: `out` exists, the model has no gradients, or none that could be estimated.
        EdgezoError: it cannot be written.
    """
    with new_folder(out) as folder:
        for name in bundle.manifest.files:
            if name != added:
                link_or_copy(bundle.folder / name, folder / name)
        graph = _derived(added, bundle.read_graph(), bundle.manifest, column_row)
        if column_row != 1 and not Graph(graph).uniforms:
            raise InputError(
                f"{bundle.folder} trains no weight of a linear layer, so that there are no rows to "
                "sample: leave out --column-row"
            )
        (folder / added).write_bytes(graph)
        files = {**bundle.manifest.files, added: hashlib.sha256(graph).hexdigest()}
        write_manifest(folder, dataclasses.replace(bundle.manifest, files=files))
    open_bundle(out)


def derived_again(name: str, bundle: Bundle, graph: bytes, manifest: Manifest) -> bytes:
    """Returns the graph `name` of another graph, made as that of `bundle` was made of its own."""
    return _derived(name, graph, manifest, Graph(bundle.read_graph(name)).column_row)


def _derived(name: str, graph: bytes, manifest: Manifest, column_row: float) -> bytes:
    if name == TANGENTS:
        return tangent_graph(graph, manifest)
    return gradient_graph(graph, manifest, column_row)
