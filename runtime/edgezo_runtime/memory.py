"""How much memory this process uses, on each platform."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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


def free_bytes() -> int | None:
    """Returns the memory that this process could still take; None where that is not known.

    It is what the system has available, or what the process's control group leaves if that is less.
    """
    found = _fields("/proc/meminfo").get("MemAvailable")
    if found is None:
        return None
    free = int(found.split()[0]) * 1024
    return min([free, *_group_bytes()])


def _group_bytes() -> Iterator[int]:
    """Yields what each control group above this process leaves, version 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    root = Path("/sys/fs/cgroup")
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        top = root
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = root / "memory"
        own = top / path.lstrip("/")
        # Inside a container the path may be that of the host, and the group the root.
        for group in (own, *own.parents):
            if not group.is_relative_to(top):
                break
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None:
                cached = int(_fields(group / "memory.stat", " ").get(names[2], 0))
                yield max(limit - used + cached, 0)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _fields(path: Path | str, separator: str = ":") -> dict[str, str]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split(separator, 1) for line in lines if separator in line)


def _linux_status() -> dict[str, int] | None:
    fields = _fields("/proc/self/status")
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
