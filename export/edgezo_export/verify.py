"""Checks that a bundle computes what transformers computes, and that no weight is dead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from transformers import PreTrainedModel

from edgezo_export.architectures import CAUSAL as CAUSAL_MODELS
from edgezo_export.architectures import architecture_of
from edgezo_export.model_shell import lend_weights
from edgezo_export.mutations import dead_weights, moved
from edgezo_runtime import safetensors_file
from edgezo_runtime.bundle import CAUSAL, Bundle, open_bundle
from edgezo_runtime.errors import EdgezoError, InputError

#: Allowed difference, absolute and relative to the largest value: float32 rounds logits of size 30,
#: as trained models have, by about 1e-4 in either implementation.
TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-5
#: In float16 both implementations round each layer's result to 5e-4 of it, in different places; a
#: graph for bfloat16 has constants that are rounded to 4e-3.
HALF_TOLERANCE, HALF_RELATIVE_TOLERANCE = 2e-2, 1e-2
_SHAPES = ((3, 11), (1, 5))


@dataclass(frozen=True)
class Parity:
    """Largest difference from transformers over the checked shapes, by output."""

    logprobs: float
    candidate_logits: float


def mapped_weights(bundle: Bundle) -> dict[str, np.ndarray]:
    """Returns every parameter by name where it lies in its file, read-only and not copied."""
    entries = safetensors_file.read_header(bundle.weights)
    return {
        p.name: safetensors_file.map_tensor(bundle.weights, entries[p.name])
        for p in bundle.manifest.parameters
    }


class GraphRunner:
    """A bundle's graph in ONNX Runtime, its weights bound as inputs over maps of their file.

    Attributes:
        graph: the bytes of its file.
        outputs: names of its outputs.
        weights: each parameter in storage dtype, read-only; no copy of any is in memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: Path | bytes | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Maps the weights; raises InputError if they do not fit the manifest.

        Args:
            bundle: whose weights.
            graph: to run instead of the bundle's.
            weights: another runner's, where they are mapped already.
        """
        self.parameters = bundle.manifest.parameters
        self.form = bundle.manifest.form
        self.weights = mapped_weights(bundle) if weights is None else weights
        self.graph = graph if isinstance(graph, bytes) else (graph or bundle.graph).read_bytes()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and told once
        # Threads that wait in a loop double the work where other programs use the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            self.graph, options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [port.name for port in bundle.manifest.outputs]
        self._binding = self._session.io_binding()
        for name, array in self.weights.items():
            self.bind(name, array)

    def bind(self, name: str, array: np.ndarray) -> None:
        """Gives the parameter `name` the memory of `array`."""
        self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))

    def __call__(self, batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Returns the outputs for the data inputs `batch`.

        Raises:
            InputError: ONNX Runtime failed, as it does where a file has sizes of its own inside.
        """
        for name, array in batch.items():
            self._binding.bind_cpu_input(name, array)
        for name in self.outputs:
            self._binding.bind_output(name)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            rows, length = batch["input_ids"].shape
            raise InputError(
                f"the graph does not run on {rows} rows of {length} tokens, so that some of its "
                f"sizes are fixed: export it with dynamic axes ({' '.join(str(error).split())})"
            ) from error
        return self._binding.copy_outputs_to_cpu()


def sample_batch(
    vocabulary: int,
    batch: int,
    length: int,
    seed: int = 0,
    form: Mapping[str, Any] = CAUSAL,
    pad: int | None = None,
) -> dict[str, np.ndarray]:
    """Returns random data inputs whose rows but the first are padded on the right.

    Args:
        vocabulary: number of tokens.
        batch: number of rows.
        length: tokens of the first row.
        seed: names the draws.
        form: the model's; see `Manifest.form`.
        pad: no token is this one.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    lengths = np.maximum(length - np.arange(batch) * 3, 2)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    rows = np.repeat(np.arange(batch), 2)
    times = np.stack([lengths - 1, lengths // 2], axis=1).reshape(-1)
    draw = generator.integers
    answers = vocabulary
    input_ids = draw(0, vocabulary, (batch, length)) * mask
    inputs = {"input_ids": np.where(input_ids == pad, (input_ids + 1) % vocabulary, input_ids)}
    if form["kind"] == "head":
        answers = len(form["labels"])
        times = np.repeat(lengths - 1 if form["position"] else 0 * lengths, 2)
    if form["kind"] == "seq2seq":
        # The decoder reads about half as many tokens as the encoder.
        length, times = length // 2 + 1, times // 2
        inputs["decoder_input_ids"] = draw(0, vocabulary, (batch, length))
    return inputs | {
        "attention_mask": mask,
        "positions": rows * length + times,
        "targets": draw(0, answers, len(rows)),
        "candidates": draw(0, answers, 1 + batch),
    }


def reference(model: PreTrainedModel, batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Returns what the graph's outputs should be, computed with transformers."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    architecture = architecture_of(type(model).__name__) or CAUSAL_MODELS
    with torch.no_grad(), one_thread():
        logits = architecture.logits(model, tensors).float()
    logprobs = logits.log_softmax(dim=1).gather(1, tensors["targets"][:, None])[:, 0]
    return [logprobs.numpy(), logits[:, tensors["candidates"]].numpy()]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute in one thread: several wait for each other where the cores are in use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_parity(runner: GraphRunner, model: PreTrainedModel, half: bool = False) -> Parity:
    """Compares the graph with `model`, which has the same weights, at two shapes new to both.

    Args:
        runner: runs the graph.
        model: what it should compute.
        half: whether the graph computes in 16 bits, or is made for that.

    Raises:
        EdgezoError: an output differs by more than the tolerance.
    """
    absolute, relative = TOLERANCE, RELATIVE_TOLERANCE
    if half:
        absolute, relative = HALF_TOLERANCE, HALF_RELATIVE_TOLERANCE
    worst = [0.0, 0.0]
    allowed = absolute
    for batch, length in _SHAPES:
        config = model.config
        inputs = sample_batch(
            config.vocab_size, batch, length, form=runner.form, pad=config.pad_token_id
        )
        pairs = zip(runner(inputs), reference(model, inputs), strict=True)
        for i, (ours, theirs) in enumerate(pairs):
            # `maximum` keeps a NaN, which `max` may lose.
            worst[i] = float(np.maximum(worst[i], np.abs(ours - theirs).max()))
            allowed = max(allowed, absolute + relative * float(np.abs(theirs).max()))
    if not all(difference <= allowed for difference in worst):
        raise EdgezoError(
            f"the exported graph of {type(model).__name__} differs from transformers by "
            f"{worst[0]:.1e} in log-probabilities and {worst[1]:.1e} in logits, more than "
            f"{allowed:.1e}: edgezo cannot tune this architecture"
        )
    return Parity(*worst)


def check_mutations(
    runner: GraphRunner, vocabulary: int, model: PreTrainedModel | None = None
) -> None:
    """Perturbs each parameter alone and checks that an output moves, if only by a rounding.

    Args:
        runner: runs the graph.
        vocabulary: number of tokens.
        model: with the runner's weights: what moves nothing there either, as a key's bias, may be.

    Raises:
        InputError: a parameter that moves nothing; the message names it.
    """
    texts = sample_batch(vocabulary, 2, 6, form=runner.form)
    dead = dead_weights(runner.graph, runner.weights, texts, runner.outputs)
    if dead and (model is None or _sees(model, runner, texts, dead)):
        raise InputError(
            f"changing parameter {dead[0]!r} does not change the graph's outputs: "
            "edgezo cannot tune a model with a dead weight"
        )


def _sees(
    model: PreTrainedModel, runner: GraphRunner, texts: Mapping[str, np.ndarray], names: list[str]
) -> bool:
    """Whether what `model` returns depends on weights by more than roundings."""
    before = reference(model, texts)
    lend_weights(model, {**runner.weights, **moved(runner.weights, names)})
    try:
        after = reference(model, texts)
    finally:
        lend_weights(model, runner.weights)
    pairs = zip(before, after, strict=True)
    return not all(
        np.abs(a - b).max() <= TOLERANCE + RELATIVE_TOLERANCE * np.abs(b).max() for b, a in pairs
    )


def verify_bundle(folder: Path, model: PreTrainedModel, half: bool = False) -> GraphRunner:
    """Checks the bundle in `folder` against `model`, a shell that it lends its weights.

    Args:
        folder: the bundle's.
        model: a shell of the same model.
        half: as `check_parity` has it.

    Returns:
        What runs the graph, over the weights that `model` has now.

    Raises:
        EdgezoError: it computes something else.
        InputError: it is damaged, or has a weight that changes nothing.
    """
    runner = GraphRunner(open_bundle(folder))
    lend_weights(model, runner.weights)
    check_parity(runner, model, half)
    check_mutations(runner, model.config.vocab_size, model)
    return runner
