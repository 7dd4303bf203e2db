"""Checkpoints named by their id: from Hugging Face's cache, without a network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from edgezo_export.hub import checkpoint_folder
from edgezo_runtime.errors import EdgezoError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_an_id_is_found_in_the_cache(cache: Path) -> None:
    model = cache / "models--some--model-1.5"
    snapshot = model / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abcd")
    assert checkpoint_folder(Path("some/model-1.5")).samefile(snapshot)


def test_what_is_neither_folder_nor_cached_is_named() -> None:
    with pytest.raises(EdgezoError, match=r"no folder some/model, .*could not be fetched"):
        checkpoint_folder(Path("some/model"))


@pytest.mark.parametrize("name", ["here", "some/where", "/no/where", "../up/there", "no/such/one"])
def test_folders_are_never_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are paths of which a part exists: a slip of the pen is not sent to anybody."""
    Path("here").mkdir()
    Path("some").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    assert checkpoint_folder(Path(name)) == Path(name)
