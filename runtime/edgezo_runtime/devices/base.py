"""What a device is to the rest of edgezo: memory, sweeps over it, and sessions that read it."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgezo_runtime.devices.part import Part
from edgezo_runtime.dtypes import Dtype
from edgezo_runtime.errors import InputError
from edgezo_runtime.late import LateNumber, LateRecord, Scalar
from edgezo_runtime.sweep import Placed, Sweeper

#: Binds the input of that name of an ONNX Runtime IOBinding.
Binder = Callable[[Any, str], None]


class Device(abc.ABC):
    """Where weights lie and forward passes run.

    Its arrays are those of its array module: NumPy's, or an equivalent for its memory.

    Attributes:
        name: as ``device=`` takes it.
        lean: whether it is faster with a bundle's lean graph.
        chunk: elements of long arrays that arithmetic takes at once.
        span: elements of a direction that are drawn at once.
        streams: whether the weights lie elsewhere and pass through it in stages.
        threads: of the host, for sessions and sweeps that run there.

    Raises:
        InputError: there is no thread.
    """

    name: ClassVar[str]
    lean: ClassVar[bool] = False
    chunk: ClassVar[int]
    span: ClassVar[int]
    streams: ClassVar[bool] = False

    def __init__(self, threads: int) -> None:
        if not isinstance(threads, Integral) or threads < 1:
            raise InputError(f"threads is {threads!r}; use 1 or more")
        self.threads = threads

    @property
    @abc.abstractmethod
    def xp(self) -> Any:
        """The array module: ``numpy``, or one with its functions."""

    @property
    def queue(self) -> AbstractContextManager[Any]:
        """Where arithmetic of `xp` keeps its place between sweeps and runs."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def zeros(self, size: int, dtype: np.dtype) -> Any:
        """Returns (size,) zeros at an address that is a multiple of 64 bytes."""

    @abc.abstractmethod
    def put(self, array: np.ndarray) -> Any:
        """Returns `array` in the device's memory; it may be the same memory."""

    @abc.abstractmethod
    def host(self, array: Any) -> np.ndarray:
        """Returns a device's array as NumPy's; it may be the same memory."""

    @abc.abstractmethod
    def read(self, path: Path, destinations: Mapping[str, Any]) -> str:
        """Fills `destinations` from a file; see `safetensors_file.read_into`.

        Besides the device's arrays they may be NumPy's.
        """

    @abc.abstractmethod
    def sweeper(self, placed: Sequence[Placed], buffers: Mapping[Dtype, Any]) -> Sweeper:
        """Returns what sweeps over the weights `placed` in `buffers`."""

    @abc.abstractmethod
    def open_session(
        self, model: bytes, constants: Mapping[str, Any] | None = None, piece: bool = False
    ) -> Any:
        """Returns the InferenceSession of the ONNX file `model`.

        Args:
            model: the bytes of an ONNX file.
            constants: values of initializers that lie in no file, OrtValues by name.
            piece: whether it is one of many that take turns: what it keeps for its next run, the
                others would want. On the CPU all sessions share one memory anyway.
        """

    def part(
        self,
        model: bytes,
        constants: Mapping[str, Any] | None = None,
        often: bool = True,
        weights: Mapping[str, Any] | None = None,
    ) -> Part:
        """Returns the graph of the ONNX file `model`, ready to run; see `open_session`.

        Args:
            model: likewise.
            constants: likewise.
            often: whether it pays to prepare for runs of the same shapes.
            weights: the device's arrays that will be bound to its inputs, by name, if it is known.
        """
        return Part(self, self.open_session(model, constants))

    @abc.abstractmethod
    def binder(self, array: Any, dtype: Dtype) -> Binder:
        """Returns what binds an input to the memory of a device's `array`; no binding keeps it."""

    @abc.abstractmethod
    def bind_output(self, binding: Any, name: str) -> None:
        """Lets the output `name` stay in the device's memory."""

    def handle(self, array: Any, dtype: Dtype) -> Any:
        """Returns a device's `array` as `run` takes it, over the same memory."""
        return self.binder(array, dtype)

    def run(
        self,
        session: Any,
        feeds: Mapping[str, Any],
        outputs: Sequence[str],
        on_host: Collection[str] = (),
    ) -> list[Any]:
        """Runs `session` and keeps nothing of it.

        Args:
            session: of `open_session`.
            feeds: by input: OrtValues, and what `handle` gave.
            outputs: the names of those that are wanted.
            on_host: the names of those that the device's memory is not meant for.

        Returns:
            OrtValues of the outputs.
        """
        binding = session.io_binding()  # a fresh one: it would keep these values alive
        for name, value in feeds.items():
            if callable(value):
                value(binding, name)
            else:
                binding.bind_ortvalue_input(name, value)
        for name in outputs:
            if name in on_host:
                binding.bind_output(name)
            else:
                self.bind_output(binding, name)
        session.run_with_iobinding(binding)
        return binding.get_outputs()

    def record(
        self,
        losses: Sequence[LateNumber],
        scalars: Sequence[Scalar],
        lr: np.float32,
        most: float,
    ) -> LateRecord:
        """Starts to compute the record of a step whose losses stayed with `Part.reduce`.

        The step is skipped if, rounded to float32, a scalar is not finite, or not so times the
        rate.

        Args:
            losses: of all passes of the step.
            scalars: what the record holds of them.
            lr: the step's learning rate.
            most: the largest scalar that the method can use.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def adopt(self, value: Any) -> Any:
        """Returns the device's array over an OrtValue that a session let stay."""
