"""The model that a run left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgezo.adapted import AddAdapter, open_adapted
from edgezo.run_folder import RunFolder
from edgezo_runtime import journal, peft, start
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model, load


def open_tuned(
    path: Path, add: AddAdapter | None, device: str = "cpu", threads: int | None = None
) -> tuple[Model, dict[str, Any]]:
    """Opens a run's base bundle with its tuned weights.

    Args:
        path: the run's folder.
        add: puts the run's adapter into a bundle that has none.
        device: what it runs on.
        threads: of ONNX Runtime; None: all cores.

    Returns:
        The model, and the run's settings.

    Raises:
        InputError: the run is not finished.
    """
    run = RunFolder(path)
    settings = run.read_settings()
    if not run.weights.exists():
        raise InputError(f"the run {path} is not finished: continue it with `edgezo resume {path}`")
    header = journal.read(run.journal).header
    adapter = header.get("adapter")
    bundle = open_adapted(settings["bundle"], adapter, add)
    if adapter is None:
        return load(bundle, device=device, threads=threads, weights=run.weights), settings
    found = start.restore(header, path, bundle)
    front = peft.prefix(adapter)
    model = load(
        bundle, device=device, threads=threads, weights=run.weights, prefix=front, start=found
    )
    return model, settings
