"""Graphs whose kernels are recorded once for each shape, and launched together from then on.

A forward pass of a small model is a thousand launches, which take longer than what they launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgezo_runtime.batch import Reduction
from edgezo_runtime.devices.cuda_loss import mean_loss
from edgezo_runtime.devices.part import Part
from edgezo_runtime.late import LateNumber
from edgezo_runtime.ort import onnxruntime

if TYPE_CHECKING:
    from edgezo_runtime.devices.base import Binder
    from edgezo_runtime.devices.cuda import CudaDevice

MOST_RECORDINGS = 128  # each takes memory on the card, and none can be dropped
_PLAIN = "-1"  # the id of runs that are not recorded

_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class _Recording:
    """What a recorded run reads and writes, always in the same places."""

    binding: Any
    options: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class CardPart(Part):
    """A `Part` on a card, whose runs are queued."""

    _device: CudaDevice

    def launch(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, Any]:
        """Starts a run; returns the `outputs` by name, on the card until another is started.

        All runs are asked for the same outputs.
        """
        raise NotImplementedError

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], stay: bool = False
    ) -> list[Any]:
        assert not stay
        return self.start(feeds, outputs)()

    def start(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> Callable[[], list[np.ndarray]]:
        values = self.launch(feeds, outputs)
        return self._device.bring([values[name] for name in outputs])

    def reduces(self, reduction: Reduction) -> bool:
        return self.outputs[reduction.output].type == "tensor(float)"

    def reduce(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], reduction: Reduction
    ) -> LateNumber:
        values = self.launch(feeds, outputs)
        return mean_loss(self._device, values[reduction.output], reduction)


class RecordedPart(CardPart):
    """A part in a session that was opened with ``enable_cuda_graph``.

    A shape is recorded when it comes for the second time. The first run is an ordinary one, which
    tells the shapes of the outputs.
    """

    def __init__(self, device: CudaDevice, session: Any) -> None:
        super().__init__(device, session)
        self._held: dict[str, Any] = {}
        self._seen: set[_Shapes] = set()
        self._recordings: dict[_Shapes, _Recording] = {}
        self._places: dict[str, Any] = {}
        self._most = MOST_RECORDINGS
        self._plain = _options(_PLAIN, wait=True)

    def keep(self, name: str, binder: Binder) -> None:
        if name in self.inputs:
            self._kept[name] = binder

    def hold(self, name: str, value: Any) -> None:
        if name in self.inputs:
            on_host = value.device_name() == "cpu" != self._device.place[0]
            self._held[name] = (
                self._device.put(value.numpy()) if on_host else self._device.adopt(value)
            )

    def launch(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, Any]:
        feeds = {name: array for name, array in feeds.items() if name in self.inputs}
        feeds |= self._held
        shapes = tuple((name, array.shape) for name, array in sorted(feeds.items()))
        recording = self._recordings.get(shapes)
        if recording is None:
            values = self._run_plainly(feeds, outputs)
            if shapes in self._seen and len(self._recordings) < self._most:
                self._try_to_record(shapes, feeds, values)
            self._seen.add(shapes)
        else:
            for name, buffer in recording.inputs.items():
                self._device.fill(buffer, feeds[name])
            self._session.run_with_iobinding(recording.binding, recording.options)
            values = recording.outputs
        return values

    def _run_plainly(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        binding = self._bound()
        for name, array in feeds.items():
            if isinstance(array, np.ndarray):
                binding.bind_cpu_input(name, array)
            else:
                self._bind(binding.bind_input, name, array)
        for name in outputs:
            self._device.bind_output(binding, name)
        self._session.run_with_iobinding(binding, self._plain)
        values = zip(outputs, binding.get_outputs(), strict=True)
        return {name: self._device.adopt(value) for name, value in values}

    def _bound(self) -> Any:
        """Returns a fresh binding with the weights: one that is kept keeps its last outputs."""
        binding = self._session.io_binding()
        for name, binder in self._kept.items():
            binder(binding, name)
        return binding

    def _try_to_record(
        self, shapes: _Shapes, feeds: Mapping[str, Any], values: Mapping[str, Any]
    ) -> None:
        try:
            self._recordings[shapes] = self._record(feeds, values)
        except Exception as error:
            if "capture" not in str(error):
                raise
            self._most = 0  # a kernel copies to or from the host: all runs stay ordinary ones

    def _record(self, feeds: Mapping[str, Any], values: Mapping[str, Any]) -> _Recording:
        """Records a run whose outputs have the shapes of `values`; it is run besides."""
        device, binding = self._device, self._bound()
        inputs = {name: device.empty(array.shape, array.dtype) for name, array in feeds.items()}
        outputs = {name: self._place(name, array) for name, array in values.items()}
        for name, array in feeds.items():
            device.fill(inputs[name], array)
            self._bind(binding.bind_input, name, inputs[name])
        for name, array in outputs.items():
            self._bind(binding.bind_output, name, array)
        name = str(len(self._recordings) + 1)
        # Waits: the run before must have given its buffers back; none can be had while recording.
        self._session.run_with_iobinding(binding, _options(name, wait=True))
        return _Recording(binding, _options(name), inputs, outputs)

    def _place(self, name: str, like: Any) -> Any:
        """Returns where recordings leave the output `name`: in one place, whatever its shape."""
        held = self._places.get(name)
        if held is None or held.size < like.size:  # other recordings keep what was too small
            held = self._places[name] = self._device.empty((like.size,), like.dtype)
        return held[: like.size].reshape(like.shape)

    def _bind(self, bind: Any, name: str, array: Any) -> None:
        bind(name, *self._device.place, array.dtype, array.shape, array.data.ptr)


def _options(recording: str, wait: bool = False) -> Any:
    options = onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", recording)
    if not wait:  # the card's stream orders everything; who reads an output waits for it
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
