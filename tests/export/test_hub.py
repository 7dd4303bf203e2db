"""Checkpoints named by their id: fetched from a hub once, or found in Hugging Face's cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers_text import SENTENCES
from hub_server import HubServer, hub_server
from huggingface_hub import constants, file_download
from safetensors.numpy import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from edgezo.cli import cli
from edgezo_export.hub import checkpoint_folder
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.text import Tokenizer

NAME = "some/tiny-1.5"
SHARD = "model-00002-of-00003.safetensors"
#: What is not of a checkpoint as edgezo reads it: other copies of the weights, pickles, code.
OTHERS = (
    *("pytorch_model.bin", "consolidated.safetensors", "modeling_tiny.py", "README.md"),
    *("onnx/model.onnx", "original/params.json"),
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in three shards, with a tokenizer of two files as OPT's and GPT-2's are."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="22KB")
    assert (folder / SHARD).is_file()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(SENTENCES, 300, special_tokens=["<|endoftext|>"])
    tokenizer.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not for edgezo")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    huggingface_hub.configure_http_backend()  # forgets sessions of another network
    yield tmp_path / "cache"
    huggingface_hub.configure_http_backend()


@pytest.fixture
def hub(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server in the place of huggingface.co."""
    with hub_server() as server:
        server.models[NAME] = published
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(time, "sleep", lambda _: None)  # between the library's attempts
        yield server


def failure(name: str = NAME) -> EdgezoError:
    """Returns the error of looking `name` up, which is one sentence."""
    with pytest.raises(EdgezoError) as caught:
        checkpoint_folder(Path(name))
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_id_becomes_a_bundle(hub: HubServer, published: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.edgezo"
    done = CliRunner().invoke(cli, ["export", NAME, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    theirs = {key: v for file in published.glob("model-*") for key, v in load_file(file).items()}
    ours = load_file(out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value)
    text = "the film was good, wonderful actors"
    expected = AutoTokenizer.from_pretrained(published)(text)["input_ids"]
    assert Tokenizer.from_folder(out).encode(text) == expected
    wanted = {file.relative_to(published).as_posix() for file in published.rglob("*.*")}
    assert hub.fetched == wanted - set(OTHERS)


def test_nothing_is_fetched_twice(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint_folder(Path(NAME))
    hub.seen.clear()
    assert checkpoint_folder(Path(NAME)) == folder
    assert [path for _, path, _ in hub.seen] == [f"/api/models/{NAME}/revision/main"]
    hub.statuses[NAME] = 503
    assert checkpoint_folder(Path(NAME)) == folder
    hub.seen.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.configure_http_backend()
    assert checkpoint_folder(Path(NAME)) == folder
    assert not hub.seen


def test_what_the_hub_does_not_show(hub: HubServer) -> None:
    place = f"could not be fetched from {hub.address.removeprefix('http://')}"
    for status, name, why in (
        (None, "some/other", "there is none, or it is private and needs `hf auth login`"),
        (403, NAME, "accept its terms on its page, and log in"),
    ):
        hub.statuses = {} if status is None else {name: status}
        error = failure(name)
        assert isinstance(error, InputError)
        assert f"no folder {name}" in str(error) and place in str(error) and why in str(error)


@pytest.mark.parametrize("broken", [NAME, SHARD])
def test_a_hub_that_fails(hub: HubServer, broken: str) -> None:
    hub.statuses[broken] = 503
    assert "the answer is 503 Service Unavailable" in str(failure())


def test_nobody_answers(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "from 127.0.0.1:1: the connection failed" in str(failure())


def test_a_download_that_breaks_off_goes_on(
    hub: HubServer, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut.add(SHARD)
    assert "what has arrived is kept, so run the command again" in str(failure())
    hub.cut.clear()
    hub.seen.clear()
    folder = checkpoint_folder(Path(NAME))
    assert (folder / SHARD).read_bytes() == (published / SHARD).read_bytes()
    kept = (published / SHARD).stat().st_size // 2 // 1000 * 1000
    asked = [span for method, path, span in hub.seen if method == "GET" and SHARD in path]
    assert asked == [f"bytes={kept}-"]


def test_an_id_is_found_in_the_cache(cache: Path) -> None:
    model = cache / "models--some--model-1.5"
    snapshot = model / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abcd")
    assert checkpoint_folder(Path("some/model-1.5")).samefile(snapshot)


def test_what_is_neither_folder_nor_cached_is_named() -> None:
    message = str(failure("some/model"))
    assert "no folder some/model" in message and "HF_HUB_OFFLINE=1 forbids it" in message


@pytest.mark.parametrize("name", ["here", "some/where", "/no/where", "../up/there", "no/such/one"])
def test_folders_are_never_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are paths of which a part exists: a slip of the pen is not sent to anybody."""
    Path("here").mkdir()
    Path("some").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    assert checkpoint_folder(Path(name)) == Path(name)
