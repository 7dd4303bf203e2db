"""Adds a graph of derivatives to a bundle; no torch is needed, and no weight is read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from edgezo_export.bundle_writer import link_or_copy, new_folder
from edgezo_export.gradients.reverse import gradient_graph
from edgezo_export.tangents.forward import tangent_graph
from edgezo_runtime.bundle import GRADIENTS, TANGENTS, Bundle, Manifest, open_bundle, write_manifest

#: What makes each graph that follows from a bundle's own, by its file's name.
DERIVED: Mapping[str, Callable[[bytes, Manifest], bytes]] = {
    GRADIENTS: gradient_graph,
    TANGENTS: tangent_graph,
}


def add_to_bundle(bundle: Bundle, out: Path, added: str = GRADIENTS) -> None:
    """Writes `bundle` with its graph `added`, one of `DERIVED`, to the new folder `out`.

    The weights are linked where they can be.

    Raises:
        InputError: `out` exists, or the model has no gradients.
        EdgezoError: it cannot be written.
    """
    with new_folder(out) as folder:
        for name in bundle.manifest.files:
            if name != added:
                link_or_copy(bundle.folder / name, folder / name)
        graph = DERIVED[added](bundle.read_graph(), bundle.manifest)
        (folder / added).write_bytes(graph)
        files = {**bundle.manifest.files, added: hashlib.sha256(graph).hexdigest()}
        write_manifest(folder, dataclasses.replace(bundle.manifest, files=files))
    open_bundle(out)
