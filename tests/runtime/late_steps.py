"""Steps whose numbers only the device knows at first, against steps that wait for their losses."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifier_bundle import rows_for_classifier
from runtime_helpers import contents, fill
from tied_bundle import rows_for_tied

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.batch import ArrayBatch, CandidateLoss, Objective, RowLoss, TokenLoss
from edgezo_runtime.bundle import Parameter, open_bundle
from edgezo_runtime.devices import CpuDevice, Device, cuda
from edgezo_runtime.devices.cuda_loss import mean_loss
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.journal import NAME, JournalWriter
from edgezo_runtime.late import CELL, LateNumber, LateSingle
from edgezo_runtime.methods import Estimate, make
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import BLOCK_SIZE, Direction
from edgezo_runtime.sweep import Descent
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe
from edgezo_runtime.weights import Weights

RATE = np.float32(3e-3)
DECAY = {"weight_decay": 0.1}
#: Methods whose steps take numbers that only the device knows.
CASES: Sequence[tuple[str, dict[str, Any]]] = (
    ("mezo", DECAY),
    ("qzo", {"clip": 0.25}),
    ("one-sided", DECAY),
    ("spsa-n", DECAY),
    ("lezo", DECAY),
    ("block", DECAY),
    ("sparse-random", DECAY),
    ("sparse-mezo", DECAY),
    ("lozo", {"interval": 3, **DECAY}),
    ("subzero", {"interval": 3, **DECAY}),
    ("mezo", {"median_clip": 1.0, **DECAY}),
    ("es", DECAY),
    ("fzoo", DECAY),
    ("fzoo", {"samples": 16}),
    ("spsa-n", {"samples": 256}),
    ("zo-llm-sign", DECAY),
    ("zo-sgd-sign", DECAY),
    ("zo-sgd-mmt", DECAY),
    ("zo-adam", DECAY),
    ("zo-adamu", {"warmup": 2, "anneal": 4, **DECAY}),
    ("mezo-momentum", {"window": 4, **DECAY}),
    ("mezo-adam", {"window": 4, **DECAY}),
    ("mezo-svrg", {"interval": 3, **DECAY}),
    ("hizoo", {"alpha": 1e-5, **DECAY}),
    ("helene", {"interval": 2, **DECAY}),
)
#: Those whose steps wait: one that compares losses, and one whose kernels would be too large.
OTHERS: Sequence[tuple[str, dict[str, Any]]] = (
    ("zo-sgd-cons", DECAY),
    ("mezo-adam", {"window": 40}),
)
#: Some of the first, which look at the past or keep a state or neither.
WAITED = ("mezo", "spsa-n", "es", "fzoo", "zo-adam", "mezo-momentum", "hizoo")
_SHAPES = ((70, 9), (5,), (40, 100), (3, BLOCK_SIZE), (33,))


def begin(
    bundle: Path, device: str, name: str, settings: dict[str, Any], run: Path | None = None
) -> tuple[Model, Tuning]:
    """Returns a model, and a run over it that is kept in the folder `run`, if there is one."""
    model = load(bundle, device=device, threads=1)
    header = describe(model.weights, make(name, model.arena, 5, settings))
    if run is None:
        return model, Tuning(model.weights, MemoryJournal(header))
    run.mkdir()
    return model, Tuning(model.weights, JournalWriter(run / NAME, header), run)


def batch_of(number: int) -> ArrayBatch:
    """Returns the batch of a step; that of each seventh has no finite loss."""
    batch = rows_for_classifier(5 + number % 2, number % 3)
    if number % 7 == 3:
        batch.inputs["x"][1, 2] = np.nan
    return batch


def told(model: Model, batch: ArrayBatch) -> Callable[[], float]:
    """Returns a loss that the card computes, for which the host waits."""

    def loss() -> float:
        late = model.stay(batch)
        assert late is not None
        return read(model.device, late)

    return loss


def waiting(model: Model, batch: ArrayBatch) -> Callable[[], float]:
    """Returns a loss that the host computes."""
    return functools.partial(model.loss, batch)


def estimates(
    model: Model,
    tuning: Tuning,
    steps: int,
    kind: Callable[..., Callable[[], float]] = BatchLoss,
    batches: Callable[[int], ArrayBatch] = batch_of,
) -> list[Estimate]:
    """Takes steps as a training loop does, and returns what they found out."""
    taken = [tuning.start(kind(model, batches(n)), RATE) for n in range(1, steps + 1)]
    return [tuning.found(each) for each in taken]


def check_steps(bundle: Path, name: str, settings: dict[str, Any], late: bool = True) -> None:
    """Checks steps as `compared` does; two of them are skipped."""
    found = compared(bundle, name, settings, late, batch_of)
    assert sum(each.record.skipped for each in found) == 2
    if clip := settings.get("clip"):
        assert clip in [abs(each.record.scalars[0]) for each in found]


def check_float16(bundle: Path) -> None:
    """Checks steps over weights of `write_tied` in float16, which go by way of the middle."""
    found = compared(bundle, "mezo", DECAY, True, lambda number: rows_for_tied(8, number % 4))
    assert not any(each.record.skipped for each in found)


def compared(
    bundle: Path,
    name: str,
    settings: dict[str, Any],
    late: bool,
    batches: Callable[[int], ArrayBatch],
) -> list[Estimate]:
    """Compares records, weights and state with those of steps that wait, and with a replay's.

    Both see the losses of the card; the replay is on the CPU.

    `late` says whether the first may be steps that do not.
    """
    found = []
    for kind in (BatchLoss, told):
        model, tuning = begin(bundle, "cuda", name, settings)
        assert tuning.start(kind(model, batches(0)), RATE).late == (late and kind is BatchLoss)
        taken = estimates(model, tuning, 16, kind, batches)
        found.append((taken, bits(tuning)))
        other = Weights(open_bundle(bundle), "full", CpuDevice(2))
        again = Tuning(other, MemoryJournal(tuning.journal.header))
        again.catch_up(tuning.journal.records)
        assert bits(tuning) == bits(again)
    (ours, weights), (theirs, expected) = found
    assert [each.record for each in ours] == [each.record for each in theirs]
    np.testing.assert_array_equal([each.loss for each in ours], [each.loss for each in theirs])
    assert weights == expected
    return ours


def bits(tuning: Tuning) -> tuple[Any, dict[str, bytes]]:
    """Returns a run's weights and its method's state."""
    arena, state = tuning.weights.arena, tuning.method.state
    found = contents(arena)
    return found, {name: arena.device.host(array).tobytes() for name, array in state.items()}


def check_waits(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that a step waits for nothing but the record of the step before."""
    events: list[tuple[str, int]] = []
    bring = cuda.CudaDevice.bring

    def logged(*given: Any) -> Any:
        number = len(events)
        events.append(("queued", number))
        wait = bring(*given)

        def waited() -> Any:
            events.append(("waited", number))
            return wait()

        return waited

    monkeypatch.setattr(cuda.CudaDevice, "bring", logged)
    model, tuning = begin(bundle, "cuda", name, {})
    losses = [BatchLoss(model, batch_of(0)) for _ in range(5)]
    for loss in losses:
        tuning.start(loss, RATE)
    tuning.keep()
    queued = [number for kind, number in events if kind == "queued"]
    expected = [("queued", queued[0])]
    for before, number in itertools.pairwise(queued):
        expected += [("queued", number), ("waited", before)]
    assert events == [*expected, ("waited", queued[-1])]
    assert len(queued) == len(losses)
    assert {loss.forwards for loss in losses} == {tuning.method.forwards}


def loss_of(device: Device, output: np.ndarray, objective: Objective) -> LateNumber:
    """Returns the loss that a card computes of an output."""
    reduction = objective.reduction()
    assert reduction is not None and isinstance(device, cuda.CudaDevice)
    return mean_loss(device, device.put(output), reduction)


def read(device: Device, cell: LateNumber) -> float:
    """Returns what a cell holds."""
    return float(device.host(cell.operands[0])[0])


def check_losses(device: Device) -> None:
    """Checks losses against the host's."""
    rng = np.random.default_rng(0)
    for rows in (1, 3, 256, 1000):
        scores = (8 * rng.standard_normal((rows, 1 + rows % 5))).astype(np.float32)
        right = CandidateLoss(rng.integers(scores.shape[1], size=rows))
        single = -rng.gamma(1.0, 4.0, rows).astype(np.float32)
        for name, output, objective in (
            ("candidate_logits", scores, right),
            ("logprobs", single, TokenLoss(rows)),
            ("losses", -single, RowLoss()),
        ):
            loss = read(device, loss_of(device, output, objective))
            assert loss == pytest.approx(objective.loss({name: output}), rel=1e-12)
            assert loss == read(device, loss_of(device, output, objective))
            for bad in (np.nan, np.inf):
                output.reshape(-1)[rows // 2] = bad
                assert not np.isfinite(read(device, loss_of(device, output, objective)))


def check_descents(device: Device) -> None:
    """Checks terms of slopes on the card against those of the same slopes on the host."""
    parameters = [Parameter(f"p{i}", s, "float32", "linear") for i, s in enumerate(_SHAPES)]
    span, rate, lr = 2e-3, 0.7e-2, np.float32(0.7e-2)
    for dtype in ("float32", "float16"):
        parameters = [Parameter(p.name, p.shape, dtype, p.kind) for p in parameters]
        arenas = [Arena(parameters, one) for one in (CpuDevice(1), device)]
        for arena in arenas:
            fill(arena, scale=0.02)
        for number, (higher, lower) in enumerate(
            ((0.75, 0.5), (0.5, 0.75), (1.1, 0.1), (0.25, np.nan), (3e38, 0.0), (0.5, 0.5))
        ):
            clip = 150.0 if number < 4 else np.inf
            pair = [np.float32(higher), np.float32(lower)]
            losses = [loss_of(device, np.array([one]), RowLoss()) for one in pair]
            slope = np.minimum(np.maximum((losses[0] - losses[1]) / span, -clip), clip)
            record = device.record(losses, [slope], lr, np.inf)
            found = record.wait()
            ends = [float(one) for one in pair]
            slope = np.float32(0)
            if number not in (3, 4):
                slope = np.float32(min(max((ends[0] - ends[1]) / span, -clip), clip))
            assert found.skipped == (number in (3, 4))
            assert found.scalars == (slope,)
            np.testing.assert_array_equal(found.losses, ends)
            back = (1e-3, -1e-3, 0.0)[number % 3]
            direction, decay = Direction(9, number), np.float32(0.99)
            (taken,) = record.rounded([back - rate * record.scalars[0]])
            first = np.float32(back)
            late = Descent(direction, first, decay, taken=taken, skipped=record.skipped)
            known = Term(direction, np.float32(back - rate * float(slope)), decay)
            if found.skipped:
                known = Term(direction, np.float32(back))
            more = Term(Direction(8, number), np.float32(1e-3))
            arenas[0].add(known, more)
            arenas[1].add(late, more)
            assert contents(arenas[0]) == contents(arenas[1])


def check_nothing_is_added(device: Device) -> None:
    """Checks that a skipped step turns no -0, along a direction that needs no way back."""
    arena = Arena([Parameter("p", (300,), "float32", "linear")], device)
    arena.views["p"][...] = np.float32(-0.0)
    before = contents(arena)
    losses = [loss_of(device, np.array([one], np.float32), RowLoss()) for one in (np.nan, 1.0)]
    record = device.record(losses, [losses[0] - losses[1]], RATE, np.inf)
    zero, half = np.float32(0), np.float32(0.5)
    for taken in record.rounded([0.1 * record.scalars[0], 0.1]):
        arena.add(Descent(Direction(1, 1), zero, half, taken=taken, skipped=record.skipped))
    assert contents(arena) == before


def check_numbers(device: Device) -> None:
    """Checks what a card makes of numbers, to the last bit, against NumPy."""
    rng = np.random.default_rng(0)
    given = rng.standard_normal(40) * 10.0 ** rng.integers(-25, 25, 40)
    given[:9] = 0.0, -0.0, 1.0, 3.0, np.inf, -np.inf, np.nan, 1e-310, 1e-42
    cells = [LateNumber(CELL, device.put(given[i : i + 1])) for i in range(len(given))]
    record = device.record(cells, cells, np.float32(1), np.inf)
    found = record.wait()
    assert found.skipped
    np.testing.assert_array_equal(found.losses, given)
    numbers = given.astype(np.float32).astype(np.float64)
    single = [*record.rounded([f(x) for f in _FUNCTIONS for x in record.scalars])]
    pairs = list(itertools.product(range(12), repeat=2))
    double = [f(record.scalars[i], record.scalars[j]) for f in _OPERATIONS for i, j in pairs]
    with np.errstate(all="ignore"):
        expected = [f(x) for f in _FUNCTIONS for x in numbers]
        expected += [f(numbers[i], numbers[j]) for f in _OPERATIONS for i, j in pairs]
        expected = np.array(expected).astype(np.float32)
    for start in range(0, len(double), 200):
        single += record.rounded(double[start : start + 200])
    values = [device.host(one.number)[0] for one in single if isinstance(one, LateSingle)]
    assert len(values) == len(expected)
    np.testing.assert_array_equal(np.array(values), expected.astype(np.float64))
    signs, others = (np.signbit(np.nan_to_num(each)) for each in (np.array(values), expected))
    np.testing.assert_array_equal(signs, others)


_FUNCTIONS: Sequence[Callable[[Any], Any]] = (
    np.sqrt,
    np.sign,
    abs,
    operator.neg,
    lambda x: 1.7 * x - 0.3 / (x + 2),
    lambda x: x + np.equal(x, 0),
)
_OPERATIONS: Sequence[Callable[[Any, Any], Any]] = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    lambda x, y: np.maximum(x, y) + 0.0,  # of two zeros, processors take either
    lambda x, y: np.minimum(x, y) + 0.0,
    lambda x, y: (x + y) * (x - y) / (abs(x) + np.sqrt(abs(y)) + 1e-3),
)
