"""How much of a card's memory is taken."""

from __future__ import annotations

from typing import Any

from edgezo_runtime.devices import Device


def card_bytes(device: Device) -> int | None:
    """Returns what the memory of a card holds, of all processes; None on the CPU.

    ONNX Runtime keeps what it once had, so that it is the most that the process held, too.
    """
    if device.name == "cpu":
        return None
    card: Any = getattr(device, "card", device)  # of a device whose weights lie beside it
    free, total = card.xp.cuda.Device(card.index).mem_info
    return total - free
