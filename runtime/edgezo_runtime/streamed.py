"""Forward passes on a card over weights of the host's memory, which pass through it in stages.

While one stage is computed, the next ones' weights are on their way. What was added to the weights
since the memory was written is added to each stage as it arrives; where a step is known to ask for
the losses of one batch after several moves, all of them are computed in one visit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime.batch import BaseBatch, Outputs
from edgezo_runtime.bundle import GRAPH, LEAN, QUANTIZED, Bundle
from edgezo_runtime.devices.cuda import CudaDevice
from edgezo_runtime.devices.lane import BUFFERS, Lane
from edgezo_runtime.devices.offload import OffloadDevice
from edgezo_runtime.devices.offload_sweep import PendingSweeper
from edgezo_runtime.devices.stage_weights import StageWeights
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.graph import Graph
from edgezo_runtime.inputs import Inputs
from edgezo_runtime.session import failures, same
from edgezo_runtime.stages import Stage, cut
from edgezo_runtime.sweep import Term
from edgezo_runtime.weights import Weights

_MOST_AHEAD = 32  # moves whose losses are computed in one visit

_Feeds = Mapping[str, np.ndarray]
_Values = dict[str, Any]


@dataclass(frozen=True, eq=False)  # arrays have no one answer to it
class _Foreseen:
    """Outputs that were computed before they were asked for."""

    version: int
    pending: tuple[Term, ...]
    feeds: _Feeds
    outputs: Outputs


class StreamedSession:
    """Runs a bundle's graph on a card through which the weights of the host pass.

    Args:
        bundle: its graph and its manifest, which must agree.
        weights: on an `OffloadDevice`; they are aliased.

    Raises:
        InputError: the manifest disagrees with the graph, the graph cannot be loaded, or the
            weights are quantised.
    """

    def __init__(self, bundle: Bundle, weights: Weights) -> None:
        manifest = bundle.manifest
        if any(p.kind == QUANTIZED for p in manifest.parameters):
            raise InputError(
                f"{bundle.folder} is quantised, and quantised weights stay on the card: use device "
                "cuda, or the bundle that it was made from"
            )
        arena, device = weights.arena, weights.device
        assert isinstance(device, OffloadDevice) and isinstance(arena.sweeper, PendingSweeper)
        self._card, self._sweeper = device.card, arena.sweeper
        self._inputs = Inputs(manifest.inputs)
        self._outputs = [port.name for port in manifest.outputs]
        arrays = weights.arrays()
        sessions: dict[bytes, Any] = {}
        try:
            graph = Graph(bundle.read_graph(LEAN if LEAN in manifest.files else GRAPH))
            _check(graph, bundle)
            stages = cut(graph, {name: array.nbytes for name, array in arrays.items()})
            for model in {stage.piece.model for stage in stages}:
                sessions[model] = self._card.open_session(model)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot load {bundle.graph}: {error}") from error
        last = dict.fromkeys(arena.views, len(stages) - 1)  # also of what nothing reads
        last |= {name: number for number, stage in enumerate(stages) for name in stage.weights}
        self._stages: list[_Loaded] = []
        for number, stage in enumerate(stages):
            ends = {name for name, end in last.items() if end == number}
            read = [p for p in manifest.parameters if p.name in stage.weights | ends]
            own = StageWeights(arena, read, arrays, ends)
            self._stages.append(_Loaded(stage, sessions[stage.piece.model], own))
        size = max(stage.weights.size for stage in self._stages)
        count = min(BUFFERS, len(stages))
        self._lane = Lane(self._card, size, count)
        for number, stage in enumerate(self._stages):
            stage.weights.place(self._card, self._lane.buffers[number % count])
        trained = (n for n, s in enumerate(stages) if s.weights & arena.views.keys())
        #: Stages of frozen weights alone, in front: what they make is kept for a batch.
        self._frozen = next(trained, len(stages))
        ports = {port.name for port in manifest.inputs}
        read = {name for s in stages[: self._frozen] for name, _ in s.piece.inputs}
        self._read = read & ports  # of the data
        self._held: tuple[_Feeds, _Values] | None = None
        self._foreseen: list[_Foreseen] = []

    def forward(self, batch: BaseBatch) -> Outputs:
        """Runs one forward pass and returns the graph's outputs by name.

        Raises:
            InputError: the batch does not give what the graph takes.
            EdgezoError: ONNX Runtime failed.
        """
        feeds = self._inputs.of(batch)
        sweeper = self._sweeper
        sweeper.check()
        for one in self._foreseen:
            if (one.version, one.pending) == (sweeper.version, sweeper.pending) and same(
                one.feeds, feeds
            ):
                self._foreseen.remove(one)
                return one.outputs
        with failures(feeds):
            return self._visit(feeds)

    def start(self, batch: BaseBatch) -> Callable[[], Outputs]:
        """Runs a forward pass; returns what returns its outputs."""
        outputs = self.forward(batch)
        return lambda: outputs

    def _visit(self, feeds: _Feeds) -> Outputs:
        """Returns the outputs at the present weights, and keeps those that are foreseen."""
        sweeper = self._sweeper
        pending, ahead = sweeper.pending, sweeper.ahead[:_MOST_AHEAD]
        self._foreseen = [
            one
            for one in self._foreseen
            if one.version == sweeper.version and one.pending[: len(pending)] == pending
        ]
        writes = sweeper.writes
        with sweeper.written() if writes else contextlib.nullcontext():
            found, *later = self._pass(feeds, [pending, *ahead], writes)
        now, copied = sweeper.pending, {name: array.copy() for name, array in feeds.items()}
        for terms, outputs in zip(ahead, later, strict=True):
            now += terms
            self._foreseen.append(_Foreseen(sweeper.version, now, copied, outputs))
        return found

    def _pass(self, feeds: _Feeds, groups: Sequence[Sequence[Term]], writes: bool) -> list[Outputs]:
        """Lets the weights pass once; returns the outputs after each of `groups` was added."""
        begin, held = self._resume(feeds)
        placed = {name: self._card.put(np.ascontiguousarray(a)) for name, a in feeds.items()}
        each = [dict(held) for _ in groups]
        lane, count, fetched = self._lane, len(self._lane.buffers), begin
        try:
            for number in range(begin, len(self._stages)):
                stage, buffer = self._stages[number], number % count
                while fetched < min(number + count, len(self._stages)):
                    lane.fetch(fetched % count, self._stages[fetched].weights.copied)
                    fetched += 1
                lane.take(buffer)
                for turn, (terms, values) in enumerate(zip(groups, each, strict=True)):
                    if number < self._frozen and turn:
                        values.update(each[0])
                        continue
                    if turn and writes:
                        lane.change(buffer)
                    stage.weights.add(terms)
                    if writes and not turn:
                        lane.write_back(buffer, stage.weights.copied)
                    values.update(stage.run(self._card, placed, values, {*self._outputs}))
                lane.leave(buffer)
                for values in each:
                    for name in stage.done:
                        del values[name]
                if number + 1 == self._frozen:
                    kept = {name: feeds[name].copy() for name in self._read}
                    self._held = kept, dict(each[0])
        finally:
            lane.rest()
        return [{name: values[name].numpy() for name in self._outputs} for values in each]

    def _resume(self, feeds: _Feeds) -> tuple[int, _Values]:
        """Returns the stage to begin at, and what the frozen ones before it have made."""
        if self._held and same({name: feeds[name] for name in self._read}, self._held[0]):
            return self._frozen, self._held[1]
        self._held = None
        return 0, {}


class _Loaded:
    """A stage with its session and its weights."""

    def __init__(self, stage: Stage, session: Any, weights: StageWeights) -> None:
        self.done, self.weights = stage.done, weights
        self._piece, self._session = stage.piece, session

    def run(self, card: CudaDevice, feeds: _Values, values: _Values, ends: Set[str]) -> _Values:
        """Returns what the stage makes, by name; those of `ends` come to the host.

        It waits, as ONNX Runtime may use the host's memory again; copies of weights go on.
        """
        binding = self._session.io_binding()  # a fresh one: it would keep the last values alive
        for name, own in self._piece.inputs:
            if binder := self.weights.binders.get(name):
                binder(binding, own)
            elif name in values:
                binding.bind_ortvalue_input(own, values[name])
            else:
                array = feeds[name]
                place = (*card.place, array.dtype, array.shape, array.data.ptr)
                binding.bind_input(own, *place)
        for name, own in self._piece.outputs:
            if name in ends:
                binding.bind_output(own)
            else:
                card.bind_output(binding, own)
        self._session.run_with_iobinding(binding)
        names = (name for name, _ in self._piece.outputs)
        return dict(zip(names, binding.get_outputs(), strict=True))


def _check(graph: Graph, bundle: Bundle) -> None:
    """Raises InputError unless the manifest names the graph's inputs and outputs."""
    manifest = bundle.manifest
    named = {p.name for p in manifest.parameters} | {port.name for port in manifest.inputs}
    others = named ^ graph.inputs | {p.name for p in manifest.outputs}.difference(graph.outputs)
    if others:
        raise InputError(
            f"the manifest of {bundle.folder} disagrees with its graph about {min(others)!r}: "
            "export it again"
        )
