"""Kinds of models by the name of their architecture: how each is loaded and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from edgezo_export.head_graph import export_head_graph, head_form, head_logits
from edgezo_export.masked_graph import export_masked_graph, masked_context_length
from edgezo_export.seq2seq_graph import (
    export_seq2seq_graph,
    seq2seq_context_length,
    seq2seq_form,
)
from edgezo_export.text_graph import export_text_graph

TEXT_INPUTS = ("input_ids", "attention_mask", "decoder_input_ids")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class Architecture:
    """One kind of model.

    Attributes:
        endings: what the names of its architectures end in.
        what: its name in errors.
        auto: the class of transformers that loads it.
        export: makes its weight-free graph.
        form: what tasks must know of a model; see `Manifest.form`.
        context_length: the longest sequence that a model takes, or None if it does not say.
        logits: what transformers computes for the answers of a batch, (answers, vocabulary).
        optimum_task: what optimum calls it.
    """

    endings: tuple[str, ...]
    what: str
    auto: Any
    export: Callable[[PreTrainedModel], ir.Model]
    form: Callable[[PreTrainedModel], dict[str, Any]]
    context_length: Callable[[PreTrainedModel], int | None]
    logits: Callable[[PreTrainedModel, Mapping[str, Tensor]], Tensor]
    optimum_task: str


def token_logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns what transformers computes at each position of `batch`, (answers, vocabulary)."""
    text = {name: batch[name] for name in TEXT_INPUTS if name in batch}
    logits = model(**text).logits
    return logits.reshape(-1, logits.shape[-1])[batch["positions"]]


def _plain_length(model: PreTrainedModel) -> int | None:
    lengths = (getattr(model.config, name, None) for name in _LENGTHS)
    return next((length for length in lengths if isinstance(length, int)), None)


CAUSAL = Architecture(
    ("ForCausalLM", "LMHeadModel"),
    "causal language models",
    AutoModelForCausalLM,
    export_text_graph,
    lambda model: {"kind": "causal"},
    _plain_length,
    token_logits,
    "text-generation",
)
ARCHITECTURES = (
    CAUSAL,
    Architecture(
        ("ForMaskedLM",),
        "masked language models",
        AutoModelForMaskedLM,
        export_masked_graph,
        lambda model: {"kind": "masked"},
        masked_context_length,
        token_logits,
        "fill-mask",
    ),
    Architecture(
        ("ForSequenceClassification",),
        "sequence classifiers",
        AutoModelForSequenceClassification,
        export_head_graph,
        head_form,
        lambda model: masked_context_length(model) or _plain_length(model),
        head_logits,
        "text-classification",
    ),
    Architecture(
        ("T5ForConditionalGeneration",),
        "T5",
        AutoModelForSeq2SeqLM,
        export_seq2seq_graph,
        seq2seq_form,
        seq2seq_context_length,
        token_logits,
        "text2text-generation",
    ),
)


def architecture_of(name: str) -> Architecture | None:
    """Returns the kind of the architecture `name`, or None if edgezo exports no such model."""
    return next((kind for kind in ARCHITECTURES if name.endswith(kind.endings)), None)
