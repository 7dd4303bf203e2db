"""Work on flat arrays, one chunk after the other, shared by threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

_CHUNK = 1 << 16  # elements; a chunk of weights, gradient and state stays in the cache
Result = TypeVar("Result")


class Workers(Protocol):
    """What has threads, as an `Arena` does."""

    @property
    def threads(self) -> int:
        """How many there are."""
        ...

    def each(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Returns what `work` makes of each of `items`, in their order."""
        ...


class OneThread:
    """Works alone."""

    threads = 1

    def each(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Returns what `work` makes of each of `items`, in their order."""
        return [work(item) for item in items]


def each_chunk(
    workers: Workers, start: int, stop: int, work: Callable[[slice], Result]
) -> list[Result]:
    """Returns what `work` makes of each chunk from `start` to `stop`, in their order.

    The chunks are the same for any number of threads.
    """
    starts = range(start, stop, _CHUNK)
    count = min(workers.threads, len(starts))
    shares = [
        starts[len(starts) * i // count : len(starts) * (i + 1) // count] for i in range(count)
    ]

    def mine(share: range) -> list[Result]:
        return [work(slice(at, min(at + _CHUNK, stop))) for at in share]

    return [result for results in workers.each(mine, shares) for result in results]
