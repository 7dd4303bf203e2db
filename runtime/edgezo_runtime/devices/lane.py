"""Buffers on a card through which weights pass: fetched, used, and perhaps written back.

Copies have streams of their own, so that the next weights come while these are computed with; what
orders them are events. No buffer is fetched into before those who use it are done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edgezo_runtime.devices.cuda import CudaDevice

BUFFERS = 3  # one arrives, one is computed with, and one may be on its way back


@dataclass(frozen=True)
class Copied:
    """A piece of the host's memory and its place in a buffer.

    Attributes:
        address: on the host, of pinned memory.
        offset: in the buffer.
        size: in bytes.
        back: whether it is written back from here.
    """

    address: int
    offset: int
    size: int
    back: bool


class Lane:
    """Some buffers of one size on a card.

    Args:
        card: theirs.
        size: of each, in bytes.
        count: of them.

    Attributes:
        buffers: their arrays, uint8.
    """

    def __init__(self, card: CudaDevice, size: int, count: int) -> None:
        self._card = card
        self.buffers = [card.empty((size,), np.dtype(np.uint8)) for _ in range(count)]
        cuda = card.xp.cuda
        self._runtime = cuda.runtime
        # Non-blocking: they wait for nothing but events.
        self._in = cuda.Stream(non_blocking=True)
        self._out = cuda.Stream(non_blocking=True)
        self._fetched, self._used, self._swept, self._written = (
            [cuda.Event(block=False, disable_timing=True) for _ in range(count)] for _ in range(4)
        )

    def fetch(self, buffer: int, pieces: Iterable[Copied]) -> None:
        """Queues the copy of `pieces` to a buffer, after those who use it now."""
        self._in.wait_event(self._used[buffer])
        self._in.wait_event(self._written[buffer])
        kind, start = self._runtime.memcpyHostToDevice, self.buffers[buffer].data.ptr
        for piece in pieces:
            target = start + piece.offset
            self._runtime.memcpyAsync(target, piece.address, piece.size, kind, self._in.ptr)
        self._fetched[buffer].record(self._in)

    def take(self, buffer: int) -> None:
        """Lets the card's stream wait for what was fetched into a buffer."""
        self._card.stream.wait_event(self._fetched[buffer])

    def write_back(self, buffer: int, pieces: Iterable[Copied]) -> None:
        """Queues the copy of those of `pieces` that go back, as the card's stream leaves them."""
        self._swept[buffer].record(self._card.stream)
        self._out.wait_event(self._swept[buffer])
        kind, start = self._runtime.memcpyDeviceToHost, self.buffers[buffer].data.ptr
        for piece in pieces:
            if piece.back:
                source = start + piece.offset
                self._runtime.memcpyAsync(piece.address, source, piece.size, kind, self._out.ptr)
        self._written[buffer].record(self._out)

    def change(self, buffer: int) -> None:
        """Lets the card's stream wait for what is written back from a buffer."""
        self._card.stream.wait_event(self._written[buffer])

    def leave(self, buffer: int) -> None:
        """Gives a buffer free for the next fetch, after what the card's stream does with it."""
        self._used[buffer].record(self._card.stream)

    def rest(self) -> None:
        """Waits until nothing is computed or copied any more."""
        for stream in (self._card.stream, self._in, self._out):
            stream.synchronize()
