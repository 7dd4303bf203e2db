"""Kernels for an NVIDIA card, compiled when they are first called for."""

from __future__ import annotations

import functools
import importlib
from importlib import resources
from typing import Any

THREADS = 256  # of a CUDA block, as noise.cuh says


def cupy() -> Any:
    """Returns CuPy, which is not a dependency of the CPU's installation."""
    return importlib.import_module("cupy")


@functools.cache
def kernel(file: str, name: str, given: tuple[tuple[str, Any], ...], formula: str = "") -> Any:
    """Returns the kernel `name` of `file`, compiled.

    Args:
        file: of this folder, after arithmetic.cuh and noise.cuh.
        name: the kernel's.
        given: names that it takes as they are, and their values.
        formula: code that goes in front of the file.
    """
    folder = resources.files("edgezo_runtime.devices")
    parts = [folder.joinpath(part).read_text("utf-8") for part in ("arithmetic.cuh", "noise.cuh")]
    definitions = "".join(f"#define {key} {value}\n" for key, value in given)
    code = "\n".join([definitions, *parts, formula, folder.joinpath(file).read_text("utf-8")])
    module = cupy().RawModule(code=code, options=("--std=c++17", "--fmad=false"))
    return module.get_function(name)
