"""The graph of a causal language model: token ids in, answer log-probabilities out.

Only the hidden states at the answers' positions meet the vocabulary projection, so the
`(batch, length, vocabulary)` logits never exist.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgezo_export.torch_export import export_wrapper
from edgezo_runtime.errors import InputError

INPUTS = ("input_ids", "attention_mask", "positions", "targets", "candidates")
OUTPUTS = ("logprobs", "candidate_logits")
LONG_SUM = 4096  # terms that are not added in sequence


class TextGraph(nn.Module):
    """Wraps a model with a vocabulary projection; rows are padded on the right.

    Args:
        model: any `*ForCausalLM` or `*ForMaskedLM`.
        what: what the model should be, for errors.
        options: more that its `forward` takes.
    """

    def __init__(
        self, model: PreTrainedModel, what: str = "causal language model", **options: bool
    ) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise InputError(
                f"{type(model).__name__} has no vocabulary projection; export a {what}"
            )
        self.model = model
        self.options = options

    def forward(
        self,
        input_ids: Tensor,  # (batch, length) int64
        attention_mask: Tensor,  # (batch, length) int64, 0 at padding
        positions: Tensor,  # (answers,) int64, b * length + t
        targets: Tensor,  # (answers,) int64
        candidates: Tensor,  # (choices,) int64
    ) -> tuple[Tensor, Tensor]:  # (answers,) and (answers, choices), both float32
        """Returns the log-probability of each target and the logits of the candidates."""
        # A hook, and not a call of the base model, so that whatever the architecture does to
        # its logits afterwards (scaling, soft-capping) stays in the graph.
        with gathered(cast(nn.Module, self.model.get_output_embeddings()), positions):
            logits = self.model(input_ids, attention_mask=attention_mask, **self.options).logits
        return answers(logits, targets, candidates)


@contextlib.contextmanager
def gathered(module: nn.Module, positions: Tensor) -> Iterator[None]:
    """Lets `module` see, of (batch, length, features), the rows at `positions` (answers,) alone."""

    def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions), *args[1:])

    handle = module.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def answers(logits: Tensor, targets: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a graph's outputs for the logits of each answer, (answers, vocabulary)."""
    logits = logits.float()
    chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    return chosen - _logsumexp(logits), logits.index_select(1, candidates)


def logsumexp_groups(vocabulary: int) -> int:
    """Returns in how many groups to reduce the logits first; 0 for too few or uneven ones."""
    groups = next(n for n in range(math.isqrt(vocabulary), 0, -1) if vocabulary % n == 0)
    return groups if groups >= 8 else 0


def _logsumexp(logits: Tensor) -> Tensor:  # (answers, vocabulary) -> (answers,)
    """Reduces in two levels: ONNX Runtime adds in sequence, over 50,000 terms to 1e-4 only.

    That is as accurate as its LogSoftmax, and needs no second buffer of the logits' size.
    """
    vocabulary = logits.shape[1]
    if groups := logsumexp_groups(vocabulary):
        return logits.unflatten(1, (groups, -1)).logsumexp(dim=2).logsumexp(dim=1)
    return logits.logsumexp(dim=1) if vocabulary < LONG_SUM else _from_log_softmax(logits)


def _from_log_softmax(logits: Tensor) -> Tensor:
    return logits[:, 0] - logits.log_softmax(dim=1)[:, 0]


def export_text_graph(model: PreTrainedModel) -> ir.Model:
    """Returns the weight-free graph of `model`: data inputs first, then its parameters.

    Args:
        model: a causal language model; its weights' values do not matter.

    Raises:
        InputError: the model cannot be exported; the message quotes the exporter's reason.
    """
    return export_graph(TextGraph(model, use_cache=False))


def export_graph(wrapper: nn.Module, vocabulary: int = 8, decoder: bool = False) -> ir.Model:
    """Returns the weight-free graph of a `wrapper` of the model under its attribute `model`.

    Args:
        wrapper: its `forward` takes `INPUTS`.
        vocabulary: number of tokens, or of labels, that targets and candidates choose from.
        decoder: whether it takes `decoder_input_ids` too.

    Raises:
        InputError: the model cannot be exported; the message quotes the exporter's reason.
    """
    dims = {n: torch.export.Dim(n) for n in ("batch", "length", "answers", "choices", "decoded")}
    # Sizes differ from each other and from 0 and 1, or torch would take them for constants.
    example = {
        "input_ids": torch.full((2, 7), 5),
        "attention_mask": torch.ones((2, 7), dtype=torch.int64),
        "positions": torch.tensor([2, 6, 7]),
        "targets": torch.tensor([5, 6, 7]) % vocabulary,
        "candidates": torch.tensor([3, 4, 5, 6, 7]) % vocabulary,
    }
    shapes: dict[str, Any] = {
        "input_ids": {0: dims["batch"], 1: dims["length"]},
        "attention_mask": {0: dims["batch"], 1: dims["length"]},
        "positions": {0: dims["answers"]},
        "targets": {0: dims["answers"]},
        "candidates": {0: dims["choices"]},
    }
    if decoder:
        example["decoder_input_ids"] = torch.full((2, 4), 6)
        shapes["decoder_input_ids"] = {0: dims["batch"], 1: dims["decoded"]}
    return export_wrapper(wrapper, example, shapes, list(OUTPUTS))
