"""The benchmarks: what they compare is equal, and what they print is what they say."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgezo.bench import constants
from edgezo.bench.constants import constants_graph, constants_model
from edgezo.bench.inference_memory import inference_peak
from edgezo.bench.machine import describe_machine, versions
from edgezo.bench.processes import WorkerProcess
from edgezo.bench.step import bench_step, random_batch
from edgezo.cli import bench as cli
from edgezo_export.adapters.base import adapt, write_adapted
from edgezo_runtime.batch import CandidateLoss
from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.select import FULL
from edgezo_runtime.session import Session
from edgezo_runtime.weights import Weights

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONTRACT = {
    "step_ms",
    "forward_ms",
    "inference_forward_ms",
    "ratio",
    "sweep_ms",
    "add_ms",
    "sweep_ratio",
    "peak_rss_mb",
    "inference_peak_rss_mb",
    "memory_ratio",
    "model",
    "batch",
    "tokens",
    "threads",
    "versions",
}


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def plain_session(model: Path) -> Any:
    return onnxruntime().InferenceSession(str(model), providers=["CPUExecutionProvider"])


def test_constants_graph_is_valid_onnx(bundle: Bundle, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from safetensors.numpy import load_file

    path = tmp_path / "constants.onnx"
    path.write_bytes(constants_graph(bundle))
    shutil.copyfile(bundle.weights, tmp_path / "model.safetensors")
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    assert {i.name for i in model.graph.input} == {port.name for port in bundle.manifest.inputs}
    original = onnx.load(str(bundle.graph))
    assert model.graph.node == original.graph.node
    assert model.graph.output == original.graph.output
    assert model.opset_import == original.opset_import
    weights = load_file(bundle.weights)
    found = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for parameter in bundle.manifest.parameters:
        np.testing.assert_array_equal(found[parameter.name], weights[parameter.name])


@pytest.mark.parametrize("adapter", [None, "lora", "prefix"])
def test_constants_give_the_outputs_of_the_bundle(
    bundle: Bundle, tmp_path: Path, adapter: str | None
) -> None:
    if adapter:
        write_adapted(adapt(bundle, {"kind": adapter}), tmp_path / "adapted.edgezo")
        bundle = open_bundle(tmp_path / "adapted.edgezo")
    weights = Weights(bundle, FULL)
    weights.load()
    batch = random_batch(bundle, 3, 9)
    expected = Session(bundle, weights.arrays(), weights.arena.views.keys(), CpuDevice(1)).forward(
        batch
    )
    with constants_model(bundle) as model:
        folder = model.parent
        found = plain_session(model).run(["logprobs", "candidate_logits"], batch.feeds())
    np.testing.assert_allclose(found[0], expected["logprobs"], atol=1e-5)
    np.testing.assert_allclose(found[1], expected["candidate_logits"], atol=1e-5)
    assert not folder.exists()


def test_weights_are_copied_where_they_cannot_be_linked(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    before = {path.name for path in bundle.folder.parent.iterdir()}
    monkeypatch.setattr(constants.os, "link", refuse)
    with constants_model(bundle) as model:
        plain_session(model)
    assert {path.name for path in bundle.folder.parent.iterdir()} == before


def test_damaged_graph_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle(tmp_path, bundle.manifest)
    shutil.copyfile(bundle.weights, copy.weights)
    whole = bundle.graph.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", b"\xff" * 40, b"\x0b"):
        copy.graph.write_bytes(damaged)
        with pytest.raises(InputError, match="graph"):
            constants_graph(copy)


def test_random_batch_is_the_same_each_time(bundle: Bundle) -> None:
    batch, again = (random_batch(bundle, 4, 8) for _ in range(2))
    for name, values in batch.feeds().items():
        np.testing.assert_array_equal(values, again.feeds()[name])
        assert values.dtype == np.int64
    assert batch.input_ids.shape == (4, 8)
    assert batch.positions.tolist() == [7, 15, 23, 31]
    assert len(set(batch.candidates.tolist())) == 7
    assert isinstance(batch.objective, CandidateLoss)
    np.testing.assert_array_equal(batch.candidates[batch.objective.labels], batch.targets)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 8), (1, 0), (1, 65)])
def test_batch_that_does_not_fit_is_refused(bundle: Bundle, rows: int, tokens: int) -> None:
    with pytest.raises(InputError, match="64 tokens"):
        random_batch(bundle, rows, tokens)


def test_step_prints_what_was_agreed(tiny_bundle: Path, tmp_path: Path) -> None:
    flags = ["--batch", "2", "--tokens", "8", "--repeats", "5", "--threads", "1", "--json"]
    flags += ["--tune", "norm"]
    done = CliRunner().invoke(cli.command, ["step", "--model", str(tiny_bundle), *flags])
    assert done.exit_code == 0, done.output
    fields = json.loads(done.output.splitlines()[-1])
    assert fields.keys() >= CONTRACT
    for name in ("step_ms", "forward_ms", "sweep_ms", "add_ms", "peak_rss_mb"):
        assert fields[name] > 0
    ratio = fields["step_ms"] / (2 * fields["inference_forward_ms"])
    assert fields["ratio"] == pytest.approx(ratio, rel=0.05)
    assert fields["memory_ratio"] > 0
    assert (fields["model"], fields["batch"], fields["tokens"]) == ("tiny", 2, 8)
    assert fields["tune"] == "norm"
    assert fields["threads"] == 1
    assert fields["inference_threads"] in (1, None)
    assert {"python", "numpy"} < fields["versions"].keys()
    table = cli._table(fields)
    assert "2 x 8 tokens" in table
    assert f"{fields['ratio']:.2f} x two plain" in table


def test_too_few_rounds_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="4 rounds"):
        bench_step(tiny_bundle, rounds=4)


def test_graph_that_computes_something_else_is_found(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = WorkerProcess.call

    def shifted(self: WorkerProcess, method: str, **arguments: Any) -> Any:
        result = call(self, method, **arguments)
        shift = method == "candidate_logits" and "tuning" in self._name
        return (np.array(result) + 1).tolist() if shift else result

    monkeypatch.setattr(WorkerProcess, "call", shifted)
    with pytest.raises(EdgezoError, match="different logits"):
        bench_step(tiny_bundle, rows=1, tokens=4, rounds=5)


def test_inference_peak_counts_the_weights(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    peak = inference_peak(tiny_bundle, random_batch(bundle, 2, 8).feeds())
    assert bundle.weights.stat().st_size < peak < 500e6
    with pytest.raises(InputError, match="there is no bundle"):
        inference_peak(tiny_bundle / "nowhere", {})


def worker(tmp_path: Path, body: str) -> WorkerProcess:
    """A worker with the methods in `body`."""
    path = tmp_path / "script.py"
    path.write_text(
        "import os\n"
        "from edgezo.bench.processes import serve\n"
        "from edgezo_runtime.errors import InputError\n"
        "class Worker:\n"
        f"    {body}\n"
        "serve(Worker())\n"
    )
    return WorkerProcess(str(path))


def test_worker_answers_and_its_prints_do_not_disturb(tmp_path: Path) -> None:
    body = "def double(self, x): print('noise'); os.write(1, b'more'); return [x, x]"
    with worker(tmp_path, body) as process:
        assert process.call("double", x="ä\n") == ["ä\n", "ä\n"]
        assert process.call("double", x=None) == [None, None]


def test_worker_passes_errors_on(tmp_path: Path) -> None:
    body = "def fail(self, bad):\n        raise InputError('no') if bad else ValueError('odd')"
    with worker(tmp_path, body) as process:
        with pytest.raises(InputError, match=r"^no$"):
            process.call("fail", bad=True)
        with pytest.raises(EdgezoError, match="odd") as caught:
            process.call("fail", bad=False)
        assert not isinstance(caught.value, InputError)


def test_worker_that_dies_is_named(tmp_path: Path) -> None:
    body = "def die(self): os.write(2, b'out of luck'); os._exit(3)"
    with worker(tmp_path, body) as process:
        for _ in range(2):
            with pytest.raises(EdgezoError, match=r"script\.py ended with status 3: out of luck"):
                process.call("die")


def test_worker_ends_with_its_context(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), worker(tmp_path, "x = 1") as process:
        raise KeyboardInterrupt
    assert process._process.returncode is not None


def test_worker_imports_what_this_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    body = "def get(self): import sys; return sys.path, dict(os.environ)"
    with worker(tmp_path, body) as process:
        path, environment = process.call("get")
    assert {os.path.abspath(p) for p in sys.path if p} <= set(path)
    assert "MALLOC_ARENA_MAX" not in environment


def test_named_models_come_from_the_cache(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "edgezo"
    cache.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for model in ("smollm2", "opt-125m"):
        shutil.copytree(tiny_bundle, cache / f"{model}.edgezo")
        assert cli.bundle_for(model) == cache / f"{model}.edgezo"
    assert cli.bundle_for("some/path") == Path("some/path")


def test_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cpu"]
    assert int(machine["cores"]) >= 1
    assert versions("pytest")["pytest"] == pytest.__version__


def test_torch_computes_the_same_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from helpers_text import write_tokenizer
    from transformers import OPTConfig, OPTForCausalLM

    from edgezo_export.huggingface import checkpoint_to_bundle

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    versus_torch = importlib.import_module("versus_torch")

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.2,
    )
    OPTForCausalLM(config).eval().save_pretrained(tmp_path / "opt")
    kept = (tmp_path / "opt" / "config.json").read_bytes()
    write_tokenizer(tmp_path / "opt")
    (tmp_path / "opt" / "config.json").write_bytes(kept)
    bundle = checkpoint_to_bundle(tmp_path / "opt", tmp_path / "opt.edgezo")
    found = versus_torch.compare(bundle, 2, 8, rounds=5, threads=1)
    ratio = found["torch_step_ms"] / found["step_ms"]
    assert found["speedup"] == pytest.approx(ratio, rel=0.05)


def test_results_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recording = importlib.import_module("recording")

    monkeypatch.setattr(recording, "RESULTS", tmp_path / "results")
    path = recording.record("some", {"ratio": 1.0})
    fields = json.loads(path.read_text())
    assert fields.keys() == {"commit", "date", "machine", "versions", "results"}
    assert fields["results"] == {"ratio": 1.0}


def test_rows_take_the_place_of_their_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recording = importlib.import_module("recording")

    monkeypatch.setattr(recording, "RESULTS", tmp_path / "results")
    rows = [{"figure": "step_ms", "shape": shape, "value": 1} for shape in ("1 x 32", "16 x 64")]
    recording.record_rows("some", rows)
    path = recording.record_rows("some", [rows[0] | {"value": 2}])
    assert json.loads(path.read_text()) == [rows[0] | {"value": 2}, rows[1]]
