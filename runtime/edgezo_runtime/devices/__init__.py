"""Devices that hold weights and run forward passes, behind one small interface."""

from __future__ import annotations

from edgezo_runtime.devices.base import Binder as Binder
from edgezo_runtime.devices.base import Device as Device
from edgezo_runtime.devices.cpu import CpuDevice as CpuDevice
from edgezo_runtime.devices.cpu import default_threads as default_threads
from edgezo_runtime.errors import InputError


def open_device(name: str = "cpu", threads: int | None = None) -> Device:
    """Returns the device called `name`.

    Args:
        name: ``"cpu"``; ``"cuda"``, or ``"cuda:1"`` for the second card; ``"cuda-offload"``, or
            ``"cuda-offload:1"``, for a card through which the weights of the host pass.
        threads: of the host; all cores if None.

    Raises:
        InputError: there is no such device.
        EdgezoError: what the device needs is not installed.
    """
    threads = default_threads() if threads is None else threads
    if name == "cpu":
        return CpuDevice(threads)
    kind, _, index = name.partition(":")
    if kind in ("cuda", "cuda-offload") and (index.isdecimal() or name == kind):
        from edgezo_runtime.devices.cuda import CudaDevice
        from edgezo_runtime.devices.offload import OffloadDevice

        card = CudaDevice(int(index or 0), threads)
        return card if kind == "cuda" else OffloadDevice(card)
    raise InputError(
        f"device {name!r} is unknown; use cpu, cuda, cuda:1 for the second card, or cuda-offload "
        "where the weights do not fit on it"
    )
