"""The graph of a sequence classifier: the logits of its head at the one token that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgezo_export.text_graph import answers, export_graph
from edgezo_runtime.errors import InputError

FIRST, LAST = 0, -1


class HeadGraph(nn.Module):
    """Wraps any `*ForSequenceClassification` whose head reads the first or the last token.

    The head sees the tokens at `positions` alone. The labels take the place of the vocabulary:
    targets and candidates are numbers of labels.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
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
        last = head_position(self.model) == LAST
        no_cache = {"use_cache": False} if last else {}
        hidden = self.model.base_model(input_ids, attention_mask=attention_mask, **no_cache)[0]
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
        if last:
            logits = cast(nn.Module, self.model.score)(rows)
        else:
            # Both take (rows, tokens, features) and read the first token.
            pooler = getattr(self.model.base_model, "pooler", None)
            first = rows.unsqueeze(1)
            logits = cast(nn.Module, self.model.classifier)(pooler(first) if pooler else first)
        return answers(logits, targets, candidates)


def head_position(model: PreTrainedModel) -> int:
    """Returns the token that the head of `model` reads: the first, 0, or the last, -1.

    Raises:
        InputError: it has no head that edgezo knows.
    """
    for name, position in (("score", LAST), ("classifier", FIRST)):
        if isinstance(getattr(model, name, None), nn.Module):
            return position
    raise InputError(
        f"{type(model).__name__} has neither a score nor a classifier layer; edgezo exports "
        "classifiers such as BertForSequenceClassification and LlamaForSequenceClassification"
    )


def head_form(model: PreTrainedModel) -> dict[str, Any]:
    """Returns the form of a classifier: its labels in their order, and the token it reads.

    Raises:
        InputError: it has fewer than two labels, or scores each label by itself.
    """
    config = model.config
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise InputError(
            f"{type(model).__name__} has {config.num_labels} labels and problem type "
            f"{config.problem_type}; edgezo tunes heads that choose one of two or more labels"
        )
    names = config.id2label or {}
    labels = [str(names[number]) for number in range(config.num_labels)]
    return {"kind": "head", "position": head_position(model), "labels": labels}


def export_head_graph(model: PreTrainedModel) -> ir.Model:
    """Returns the weight-free graph of the sequence classifier `model`.

    Raises:
        InputError: the model cannot be exported; the message quotes the exporter's reason.
    """
    return export_graph(HeadGraph(model), vocabulary=model.config.num_labels)


def head_logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns what transformers computes for the answers of `batch`, (answers, labels).

    Each row goes alone and without its padding, so that transformers finds the last token itself.
    """
    rows = batch["positions"] // batch["input_ids"].shape[1]
    lengths = batch["attention_mask"].sum(dim=1)
    logits = [
        model(ids[None, :length]).logits
        for ids, length in zip(batch["input_ids"], lengths.tolist(), strict=True)
    ]
    return torch.cat(logits)[rows]
