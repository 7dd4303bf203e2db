"""What a measurement was taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from edgezo_runtime.devices import default_threads


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of Python, of what edgezo runs on, and of more `packages`."""
    found = {"python": platform.python_version()}
    for package in ("edgezo", "numpy", "onnxruntime", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # onnxruntime has several names
    return found


def describe_machine() -> dict[str, str | int]:
    """Returns the processor's model, the cores this process may use, and the system."""
    return {
        "cpu": _cpu_model(),
        "cores": default_threads(),
        "cores_of_machine": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
