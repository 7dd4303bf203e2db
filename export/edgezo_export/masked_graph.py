"""The graph of a masked language model: which token stands at the mask, from both its sides."""

from __future__ import annotations

from typing import cast

import onnx_ir as ir
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgezo_export.text_graph import answers, export_graph, gathered
from edgezo_runtime.errors import InputError


class MaskedGraph(nn.Module):
    """Wraps any `*ForMaskedLM`; rows are padded on the right.

    Segments are all 0; the architecture itself counts the positions.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        if not isinstance(model.get_output_embeddings(), nn.Module):
            raise InputError(
                f"{type(model).__name__} has no vocabulary projection; "
                "export a masked language model"
            )
        self.model = model

    def forward(
        self,
        input_ids: Tensor,  # (batch, length) int64
        attention_mask: Tensor,  # (batch, length) int64, 0 at padding
        positions: Tensor,  # (answers,) int64, b * length + t
        targets: Tensor,  # (answers,) int64
        candidates: Tensor,  # (choices,) int64
    ) -> tuple[Tensor, Tensor]:  # (answers,) and (answers, choices), both float32
        """Returns the log-probability of each target and the logits of the candidates."""
        with gathered(cast(nn.Module, self.model.get_output_embeddings()), positions):
            logits = self.model(input_ids, attention_mask=attention_mask).logits
        return answers(logits, targets, candidates)


def export_masked_graph(model: PreTrainedModel) -> ir.Model:
    """Returns the weight-free graph of the masked language model `model`.

    Raises:
        InputError: the model cannot be exported; the message quotes the exporter's reason.
    """
    return export_graph(MaskedGraph(model))


def masked_context_length(model: PreTrainedModel) -> int | None:
    """Returns how many tokens `model` takes, or None if its configuration does not say.

    RoBERTa and its kin number positions from `padding_idx + 1` on.
    """
    length = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    unused = getattr(table, "padding_idx", None)
    return length if length is None or unused is None else length - unused - 1
