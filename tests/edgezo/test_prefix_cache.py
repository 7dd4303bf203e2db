"""The frozen layers' outputs on disk: rows give the same losses and gradients in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from edgezo_runs import called, labelled, refused, result_of, write_rows
from foreign_files import save, with_weights
from prefix_batches import TOKENS, check_rows_of_text, check_the_same, text_batch

from edgezo.callbacks import Callback
from edgezo.settings import Settings
from edgezo.train import Result, resume, train
from edgezo_export.gradients.bundle import add_to_bundle
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_runtime import journal
from edgezo_runtime.batch import ArrayBatch, BaseBatch, RowLoss
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.model import load
from edgezo_runtime.noise import Direction

UPPER = "model.layers.1.*"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its gradient graph."""
    out = tmp_path_factory.mktemp("prefix") / "tiny.edgezo"
    add_to_bundle(open_bundle(tiny_bundle), out)
    return out


@pytest.mark.parametrize(
    "tune",
    [UPPER, "model.layers.1.self_attn.q_proj.*"],  # of the latter keys cross, positions last
)
def test_a_row_is_the_same_in_every_batch(bundle: Path, tmp_path: Path, tune: str) -> None:
    check_rows_of_text(load(bundle, tune=tune, threads=1), tmp_path / "cache")


MLP = """
<ir_version: 8, opset_import: ["" : 16]>
mlp (float[N, 3] x) => (float[N, 4] scores) {
    hidden = MatMul(x, first)
    bent = Tanh(hidden)
    scores = MatMul(bent, second)
}
"""


def test_rows_of_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"first": (3, 8), "second": (8, 4)}
    drawn = {n: rng.standard_normal(s).astype(np.float32) for n, s in weights.items()}
    onnx_to_bundle(save(with_weights(MLP, drawn), tmp_path / "mlp.onnx"), tmp_path / "m.edgezo")
    model = load(tmp_path / "m.edgezo", tune="second", threads=1)
    x, labels = rng.standard_normal((6, 3)).astype(np.float32), np.array([0, 1, 2, 3, 0, 1])

    def batch(*rows: int) -> BaseBatch:
        chosen = np.array(rows)
        return ArrayBatch({"x": x[chosen]}, labels[chosen], RowLoss(labels[chosen], "scores"))

    first = [batch(0, 1, 2), batch(3, 4, 5)]
    check_the_same(model, tmp_path / "cache", first, [batch(5, 0), batch(2, 1, 4, 3)])


@pytest.mark.parametrize("keep", [False, True])
def test_gradients_start_from_the_cache(bundle: Path, tmp_path: Path, keep: bool) -> None:
    model = load(bundle, tune=UPPER, threads=1)
    names = list(model.arena.views)
    batch, expected, found = text_batch(TOKENS[:3]), {}, {}
    loss = model.descend(batch, names, expected.__setitem__, keep)
    with model.cached_prefix(tmp_path / "cache", lambda: [text_batch(TOKENS)]):
        cached = model.descend(batch, names, found.__setitem__, keep)
    assert cached == pytest.approx(loss, rel=1e-5)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-6)
    plans = [plan for key, plan in model._gradients[keep]._plans.items() if key[1]]
    assert len(plans) == 1
    below = {n for n, _ in [*plans[0].forward[0].inputs] if n.startswith("model.layers.0")}
    assert not below


def test_slopes_start_from_the_cache(derived_bundle: Path, tmp_path: Path) -> None:
    model = load(derived_bundle, tune=UPPER, threads=1)
    batch, direction = text_batch(TOKENS[:3]), Direction(0, 1)
    expected = model.derivative(batch, direction)
    with model.cached_prefix(tmp_path / "cache", lambda: [text_batch(TOKENS)]):
        found = model.derivative(batch, direction)
    assert found == pytest.approx(expected, rel=1e-4)
    (plan,) = (plan for given, plan in model._tangents._plans.items() if given)
    assert not {name for piece, _ in plan for name, _ in piece.inputs if "layers.0" in name}


def test_a_row_that_is_not_there_runs_all_layers(bundle: Path, tmp_path: Path) -> None:
    model = load(bundle, tune=UPPER, threads=1)
    batch = text_batch([TOKENS[0], TOKENS[0][::-1]])
    expected = model.forward(batch)["logprobs"]
    with model.cached_prefix(tmp_path / "cache", lambda: [text_batch(TOKENS)]):
        np.testing.assert_array_equal(model.forward(batch)["logprobs"], expected)


def test_the_file_is_used_again_only_if_it_is_whole_and_the_same(
    bundle: Path, tmp_path: Path
) -> None:
    model, path = load(bundle, tune=UPPER, threads=1), tmp_path / "cache"
    sizes: list[int] = []

    def written(precision: str = "float32", rows: Sequence[np.ndarray] = TOKENS) -> bool:
        sizes.clear()
        with model.cached_prefix(path, lambda: [text_batch(rows)], precision, sizes.append):
            assert not sizes or sizes == [path.stat().st_size]
        return bool(sizes)

    assert written() and not written()
    whole = path.read_bytes()
    for at in (3, 40, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert written() and path.read_bytes() == whole
    path.write_bytes(whole[:-100])
    assert written() and path.read_bytes() == whole
    assert written("float16") and written() and written(rows=TOKENS[1:]) and written()
    # A row that comes twice is there once.
    assert written(rows=[*TOKENS, TOKENS[2]]) is False
    model = load(bundle, tune="model.layers.1.mlp.*", threads=1)
    assert written()


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self._left = steps

    def should_stop(self) -> bool:
        self._left -= 1
        return self._left == 0


def run(bundle: Path, data: Path, out: Path, stop: int = 0, **given: object) -> Result:
    values = {"bundle": str(bundle), "data": str(data), "out": str(out), "tune": UPPER}
    values |= {"steps": 9, "batch_size": 4, "threads": 1, "lr": 1e-3, "prefix_cache": "float32"}
    return train(Settings.from_dict(values | given, "test"), StopAfter(stop or 100))


@pytest.mark.parametrize("method", ["mezo", "adamw"])
def test_a_stopped_run_goes_on_to_the_same_bytes(bundle: Path, tmp_path: Path, method: str) -> None:
    data = write_rows(tmp_path / "train.jsonl", labelled(14))  # an epoch is four steps
    whole = tmp_path / "whole"
    run(bundle, data, whole, method=method)
    assert not (whole / "prefix.cache").exists()
    assert journal.read(whole / "journal.ezj").header["prefix_cache"] == "float32"
    for fault in ("none", "gone", "damaged"):
        broken = tmp_path / fault
        run(bundle, data, broken, stop=5, method=method)
        cache = broken / "prefix.cache"
        if fault == "gone":
            cache.unlink()
        if fault == "damaged":
            cache.write_bytes(cache.read_bytes()[:-8] + bytes(8))
        assert resume(broken).finished
        assert result_of(broken) == result_of(whole)
        assert not cache.exists()


def test_precisions(bundle: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", labelled(14))
    losses = []
    for precision, rows in ((None, None), ("float32", None), ("float16", None), ("float32", 3)):
        out = tmp_path / f"{precision}-{rows}"
        run(bundle, data, out, stop=4, method="mezo", prefix_cache=precision, micro_batch=rows)
        lines = [yaml.safe_load(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append(np.array([line["loss"] for line in lines]))
    whole, kept, halves, parts = losses
    np.testing.assert_allclose(kept, whole, rtol=1e-4)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)
    np.testing.assert_allclose(halves, whole, rtol=1e-2)
    assert (halves != kept).any()
    settings = tmp_path / "float16-None" / "settings.yaml"
    settings.write_text(settings.read_text().replace("float16", "float32"))
    refused(called("resume", settings.parent), 2, "prefix_cache", "began with 'float16'")


def test_what_cannot_be_kept_is_refused(bundle: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", labelled(14))
    words = ("train", bundle, "--data", data, "--out", tmp_path / "run")
    refused(called(*words, "--prefix-cache", "float32"), 2, "no frozen layers lie below")
    refused(called(*words, "--prefix-cache", "int8"), 2, "use float32 or float16")
    asked = ("--tune", UPPER, "--prefix-cache", "float32", "--task", "generate")
    told = write_rows(tmp_path / "told.jsonl", [{"prompt": "a good", "completion": " film"}] * 4)
    words = ("train", bundle, "--data", told, "--out", tmp_path / "run")
    refused(called(*words, *asked, "--objective", "f1"), 2, "texts that the whole model writes")
    assert not (tmp_path / "run").exists()
    model = load(bundle, tune=UPPER, threads=1)
    compute = model._resident.compute_prefix
    with (
        mock.patch.object(
            model._resident,
            "compute_prefix",
            lambda feeds: [array * 1e6 for array in compute(feeds)],
        ),
        pytest.raises(InputError, match=r"e\+06, which float16 cannot hold: use .* float32"),
        model.cached_prefix(tmp_path / "cache", lambda: [text_batch(TOKENS)], "float16"),
    ):
        pass
    assert not list(tmp_path.glob("*cache*"))


def test_a_full_disk(bundle: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits are set in the ways of Unix")
    model, path = load(bundle, tune=UPPER, threads=1), tmp_path / "cache"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (3000, 0):  # bytes that a file may have; bytes that the disk has left
        full = mock.Mock(free=limit or 1 << 40)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or before[0], before[1]))
        try:
            with (
                mock.patch("shutil.disk_usage", return_value=mock.Mock(free=limit and full.free)),
                pytest.raises(EdgezoError, match=f"cannot write {path}: .*free space"),
                model.cached_prefix(path, lambda: [text_batch(TOKENS)]),
            ):
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(tmp_path.iterdir())
