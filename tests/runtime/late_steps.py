"""Steps whose slopes only the device knows at first, against steps that wait for their losses."""

from __future__ import annotations

import functools
import itertools
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
from edgezo_runtime.devices.cuda_slope import CardLoss
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.journal import NAME, JournalWriter
from edgezo_runtime.methods import Estimate, make
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import BLOCK_SIZE, Direction
from edgezo_runtime.sweep import Descent
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe
from edgezo_runtime.weights import Weights

RATE = np.float32(3e-3)
DECAY = {"weight_decay": 0.1}
#: Methods whose updates take slopes that only the device knows.
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
)
#: Some whose updates take numbers alone.
OTHERS: Sequence[tuple[str, dict[str, Any]]] = (
    ("mezo", {"median_clip": 1.0, **DECAY}),
    ("es", DECAY),
    ("zo-llm-sign", DECAY),
    ("zo-adam", DECAY),
)
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
    """Compares records and weights with those of steps that wait, and with a replay on the CPU.

    `late` says whether the first may be steps that do not.
    """
    found = []
    for kind in (BatchLoss, waiting):
        model, tuning = begin(bundle, "cuda", name, settings)
        assert tuning.start(kind(model, batches(0)), RATE).late == (late and kind is BatchLoss)
        found.append((estimates(model, tuning, 16, kind, batches), contents(model.arena)))
        other = Weights(open_bundle(bundle), "full", CpuDevice(2))
        Tuning(other, MemoryJournal(tuning.journal.header)).catch_up(tuning.journal.records)
        assert contents(model.arena) == contents(other.arena)
    (ours, weights), (theirs, expected) = found
    assert [each.record for each in ours] == [each.record for each in theirs]
    np.testing.assert_allclose(
        [each.loss for each in ours], [each.loss for each in theirs], rtol=1e-12
    )
    assert weights == expected
    return ours


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


def loss_of(device: Device, output: np.ndarray, objective: Objective) -> CardLoss:
    """Returns the loss that a card computes of an output."""
    reduction = objective.reduction()
    assert reduction is not None and isinstance(device, cuda.CudaDevice)
    return CardLoss.of(device, device.put(output), reduction)


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
            loss = loss_of(device, output, objective)
            assert loss() == pytest.approx(objective.loss({name: output}), rel=1e-12)
            assert loss() == loss_of(device, output, objective)()
            for bad in (np.nan, np.inf):
                output.reshape(-1)[rows // 2] = bad
                assert not np.isfinite(loss_of(device, output, objective)())


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
            slopes = device.slopes(losses, [(0, 1)], span, clip, lr, np.inf)
            found = slopes.wait()
            ends = [float(one) for one in pair]
            slope = np.float32(0)
            if number not in (3, 4):
                slope = np.float32(min(max((ends[0] - ends[1]) / span, -clip), clip))
            assert found.skipped == (number in (3, 4))
            assert found.slopes == (slope,)
            np.testing.assert_array_equal(found.losses, ends)
            back = (1e-3, -1e-3, 0.0)[number % 3]
            direction, decay = Direction(9, number), np.float32(0.99)
            late = Descent(
                direction, np.float32(back), decay, slope=slopes.each[0], back=back, rate=rate
            )
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
    (slope,) = device.slopes(losses, [(0, 1)], 1e-3, np.inf, RATE, np.inf).each
    zero = np.float32(0)
    arena.add(Descent(Direction(1, 1), zero, np.float32(0.5), slope=slope, back=0.0, rate=0.1))
    assert contents(arena) == before
