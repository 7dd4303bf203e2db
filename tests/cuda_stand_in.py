"""CuPy's arrays and the kernels' arithmetic in NumPy, so that the CUDA device's own code runs here.

Sessions run on the CPU over the same memory.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import cuda_kernels
import numpy as np
import pytest

from edgezo_runtime import dtypes
from edgezo_runtime.devices import (
    Binder,
    cuda,
    cuda_loss,
    cuda_noise,
    cuda_record,
    cuda_rule,
    cuda_sweep,
    cuda_vocabulary,
)
from edgezo_runtime.devices.cpu import CpuDevice, alias
from edgezo_runtime.noise import POOL_SIZE

_SAME = (
    *("abs", "arange", "bool_", "concatenate", "divide", "empty", "int64", "maximum"),
    *("multiply", "sign", "sqrt", "uint32", "unpackbits", "zeros"),
)


class Array(np.ndarray):
    """A NumPy array with the parts of CuPy's that the CUDA device uses, and as strict."""

    memory: object = None

    def __new__(cls, shape: tuple[int, ...], dtype: np.dtype, memory: _Memory | _Unowned) -> Self:
        size = int(np.prod(shape)) * dtype.itemsize
        array = memory.bytes[:size].view(dtype).reshape(shape).view(cls)
        array.memory = memory
        return array

    def __array_finalize__(self, parent: object) -> None:
        self.memory = getattr(parent, "memory", None)

    def __array_ufunc__(
        self,
        ufunc: np.ufunc,
        method: str,
        *inputs: Any,
        out: tuple[Any, ...] = (),
        **kwargs: Any,
    ) -> Any:
        """Computes as CuPy does, which takes no array of the host."""
        for value in (*inputs, *out):
            if isinstance(value, np.ndarray) and not isinstance(value, Array):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        plain = [np.asarray(value) if isinstance(value, Array) else value for value in inputs]
        if out:
            kwargs["out"] = tuple(map(np.asarray, out))
        made = getattr(ufunc, method)(*plain, **kwargs)
        return out[0] if out else np.asarray(made).view(Array)

    @property
    def data(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return types.SimpleNamespace(ptr=self.__array_interface__["data"][0])

    def set(self, values: np.ndarray) -> None:
        self[...] = values


class _Memory:
    allocated = 0
    limit = 1 << 40

    def __init__(self, size: int) -> None:
        if _Memory.allocated + size > _Memory.limit:
            raise CudaError("cudaErrorMemoryAllocation: out of memory")
        raw = np.full(size + 512, 0xAA, np.uint8)
        skip = -raw.__array_interface__["data"][0] % 512
        self.bytes = raw[skip : skip + size]


class _Unowned:
    """Memory that somebody else keeps."""

    def __init__(self, address: int, size: int, owner: object, device: int) -> None:
        self.owner = owner
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class CudaError(RuntimeError):
    """What the CUDA runtime raises."""


class _Context:
    mem_info = (3 << 20, 80 << 20)

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def use(self) -> None: ...


class Stream(_Context):
    """One whose work is done at once, or, if it waits for nothing but events, when it has to be.

    What is done too late or too early then shows, as far as a test looks.
    """

    late = True  # whether streams of copies put their work off
    entered = 0  # how many times it is entered, and not left
    _all: ClassVar[list[Stream]] = []

    def __init__(self, non_blocking: bool) -> None:
        self._put_off = non_blocking and Stream.late
        self._queue: list[Callable[[], object]] = []
        Stream._all.append(self)
        self.ptr = len(Stream._all)

    def __enter__(self) -> None:
        self.entered += 1

    def __exit__(self, *_: object) -> None:
        self.entered -= 1

    def do(self, work: Callable[[], object]) -> None:
        self._queue.append(work)
        if not self._put_off:
            self.synchronize()

    def until(self, work: Callable[[], object]) -> None:
        while any(each is work for each in self._queue):
            self._queue.pop(0)()

    def synchronize(self) -> None:
        while self._queue:
            self._queue.pop(0)()

    def wait_event(self, event: Event) -> None:
        stream, mark = event.stream, event.mark
        if stream is not None:
            self.do(lambda: stream.until(mark))


class Event:
    stream: Stream | None = None

    def __init__(self, block: bool, disable_timing: bool) -> None:
        assert not block and disable_timing

    def record(self, stream: Stream) -> None:
        self.stream, self.mark = stream, lambda: None
        stream.do(self.mark)

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.until(self.mark)

    def mark(self) -> None: ...


def _copy(target: int, source: int, size: int, kind: int, stream: int) -> None:
    on_host = target if kind == _TO_HOST else source
    assert any(0 <= on_host - start <= length - size for start, length in _pinned)
    Stream._all[stream - 1].do(lambda: ctypes.memmove(target, source, size))


class _PinnedMemory:
    def __init__(self, size: int) -> None:
        if _Memory.allocated + size > _Memory.limit:
            raise CudaError("cudaErrorMemoryAllocation: out of memory")
        self.bytes = np.full(size + 64, 0xAA, np.uint8)
        self.start = -self.bytes.__array_interface__["data"][0] % 64
        _pinned.append((self.bytes.__array_interface__["data"][0] + self.start, size))


def _pinned_pointer(memory: _PinnedMemory, offset: int) -> np.ndarray:
    return memory.bytes[memory.start : memory.bytes.size - 64 + memory.start]


_pinned: list[tuple[int, int]] = []
_TO_CARD, _TO_HOST = 1, 2


class _RawModule:
    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        assert "--fmad=false" in options
        self._code = code

    def get_function(self, name: str) -> Any:
        assert name in self._code
        return _KERNELS[name]


def _total(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
    output, count, sign, loss = arguments
    assert output.dtype == np.float32 and output.size == count and block == (256,)
    loss[0] = sign * np.asarray(output).sum(dtype=np.float64) / np.float64(count)


def _choice(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
    output, labels, rows, columns, loss = arguments
    scores = np.asarray(output).astype(np.float64)
    assert output.dtype == np.float32 and scores.shape == (rows, columns) and block == (256,)
    highest = scores.max(axis=1)
    with np.errstate(invalid="ignore"):
        whole = np.log(np.exp(scores - highest[:, None]).sum(axis=1)) + highest
    loss[0] = (whole - scores[np.arange(rows), np.asarray(labels)]).sum() / rows


_KERNELS = {"total": _total, "choice": _choice}


def _asarray(values: np.ndarray) -> Array:
    array = np.ascontiguousarray(values).copy().view(Array)
    if array.nbytes > POOL_SIZE:
        cuda_kernels.pools.append(np.asarray(array))
    return array


def _same(name: str) -> Any:
    """Returns NumPy's `name`, whose arrays are the card's."""
    found = getattr(np, name)
    if isinstance(found, type):
        return found

    def call(*args: Any, **kwargs: Any) -> Any:
        made = found(*args, **kwargs)
        return made.view(Array) if isinstance(made, np.ndarray) else made

    return call


def module(cards: int = 1) -> types.ModuleType:
    """Returns the stand-in of `cupy` on a machine with so many cards."""
    fake: Any = types.ModuleType("cupy")
    fake.RawModule, fake.asarray, fake.ndarray = _RawModule, _asarray, Array
    fake.asnumpy = lambda array, stream=None: np.array(array)
    fake.isfinite, fake.dot = np.isfinite, np.dot
    for name in _SAME:
        setattr(fake, name, _same(name))
    fake.cuda = types.SimpleNamespace(
        Memory=_Memory,
        MemoryPointer=lambda memory, offset: memory,
        UnownedMemory=_Unowned,
        PinnedMemory=_PinnedMemory,
        PinnedMemoryPointer=_pinned_pointer,
        alloc_pinned_memory=lambda size: _pinned_pointer(_PinnedMemory(size), 0),
        Stream=Stream,
        Event=Event,
        Device=_Context,
        runtime=types.SimpleNamespace(
            CUDARuntimeError=CudaError,
            getDeviceCount=lambda: cards,
            memcpyAsync=_copy,
            memcpyHostToDevice=_TO_CARD,
            memcpyDeviceToHost=_TO_HOST,
        ),
    )
    return fake


def install(monkeypatch: pytest.MonkeyPatch, cards: int = 1) -> None:
    """Makes `device="cuda"` the stand-in until the test ends."""
    monkeypatch.setitem(__import__("sys").modules, "cupy", module(cards))
    for cached in (cuda_noise._pool, cuda_loss._module):
        cached.cache_clear()
    cuda_kernels.pools.clear()
    monkeypatch.setattr(cuda_sweep, "kernel", cuda_kernels.kernel)
    monkeypatch.setattr(cuda_rule, "kernel", cuda_kernels.rule_kernel)
    monkeypatch.setattr(cuda_record, "kernel", cuda_kernels.record_kernel)
    monkeypatch.setattr(cuda_vocabulary, "kernel", cuda_kernels.vocabulary_kernel)
    host = CpuDevice(1)

    def open_session(
        self: Any, model: bytes, constants: Any, more: Mapping[str, str], piece: bool = False
    ) -> Any:
        assert not more or (more == {"enable_cuda_graph": "1"} and not piece)
        return host.open_session(model, constants, piece)

    def binder(self: Any, array: Any, dtype: dtypes.Dtype) -> Binder:
        value = alias(np.asarray(array), dtype)
        return lambda binding, name: binding.bind_ortvalue_input(name, value)

    monkeypatch.setattr(cuda, "check_runtime", lambda: None)
    monkeypatch.setattr(cuda.CudaDevice, "_opened", None)
    monkeypatch.setattr(cuda.CudaDevice, "_open", open_session)
    monkeypatch.setattr(cuda.CudaDevice, "binder", binder)
    monkeypatch.setattr(cuda, "PLACE", "cpu")
