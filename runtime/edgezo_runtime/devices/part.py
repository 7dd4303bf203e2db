"""One ONNX Runtime session and what is bound to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgezo_runtime.batch import Reduction
from edgezo_runtime.late import LateNumber

if TYPE_CHECKING:
    from edgezo_runtime.devices.base import Binder, Device


class Part:
    """A graph, or a part of one, over weights that stay bound.

    Args:
        device: where it runs.
        session: the graph.

    Attributes:
        inputs: the graph's, by name.
        outputs: likewise.
    """

    def __init__(self, device: Device, session: Any) -> None:
        self._device = device
        self._session = session
        self._binding = session.io_binding()
        self._kept: dict[str, Binder] = {}  # the binding does not keep them alive
        self.inputs = {node.name: node for node in session.get_inputs()}
        self.outputs = {node.name: node for node in session.get_outputs()}

    def keep(self, name: str, binder: Binder) -> None:
        """Binds the input `name`, if there is one, for all runs to come."""
        if name in self.inputs:
            self._kept[name] = binder
            binder(self._binding, name)

    def hold(self, name: str, value: Any) -> None:
        """Gives the input `name`, if there is one, what another part returned and let stay."""
        self.keep(name, lambda binding, name: binding.bind_ortvalue_input(name, value))

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], stay: bool = False
    ) -> list[Any]:
        """Runs on `feeds`, of which it takes what it has inputs for; returns the `outputs`.

        They are NumPy's unless they `stay` in the device's memory, for `hold`.
        """
        for name, array in feeds.items():
            if name in self.inputs:
                self._binding.bind_cpu_input(name, array)
        for name in outputs:  # again for each run: a bound output keeps the last batch's shape
            if stay:
                self._device.bind_output(self._binding, name)
            else:
                self._binding.bind_output(name)
        self._session.run_with_iobinding(self._binding)
        values = self._binding.get_outputs()
        return values if stay else [value.numpy() for value in values]

    def start(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> Callable[[], list[np.ndarray]]:
        """Starts a run, as `run` does; returns what waits for its outputs.

        What the run reads may be changed at once, in the device's order.
        """
        values = self.run(feeds, outputs)
        return lambda: values

    def reduces(self, reduction: Reduction) -> bool:
        """Whether `reduce` can."""
        return False

    def reduce(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], reduction: Reduction
    ) -> LateNumber:
        """Starts a run, as `start` does; returns the mean loss, which stays on the device.

        Raises:
            InputError: a label is none of the columns.
        """
        raise NotImplementedError
