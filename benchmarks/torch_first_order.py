"""PyTorch's steps with true gradients, in a process of their own; `first_order.py` drives it.

As in any training loop, the gradients are set to None before each backward pass. The loss is taken
from each row's last position only, as edgezo's is.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from edgezo.bench.processes import serve
from edgezo_runtime.memory import peak_bytes, resident_bytes

_LR = 1e-7
_OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "ip-sgd": lambda weights: torch.optim.SGD(weights, lr=_LR),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=_LR, momentum=0.9),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=_LR, weight_decay=0),
}


class TorchFirstOrder:
    """Takes steps on one batch, and times them."""

    def __init__(self) -> None:
        self._resident = resident_bytes()

    def open(
        self, bundle: str, feeds: str, labels: list[int], threads: int, optimizer: str
    ) -> None:
        """Loads the bundle's weights, and the batch's inputs from an ``.npz`` file."""
        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(bundle, dtype=torch.float32)
        with np.load(feeds) as file:
            inputs = {name: torch.from_numpy(file[name]) for name in file.files}
        self._tokens, self._mask = inputs["input_ids"], inputs["attention_mask"]
        self._candidates = inputs["candidates"]
        self._labels = torch.tensor(labels)
        self._optimizer = _OPTIMIZERS[optimizer](self._model.parameters())

    def step(self) -> dict[str, float]:
        """Takes a step; returns the loss before it, and its seconds."""
        started = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        logits = self._model(
            input_ids=self._tokens, attention_mask=self._mask, logits_to_keep=1
        ).logits[:, -1]
        chosen = logits[:, self._candidates]
        loss = torch.nn.functional.cross_entropy(chosen, self._labels)
        loss.backward()
        self._optimizer.step()
        return {"loss": loss.item(), "seconds": time.perf_counter() - started}

    def peak(self) -> int:
        """Returns the most memory that it ever had, above what its libraries take."""
        return peak_bytes() - self._resident


if __name__ == "__main__":
    serve(TorchFirstOrder())
