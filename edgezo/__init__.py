"""edgezo: fine-tune a model where it runs, with forward passes only.

Example::

    model = edgezo.load("smollm2.edgezo", tune="upper")
    tuner = edgezo.Tuner(model, seed=0)
    for batch in edgezo.batches("train.jsonl", model, task="classify", batch_size=16):
        step = tuner.step(batch)
    tuner.save("run/")
"""

from __future__ import annotations

from edgezo.data.stream import batches as batches
from edgezo.evaluate import Metrics as Metrics
from edgezo.evaluate import evaluate as evaluate
from edgezo.generate import generate as generate
from edgezo.generate import generate_batch as generate_batch
from edgezo.step import Step as Step
from edgezo.tuner import Tuner as Tuner
from edgezo_runtime.errors import EdgezoError as EdgezoError
from edgezo_runtime.errors import InputError as InputError
from edgezo_runtime.model import Model as Model
from edgezo_runtime.model import load as load

__version__ = "0.1.0"
