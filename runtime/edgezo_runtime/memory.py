"""How much memory this process uses, on each platform."""

from __future__ import annotations

import sys
from pathlib import Path


def resident_bytes() -> int:
    """Returns the memory that the process holds now (its peak, where only that is known)."""
    status = _linux_status()
    return status["VmRSS"] if status else _fallback_peak()


def peak_bytes() -> int:
    """Returns the most memory that the process ever held."""
    status = _linux_status()
    # Not getrusage: on Linux its figure survives exec and may be the parent's.
    return status["VmHWM"] if status else _fallback_peak()


def _linux_status() -> dict[str, int] | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    if "VmHWM" not in fields or "VmRSS" not in fields:
        return None
    return {key: int(fields[key].split()[0]) * 1024 for key in ("VmHWM", "VmRSS")}


def _fallback_peak() -> int:
    if sys.platform == "win32":
        return _windows_peak()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _windows_peak() -> int:
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = (
            ("size", wintypes.DWORD),
            ("faults", wintypes.DWORD),
            ("peak", ctypes.c_size_t),
            *((f"unused{i}", ctypes.c_size_t) for i in range(7)),
        )

    counters = Counters()
    counters.size = ctypes.sizeof(counters)
    process = ctypes.windll.kernel32.GetCurrentProcess()  # type: ignore[attr-defined]
    ctypes.windll.psapi.GetProcessMemoryInfo(  # type: ignore[attr-defined]
        wintypes.HANDLE(process), ctypes.byref(counters), counters.size
    )
    return counters.peak
