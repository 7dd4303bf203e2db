"""GGUF files become bundles: weights widened to float32, in Hugging Face's names and layout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_export.bundle_writer import complete_bundle, new_folder
from edgezo_export.gguf_tokenizer import write_tokenizer
from edgezo_export.shipped_graphs import CONFIG, copy_graphs, find_graphs
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import write_text

_MODEL_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_to_bundle(gguf_path: Path, out: Path) -> Path:
    """Writes the model of a GGUF file as a bundle and returns its folder `out`.

    Quantised weights are dequantised to float32, one tensor at a time.

    Args:
        gguf_path: a GGUF file of the Llama architecture with a byte-level BPE tokenizer.
        out: the bundle's folder; must not exist yet.

    Raises:
        InputError: the file is no GGUF file, or one of another architecture, or edgezo has no
            graph for its size and cannot make one without torch; or `out` exists.
    """
    checkpoint = GgufCheckpoint(gguf_path)
    config = checkpoint.config()
    with new_folder(out) as folder:
        write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        write_tokenizer(folder, checkpoint.metadata, gguf_path)
        shipped = find_graphs(config)
        if shipped is None:
            _export_graphs(folder, gguf_path)
        else:
            copy_graphs(shipped, folder)
        complete_bundle(folder, checkpoint.tensor, context_length=config["max_position_embeddings"])
    return out


class GgufCheckpoint:
    """A GGUF file of the Llama architecture, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import gguf

        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, IndexError, KeyError) as error:
            raise InputError(f"{path} is not a GGUF file, or is cut: {error}") from error
        self.metadata: Mapping[str, Any] = {
            name: field.contents() for name, field in reader.fields.items()
        }
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        architecture = self.metadata.get("general.architecture")
        if architecture != "llama":
            raise InputError(
                f"{path} holds a model of architecture {architecture!r}; edgezo reads GGUF files "
                "of architecture 'llama': export the Hugging Face checkpoint instead"
            )
        if (
            any("rope.scaling" in key for key in self.metadata)
            or "rope_freqs.weight" in self._tensors
        ):
            raise InputError(
                f"{path} scales its rotary positions, which edgezo does not read from GGUF: "
                "export the Hugging Face checkpoint instead"
            )

    def config(self) -> dict[str, Any]:
        """Returns the model's `config.json`; raises InputError if a number is missing."""
        heads = self._number("attention.head_count")
        hidden = self._number("embedding_length")
        epsilon = np.float32(self._number("attention.layer_norm_rms_epsilon"))
        tokens = self.metadata.get("tokenizer.ggml.tokens", ())
        config = {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": "blk.0.attn_q.bias" in self._tensors,
            "bos_token_id": self.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.metadata.get("tokenizer.ggml.eos_token_id"),
            "head_dim": self._number("attention.key_length", hidden // heads),
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": self._number("feed_forward_length"),
            "max_position_embeddings": self._number("context_length"),
            "mlp_bias": "blk.0.ffn_up.bias" in self._tensors,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": self._number("block_count"),
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "pad_token_id": self.metadata.get("tokenizer.ggml.padding_token_id"),
            # The shortest decimal of the float32, or 1e-05 would read 9.99999974e-06.
            "rms_norm_eps": float(str(epsilon)),
            "rope_scaling": None,
            "rope_theta": float(self._number("rope.freq_base", 10000.0)),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "torch_dtype": "float32",
            "vocab_size": self._number("vocab_size", len(tokens)),
        }
        return config

    def _number(self, key: str, default: float | None = None) -> Any:
        value = self.metadata.get(f"llama.{key}", default)
        if not isinstance(value, (int, float)):
            raise InputError(f"{self.path} lacks a number for llama.{key}: it is not a Llama model")
        return value

    def tensor(self, parameter: Parameter) -> np.ndarray:
        """Returns the float32 value of `parameter`; raises InputError if the file lacks it."""
        import gguf

        name = gguf_name(parameter.name)
        stored = self._tensors.get(name)
        if stored is None:
            raise InputError(f"{self.path} has no tensor {name!r}")
        try:
            values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"tensor {name!r} of {self.path} is quantised as {stored.tensor_type.name}, which "
                "the gguf package cannot read: use a file of another quantisation"
            ) from error
        values = np.ascontiguousarray(values, np.float32)
        if values.size != math.prod(parameter.shape):
            raise InputError(
                f"tensor {name!r} of {self.path} has {values.size} elements, its metadata says "
                f"{math.prod(parameter.shape)}"
            )
        values = values.reshape(parameter.shape)
        if name.endswith(("attn_q.weight", "attn_q.bias")):
            return unpermuted(values, self._number("attention.head_count"))
        if name.endswith(("attn_k.weight", "attn_k.bias")):
            heads = self._number("attention.head_count")
            return unpermuted(values, self._number("attention.head_count_kv", heads))
        return values


def gguf_name(key: str) -> str:
    """Returns llama.cpp's name of the checkpoint key `key` of a Llama model."""
    module, _, leaf = key.rpartition(".")
    if module.startswith("model.layers."):
        _, _, number, part = module.split(".", 3)
        return f"blk.{number}.{_LAYER_NAMES.get(part, part)}.{leaf}"
    return f"{_MODEL_NAMES.get(module, module)}.{leaf}"


def unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's reordering of a query's or key's rows.

    llama.cpp rotates neighbouring pairs of a head's rows, Hugging Face rotates its first half
    against its second; its converter interleaves the halves.

    Args:
        values: (heads * head_dim, ...) float32.
        heads: number of heads, of keys for a key projection.
    """
    split = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)


def _export_graphs(folder: Path, gguf_path: Path) -> None:
    try:
        from edgezo_export.make_graphs import make_graphs
    except ImportError as error:
        raise InputError(
            f"edgezo ships no graph for the size of {gguf_path} and needs torch to make one: "
            'run `pip install "edgezo[export]"`'
        ) from error
    make_graphs(folder, folder)
