"""Batches for models of 512 tokens, and their gradients as PyTorch has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgezo_runtime.batch import Batch, CandidateLoss, Objective, OptionLoss, TokenLoss

OBJECTIVES: dict[str, Objective] = {
    "candidates": CandidateLoss(np.array([0, 1, 1, 0])),
    "options": OptionLoss(np.array([0, 1, 2, 3]), np.array([1, 0]), np.array([2, 2])),
    "uneven": OptionLoss(np.array([0, 1, 2, 2]), np.array([1, 0]), np.array([2, 1]), mean=True),
    "tokens": TokenLoss(2),
}


def batch_of(objective: Objective) -> Batch:
    ids = np.random.default_rng(0).integers(3, 512, (2, 9))
    mask = np.array([[1] * 9, [1] * 6 + [0] * 3])
    positions = np.array([3, 8, 12, 14])
    return Batch(ids, mask, positions, np.array([7, 9, 7, 30]), np.array([7, 9]), objective)


def torch_gradients(folder: Path, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """Returns loss and gradients as transformers and torch compute them."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    logits = model(input_ids=ids, attention_mask=mask).logits.reshape(-1, 512)[batch.positions]
    chosen = logits.log_softmax(1)[torch.arange(4), torch.from_numpy(batch.targets)]
    if isinstance(batch.objective, CandidateLoss):
        labels = torch.from_numpy(batch.objective.labels)
        loss = cross_entropy(logits[:, torch.from_numpy(batch.candidates)], labels)
    elif isinstance(batch.objective, OptionLoss) and batch.objective.mean:
        loss = cross_entropy(chosen[None, :2], torch.tensor([1])) / 2  # a row of one has no loss
    elif isinstance(batch.objective, OptionLoss):
        loss = cross_entropy(chosen.reshape(2, 2), torch.from_numpy(batch.objective.labels))
    else:
        loss = -chosen.mean()
    loss.backward()
    return loss.item(), {n: np.asarray(p.grad) for n, p in model.named_parameters()}
