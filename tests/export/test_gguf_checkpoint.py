"""A GGUF file made here, with llama.cpp's own reordering, comes back as the checkpoint it was."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_checkpoints import VOCABULARY, tiny_model
from tokenizers import Tokenizer, pre_tokenizers

from edgezo_export.gguf_checkpoint import gguf_name, gguf_to_bundle, unpermuted
from edgezo_export.verify import GraphRunner, check_parity
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import InputError

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key projections."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def write_gguf(path: Path, architecture: str = "llama", pre: str = "smollm") -> Path:
    """Writes the tiny tied Llama; its first tokens are special, the rest are bytes."""
    model = tiny_model("llama_tied")
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet[: VOCABULARY - 6], "Ġ", "he", "hel"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (VOCABULARY - 3))
    writer.add_token_merges(["h e", "he l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for key, value in model.named_parameters():
        array = value.detach().numpy()
        if "q_proj" in key or "k_proj" in key:
            array = permuted(array, 4 if "q_proj" in key else 2)
        name = gguf_name(key)
        if "embed" in key:
            blocks = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf")
    return gguf_to_bundle(write_gguf(path / "tiny.gguf"), path / "tiny.edgezo")


def test_weights_come_back_in_hugging_face_order(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    model = tiny_model("llama_tied")
    for key, value in model.named_parameters():
        tolerance = 0.02 if "embed" in key else 0
        np.testing.assert_allclose(weights[key], value.detach().numpy(), rtol=0, atol=tolerance)


def test_the_bundle_computes_what_transformers_computes(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    check_parity(
        GraphRunner(open_bundle(folder)), AutoModelForCausalLM.from_pretrained(folder).eval()
    )


def test_the_tokenizer_round_trips(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for number, token in enumerate(SPECIAL):
        assert tokenizer.encode(token).ids == [number]
    text = "<|im_start|>hello HELLO 12<|im_end|>"
    encoding = tokenizer.encode(text)
    assert encoding.tokens[:4] == ["<|im_start|>", "hel", "l", "o"]
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == (SPECIAL[1], SPECIAL[2])
    assert config["model_max_length"] == 64
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", architecture="mamba")
    with pytest.raises(InputError, match="architecture 'mamba'"):
        gguf_to_bundle(path, tmp_path / "b.edgezo")


def test_unknown_word_splitting_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", pre="klingon")
    with pytest.raises(InputError, match="'klingon'"):
        gguf_to_bundle(path, tmp_path / "b.edgezo")
    assert [item.name for item in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("kept", [0, 10, 400, 20000])
def test_a_cut_file_is_refused(kept: int, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.gguf"):
        gguf_to_bundle(path, tmp_path / "b.edgezo")


def test_unpermuted_inverts_the_converter() -> None:
    weights = np.arange(24 * 3, dtype=np.float32).reshape(24, 3)
    np.testing.assert_array_equal(unpermuted(permuted(weights, 3), 3), weights)
