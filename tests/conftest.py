"""What all tests share: their order, and bundles of models that are not causal."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from shared_folders import shared
from tiny_families import write_checkpoint


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest module first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_shipped_graphs.py")


@pytest.fixture(scope="session")
def family_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a tiny checkpoint by its name in `tiny_families.FAMILIES`."""
    pytest.importorskip("torch")

    def folder(name: str) -> Path:
        return shared(tmp_path_factory, f"family-{name}", functools.partial(write_checkpoint, name))

    return folder


@pytest.fixture(scope="session")
def family_bundle(
    family_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Returns the folder of a tiny bundle by its name in `tiny_families.FAMILIES`."""
    from edgezo_export.huggingface import checkpoint_to_bundle

    def folder(name: str) -> Path:
        def make(out: Path) -> None:
            checkpoint_to_bundle(family_checkpoint(name), out)

        return shared(tmp_path_factory, f"family-{name}.edgezo", make)

    return folder
