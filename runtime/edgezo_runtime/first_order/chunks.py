"""Work on flat arrays, one chunk after the other, shared by threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from edgezo_runtime.devices import CpuDevice, Device

Result = TypeVar("Result")


class Workers(Protocol):
    """What has a device and its threads, as an `Arena` does."""

    device: Device

    def each(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Returns what `work` makes of each of `items`, in their order."""
        ...


class OneThread:
    """Works alone, on the CPU."""

    def __init__(self) -> None:
        self.device: Device = CpuDevice(1)

    def each(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Returns what `work` makes of each of `items`, in their order."""
        return [work(item) for item in items]


def each_chunk(
    workers: Workers, start: int, stop: int, work: Callable[[slice], Result]
) -> list[Result]:
    """Returns what `work` makes of each chunk from `start` to `stop`, in their order.

    The chunks are the same for any number of threads.
    """
    size = workers.device.chunk
    starts = range(start, stop, size)
    count = min(workers.device.threads, len(starts))
    shares = [
        starts[len(starts) * i // count : len(starts) * (i + 1) // count] for i in range(count)
    ]

    def mine(share: range) -> list[Result]:
        return [work(slice(at, min(at + size, stop))) for at in share]

    return [result for results in workers.each(mine, shares) for result in results]
