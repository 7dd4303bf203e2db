"""The CUDA device, with a stand-in for the card; `tests/cuda` has what needs one."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda_stand_in
import numpy as np
import pytest
from classifier_bundle import check_recorded_runs, rows_for_classifier, write_classifier
from ended_bundle import check_ended, write_ended
from rules_on_devices import (
    METHODS_AND_DTYPES,
    check_method,
    check_numbers_of_16_bits,
    check_supports,
    check_updates,
)
from runtime_helpers import Specs, contents, fill, write_bundle

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.bundle import Parameter, open_bundle
from edgezo_runtime.devices import CpuDevice, Device, cuda, cuda_sweep, open_device
from edgezo_runtime.devices.cuda_part import RecordedPart
from edgezo_runtime.dtypes import BFLOAT16, FLOAT16, Dtype
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.methods import Method, make
from edgezo_runtime.model import load
from edgezo_runtime.noise import BLOCK_SIZE, Direction
from edgezo_runtime.weights import Weights

MIXED: Specs = (
    ("a", (70, 9), "float32"),
    ("b", (5,), "float16"),
    ("c", (64, 2), "bfloat16"),
    ("d", (400, 100), "float32"),
    ("e", (3, BLOCK_SIZE), "float16"),
    ("f", (0, 3), "float32"),
    ("g", (33,), "float32"),
)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Device:
    cuda_stand_in.install(monkeypatch)
    return open_device("cuda", 1)


def arena_on(device: Device) -> Arena:
    arena = Arena([Parameter(*spec, "linear") for spec in MIXED], device)
    fill(arena)
    return arena


def term(step: int, coefficient: float, decay: float = 1.0, distribution: str = "binomial") -> Term:
    direction = Direction(1 << 63 | 5, step, 3, distribution)
    return Term(direction, np.float32(coefficient), np.float32(decay))


def test_sweeps_have_the_cpu_s_bits(card: Device) -> None:
    arenas = [arena_on(CpuDevice(1)), arena_on(card)]
    first = (term(1, 0.25), term(1 << 40, -0.125, 0.99), term(1, -0.25))
    second = (*first, term(3, 1e-3, 0.5, "rademacher"), term(4, 1e-7))
    for arena in arenas:
        arena.add(*first)
        arena.defer(term(9, 1e-2))
        arena.add(*second)
    assert contents(arenas[0]) == contents(arenas[1])
    assert contents(arenas[0]) != contents(arena_on(CpuDevice(1)))


@pytest.mark.parametrize(("name", "dtype"), METHODS_AND_DTYPES)
def test_methods_have_the_cpu_s_bits(card: Device, name: str, dtype: str) -> None:
    check_method(card, name, dtype, ((40, 12), (7,), (300, 150)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_directions_of_every_kind_have_the_cpu_s_bits(card: Device, dtype: str) -> None:
    check_supports(card, dtype)
    check_updates(card, dtype)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
def test_every_number_of_16_bits(card: Device, dtype: Dtype) -> None:
    check_numbers_of_16_bits(card, dtype)


def test_more_directions_than_a_kernel_takes(card: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_sweep.CudaSweeper, "most_directions", 2)
    check_method(card, "mezo-adam", "float32", ((40, 12), (7,), (300, 250)))


def test_gaussian_noise_is_refused(card: Device) -> None:
    with pytest.raises(InputError, match="gaussian noise is drawn by NumPy alone"):
        arena_on(card).add(term(1, 0.5, 1.0, "gaussian"))


def test_weights_are_read_and_saved(card: Device, tmp_path: Path) -> None:
    tensors = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, "<f4")}
    folder = write_bundle(tmp_path / "b.edgezo", tensors)
    weights = Weights(open_bundle(folder), "a.*", card)
    weights.load()
    assert all(type(array) is cuda_stand_in.Array for array in weights.arrays().values())
    assert weights.save(tmp_path / "again.safetensors") == weights.save(tmp_path / "b.safetensors")
    assert weights.bundle.manifest.files["model.safetensors"]
    assert {n: a.tolist() for n, a in weights.trained().items()} == {
        "a.weight": tensors["a.weight"].tolist()
    }
    other = Weights(open_bundle(folder), "a.*", CpuDevice(1))
    other.load()
    assert other.save(tmp_path / "cpu.safetensors") == weights.save(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="does not match its checksum"):
        weights.load(tmp_path / "b.safetensors", "0" * 64)


def test_a_missing_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_stand_in.install(monkeypatch, cards=1)
    with pytest.raises(InputError, match="cuda:1 is not there: this machine has 1"):
        open_device("cuda:1")
    for name in ("gpu", "cuda:", "cuda:x", "CUDA", ""):
        with pytest.raises(InputError, match="use cpu, cuda"):
            open_device(name)


def test_a_process_works_on_one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_stand_in.install(monkeypatch, cards=2)
    open_device("cuda:1")
    open_device("cuda-offload:1")
    with pytest.raises(InputError, match="works on card 1: use card 0 in another"):
        open_device("cuda")


def test_too_little_memory(card: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_stand_in._Memory, "limit", 1000)
    with pytest.raises(EdgezoError, match="3 of 80 MiB free"):
        arena_on(card)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_stand_in.install(monkeypatch)

    def count() -> int:
        raise cuda_stand_in.CudaError("cudaErrorInsufficientDriver")

    runtime = __import__("sys").modules["cupy"].cuda.runtime
    monkeypatch.setattr(runtime, "getDeviceCount", count)
    with pytest.raises(EdgezoError, match="install or update the NVIDIA driver"):
        open_device("cuda")


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(EdgezoError, match=r"needs CuPy.*pip install 'edgezo\[cuda\]'"):
        open_device("cuda")


def test_onnx_runtime_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cupy", cuda_stand_in.module())
    with pytest.raises(EdgezoError, match="has no CUDA execution provider"):
        open_device("cuda")


def test_libraries_that_lie_in_packages_are_loaded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []

    def preload() -> None:
        print("Failed to load libcublas.so.13")
        loaded.append("libcublas.so.13")

    fake = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider"], preload_dlls=preload
    )
    monkeypatch.setattr(cuda, "onnxruntime", lambda: fake)
    cuda.check_runtime()
    assert loaded
    assert not capfd.readouterr().out


def test_runs_are_recorded_and_repeated(card: Device, tmp_path: Path) -> None:
    """Bindings alone: the stand-in runs what a card would repeat."""
    bundle = write_classifier(tmp_path)
    for tune in ("full", "bias,second"):
        model = load(bundle, tune=tune, device="cuda")
        check_recorded_runs(model, load(bundle, tune=tune))
        parts = model._resident._parts
        assert len(parts) == 1 + (tune != "full")
        assert isinstance(parts[-1], RecordedPart)
        assert len(parts[-1]._recordings) == 3


def test_the_end_of_a_graph_is_computed_apart(
    card: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_ended(monkeypatch, write_ended(tmp_path, "float32"), 1e-5)


def test_weights_that_cupy_does_not_multiply_leave_the_end_where_it_is(
    card: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "MULTIPLIED", ())
    model = load(write_ended(tmp_path, "float32"), device="cuda")
    assert isinstance(model._resident._suffix, RecordedPart)


@pytest.mark.parametrize(("name", "passes"), [("zo-llm-sign", 2), ("es", 8), ("fzoo", 9)])
def test_a_step_waits_once_all_its_passes_are_queued(
    card: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, passes: int
) -> None:
    events: list[str] = []
    bring, synchronize = cuda.CudaDevice.bring, cuda_stand_in.Event.synchronize

    def queue(*given: Any) -> Any:
        events.append("queued")
        return bring(*given)

    def wait(event: cuda_stand_in.Event) -> None:
        events.append("waited")
        synchronize(event)

    monkeypatch.setattr(Method, "late", False)
    monkeypatch.setattr(cuda.CudaDevice, "bring", queue)
    monkeypatch.setattr(cuda_stand_in.Event, "synchronize", wait)
    model = load(write_classifier(tmp_path), device="cuda")
    method = make(name, model.arena, 5, {})
    loss = BatchLoss(model, rows_for_classifier(5, 0))
    for number in (1, 2):  # the shape is recorded in the first of them
        method.step(number, loss, np.float32(1e-3))
    assert events == (["queued"] * passes + ["waited"] * passes) * 2
    assert loss.forwards == 2 * passes


@pytest.mark.parametrize("name", ["mezo", "es", "spsa-n"])
def test_a_step_that_waits_once_is_the_same(
    card: Device, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Method, "late", False)
    bundle, found = write_classifier(tmp_path), []
    for kind in (BatchLoss, lambda model, batch: functools.partial(model.loss, batch)):
        model = load(bundle, device="cuda")
        method = make(name, model.arena, 5, {})
        losses = (kind(model, rows_for_classifier(5, number)) for number in range(1, 5))
        steps = enumerate(losses, start=1)
        estimates = [method.step(number, loss, np.float32(1e-3)) for number, loss in steps]
        found.append((estimates, contents(model.arena)))
    assert found[0] == found[1]
