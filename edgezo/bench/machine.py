"""What a measurement was taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
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


def commit(*ignored: str) -> str | None:
    """Returns the commit of edgezo's checkout, with ``+`` behind it if files differ from it.

    Args:
        ignored: paths from the checkout's root whose files may differ.

    Returns:
        None where edgezo was installed from elsewhere.
    """
    try:
        _git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        found = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ":/", *(f":!/{path}" for path in ignored))
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}+" if changed else found


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
