"""Files that others published on PyPI, untouched: see tests/data/README.md."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from edgezo_export.gradients.bundle import DERIVED, add_to_bundle
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import Direction
from edgezo_runtime.ort import onnxruntime

DATA = Path(__file__).parents[1] / "data"
ROWS = 3
STEP = 1e-4  # along the gradient: the loss bends over longer ways, and rounds over shorter ones


@dataclass(frozen=True)
class Published:
    """A file and what is known of it.

    Attributes:
        path: the file.
        output: what the loss judges.
        loss: the loss.
        tensors: how many of its constants are weights.
        weights: how many numbers they hold.
        feeds: draws inputs of `ROWS` rows, for each branch.
        targets: draws the right answers.
    """

    path: Path
    output: str
    loss: str
    tensors: int
    weights: int
    feeds: Callable[[np.random.Generator], list[dict[str, np.ndarray]]]
    targets: Callable[[np.random.Generator], np.ndarray]


def _speech(rng: np.random.Generator, rate: int) -> dict[str, np.ndarray]:
    """A window of sound: 512 samples and the 64 before them, half of that at 8 kHz."""
    return {
        "input": rng.standard_normal((ROWS, 576 * rate // 16000), np.float32) / 4,
        "state": rng.standard_normal((2, ROWS, 128), np.float32),
        "sr": np.array(rate),
    }


FILES = {
    "magika": Published(
        DATA / "magika.onnx",
        "target_label",
        "cross-entropy",
        10,
        784_214,
        lambda rng: [{"bytes": rng.integers(0, 257, (ROWS, 2048), np.int32)}],
        lambda rng: rng.integers(0, 214, ROWS),
    ),
    "rapidocr": Published(
        DATA / "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "save_infer_model/scale_0.tmp_1",
        "cross-entropy",
        143,
        129_356,
        lambda rng: [{"x": rng.standard_normal((ROWS, 3, 48, 64), np.float32)}],
        lambda rng: rng.integers(0, 2, ROWS),
    ),
    "silero": Published(
        DATA / "silero_vad.onnx",
        "output",
        "mse",
        30,
        545_282,
        lambda rng: [_speech(rng, 16000), _speech(rng, 8000)],
        lambda rng: rng.random((ROWS, 1), np.float32),
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of each file's bundle, made by one process that has no torch."""
    folder = tmp_path_factory.mktemp("published")
    asked = [(name, str(f.path), f.output, f.loss) for name, f in FILES.items()]
    script = f"""
import sys
from pathlib import Path
for name in ("torch", "transformers", "optimum"):
    sys.modules[name] = None  # importing it raises
from edgezo_export.onnx_file import onnx_to_bundle
for name, path, output, loss in {asked!r}:
    out = Path({str(folder)!r}) / (name + ".edgezo")
    onnx_to_bundle(Path(path), out, output=output, loss=loss)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    return folder


@pytest.fixture(params=FILES)
def case(request: pytest.FixtureRequest, exported: Path) -> tuple[Published, Model]:
    return FILES[request.param], load(exported / f"{request.param}.edgezo", threads=1)


def batches(file: Published) -> list[ArrayBatch]:
    """Returns one batch, or one for each branch of silero's `If`."""
    rng = np.random.default_rng(1)
    return [ArrayBatch(feeds, file.targets(rng), RowLoss()) for feeds in file.feeds(rng)]


def plain(file: Published, model: ModelProto, batch: ArrayBatch) -> np.ndarray:
    """Returns what ONNX Runtime's default session computes of `model`."""
    session = onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run([file.output], dict(batch.inputs))[0]


def constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Yields every constant of a file by name: initializers and Constant nodes, at any depth."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t
            if attribute.HasField("g"):
                yield from constants(attribute.g)


def test_all_weights_are_parameters(case: tuple[Published, Model]) -> None:
    file, model = case
    parameters = model.bundle.manifest.parameters
    assert len(parameters) == file.tensors
    assert sum(p.size for p in parameters) == file.weights
    theirs = dict(constants(onnx.load(file.path).graph))
    for name, view in model.arena.views.items():
        np.testing.assert_array_equal(view, numpy_helper.to_array(theirs[name]), strict=True)


def test_outputs_are_the_files(case: tuple[Published, Model]) -> None:
    file, model = case
    theirs = onnx.load(file.path)
    for batch in batches(file):
        expected = plain(file, theirs, batch)
        found = model.forward(batch)[file.output]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_tuned_weights_are_those_of_a_tuned_file(case: tuple[Published, Model]) -> None:
    """All weights change by a tenth, in the bundle and in the file itself."""
    file, model = case
    changed = onnx.load(file.path)
    theirs = dict(constants(changed.graph))
    before = [model.forward(batch)[file.output] for batch in batches(file)]
    rng = np.random.default_rng(2)
    for name, view in model.arena.views.items():
        view *= 1 + rng.standard_normal(view.shape, np.float32) / 10
        theirs[name].CopyFrom(numpy_helper.from_array(view, theirs[name].name))
    for batch, first in zip(batches(file), before, strict=True):
        expected = plain(file, changed, batch)
        found = model.forward(batch)[file.output]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert np.abs(found - first).max() > 1e-4 * np.abs(first).max()


def test_each_weight_alone_moves_the_loss(case: tuple[Published, Model]) -> None:
    file, model = case
    asked = batches(file)
    before = [model.forward(batch)["losses"] for batch in asked]
    rng = np.random.default_rng(3)
    for name, view in model.arena.views.items():
        kept = view.copy()
        view += rng.standard_normal(view.shape, np.float32)
        after = [model.forward(batch)["losses"] for batch in asked]
        view[...] = kept
        moved = [not np.array_equal(*pair) for pair in zip(before, after, strict=True)]
        assert sum(moved) == 1, name  # silero's branches have weights of their own
    for batch, losses in zip(asked, before, strict=True):
        np.testing.assert_array_equal(model.forward(batch)["losses"], losses)


@pytest.mark.parametrize("name", ["magika", "rapidocr"])
def test_gradients_of_published_files(name: str, exported: Path, tmp_path: Path) -> None:
    """Forward mode agrees with reverse mode, and that with how the loss moves along it."""
    file = FILES[name]
    folder = exported / f"{name}.edgezo"
    for added in DERIVED:
        add_to_bundle(open_bundle(folder), tmp_path / added, added)
        folder = tmp_path / added
    model = load(folder, threads=1)
    (batch,) = batches(file)
    gradient: dict[str, np.ndarray] = {}
    names = list(model.arena.views)
    loss = model.descend(batch, names, gradient.__setitem__, False)
    direction = Direction(0, 1)
    z, starts = direction.draw(np, model.arena.size), model.arena.noise_offsets
    slope = sum(
        float(np.vdot(g.reshape(-1).astype(np.float64), z(starts[n], starts[n] + g.size)))
        for n, g in gradient.items()
    )
    assert model.derivative(batch, direction) == pytest.approx((loss, slope), rel=2e-4)
    length = np.sqrt(sum(np.vdot(g, g) for g in gradient.values()))
    first = {n: view.copy() for n, view in model.arena.views.items()}
    ends = []
    for reach in (STEP, -STEP):
        for n, view in model.arena.views.items():
            view[...] = first[n] + gradient[n] * (reach / length)
        ends.append(float(model.forward(batch)["losses"].astype(np.float64).mean()))
    assert (ends[0] - ends[1]) / (2 * STEP) == pytest.approx(length, rel=0.02)
