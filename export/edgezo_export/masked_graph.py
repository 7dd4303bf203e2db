"""The graph of a masked language model: which token stands at the mask, from both its sides."""

from __future__ import annotations

import onnx_ir as ir
from transformers import PreTrainedModel

from edgezo_export.text_graph import TextGraph, export_graph


def export_masked_graph(model: PreTrainedModel) -> ir.Model:
    """Returns the weight-free graph of the masked language model `model`.

    Segments are all 0; the architecture itself counts the positions.

    Raises:
        InputError: the model cannot be exported; the message quotes the exporter's reason.
    """
    return export_graph(TextGraph(model, "masked language model"))


def masked_context_length(model: PreTrainedModel) -> int | None:
    """Returns how many tokens `model` takes, or None if its configuration does not say.

    RoBERTa and its kin number positions from `padding_idx + 1` on.
    """
    length = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    unused = getattr(table, "padding_idx", None)
    return length if length is None or unused is None else length - unused - 1
