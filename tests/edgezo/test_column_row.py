"""Gradients estimated from some of the rows: their mean, their variance, and runs that use them."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from edgezo_runs import called, mutation_batch, refused, result_of
from foreign_files import save, with_weights

from edgezo.settings import Settings
from edgezo.train import resume
from edgezo.train import train as run_training
from edgezo_export.adapters.base import adapt
from edgezo_export.gradients.bundle import add_to_bundle
from edgezo_export.gradients.reverse import add_gradients, gradient_graph
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_runtime.bundle import GRADIENTS, QUANTIZED, open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.draws import Draws
from edgezo_runtime.first_order.graph import Graph
from edgezo_runtime.model import Model, load
from edgezo_runtime.parts import PartedBatch

ROWS, INPUTS, OUTPUTS = 40, 6, 5
WIDE = ROWS * 2  # more numbers than any product takes
#: Ways to multiply rows with a weight: the nodes, the shape of the rows, and of the weight.
PRODUCTS = {
    "linear": ("t = Transpose(w) y = MatMul(x, t)", (4, 10, INPUTS), (OUTPUTS, INPUTS)),
    "matmul": ("y = MatMul(x, w)", (ROWS, INPUTS), (INPUTS, OUTPUTS)),
    "gemm": ("y = Gemm(x, w)", (ROWS, INPUTS), (INPUTS, OUTPUTS)),
    "turned": ("y = Gemm<transA=1, transB=1>(x, w)", (INPUTS, ROWS), (OUTPUTS, INPUTS)),
}
#: What rows may be like: each changes the importance of (ROWS,) rows, at first all much alike.
KINDS: dict[str, Callable[[np.ndarray], object]] = {
    "alike": lambda scale: None,
    "uneven": lambda scale: np.multiply(scale, np.arange(1, ROWS + 1) ** -1.5, out=scale),
    "one": lambda scale: scale.put(7, 1e4),
    "padding": lambda scale: scale.put(range(22, ROWS), 0),
    "fewer than the budget": lambda scale: scale.put(range(5, ROWS), 0),
    "nothing": lambda scale: scale.fill(0),
}


def product(name: str, fraction: float) -> Callable[..., np.ndarray]:
    """Returns what computes the gradient of a product's weight from rows, cotangent and numbers."""
    nodes, shape, weight = PRODUCTS[name]
    free = [f"d{i}" if size in (4, 10, ROWS) else str(size) for i, size in enumerate(shape)]
    text = (
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[{",".join(free)}] x, '
        f"float[{weight[0]},{weight[1]}] w) => (float y) {{ {nodes} }}"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    model.graph.outputs[0].shape = None
    add_gradients(model, ["w"], fraction)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString())
    zeros = np.zeros(weight, np.float32)

    def run(x: np.ndarray, dy: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        given = x.T if name == "turned" else x.reshape(shape)
        seeds = dy.reshape(*shape[:-1], OUTPUTS) if len(shape) > 2 else dy
        feeds = {"x": given, "w": zeros, "y.cotangent": seeds, "y.uniform": uniform}
        (found,) = session.run(["w.gradient"], feeds)
        found = np.asarray(found)
        return found if weight == (OUTPUTS, INPUTS) else found.T

    return run


def rows_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and cotangents, of which two pairs are the same."""
    generator = np.random.default_rng(3)
    scale = np.ones(ROWS)
    KINDS[kind](scale)
    x = generator.standard_normal((ROWS, INPUTS)).astype(np.float32)
    dy = (generator.standard_normal((ROWS, OUTPUTS)) * scale[:, None]).astype(np.float32)
    x[[1, 3]], dy[[1, 3]] = x[[0, 2]], dy[[0, 2]]
    return x, dy


def split(x: np.ndarray, dy: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the importance of each row, the rows of C, and the others, the largest first."""
    q = np.linalg.norm(x.astype(float), axis=1) * np.linalg.norm(dy.astype(float), axis=1)
    order = np.argsort(-q, kind="stable")
    rest = [float(q[order[size:]].sum()) for size in range(budget + 1)]
    bounds = [total / (budget - size) for size, total in enumerate(rest[:-1])]
    bounds.append(0.0 if rest[-1] == 0 else math.inf)
    size = int(np.argmin(bounds))
    return q, order[:size], order[size:]


def estimate(x: np.ndarray, dy: np.ndarray, budget: int, uniform: np.ndarray) -> np.ndarray:
    """Returns what the paper's estimator makes of some numbers."""
    q, winners, others = split(x, dy, budget)
    found = dy[winners].T.astype(float) @ x[winners]
    total, count = q[others].sum(), budget - len(winners)
    if total == 0:
        return found
    below = total - np.cumsum(q[others])  # a row has the numbers above what is below it
    for number in uniform[:count].astype(float):
        row = others[np.argmax(number * total > below)]
        found += np.outer(dy[row], x[row]) * total / (count * q[row])
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_estimate_is_the_papers(name: str, kind: str) -> None:
    run = product(name, 0.3)
    x, dy = rows_of(kind)
    for step in range(3):
        uniform = Draws(5, step).uniform(0, 1, WIDE)
        expected = estimate(x, dy, 12, uniform)
        np.testing.assert_allclose(run(x, dy, uniform), expected, rtol=1e-5, atol=1e-5)
    nothing_left_out = product(name, 0.9999)(x, dy, uniform)
    np.testing.assert_allclose(nothing_left_out, dy.T @ x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["alike", "uneven", "one", "padding"])
def test_its_mean_is_the_gradient_and_its_variance_the_formulas(kind: str) -> None:
    run = product("matmul", 0.3)
    x, dy = rows_of(kind)
    exact = dy.T.astype(float) @ x
    draws = 2000
    errors = np.stack([run(x, dy, Draws(0, i).uniform(0, 1, WIDE)) - exact for i in range(draws)])
    variance = float((errors**2).sum(axis=(1, 2)).mean())
    # The squared error of a mean of independent estimates is their variance over their number.
    assert draws * float((errors.mean(axis=0) ** 2).sum()) < 2 * variance
    q, winners, others = split(x, dy, 12)
    left = dy[others].T.astype(float) @ x[others]
    expected = (q[others].sum() ** 2 - (left**2).sum()) / (12 - len(winners))
    assert variance == pytest.approx(expected, rel=0.08)
    plain = (q.sum() ** 2 - (exact**2).sum()) / 12  # of draws alone
    assert expected <= (0.7 if kind in ("uneven", "one") else 1 + 1e-9) * plain


def test_a_cotangent_that_is_no_number_is_not_lost() -> None:
    x, dy = rows_of("uneven")
    dy[30, 2] = np.nan
    found = product("linear", 0.3)(x, dy, Draws(0, 0).uniform(0, 1, WIDE))
    assert not np.isfinite(found).all()


def test_the_numbers_are_even_and_of_their_own_name() -> None:
    numbers = Draws(1, 2).uniform(3, 7, 40_001)
    assert numbers.dtype == np.float32 and len(numbers) == 40_001
    assert numbers.min() > 0 and numbers.max() <= 1
    assert np.histogram(numbers, 10, (0, 1))[0] == pytest.approx(np.full(10, 4000), rel=0.06)
    others = [Draws(2, 2), Draws(1, 3), Draws(1, 2, 1)]
    for other in [*(each.uniform(3, 7, 9) for each in others), Draws(1, 2).uniform(4, 7, 9)]:
        assert not np.isin(other, numbers[:9]).any()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with gradients of 0.3 of the rows."""
    out = tmp_path_factory.mktemp("rows") / "tiny.edgezo"
    add_to_bundle(open_bundle(tiny_bundle), out, column_row=0.3)
    return out


def gradients(model: Model, batch: object, draws: Draws, keep: bool = False) -> dict:
    found: dict[str, np.ndarray] = {}
    model.descend(batch, list(model.arena.views), found.__setitem__, keep, draws)  # type: ignore[arg-type]
    return found


def test_a_model_has_exact_cotangents_and_unbiased_gradients(
    bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    add_to_bundle(open_bundle(tiny_bundle), tmp_path / "exact.edgezo")
    batch, draws = mutation_batch(512, 5, 9), 60
    exact = gradients(load(tmp_path / "exact.edgezo", threads=1), batch, Draws(0, 0))
    model = load(bundle, threads=1)
    sums = {name: np.zeros(gradient.shape) for name, gradient in exact.items()}
    squares = dict.fromkeys(exact, 0.0)
    for step in range(draws):
        for name, gradient in gradients(model, batch, Draws(0, step), bool(step % 2)).items():
            sums[name] += gradient - exact[name]
            squares[name] += float(((gradient - exact[name]) ** 2).sum())
    for name, gradient in exact.items():
        size = float((gradient**2).sum())
        if gradient.ndim == 1:  # a norm's, to which every layer above passes cotangents
            assert squares[name] < 1e-9 * draws * size, name
        else:
            assert squares[name] > 1e-4 * draws * size, name
            assert float((sums[name] ** 2).sum()) < 1.6 * squares[name], name
    every = PartedBatch.of([batch, batch])
    one, other = (gradients(model, batch, Draws(9, 4, part)) for part in (0, 1))
    for name, gradient in gradients(model, every, Draws(9, 4)).items():
        assert gradient.ndim == 1 or not np.array_equal(one[name], other[name])
        np.testing.assert_allclose(gradient, (one[name] + other[name]) / 2, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", ["adamw", "lomo"])
def test_a_broken_run_goes_on_to_the_same_bytes(
    bundle: Path, data: Path, tmp_path: Path, method: str
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = Settings(
        bundle=str(bundle),
        data=str(data / "train.jsonl"),
        out=str(whole),
        method=method,
        steps=6,
        batch_size=12,
        micro_batch=6,
        lr=1e-3,
        seed=3,
        snapshot_every=3,
        threads=1,
    )
    run_training(settings)
    shutil.copytree(whole, broken)
    (broken / "model.safetensors").unlink()
    sorted((broken / "snapshots").glob("step-*.json"))[-1].unlink()
    assert resume(broken).finished
    assert result_of(broken) == result_of(whole)


def test_an_adapter_is_sampled_like_its_base(bundle: Path, tiny_bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    plain = gradient_graph(open_bundle(tiny_bundle).read_graph(), manifest)
    assert Graph(plain).column_row == 1 and not Graph(plain).uniforms
    lora = Graph(adapt(open_bundle(bundle), {"kind": "lora", "rank": 2}).read_graph(GRADIENTS))
    assert lora.column_row == 0.3
    assert len(lora.uniforms) == sum(name.endswith(".gradient") for name in lora.outputs)
    prompt = Graph(adapt(open_bundle(bundle), {"kind": "prompt"}).read_graph(GRADIENTS))
    assert prompt.outputs and not prompt.uniforms  # nothing to sample, and nothing lost


def test_the_command(tiny_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    def export(name: str, *flags: object) -> bytes:
        done = called("export", tiny_bundle, "--gradients", *flags, "--out", tmp_path / name)
        assert done.status == 0, done.err
        return (tmp_path / name / GRADIENTS).read_bytes()

    assert export("some", "--column-row", 0.3) == (bundle / GRADIENTS).read_bytes()
    assert export("all", "--column-row", 1) == export("plain")


def test_what_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.edgezo"
    for fraction in (0, 1.5):
        words = ("--gradients", "--column-row", fraction, "--out", out)
        refused(called("export", tiny_bundle, *words), 2, "--column-row", "0<x<=1")
    words = ("--column-row", 0.5, "--out", out)
    refused(called("export", tiny_bundle, *words), 2, "--column-row is for --gradients")
    opened = open_bundle(tiny_bundle)
    with pytest.raises(InputError, match=r"above 0 and at most 1, such as 0\.3"):
        gradient_graph(opened.read_graph(), opened.manifest, math.nan)
    first, *others = opened.manifest.parameters
    packed = (dataclasses.replace(first, kind=QUANTIZED), *others)
    manifest = dataclasses.replace(opened.manifest, parameters=packed)
    with pytest.raises(InputError, match="is quantised, so its model has no gradients"):
        gradient_graph(opened.read_graph(), manifest, 0.5)
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3] x) => (float[N,3] scores)'
    scaled = with_weights(f"{text} {{ scores = Mul(x, w) }}", {"w": np.ones(3, np.float32)})
    onnx_to_bundle(save(scaled, tmp_path / "scaled.onnx"), tmp_path / "scaled.edgezo")
    with pytest.raises(InputError, match=r"no weight of a linear layer.*leave out --column-row"):
        add_to_bundle(open_bundle(tmp_path / "scaled.edgezo"), out, column_row=0.5)
    assert not out.exists()
