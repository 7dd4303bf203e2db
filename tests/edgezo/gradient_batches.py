"""Batches that gradients are taken of, one for each objective, for models of 512 tokens."""

from __future__ import annotations

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
