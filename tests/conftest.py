"""Bundles of models that are not causal, exported once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_families import write_checkpoint


@pytest.fixture(scope="session")
def family_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a tiny checkpoint by its name in `tiny_families.FAMILIES`."""
    pytest.importorskip("torch")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write_checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="session")
def family_bundle(
    family_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Returns the folder of a tiny bundle by its name in `tiny_families.FAMILIES`."""
    from edgezo_export.huggingface import checkpoint_to_bundle

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("bundles") / f"{name}.edgezo"
            made[name] = checkpoint_to_bundle(family_checkpoint(name), out)
        return made[name]

    return folder
