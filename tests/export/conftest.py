"""Tiny checkpoints and their bundles, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from shared_folders import shared
from tiny_checkpoints import tiny_model

from edgezo_export.huggingface import checkpoint_to_bundle


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a tiny checkpoint by the model's name."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny_model(name).save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture(scope="session")
def bundle_folder(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Returns the folder of a tiny bundle by the model's name, exported once."""

    def folder(name: str) -> Path:
        def make(out: Path) -> None:
            checkpoint_to_bundle(checkpoint(name), out, task={"name": "classify"})

        return shared(tmp_path_factory, f"{name}.edgezo", make)

    return folder
