"""NVIDIA cards: device memory through CuPy and ONNX Runtime's CUDA execution provider.

Sweeps, copies and forward passes are queued on one stream, so that each sees what the one before
left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgezo_runtime import dtypes, safetensors_file, wire
from edgezo_runtime.devices.base import Binder, Device
from edgezo_runtime.devices.cpu import add_constants, session_options
from edgezo_runtime.devices.cuda_part import RecordedPart
from edgezo_runtime.devices.cuda_record import CardRecord
from edgezo_runtime.devices.cuda_sweep import UPDATED, CudaSweeper
from edgezo_runtime.devices.cuda_vocabulary import MULTIPLIED, VocabularyPart
from edgezo_runtime.devices.part import Part
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.late import LateNumber, Scalar
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.sweep import Placed
from edgezo_runtime.vocabulary import take_off

_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}
PLACE = "cuda"  # as an IOBinding calls it
_PROVIDER = "CUDAExecutionProvider"
_INSTALL = "run `pip install 'edgezo[cuda]'` in an environment without the CPU's onnxruntime"
#: What has shapes that depend on values, or branches: recorded kernels would repeat the first.
_UNRECORDED = {"If", "Loop", "Scan", "NonZero", "Compress", "Unique", "NonMaxSuppression"}
_COPY_BYTES = 1 << 26  # from a file to the card at once


class CudaDevice(Device):
    """One NVIDIA card.

    Args:
        index: which one, as the driver counts.
        threads: of the host.

    Attributes:
        index: the card's number.
        stream: that everything is queued on.
        place: kind and number, as an IOBinding takes them.

    Raises:
        EdgezoError: the driver, CuPy or ONNX Runtime's CUDA build is missing or does not fit.
        InputError: there is no such card, or the process works on another one.
    """

    name = "cuda"
    lean = True
    chunk = 1 << 22  # what is computed on the way takes a few times 16 MiB
    span = UPDATED
    _opened: ClassVar[int | None] = None

    def __init__(self, index: int, threads: int) -> None:
        super().__init__(threads)
        self._cupy = cupy = _cupy()
        self.index = index
        self.place = (PLACE, index)
        count = _count(cupy)
        if index >= count:
            raise InputError(f"device cuda:{index} is not there: this machine has {count} cards")
        check_runtime()
        if CudaDevice._opened not in (None, index):
            raise InputError(
                f"this process works on card {CudaDevice._opened}: use card {index} in another one"
            )
        CudaDevice._opened = index
        # The thread's from here on, for all that names no card: memory, streams, events, kernels.
        cupy.cuda.Device(index).use()
        # Blocking, so that CuPy's default stream and this one wait for each other.
        self.stream = cupy.cuda.Stream(non_blocking=False)

    @property
    def xp(self) -> Any:
        return self._cupy

    @property
    def queue(self) -> Any:
        return self.stream

    def zeros(self, size: int, dtype: np.dtype) -> Any:
        array = self.empty((size,), dtype)
        array.fill(0)
        return array

    def put(self, array: np.ndarray) -> Any:
        placed = self.empty(array.shape, array.dtype)
        self._copy(placed, array)
        return placed

    def host(self, array: Any) -> np.ndarray:
        return self._cupy.asnumpy(array, stream=self.stream)

    def bring(self, arrays: Sequence[Any]) -> Callable[[], list[np.ndarray]]:
        """Queues copies of `arrays` to the host's memory; returns what waits for them."""
        cuda = self._cupy.cuda
        runtime = cuda.runtime
        copies = [_pinned(cuda, array.shape, array.dtype) for array in arrays]
        for array, copy in zip(arrays, copies, strict=True):
            target, source, kind = copy.ctypes.data, array.data.ptr, runtime.memcpyDeviceToHost
            runtime.memcpyAsync(target, source, array.nbytes, kind, self.stream.ptr)
        done = cuda.Event(block=False, disable_timing=True)
        done.record(self.stream)

        def wait(keep: Sequence[Any] = arrays) -> list[np.ndarray]:
            done.synchronize()
            return copies

        return wait

    def record(
        self,
        losses: Sequence[LateNumber],
        scalars: Sequence[Scalar],
        lr: np.float32,
        most: float,
    ) -> CardRecord:
        return CardRecord.of(self, losses, scalars, lr, most)

    def fill(self, buffer: Any, array: Any) -> None:
        """Copies `array`, of NumPy or of the card, to `buffer`, in the stream's order."""
        with self.stream:
            if isinstance(array, np.ndarray):
                buffer.set(array)
            else:
                buffer[...] = array

    def adopt(self, value: Any) -> Any:
        cupy, shape, dtype = self._cupy, tuple(value.shape()), _TYPES[value.data_type()]
        size = int(np.prod(shape)) * dtype.itemsize
        memory = cupy.cuda.UnownedMemory(value.data_ptr(), size, value, self.index)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    def read(self, path: Path, destinations: Mapping[str, Any]) -> str:
        entries = safetensors_file.read_header(path)
        for name, array in destinations.items():
            entry = safetensors_file.check_destination(path, entries, name, array)
            self._copy(array, safetensors_file.map_tensor(path, entry))
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def sweeper(self, placed: Sequence[Placed], buffers: Mapping[dtypes.Dtype, Any]) -> CudaSweeper:
        return CudaSweeper(placed, buffers, self.stream)

    def part(
        self,
        model: bytes,
        constants: Mapping[str, Any] | None = None,
        often: bool = True,
        weights: Mapping[str, Any] | None = None,
    ) -> Part:
        if often and not wire.op_types(model) & _UNRECORDED:
            try:
                return self._recorded(model, constants, weights or {})
            except Exception as error:
                # ONNX Runtime refuses where kernels of the CPU stand between those of the card.
                if "graph capture" not in str(error):
                    raise
        return super().part(model, constants)

    def _recorded(
        self, model: bytes, constants: Mapping[str, Any] | None, weights: Mapping[str, Any]
    ) -> Part:
        def recorded(model: bytes) -> RecordedPart:
            return RecordedPart(self, self._open(model, constants, {"enable_cuda_graph": "1"}))

        end = take_off(model)
        weight = weights.get(end.weight) if end else None
        if end is None or weight is None or weight.dtype.name not in MULTIPLIED:
            return recorded(model)
        return VocabularyPart(self, recorded(end.body), end, weight)

    def open_session(
        self, model: bytes, constants: Mapping[str, Any] | None = None, piece: bool = False
    ) -> Any:
        return self._open(model, constants, {}, piece)

    def _open(
        self,
        model: bytes,
        constants: Mapping[str, Any] | None,
        more: Mapping[str, str],
        piece: bool = False,
    ) -> Any:
        options = session_options(self.threads)
        options.enable_mem_pattern = False  # blocks of several shapes would lie side by side
        # Else sums over rows, as of a bias's gradient, are added up in another order every time.
        options.use_deterministic_compute = piece
        add_constants(options, model, constants)
        provider = {
            "device_id": str(self.index),
            "user_compute_stream": str(self.stream.ptr),
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",  # its rounding would drown the difference of two losses
            **more,
        }
        providers = [(_PROVIDER, provider), "CPUExecutionProvider"]
        session = onnxruntime().InferenceSession(model, options, providers=providers)
        if session.get_providers()[0] != _PROVIDER:
            raise EdgezoError(
                "ONNX Runtime's CUDA execution provider does not load: this build needs CUDA "
                f"{_cuda_version()} and cuDNN 9; {_INSTALL}, or update the driver"
            )
        return session

    def binder(self, array: Any, dtype: dtypes.Dtype) -> Binder:
        address, shape = array.data.ptr, array.shape

        def bind(binding: Any, name: str, keep: Any = array) -> None:
            binding.bind_input(name, *self.place, dtype.onnx, shape, address)

        return bind

    def bind_output(self, binding: Any, name: str) -> None:
        binding.bind_output(name, *self.place)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Allocates without CuPy's pool, which would keep what is freed.

        Raises:
            EdgezoError: the card's memory is too small.
        """
        cupy = self._cupy
        size = max(int(np.prod(shape)) * dtype.itemsize, 1)
        try:
            memory = cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            free, total = cupy.cuda.Device().mem_info
            raise EdgezoError(
                f"the card has {free >> 20} of {total >> 20} MiB free and {size >> 20} MiB more "
                "are needed: use device cuda-offload, which leaves the weights in the host's "
                "memory, or free some"
            ) from error
        return cupy.ndarray(shape, dtype, memory)

    def _copy(self, target: Any, source: np.ndarray) -> None:
        if not isinstance(target, self._cupy.ndarray):
            target[...] = source
            return
        flat, values = target.reshape(-1), source.reshape(-1)
        count = max(_COPY_BYTES // source.dtype.itemsize, 1)
        for start in range(0, flat.size, count):
            # A contiguous copy: a mapped file's pages are read here, not by the driver.
            flat[start : start + count].set(np.array(values[start : start + count]))


def _pinned(cuda: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array of the host's memory that the card writes to by itself."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = cuda.alloc_pinned_memory(max(size, 1))
    return np.frombuffer(memory, np.uint8)[:size].view(dtype).reshape(shape)


def check_runtime() -> None:
    """Loads CUDA's libraries for ONNX Runtime, which finds none that lie in Python packages.

    Raises:
        EdgezoError: this ONNX Runtime was not built for CUDA.
    """
    ort = onnxruntime()
    if _PROVIDER not in ort.get_available_providers():
        raise EdgezoError(
            f"this ONNX Runtime {ort.__version__} has no CUDA execution provider: {_INSTALL}"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it looks for elsewhere
        ort.preload_dlls()


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise EdgezoError(f"device cuda needs CuPy, which is not installed: {_INSTALL}") from error


def _count(cupy: Any) -> int:
    try:
        return cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise EdgezoError(
            f"no NVIDIA card can be used ({error}): install or update the NVIDIA driver, "
            "or use device cpu"
        ) from error


def _cuda_version() -> str:
    return str(getattr(onnxruntime(), "cuda_version", "") or "13")
