"""Adds the gradient graph to a bundle; no torch is needed, and no weight is read."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from edgezo_export.adapters.base import link_or_copy
from edgezo_export.bundle_writer import new_folder
from edgezo_export.gradients.reverse import gradient_graph
from edgezo_runtime.bundle import GRADIENTS, Bundle, open_bundle, write_manifest


def add_to_bundle(bundle: Bundle, out: Path) -> None:
    """Writes `bundle` with its gradient graph to the new folder `out`.

    The weights are linked where they can be.

    Raises:
        InputError: `out` exists, or the model has no gradients.
        EdgezoError: it cannot be written.
    """
    with new_folder(out) as folder:
        for name in bundle.manifest.files:
            if name != GRADIENTS:
                link_or_copy(bundle.folder / name, folder / name)
        gradients = gradient_graph(bundle.read_graph(), bundle.manifest)
        (folder / GRADIENTS).write_bytes(gradients)
        files = {**bundle.manifest.files, GRADIENTS: hashlib.sha256(gradients).hexdigest()}
        write_manifest(folder, dataclasses.replace(bundle.manifest, files=files))
    open_bundle(out)
