"""The CPU: NumPy memory and ONNX Runtime's CPU execution provider."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, safetensors_file, wire
from edgezo_runtime.devices.base import Binder, Device
from edgezo_runtime.devices.cpu_sweep import CpuSweeper
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.noise import BLOCK_SIZE
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.sweep import Placed

_ALIGNMENT = 64  # bytes
_REGION = 1 << 26  # bytes that sessions' memory begins with; only what is written to is taken
_SPLIT = 1 << 16  # bytes left over of a free part that are worth to be one of their own


class CpuDevice(Device):
    """The processor that Python runs on."""

    name = "cpu"
    chunk = 1 << 16  # of weights, gradient and state: they stay in the cache
    span = BLOCK_SIZE  # one window of the pool

    @property
    def xp(self) -> ModuleType:
        return np

    def zeros(self, size: int, dtype: np.dtype) -> np.ndarray:
        raw = np.zeros(size * dtype.itemsize + _ALIGNMENT, np.uint8)
        skip = -raw.__array_interface__["data"][0] % _ALIGNMENT
        return raw[skip : skip + size * dtype.itemsize].view(dtype)

    def put(self, array: np.ndarray) -> np.ndarray:
        return array

    def host(self, array: np.ndarray) -> np.ndarray:
        return array

    def read(self, path: Path, destinations: Mapping[str, np.ndarray]) -> str:
        return safetensors_file.read_into(path, destinations)

    def sweeper(
        self, placed: Sequence[Placed], buffers: Mapping[dtypes.Dtype, np.ndarray]
    ) -> CpuSweeper:
        return CpuSweeper(placed, buffers, self.threads)

    def open_session(
        self, model: bytes, constants: Mapping[str, Any] | None = None, piece: bool = False
    ) -> Any:
        _share_memory()
        options = session_options(self.threads)
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Idle workers would spin on the cores that the sweep needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        add_constants(options, model, constants)
        providers = ["CPUExecutionProvider"]
        return onnxruntime().InferenceSession(model, options, providers=providers)

    def binder(self, array: np.ndarray, dtype: dtypes.Dtype) -> Binder:
        value = alias(array, dtype)
        return lambda binding, name: binding.bind_ortvalue_input(name, value)

    def bind_output(self, binding: Any, name: str) -> None:
        binding.bind_output(name)

    def handle(self, array: np.ndarray, dtype: dtypes.Dtype) -> Any:
        return alias(array, dtype)

    def run(
        self,
        session: Any,
        feeds: Mapping[str, Any],
        outputs: Sequence[str],
        on_host: Collection[str] = (),
    ) -> list[Any]:
        # With a binding, the same outputs leave holes in the heap as large as they are.
        return session.run_with_ort_values(outputs, feeds)

    def adopt(self, value: Any) -> np.ndarray:
        return value.numpy()


def default_threads() -> int:
    """Returns how many threads a run uses if nobody says: the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _share_memory() -> None:
    """Lets all sessions of this process that ask for it take turns in one memory.

    One for each would hold what the others could use, and the heap falls to pieces between the
    values that a gradient keeps; pages that are given back would have to be zeroed again.
    """
    ort = onnxruntime()
    kind, memory = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
    settings = {"initial_chunk_size_bytes": _REGION, "max_dead_bytes_per_chunk": _SPLIT}
    ort.create_and_register_allocator(
        ort.OrtMemoryInfo("Cpu", kind, 0, memory), ort.OrtArenaCfg(settings)
    )


def session_options(threads: int) -> Any:
    """Returns the options that every session has, on every device."""
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def add_constants(options: Any, model: bytes, constants: Mapping[str, Any] | None) -> None:
    """Hands over the values of those initializers of `model` that lie in no file."""
    if constants:
        names = list(wire.initializers(model) & constants.keys())
        options.add_external_initializers(names, [constants[name] for name in names])


def alias(array: np.ndarray, dtype: dtypes.Dtype) -> Any:
    """Returns an OrtValue over the memory of `array`; ONNX Runtime would copy a strided one."""
    value_type = onnxruntime().OrtValue
    if dtype == dtypes.BFLOAT16:
        value = value_type.ortvalue_from_numpy_with_onnx_type(array, dtype.onnx)
    else:
        value = value_type.ortvalue_from_numpy(array)
    if value.data_ptr() != array.__array_interface__["data"][0]:
        raise EdgezoError("ONNX Runtime copied a weight that it should share")
    return value
