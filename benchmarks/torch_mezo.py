"""The published MeZO loop in PyTorch, in a process of its own; `versus_torch.py` drives it.

The loss is taken from each row's last position only, as edgezo's is: the published code computes
the logits of all positions, which would take longer.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path
from typing import Any

import numpy as np
import torch
from published_loop import published_step
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from edgezo.bench.processes import serve, timed
from edgezo_runtime.bundle import WEIGHTS

LR = 1e-7


class TorchMezo:
    """Takes MeZO steps on one batch, and times them."""

    def open(self, bundle: str, feeds: str, labels: list[int], threads: int) -> None:
        """Loads the bundle's weights, and the batch's inputs from an ``.npz`` file."""
        torch.set_num_threads(threads)
        self._model: Any = OPTForCausalLM(OPTConfig.from_pretrained(bundle))
        found = self._model.load_state_dict(load_file(Path(bundle) / WEIGHTS), strict=False)
        tied = {"lm_head.weight"}
        if found.unexpected_keys or set(found.missing_keys) - tied:
            raise ValueError(f"the weights do not fit the model: {found}")
        self._model.eval()
        with np.load(feeds) as file:
            inputs = {name: torch.from_numpy(file[name]) for name in file.files}
        self._tokens, self._mask = inputs["input_ids"], inputs["attention_mask"]
        self._candidates = inputs["candidates"]
        self._labels = torch.tensor(labels)
        self._named = [(n, p) for n, p in self._model.named_parameters() if p.requires_grad]
        self._rng = np.random.RandomState(0)

    def loss(self) -> float:
        """Returns the batch's mean loss."""
        with torch.inference_mode():
            hidden = self._model.model(input_ids=self._tokens, attention_mask=self._mask)[0]
            logits = hidden[:, -1] @ self._model.lm_head.weight.T
            chosen = logits[:, self._candidates]
            return torch.nn.functional.cross_entropy(chosen, self._labels).item()

    def step(self, count: int) -> list[float]:
        """Returns the seconds of each of `count` MeZO steps."""
        return timed(self._step, count)

    def _step(self) -> None:
        published_step(self._named, self._rng.randint(1000000000), self.loss, LR)


if __name__ == "__main__":
    serve(TorchMezo())
