"""The graph that generates: the text graph's parameters with a cache of keys and values.

It takes the same weights under the same names, so both graphs run over one copy of them.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from edgezo_export.group_queries import GroupQueries
from edgezo_export.torch_export import export_wrapper


class GenerateGraph(nn.Module):
    """Wraps any `*ForCausalLM`; rows are padded on the left."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(
        self,
        input_ids: Tensor,  # (batch, new) int64
        attention_mask: Tensor,  # (batch, past + new) int64, 0 at padding
        past: list[Tensor],  # each layer's key and value, (batch, kv_heads, past, head_dim)
    ) -> list[Tensor]:  # (batch, vocabulary) float32, then each layer's key and value
        """Returns the logits after the last token, and the cache with the new tokens in it."""
        held = past[0].shape[2]
        cache = DynamicCache()
        for key, value in zip(past[::2], past[1::2], strict=True):
            layer = DynamicLayer()
            layer.dtype, layer.device = key.dtype, key.device
            layer.keys, layer.values, layer.is_initialized = key, value, True
            cache.layers.append(layer)
        extra = {}
        if self.takes_positions:
            # Padding has no position: a row's first token has position 0 wherever it stands.
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            extra["position_ids"] = positions[:, held:]

        def last(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][:, -1], *args[1:])

        head = cast(nn.Module, self.model.get_output_embeddings())
        handle = head.register_forward_pre_hook(last)
        try:
            logits = self.model(
                input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=True,
                **extra,
            ).logits
        finally:
            handle.remove()
        return [logits.float(), *_tensors(cache)]


def export_generate_graph(model: PreTrainedModel) -> ir.Model:
    """Returns the weight-free graph of `model` with a cache; see docs/bundle.md.

    Args:
        model: a causal language model; its weights' values do not matter.

    Raises:
        InputError: the model cannot be exported; the message quotes the exporter's reason.
    """
    sizes = _cache_sizes(model)
    names = [f"{i}.{part}" for i in range(len(sizes) // 2) for part in ("key", "value")]
    past = [torch.zeros((2, heads, 5, head_dim)) for heads, head_dim in sizes]
    batch, new = (torch.export.Dim(name) for name in ("batch", "new"))
    length = torch.export.Dim("past")
    example = {
        "input_ids": torch.full((2, 3), 5),
        "attention_mask": torch.ones((2, 8), dtype=torch.int64),
        "past": past,
    }
    shapes: dict[str, Any] = {
        "input_ids": {0: batch, 1: new},
        "attention_mask": {0: batch, 1: torch.export.Dim.DYNAMIC},  # past + new
        "past": [{0: batch, 2: length}] * len(past),
    }
    outputs = ["logits", *(f"present.{name}" for name in names)]
    exported = export_wrapper(GenerateGraph(model), example, shapes, outputs)
    exported.graph.inputs[1].shape = ir.Shape(["batch", "past + new"])
    for value, name in zip(exported.graph.inputs[2:], names, strict=False):
        value.name = f"past_key_values.{name}"
    GroupQueries()(exported)
    common_passes.RemoveUnusedNodesPass()(exported)
    return exported


def _cache_sizes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Returns (heads, head_dim) of each layer's key and of its value, as the model makes them."""
    with torch.no_grad():
        cache = model(torch.zeros((1, 2), dtype=torch.int64), use_cache=True).past_key_values
    return [(tensor.shape[1], tensor.shape[3]) for tensor in _tensors(cache)]


def _tensors(cache: DynamicCache) -> list[Tensor]:
    """Returns each layer's key and value."""
    return [cast(Tensor, part) for layer in cache.layers for part in (layer.keys, layer.values)]
