"""The card's kernels are compiled here with NVIDIA's own compiler, which needs no card."""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cuda_stand_in
import numpy as np
import pytest
from late_steps import CASES, begin
from tied_bundle import rows_for_tied, write_tied

from edgezo_runtime.devices import cuda_kernels, cuda_loss, cuda_record, cuda_rule
from edgezo_runtime.dtypes import TRAINABLE
from edgezo_runtime.first_order.loss import BatchLoss

ARCHITECTURES = (b"sm_75", b"sm_90")  # the oldest that CUDA 13 knows, and one that it was run on
GIVEN = "--std=c++17", "--fmad=false"
KERNEL = cuda_kernels.kernel.__wrapped__
RULE, RECORD = cuda_rule.kernel.__wrapped__, cuda_record.kernel.__wrapped__
#: But for hundreds of samples, whose one formula takes long.
METHODS = [case for case in CASES if case[1].get("samples", 0) < 100]
Compiled = Callable[[Iterable[Callable[[], object]]], list[str]]


@pytest.fixture(scope="module")
def compiler() -> ctypes.CDLL:
    """Returns NVRTC of the package nvidia-cuda-nvrtc."""
    try:
        folders = list(importlib.import_module("nvidia").__path__)
    except ImportError:
        folders = []
    found = [path for folder in folders for path in Path(folder).glob("cu*/lib/libnvrtc.so.*")]
    if not found:
        pytest.skip("no nvidia-cuda-nvrtc is installed")
    return ctypes.CDLL(str(found[0]))


@pytest.fixture
def compiled(compiler: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """Returns what compiles the kernels that functions ask for, and returns their names."""
    cuda_stand_in.install(monkeypatch)
    for module in (cuda_rule, cuda_record):
        monkeypatch.setattr(module, "compiled", KERNEL)

    def run(asking: Iterable[Callable[[], object]]) -> list[str]:
        names: list[str] = []

        class Module:
            def __init__(self, code: str, options: tuple[str, ...]) -> None:
                assert options == GIVEN
                self._assembly = [_compile(compiler, code, one) for one in ARCHITECTURES]

            def get_function(self, name: str) -> None:
                assert all(f".entry {name}(" in each for each in self._assembly)
                names.append(name)

        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module("cupy"), "RawModule", Module)
            for ask in asking:
                ask()
        return names

    return run


def _compile(compiler: ctypes.CDLL, code: str, architecture: bytes) -> str:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [option.encode() for option in GIVEN] + [b"--gpu-architecture=" + architecture]
    source = ctypes.c_char_p(code.encode())
    compiler.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None)
    failed = compiler.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*options)
    )
    told = "ProgramLog" if failed else "PTX"
    getattr(compiler, f"nvrtcGet{told}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(compiler, f"nvrtcGet{told}")(program, text)
    compiler.nvrtcDestroyProgram(ctypes.byref(program))
    assert not failed, text.value.decode()
    return text.value.decode()


@pytest.mark.parametrize("dtype", [dtype.onnx for dtype in TRAINABLE])
def test_kernels_of_each_dtype(compiled: Compiled, dtype: int) -> None:
    sweeps = [(("DTYPE", dtype), ("TERMS", n), ("PLAIN", n % 2)) for n in (1, 4)]
    others = [(name, (("DTYPE", dtype), ("PLAIN", 1))) for name in ("count", "mask", "vocabulary")]
    asked = [("sweep", given) for given in sweeps] + others
    found = compiled(functools.partial(KERNEL, f"{name}.cu", name, given) for name, given in asked)
    assert found == [name for name, _ in asked]


def test_kernels_of_losses(compiled: Compiled) -> None:
    names = ["total", "choice"]
    asked = (lambda name=name: cuda_loss._module.__wrapped__().get_function(name) for name in names)
    assert compiled(asked) == names


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_kernels_of_methods(
    compiled: Compiled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    settings: dict[str, Any],
) -> None:
    """Those that its first steps ask for."""
    asked: dict[tuple[Any, ...], Callable[[], object]] = {}
    for module, original in ((cuda_rule, RULE), (cuda_record, RECORD)):

        def kernel(*given: Any, original: Any = original, stand_in: Any = module.kernel) -> Any:
            asked[original, *given] = functools.partial(original, *given)
            return stand_in(*given)

        monkeypatch.setattr(module, "kernel", kernel)
    model, tuning = begin(write_tied(tmp_path / "tied"), "cuda", name, settings)
    for number in range(4):
        tuning.start(BatchLoss(model, rows_for_tied(5, number)), np.float32(1e-3))
    tuning.keep()
    found = compiled(asked.values())
    assert len(found) == len(asked) > 0
