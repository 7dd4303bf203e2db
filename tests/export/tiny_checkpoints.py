"""Tiny models with random weights, one for each family of causal language models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 96
_EAGER = {"vocab_size": VOCABULARY, "attn_implementation": "eager"}
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    **_EAGER,
}
_OPT_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "max_position_embeddings": 64,
    "init_std": 0.2,
    **_EAGER,
}
_MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=True)),
    "llama_untied": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=False)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**_OPT_SIZES, word_embed_proj_dim=32)),
    # As OPT-350m: narrower embeddings, and norms after the layers.
    "opt_post_norm": lambda: OPTForCausalLM(
        OPTConfig(**_OPT_SIZES, word_embed_proj_dim=16, do_layer_norm_before=False)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2, **_EAGER)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=True)),
    # The second layer sees four tokens back, the first one all.
    "qwen2_window": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "mistral_window": lambda: MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=4)),
}
MODELS = tuple(_MAKERS)


def tiny_model(name: str) -> PreTrainedModel:
    """Returns the model `name` with weights that depend on nothing else."""
    torch.manual_seed(0)
    model = _MAKERS[name]().eval()
    # Fresh biases and norms are all equal: a mix-up of two would not show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def misread(graph: bytes, dead: str, instead: str) -> bytes:
    """Returns `graph` with every reader of the weight `dead` reading `instead`."""
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        node.input[:] = [instead if name == dead else name for name in node.input]
    return model.SerializeToString()


def rows_gathered(bundle: Path) -> list[int]:
    """Returns the widths of the values that a bundle's graph picks the answers' rows of."""
    graph = ir.load(bundle / "graph.onnx").graph
    positions = next(value for value in graph.inputs if value.name == "positions")
    readers = [node for node, _ in positions.uses()]
    for node in readers:
        if node.op_type == "Reshape":  # torch flattens an index first
            readers += [user for user, _ in node.outputs[0].uses()]
    rows = [node.inputs[0] for node in readers if node.op_type == "Gather"]
    return [int(str(value.shape[-1])) for value in rows if value is not None and value.shape]
