"""The graph of an encoder and a decoder: the prompt goes into one, the answer into the other."""

from __future__ import annotations

from typing import Any, cast

import onnx_ir as ir
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgezo_export.text_graph import answers, export_graph, gathered
from edgezo_runtime.errors import InputError

#: What T5 was trained on; its positions are relative, so no configuration states a limit.
_TRAINED_LENGTH = 512


class Seq2SeqGraph(nn.Module):
    """Wraps any `*ForConditionalGeneration`; rows of both inputs are padded on the right."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,  # (batch, length) int64
        attention_mask: Tensor,  # (batch, length) int64, 0 at padding
        positions: Tensor,  # (answers,) int64, b * decoded + t
        targets: Tensor,  # (answers,) int64
        candidates: Tensor,  # (choices,) int64
        decoder_input_ids: Tensor,  # (batch, decoded) int64
    ) -> tuple[Tensor, Tensor]:  # (answers,) and (answers, choices), both float32
        """Returns the log-probability of each target and the logits of the candidates.

        The decoder needs no mask: its padding comes after whatever is read.
        """
        with gathered(cast(nn.Module, self.model.get_output_embeddings()), positions):
            logits = self.model(
                input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                use_cache=False,
            ).logits
        return answers(logits, targets, candidates)


def seq2seq_form(model: PreTrainedModel) -> dict[str, Any]:
    """Returns the form of `model`, with the token that begins every answer.

    Raises:
        InputError: its configuration does not name that token.
    """
    start = model.config.decoder_start_token_id
    if type(start) is not int:
        raise InputError(
            f"the config.json of {type(model).__name__} names no decoder_start_token_id; add it"
        )
    return {"kind": "seq2seq", "decoder_start": start}


def seq2seq_context_length(model: PreTrainedModel) -> int:
    """Returns how many tokens the encoder, and the decoder, takes."""
    for name in ("n_positions", "max_position_embeddings"):
        length = getattr(model.config, name, None)
        if isinstance(length, int):
            return length
    return _TRAINED_LENGTH


def export_seq2seq_graph(model: PreTrainedModel) -> ir.Model:
    """Returns the weight-free graph of the encoder and decoder `model`.

    Raises:
        InputError: the model cannot be exported; the message quotes the exporter's reason.
    """
    return export_graph(Seq2SeqGraph(model), decoder=True)
