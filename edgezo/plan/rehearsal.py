"""A rehearsal: a few steps of a run in a process of its own, to see what they need.

It loads what the run loads and takes steps on the run's heaviest batches, at a learning rate of 0,
so that the process's peak memory is that of the run. Nothing is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np

from edgezo import report_charts
from edgezo.adapted import AddAdapter, open_adapted
from edgezo.callbacks import Callback
from edgezo.data.batches import eval_indices
from edgezo.prefix import cached_prefix, check_prefix
from edgezo.run_folder import RunFolder
from edgezo.settings import METHOD_SETTINGS, RunSettings
from edgezo.tasks.base import BaseExample, Example
from edgezo.train import batch_order, check_method, head_start
from edgezo.training_data import TrainingData, prepare
from edgezo_runtime import adapter_init, dtypes
from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import open_device
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.draws import Draws
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.first_order.required import check_graph
from edgezo_runtime.memory import peak_bytes
from edgezo_runtime.methods import AnyMethod, make
from edgezo_runtime.methods.first_order import FirstOrder
from edgezo_runtime.methods.hift import Hift
from edgezo_runtime.model import Model
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.weights import Weights

_RATE = np.float32(0)
_SAMPLE = 1 << 22  # weights that a method's own work is timed on
_FREE_STEPS = 2
# ONNX Runtime's arena grows with the number of shapes that it has seen, up to some.
_ORDINARY = 6

_LINE = {"step": 1, "loss": 1.0, "lr": 1.0, "projected_grad": 1.0}  # of metrics.jsonl

#: The examples of a step's batch, and of the one with true gradients if that is another.
Chosen = tuple[np.ndarray, np.ndarray | None]


class Rehearsal:
    """Answers the planner, in a process of its own.

    Args:
        add: puts the run's adapter into a bundle that has none.
    """

    def __init__(self, add: AddAdapter | None = None) -> None:
        self._add = add

    def open(self, settings: dict[str, Any], methods: Sequence[str]) -> dict[str, Any]:
        """Opens a run's bundle, without reading its weights.

        Args:
            settings: of the run.
            methods: names of methods that might take its place.

        Returns:
            Bytes of all ``weights`` and of the ``trained`` ones; of each of the ``methods`` the
            bytes of its ``state`` and of its ``gradients``, or the sentence that says why it cannot
            be used; see `edgezo.plan.measured`.
        """
        started = time.perf_counter()
        self._settings = RunSettings.from_dict(settings, "the plan")
        own = self._settings
        bundle = open_adapted(own.bundle, own.adapter(), self._add)
        self._device = open_device(own.device, own.threads)
        self._weights = Weights(bundle, own.tune, self._device)
        self._seconds = time.perf_counter() - started
        parameters = bundle.manifest.parameters
        return {
            "weights": sum(map(_nbytes, parameters)),
            "trained": sum(map(_nbytes, self._weights.arena.parameters)),
            "methods": {name: self._needs(name) for name in methods},
        }

    def _needs(self, name: str) -> dict[str, int] | str:
        try:
            method = self._make(name, self._weights.arena)
            check_method(dataclasses.replace(self._settings, method=name))
            if method.graph:
                check_graph(self._weights.bundle, self._weights.device, method.graph)
        except InputError as error:
            return str(error)
        gradients = 0
        if isinstance(method, FirstOrder):
            views = self._weights.arena.views
            steps = [method.names(number) for number in _numbers(method)]
            gradients = max(sum(views[name].nbytes for name in names) for names in steps)
        return {"state": method.resident_bytes, "gradients": gradients}

    def _make(self, name: str, arena: Arena) -> AnyMethod:
        own = self._settings
        given = {n: getattr(own, n) for n in METHOD_SETTINGS if getattr(own, n) is not None}
        return make(name, arena, own.seed, {**given, **(own.options or {})})

    def run(self, rehearsed: str, methods: Sequence[str]) -> dict[str, Any]:
        """Takes steps of the `rehearsed` method as the run does, and measures memory and time.

        Args:
            rehearsed: its name.
            methods: names of those whose own work, besides passes over the data, is timed.

        Returns:
            What `edgezo.plan.measured.Rehearsed` holds.
        """
        parameters = sorted(self._weights.arena.parameters, key=lambda p: p.size)
        found = self._measure(rehearsed)
        if report_charts.available():  # the report is drawn when the model is gone
            report_charts.draw([_LINE, _LINE], [])
        found["peak"] = [peak_bytes(), found.pop("passes")]
        found["own"] = {name: self._own(name, parameters) for name in methods}
        return found

    def least(self, rehearsed: str) -> list[int]:
        """Returns the peak of the run where rows go through the model one by one."""
        self._settings = dataclasses.replace(self._settings, micro_batch=1, batch_size=2)
        passes = self._measure(rehearsed)["passes"]
        return [peak_bytes(), passes]

    def _measure(self, name: str) -> dict[str, Any]:
        """Takes steps and evaluates; nothing of it stays in memory."""
        started = time.perf_counter()
        model = self._load()
        data = prepare(model, self._settings)
        order = batch_order(data, self._settings)
        method = self._make(name, model.arena)
        epoch = -(-len(data.train) // self._settings.batch_size)
        steps = [order(number) for number in range(1, min(self._settings.steps, epoch) + 1)]
        heaviest = _heaviest(steps, lambda chosen: _both(data.train, chosen))
        held_out = list(eval_indices(data.held_out, self._settings.rows))
        longest = _heaviest(held_out, lambda indices: _size(data.held_out, indices))
        load = self._seconds + time.perf_counter() - started
        some = _some(data, [*steps[:_ORDINARY], *heaviest], self._settings.batch_size)
        share = len(some.train) / len(data.train)
        load += _timed(lambda: head_start(model, some, self._settings)) / share

        def step(number: int, chosen: Chosen) -> float:
            return _step(model, data, method, number, chosen)

        def warm(number: int, chosen: Chosen) -> None:
            if _on_disk(method):
                _pass(model, data, method, number, chosen)
            elif method.graph:
                step(number, chosen)
            else:  # a step has many passes that are alike
                model.loss(data.batch(chosen[0]))

        turns = [(number, chosen) for chosen in heaviest for number in _numbers(method)]
        passes = 0
        with self._prefix(model, some) as filling:
            load += filling / share
            for number, chosen in (*enumerate(steps[:_ORDINARY], start=1), *turns):
                warm(number, chosen)
            if _on_disk(method):
                passes = peak_bytes()
                for number, chosen in turns:
                    step(number, chosen)
            whole: Chosen = heaviest[0]
            second = None if whole[1] is None else _longest(data.train, whole[1])
            one: Chosen = (_longest(data.train, whole[0]), second)
            step(1, one)  # what only the first step makes is not to be timed
            times = [_mean_step(method, lambda n, c=chosen: step(n, c)) for chosen in (whole, one)]
            evaluation = 0.0
            for indices in longest:
                seconds = _timed(lambda i=indices: _evaluate(model, data, i))
                evaluation = seconds / _size(data.held_out, indices)[0]
        return {
            "passes": passes,
            "rows": len(whole[0]),
            "cells": [_both(data.train, chosen)[0] for chosen in (whole, one)],
            "seconds": times,
            "mean": float(np.mean([_both(data.train, chosen)[0] for chosen in steps])),
            "load": load,
            "evaluation": evaluation * sum(_size(data.held_out, i)[0] for i in held_out),
        }

    @contextlib.contextmanager
    def _prefix(self, model: Model, some: TrainingData) -> Iterator[float]:
        """Keeps what frozen layers compute of some rows, as the run does; yields the seconds."""
        check_prefix(model, some, self._settings)
        with tempfile.TemporaryDirectory(prefix="edgezo-plan-") as folder:
            run, started = RunFolder(folder), time.perf_counter()
            with cached_prefix(model, run, some, self._settings, Callback()):
                yield time.perf_counter() - started

    def _load(self) -> Model:
        weights = self._weights
        del self._weights  # nothing else keeps it
        weights.load()
        if weights.bundle.manifest.adapter:
            parameters, base = weights.arena.parameters, weights.frozen()
            seed = self._settings.seed
            weights.begin(adapter_init.draw(parameters, seed, base, weights.bundle))
        return Model(weights)

    def _own(self, name: str, parameters: Sequence[Parameter]) -> list[float]:
        """Times a method's own work on some of the weights, over a loss that costs nothing.

        Args:
            name: of the method.
            parameters: all trained ones, the smallest first.

        Returns:
            Seconds, and passes over the data that come on top, of a step.
        """
        sizes = np.cumsum([p.size for p in parameters])
        count = max(int(np.searchsorted(sizes, _SAMPLE, side="right")), 1)
        arena = Arena(parameters[:count], self._device)
        method = self._make(name, arena)
        loss = _Free(arena)

        def take(number: int) -> None:
            method.step(number, loss, _RATE)
            arena.settle()

        take(1)  # makes the state
        loss.passes = 0
        seconds = sum(_timed(lambda n=n: take(n)) for n in range(2, 2 + _FREE_STEPS))
        share = sizes[count - 1] / sizes[-1]
        return [seconds / _FREE_STEPS / float(share), loss.passes / _FREE_STEPS]


class _Free:
    """A loss that costs nothing, and what asks for it.

    Attributes:
        passes: how often it was asked for.
    """

    def __init__(self, arena: Arena) -> None:
        self._shapes = {parameter.name: parameter.shape for parameter in arena.parameters}
        self.passes = 0

    def __call__(self) -> float:
        self.passes += 1
        return 1e-3 * (self.passes % 7)  # not always the same: some methods divide by the spread

    def derivative(self, direction: AnyDirection) -> tuple[float, float]:
        self.passes += 1
        return 0.0, 1e-3

    def descend(
        self,
        names: Sequence[str],
        take: Callable[[str, np.ndarray], None],
        keep: float,
        draws: Draws,
    ) -> float:
        self.passes += 1
        for name in names:
            take(name, np.full(self._shapes[name], 1e-3, np.float32))
        return 0.0


def _nbytes(parameter: Parameter) -> int:
    return parameter.size * dtypes.named(parameter.dtype).storage.itemsize


def _size(examples: Sequence[BaseExample], indices: np.ndarray) -> tuple[int, int]:
    """Returns the cells of a batch, padding included, and its answers."""
    chosen = [examples[i] for i in indices]
    cells = sum(e.sequences for e in chosen) * max(e.length for e in chosen)
    parts = (part for e in chosen if isinstance(e, Example) for part in e.parts)
    return cells, sum(len(part.targets) for part in parts)


def _both(examples: Sequence[BaseExample], chosen: Chosen) -> tuple[int, int]:
    sizes = [_size(examples, indices) for indices in chosen if indices is not None]
    return sum(size[0] for size in sizes), sum(size[1] for size in sizes)


def _heaviest(batches: Sequence[Any], size: Callable[[Any], tuple[int, int]]) -> list[Any]:
    """Returns the batch of most cells, and that of most answers if it is another."""
    sizes = [size(batch) for batch in batches]
    numbers = range(len(batches))
    most = [max(numbers, key=lambda n: (sizes[n][which], sizes[n])) for which in (0, 1) if batches]
    return [batches[n] for n in dict.fromkeys(most)]


def _longest(examples: Sequence[BaseExample], indices: np.ndarray) -> np.ndarray:
    """Returns the one index of the heaviest example."""
    each = [indices[i : i + 1] for i in range(len(indices))]
    return max(each, key=lambda one: _size(examples, one))


def _on_disk(method: AnyMethod) -> TypeGuard[FirstOrder]:
    """Whether the state is in memory only while it is used."""
    return isinstance(method, FirstOrder) and method.on_disk


def _numbers(method: AnyMethod) -> list[int]:
    """Returns the steps that differ in what they take: HiFT's lowest, middle and highest group.

    The largest group is among them, which holds the most state.
    """
    if not isinstance(method, Hift):
        return [1]
    groups = method.groups
    sizes = [sum(method.arena.views[name].size for name in group) for group in groups]
    ends = {1, len(groups) // 2 + 1, len(groups)}
    return sorted(ends | {sizes.index(max(sizes)) + 1})


def _mean_step(method: AnyMethod, take: Callable[[int], float]) -> float:
    """Returns the seconds of a mean step; the groups between HiFT's ends are like the middle."""
    if not isinstance(method, Hift) or len(method.groups) < 3:
        return take(1)
    count = len(method.groups)
    return (take(1) + (count - 2) * take(count // 2 + 1) + take(count)) / count


def _some(data: TrainingData, batches: Sequence[Chosen], longest: int) -> TrainingData:
    """Returns a run's data with the training rows of some batches, and so many of the longest."""
    lengths = np.array([example.length for example in data.train])
    named = [indices for chosen in batches for indices in chosen if indices is not None]
    kept = np.unique(np.concatenate([*named, np.argsort(lengths)[-longest:]]))
    train = [data.train[i] for i in kept]
    return dataclasses.replace(data, train=train, batch=lambda chosen: data.batch(kept[chosen]))


def _step(
    model: Model, data: TrainingData, method: AnyMethod, number: int, chosen: Chosen
) -> float:
    """Takes a step and returns its seconds."""
    batch = data.batch(chosen[0])
    loss = BatchLoss(model, batch, None if chosen[1] is None else data.batch(chosen[1]))

    def take() -> None:
        method.step(number, loss, _RATE)
        model.weights.settle()

    return _timed(take)


def _pass(
    model: Model, data: TrainingData, method: FirstOrder, number: int, chosen: Chosen
) -> None:
    """Computes the gradients of a step, and does nothing with them."""
    names, draws = method.names(number), Draws(method.seed, number)
    loss = BatchLoss(model, data.batch(chosen[0]))
    loss.descend(names, lambda name, gradient: None, method.keep_products, draws)


def _evaluate(model: Model, data: TrainingData, indices: np.ndarray) -> None:
    batch = data.task.collate([data.held_out[i] for i in indices])
    batch.objective.tally(model.forward(batch))


def _timed(action: Callable[[], object]) -> float:
    """Returns how many seconds `action` took."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
