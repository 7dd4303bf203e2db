"""Writes the golden vectors of noise, version 1: `python runtime/vectors/make.py`.

They are fixed: a change of this script may add cases, and never change those that are there.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, noise
from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.noise import Direction
from edgezo_runtime.philox import philox

FILE = Path(__file__).with_name("noise-v1.json")
Specs = Sequence[tuple[str, tuple[int, ...], str]]

PHILOX = (
    ((0, 0, 0, 0), (0, 0)),
    ((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)),
)
DRAWS = (
    (0, 0, 0),
    (0, 1, 0),
    (1, 1, 0),
    (42, 7, 3),
    (2**32 - 1, 2**32 - 1, 2**24 - 1),
    (2**32, 2**32, 1),
    (2**32 + 5, 1000, 0),
    (2**63, 12, 2),
    (2**63 + 12345, 2**40 + 17, 77),
    (2**64 - 1, 2**64 - 1, 2**24 - 1),
)
TINY: Specs = (("a", (3, 5), "{}"), ("b", (7,), "{}"), ("c", (2, 2, 20), "{}"), ("d", (1,), "{}"))
MIXED: Specs = (
    ("a", (3, 5), "float32"),
    ("b", (7,), "float16"),
    ("c", (2, 2, 20), "bfloat16"),
    ("d", (65,), "float32"),
    ("e", (1, 1), "float16"),
)
BLOCKS: Specs = (
    ("a", (257, 130), "float32"),
    ("b", (33,), "float32"),
    ("c", (150, 111), "float16"),
    ("d", (190, 101), "bfloat16"),
    ("e", (5,), "float16"),
    ("f", (7, 9), "bfloat16"),
)


def float32_bits(value: float) -> str:
    return f"{struct.unpack('<I', struct.pack('<f', value))[0]:08x}"


def term(
    seed: int,
    step: int,
    sample: int,
    coefficient: float,
    decay: float = 1.0,
    kind: str = "binomial",
) -> dict[str, Any]:
    """Returns one addition; 64-bit numbers as text, float32 numbers as the hex of their bits."""
    return {
        "seed": str(seed),
        "step": str(step),
        "sample": sample,
        "distribution": kind,
        "coefficient": float32_bits(coefficient),
        "decay": float32_bits(decay),
    }


MEZO_STEP = (term(5, 1, 0, 1e-3), term(5, 1, 0, -2e-3), term(5, 1, 0, 9.3e-4, 0.999))
LONG = (
    term(2**63 + 9, 2**33 + 1, 0, 0.125),
    term(7, 2, 5, -3.7e-3, 0.99),
    term(2**32, 3, 2**24 - 1, 1e-4, 0.9999, "rademacher"),
    term(7, 2, 5, 3.7e-3),
)
TIES = (
    term(1, 1, 0, 2.0**-9, kind="rademacher"),
    term(1, 2, 0, 3 * 2.0**-12, kind="rademacher"),
    term(1, 3, 0, 2.0**-11, kind="rademacher"),
)


def from_bits(text: str) -> np.float32:
    return np.uint32(int(text, 16)).view(np.float32)


def rule(size: int, first: int) -> np.ndarray:
    """Returns the starting weights of indices from `first` on: exact in each dtype."""
    words = philox((np.arange(first, first + size), 0, 0, 0), (0, 0))[0]
    return ((words & 255).astype(np.float32) - 128) / 1024


def arena_case(
    name: str, specs: Specs, terms: Sequence[Mapping[str, Any]], initial: Mapping[str, bytes] | None
) -> dict[str, Any]:
    """Returns a case: an arena, what is added to it, and its bytes afterwards.

    `initial` holds each buffer's bytes before; by the rule of the README if None.
    """
    parameters = [Parameter(*spec, "linear") for spec in specs]
    arena = Arena(parameters)
    for dtype, buffer in arena.buffers.items():
        if initial is not None:
            buffer.view(np.uint8)[:] = np.frombuffer(initial[dtype.name], np.uint8)
    if initial is None:
        for parameter in parameters:
            values = rule(parameter.size, arena.noise_offsets[parameter.name])
            if parameter.dtype == "bfloat16":
                values = (values.view(np.uint32) >> 16).astype(np.uint16)
            arena.views[parameter.name][...] = values.reshape(parameter.shape)
    before = {dtype.name: buffer.tobytes().hex() for dtype, buffer in arena.buffers.items()}
    for one in terms:
        direction = Direction(
            int(one["seed"]), int(one["step"]), one["sample"], one["distribution"]
        )
        arena.add(Term(direction, from_bits(one["coefficient"]), from_bits(one["decay"])))
    case: dict[str, Any] = {
        "name": name,
        "parameters": [
            {
                "name": p.name,
                "shape": p.shape,
                "dtype": p.dtype,
                "offset": arena.noise_offsets[p.name],
            }
            for p in parameters
        ],
        "initial": "rule" if initial is None else before,
        "terms": list(terms),
        "sha256": {
            d.name: hashlib.sha256(buffer.tobytes()).hexdigest()
            for d, buffer in arena.buffers.items()
        },
    }
    if arena.nbytes <= 4096:
        case["bytes"] = {d.name: buffer.tobytes().hex() for d, buffer in arena.buffers.items()}
    return case


def subnormal_case(dtype: dtypes.Dtype, scale: float) -> dict[str, Any]:
    """Weights and additions below the smallest normal number, of both signs, and zeros."""
    size = 100
    steps = np.arange(size) - size // 2  # in units of the smallest number
    bits = np.abs(steps).astype(dtype.storage.str.replace("f", "u"))
    bits |= (steps < 0).astype(bits.dtype) << (8 * bits.itemsize - 1)
    padded = bits.tobytes().ljust(128 * bits.itemsize, b"\0")
    terms = (
        term(3, 1, 0, scale),
        term(3, 2, 0, -scale / 3, 0.75),
        term(3, 3, 0, scale / 64, kind="rademacher"),
    )
    specs = (("w", (10, 10), dtype.name),)
    return arena_case(f"subnormal-{dtype.name}", specs, terms, {dtype.name: padded})


def vectors() -> dict[str, Any]:
    """Returns the content of the file."""
    trained = dtypes.TRAINABLE
    tiny = {d.name: [(n, shape, d.name) for n, shape, _ in TINY] for d in trained}
    smallest = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
    return {
        "noise": noise.VERSION,
        "philox": [
            {
                "counter": [f"{word:08x}" for word in counter],
                "key": [f"{word:08x}" for word in key],
                "words": [f"{int(word):08x}" for word in philox(counter, key)],
            }
            for counter, key in PHILOX
        ],
        "pools": {
            kind: {
                "first": [float32_bits(value) for value in noise.pool(kind)[:16].tolist()],
                "sha256": hashlib.sha256(noise.pool(kind).astype("<f4").tobytes()).hexdigest(),
            }
            for kind in ("binomial", "rademacher")
        },
        "blocks": [
            {
                "seed": str(seed),
                "step": str(step),
                "sample": sample,
                "offsets": offsets.tolist(),
                "signs": signs.tolist(),
            }
            for seed, step, sample in DRAWS
            for offsets, signs in [Direction(seed, step, sample).blocks(6)]
        ],
        "arenas": [
            *(arena_case(f"tiny-{d.name}", tiny[d.name], MEZO_STEP, None) for d in trained),
            *(arena_case(f"ties-{d.name}", tiny[d.name], TIES, None) for d in trained),
            *(subnormal_case(d, 20 * smallest[d.name]) for d in trained),
            arena_case("mixed", MIXED, LONG, None),
            arena_case("blocks", BLOCKS, LONG, None),
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n")
    print(f"wrote {FILE}")
