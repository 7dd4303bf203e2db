"""A folder that onnxruntime-genai runs: the generation graph, its weights and its adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgezo_export.bundle_graph import bundle_graph
from edgezo_export.inference_graph import MODEL, save_model, store_weights, write_adapter
from edgezo_runtime.bundle import GENERATE, Bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import write_text
from edgezo_runtime.peft import scale
from edgezo_runtime.text import Tokenizer

CONFIG = "genai_config.json"
_PAST, _PRESENT = "past_key_values.%d", "present.%d"


def write_genai_folder(bundle: Bundle, adapter: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes `model.onnx` and `genai_config.json`, and `adapter.onnx_adapter` of a LoRA run.

    The LoRA inputs are empty by default; `Adapters.load` of onnxruntime-genai fills them.

    Args:
        bundle: a causal model's; one with a LoRA adapter, or with none.
        adapter: the adapter's tensors by parameter name; empty if there is none.
        folder: holds `model.safetensors`, and the tokenizer's files.

    Raises:
        InputError: the bundle has no generation graph.
    """
    if not bundle.generates:
        raise InputError(
            f"{bundle.folder} has no generate.onnx, which onnxruntime-genai runs: export the "
            "checkpoint again"
        )
    model = bundle_graph(bundle.read_graph(GENERATE))
    if adapter:
        write_adapter(model, scale(bundle.manifest.adapter), adapter, folder)
    config = _config(model, bundle)
    model.metadata_props.clear()
    _give_every_logit_a_place(model)
    store_weights(model, folder)
    save_model(model, folder)
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _give_every_logit_a_place(model: ir.Model) -> None:
    """Makes the logits (batch, 1, vocabulary): those after the last token, as genai reads them."""
    graph = model.graph
    last = graph.outputs[0]
    axis = ir.val("logits.axis", const_value=ir.tensor(np.array([1]), name="logits.axis"))
    graph.register_initializer(axis)
    node = ir.node("Unsqueeze", [last, axis])
    graph.append(node)
    logits = node.outputs[0]
    assert last.shape is not None
    last.name, logits.name = "logits.last", last.name
    logits.shape, logits.type = ir.Shape([last.shape[0], 1, last.shape[1]]), last.type
    graph.outputs[0] = logits


def _config(model: ir.Model, bundle: Bundle) -> dict[str, Any]:
    past = {str(v.name): v.shape for v in model.graph.inputs if ".key" in str(v.name)}
    key = past[f"{_PAST % 0}.key"]
    logits = model.graph.outputs[0].shape
    assert key is not None and logits is not None
    tokenizer = Tokenizer.from_folder(bundle.folder)
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": tokenizer.pad_id if tokenizer.bos_id is None else tokenizer.bos_id,
            "eos_token_id": sorted(tokenizer.stop_ids) or [tokenizer.pad_id],
            "pad_token_id": tokenizer.pad_id,
            "context_length": bundle.manifest.context_length,
            "vocab_size": logits[1],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL,
                "head_size": key[3],
                "num_key_value_heads": key[1],
                "num_hidden_layers": len(past),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": f"{_PAST}.key",
                    "past_value_names": f"{_PAST}.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": f"{_PRESENT}.key",
                    "present_value_names": f"{_PRESENT}.value",
                },
            },
        },
        "search": {
            "max_length": bundle.manifest.context_length,
            "past_present_share_buffer": False,
            "do_sample": False,
        },
    }
