"""The golden vectors, recomputed by the engine and by the slow definition."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from noise_oracle import (
    OracleTerm,
    bfloat16,
    block_draw,
    decode,
    encode,
    layout,
    philox4x32,
    pool_value,
    swept,
)

from edgezo_runtime import noise
from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import CpuDevice, Device
from edgezo_runtime.noise import Direction
from edgezo_runtime.philox import philox

FOLDER = Path(__file__).parents[2] / "runtime" / "vectors"
VECTORS: dict[str, Any] = json.loads((FOLDER / "noise-v1.json").read_text())
ARENAS = pytest.mark.parametrize("case", VECTORS["arenas"], ids=lambda case: case["name"])
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def words(texts: list[str]) -> tuple[int, ...]:
    return tuple(int(text, 16) for text in texts)


def number(bits: str) -> float:
    return struct.unpack("<f", struct.pack("<I", int(bits, 16)))[0]


def start(case: dict[str, Any]) -> dict[str, bytes]:
    """Returns the bytes of each buffer before the first term, from the README's rule."""
    if case["initial"] != "rule":
        return {dtype: bytes.fromhex(text) for dtype, text in case["initial"].items()}
    buffers: dict[str, bytes] = {}
    for p, (offset, _, size) in zip(case["parameters"], placed(case), strict=True):
        values = [
            ((philox4x32((offset + j, 0, 0, 0), (0, 0))[0] & 255) - 128) / 1024 for j in range(size)
        ]
        data = encode(values, p["dtype"])
        room = -(-size // 64) * 64 * ITEM_BYTES[p["dtype"]]
        buffers[p["dtype"]] = buffers.get(p["dtype"], b"") + data.ljust(room, b"\0")
    return buffers


def placed(case: dict[str, Any]) -> list[tuple[int, int, int]]:
    return layout([(p["name"], p["shape"], p["dtype"]) for p in case["parameters"]])


def check(case: dict[str, Any], buffers: dict[str, bytes]) -> None:
    if "bytes" in case:
        assert {dtype: data.hex() for dtype, data in buffers.items()} == case["bytes"]
    digests = {dtype: hashlib.sha256(data).hexdigest() for dtype, data in buffers.items()}
    assert digests == case["sha256"]


def arena_of(case: dict[str, Any], device: Device) -> Arena:
    arena = Arena(
        [Parameter(p["name"], tuple(p["shape"]), p["dtype"], "x") for p in case["parameters"]],
        device,
    )
    initial = start(case)
    for dtype, buffer in arena.buffers.items():
        data = np.frombuffer(initial[dtype.name], np.uint8)
        buffer.view(np.uint8)[:] = device.put(data)
    return arena


def terms_of(case: dict[str, Any]) -> list[Term]:
    return [
        Term(
            Direction(int(t["seed"]), int(t["step"]), t["sample"], t["distribution"]),
            np.float32(number(t["coefficient"])),
            np.float32(number(t["decay"])),
        )
        for t in case["terms"]
    ]


def after(arena: Arena) -> dict[str, bytes]:
    arena.settle()
    return {dtype.name: buffer.tobytes() for dtype, buffer in arena.buffers.items()}


@pytest.mark.parametrize("case", VECTORS["philox"])
def test_philox(case: dict[str, Any]) -> None:
    counter, key = words(case["counter"]), words(case["key"])
    assert philox4x32(counter, key) == words(case["words"])
    found = philox((counter[0], counter[1], counter[2], counter[3]), (key[0], key[1]))
    assert tuple(int(word) for word in found) == words(case["words"])


@pytest.mark.parametrize("kind", ["binomial", "rademacher"])
def test_pool(kind: str) -> None:
    expected = VECTORS["pools"][kind]
    pool = noise.pool(kind)
    assert hashlib.sha256(pool.astype("<f4").tobytes()).hexdigest() == expected["sha256"]
    first = [number(bits) for bits in expected["first"]]
    assert pool[:16].tolist() == first
    assert [pool_value(k, kind) for k in range(16)] == first


@pytest.mark.parametrize(
    "case", VECTORS["blocks"], ids=lambda case: f"{case['seed']}-{case['step']}"
)
def test_blocks(case: dict[str, Any]) -> None:
    seed, step, sample = int(case["seed"]), int(case["step"]), case["sample"]
    expected = list(zip(case["offsets"], case["signs"], strict=True))
    assert [block_draw(seed, step, sample, b) for b in range(len(expected))] == expected
    offsets, signs = Direction(seed, step, sample).blocks(len(expected))
    assert list(zip(offsets.tolist(), signs.tolist(), strict=True)) == expected


@ARENAS
def test_arenas_by_the_engine(case: dict[str, Any]) -> None:
    arena = arena_of(case, CpuDevice(1))
    assert [arena.noise_offsets[p["name"]] for p in case["parameters"]] == [
        p["offset"] for p in case["parameters"]
    ]
    for term in terms_of(case):
        arena.add(term)
    check(case, after(arena))


@ARENAS
@pytest.mark.parametrize("threads", [1, 3])
def test_arenas_in_one_sweep(case: dict[str, Any], threads: int) -> None:
    first, *rest = terms_of(case)
    arena = arena_of(case, CpuDevice(threads))
    arena.defer(first)
    arena.add(*rest)
    check(case, after(arena))


@ARENAS
def test_arenas_by_the_slow_definition(case: dict[str, Any]) -> None:
    initial = start(case)
    buffers = {dtype: bytearray(len(data)) for dtype, data in initial.items()}
    terms = [
        OracleTerm(
            int(t["seed"]),
            int(t["step"]),
            t["sample"],
            number(t["coefficient"]),
            number(t["decay"]),
            t["distribution"],
        )
        for t in case["terms"]
    ]
    for p, (offset, first, size) in zip(case["parameters"], placed(case), strict=True):
        assert offset == p["offset"]
        dtype = p["dtype"]
        part = slice(first * ITEM_BYTES[dtype], (first + size) * ITEM_BYTES[dtype])
        weights = decode(initial[dtype][part], dtype)
        result = swept(weights, offset, terms, dtype, decays=len(p["shape"]) >= 2)
        buffers[dtype][part] = encode(result, dtype)
    check(case, {dtype: bytes(data) for dtype, data in buffers.items()})


def test_the_script_writes_this_file() -> None:
    spec = importlib.util.spec_from_file_location("edgezo_vectors", FOLDER / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads(json.dumps(module.vectors())) == VECTORS


def test_the_cases_cover_what_is_easy_to_get_wrong() -> None:
    assert any(int(case["seed"]) >= 2**63 for case in VECTORS["blocks"])
    assert any(int(case["step"]) >= 2**32 for case in VECTORS["blocks"])
    by_name = {case["name"]: case for case in VECTORS["arenas"]}
    for dtype, largest in (("float32", 2**-126), ("float16", 2**-14), ("bfloat16", 2**-126)):
        left = decode(bytes.fromhex(by_name[f"subnormal-{dtype}"]["bytes"][dtype]), dtype)
        assert sum(0 < abs(value) < largest for value in left) > 50
    assert sum(size for *_, size in placed(by_name["blocks"])) > 2 * 2**15
    assert all(size % 64 for case in by_name.values() for *_, size in placed(case))


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1 + 2**-8, 1.0),  # half way, the even one is below
        (1 + 3 * 2**-8, 1 + 2**-6),  # half way, the even one is above
        (1 + 2**-8 + 2**-20, 1 + 2**-7),
        (-(1 + 2**-8), -1.0),
        (2.0**-134, 0.0),  # half of the smallest number
        (3 * 2.0**-134, 2.0**-132),
        (3.4e38, float("inf")),
        (0.0, 0.0),
    ],
)
def test_the_slow_bfloat16_rounds_to_nearest_even(value: float, rounded: float) -> None:
    assert bfloat16(value) == rounded
