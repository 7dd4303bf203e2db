"""The arithmetic of sweep.cu, rule.cu and record.cu in NumPy, on what the kernels are handed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.devices import cuda_record, cuda_rule
from edgezo_runtime.devices.cuda_chunks import CHUNK
from edgezo_runtime.devices.cuda_noise import MATRIX
from edgezo_runtime.devices.program import Program
from edgezo_runtime.devices.trace import Formula
from edgezo_runtime.noise import BLOCK_SIZE, POOL_SIZE
from edgezo_runtime.philox import philox

Launch = Callable[[tuple[int], tuple[int], tuple[Any, ...]], None]

#: Long arrays that were made on the card: what lies in one, lies in it to its end.
pools: list[np.ndarray] = []


def kernel(file: str, name: str, given: tuple[tuple[str, Any], ...], formula: str = "") -> Launch:
    """Stands for the kernels of devices/cuda_kernels.py."""
    assert (file, formula) == (f"{name}.cu", "")
    settings = dict(given)
    dtype = next(d for d in dtypes.TRAINABLE if d.onnx == settings["DTYPE"])
    if name != "sweep":
        return functools.partial({"mask": _mask, "count": _count}[name], dtype)

    def sweep(buffer: np.ndarray, chunk: Any, packed: np.ndarray) -> None:
        assert packed["term"].shape == (1, settings["TERMS"])
        for term in packed["term"][0]:
            direction = term["direction"]
            coefficient, decay = term["coefficient"], term["decay"]
            if not moves(direction, chunk):
                continue
            if term["skipped"]:
                skipped = _number(term["skipped"])
                if skipped and not coefficient:
                    continue
                if skipped:
                    decay = np.float32(1)
                else:
                    coefficient = _single(term["late"]) if term["late"] else term["taken"]
            sign, values = elements(direction, chunk, settings["PLAIN"])
            wide = weights_of(buffer, chunk, dtype) + sign * (values * coefficient)
            put_back(buffer, chunk, dtype, wide, decay)

    return _launch(sweep)


def _mask(
    dtype: dtypes.Dtype, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]
) -> None:
    buffer, table, offsets, tensors, limits, bits, above = map(np.asarray, arguments)
    chunks = table.view(CHUNK)
    assert grid == (len(chunks),) and block == (256,) and len(limits) == len(offsets) == tensors
    for chunk in chunks:
        limit = limits[np.searchsorted(offsets, chunk["noise"], "right") - 1]
        larger = np.abs(weights_of(buffer, chunk, dtype)) > limit
        found = np.packbits(larger == bool(above))
        first = int(chunk["noise"]) // 8
        bits[first : first + len(found)] = found


def _count(
    dtype: dtypes.Dtype, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]
) -> None:
    weights, size, every, upper, counts = map(np.asarray, arguments)
    assert size == weights.size and weights.dtype == dtype.storage and counts.dtype == np.uint32
    bits = np.abs(dtypes.to_float32(weights, dtype)).view(np.uint32)
    halves = bits >> 16 if every else bits[bits >> 16 == upper] & 0xFFFF
    counts += np.bincount(halves, minlength=1 << 16).astype(np.uint32)


def rule_kernel(formula: Formula, states: int, dtype: dtypes.Dtype, unmasked: bool) -> Launch:
    """Stands for `cuda_rule.kernel`."""
    assert len(cuda_rule.code(formula).splitlines()) > len(formula.nodes)

    def update(buffer: np.ndarray, chunk: Any, packed: np.ndarray) -> None:
        assert packed.dtype == cuda_rule.arguments(formula, states)
        rule = packed[0]
        if formula.late and _number(rule["skipped"]):
            return
        directions = rule["directions"][: formula.directions]
        if len(directions) and not moves(directions[0], chunk):
            return
        zs = [np.multiply(*elements(one, chunk, unmasked)) for one in directions]
        state = [
            at(int(address) + 4 * int(chunk["noise"]), np.float32, int(chunk["count"]))
            for address in rule["state"][:states]
        ]
        weights = weights_of(buffer, chunk, dtype)
        given = rule["numbers"], [_single(address) for address in rule["late"][: len(formula.late)]]
        values = evaluate(formula, weights, [array.copy() for array in state], zs, *given)
        for i, place in formula.changed:
            state[i][...] = values[place]
        put_back(buffer, chunk, dtype, values[formula.weights], rule["decay"])

    return _launch(update)


def vocabulary_kernel(file: str, name: str, given: tuple[tuple[str, Any], ...]) -> Launch:
    """Stands for the kernel of devices/cuda_vocabulary.py."""
    assert (file, name) == ("vocabulary.cu", "vocabulary")
    dtype = next(d for d in dtypes.TRAINABLE if d.onnx == dict(given)["DTYPE"])

    def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        scores, targets, out, columns = arguments
        (rows,) = grid
        assert scores.shape == (rows, columns) and scores.dtype == dtype.storage
        assert block == (256,) and scores.flags.c_contiguous and targets.dtype == np.int64
        x = np.asarray(scores).astype(np.float64)
        highest = x.max(axis=1)
        sums = np.exp(x - highest[:, None]).sum(axis=1)
        wanted = x[np.arange(rows), np.asarray(targets)[:rows]]
        out[:rows] = (wanted - highest - np.log(sums)).astype(np.float32)

    return launch


def evaluate(
    formula: Formula, weights: Any, state: Any, zs: Any, numbers: Any = None, late: Any = ()
) -> list[Any]:
    """Returns what each node of a formula gives."""
    found = formula.numbers if numbers is None else numbers
    given = {"weights": [weights], "state": state, "z": zs, "number": found, "late": late}
    return _values(formula.nodes, given)


def record_kernel(made: Program) -> Launch:
    """Stands for `cuda_record.kernel`."""
    assert len(cuda_record.code(made).splitlines()) > len(made.nodes)

    def compute(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        table, lr, most, out = arguments
        (given,) = np.asarray(table).view(cuda_record.given(made))
        assert grid == block == (1,) and lr.dtype == most.dtype == np.float32
        cells = [np.float64(_number(each)) for each in given["cells"][: len(made.cells)]]
        assert len(out) == 1 + len(made.outputs) + len(cells) and out.dtype == np.float64
        with np.errstate(all="ignore"):
            values = _values(made.nodes, {"cell": cells, "number": given["numbers"]})
            found = np.array([values[place] for place in made.outputs]).astype(np.float32)
            skipped = not (np.isfinite(found * lr) & (abs(found) <= most)).all()
        out[:] = [skipped, *found, *cells]

    return compute


def _values(nodes: tuple[Any, ...], given: Mapping[str, Any]) -> list[Any]:
    values: list[Any] = []
    for operation, *operands in nodes:
        if operation in given:
            values.append(given[operation][operands[0] if operands else 0])
        else:
            values.append(getattr(np, operation)(*(values[place] for place in operands)))
    return values


def _single(address: int) -> np.float32:
    """Returns what the card's cell at an address holds, a float32."""
    number = np.float32(_number(address))
    assert number == _number(address) or number != number
    return number


def _launch(work: Callable[[np.ndarray, Any, np.ndarray], None]) -> Launch:
    def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        buffer, table, packed = arguments
        chunks = np.asarray(table).view(CHUNK)
        assert packed.size == 1 and packed.nbytes < 4000
        assert grid == (len(chunks),) and block == (256,)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for chunk in chunks:
                work(np.asarray(buffer), chunk, packed)

    return launch


def weights_of(buffer: np.ndarray, chunk: Any, dtype: dtypes.Dtype) -> np.ndarray:
    """Returns the weights of a chunk, float32."""
    first = int(chunk["weight"])
    return dtypes.to_float32(buffer[first : first + int(chunk["count"])], dtype)


def put_back(buffer: np.ndarray, chunk: Any, dtype: dtypes.Dtype, wide: Any, decay: Any) -> None:
    """Writes the weights of a chunk, times `decay` if they do."""
    if chunk["decays"] and decay != 1:
        wide = wide * decay
    first = int(chunk["weight"])
    buffer[first : first + int(chunk["count"])] = dtypes.from_float32(wide, dtype)


def moves(direction: Any, chunk: Any) -> bool:
    """Whether a direction moves a chunk: all of it, or nothing."""
    if not direction["ranges"]:
        return True
    pairs = at(direction["ranges"], np.uint64, 2 * int(direction["range_count"])).reshape(-1, 2)
    first, last = int(chunk["noise"]), int(chunk["noise"]) + int(chunk["count"]) - 1
    found = [begin <= first < end for begin, end in pairs.tolist()]
    assert found == [begin <= last < end for begin, end in pairs.tolist()]
    return any(found)


def elements(direction: Any, chunk: Any, unmasked: bool) -> tuple[np.float32, np.ndarray]:
    """Returns the sign of a direction within a chunk, and its elements but for that."""
    index, count = int(chunk["noise"]), int(chunk["count"])
    assert index // BLOCK_SIZE == (index + count - 1) // BLOCK_SIZE and index % 64 == 0
    masked = direction["mask"] or direction["matrix_count"]
    assert not (unmasked and masked)
    if direction["matrix_count"]:
        for matrix in at(direction["matrices"], MATRIX, int(direction["matrix_count"])):
            place = index - int(matrix["offset"])
            if 0 <= place < matrix["size"]:
                return np.float32(1), _outer(matrix, place, count)
    start, sign = _window(direction["name"], index)
    values = at(int(direction["pool"]) + start, np.int8, count).astype(np.float32)
    values = values * direction["unit"]
    if direction["packed"]:
        bits = at(int(direction["mask"]) + index // 8, np.uint8, -(-count // 8))
        values = values * np.unpackbits(bits)[:count]
    elif direction["mask"]:
        start, _ = _window(direction["masked"], index)
        values = values * at(int(direction["mask"]) + start, np.uint8, count)
    return sign, values


def _outer(matrix: Any, start: int, count: int) -> np.ndarray:
    rank, columns = int(matrix["rank"]), int(matrix["columns"])
    rows = int(matrix["size"]) // columns
    left = at(matrix["left"], np.float32, rows * rank).reshape(rows, rank)
    right = at(matrix["right"], np.float32, rank * columns).reshape(rank, columns)
    row, column = np.divmod(np.arange(start, start + count), columns)
    total = left[row, 0] * right[0, column]
    for k in range(1, rank):
        total = total + left[row, k] * right[k, column]
    return total


def _window(name: Any, index: int) -> tuple[int, np.float32]:
    """Returns where a window of a pool begins, and its sign."""
    early, late = map(int, name["step"])
    low, high = map(int, name["key"])
    counter = (np.array([index // BLOCK_SIZE]), int(name["sample"]), early, late)
    words = philox(counter, (low, high))
    start = (int(words[0][0]) & (POOL_SIZE - 1)) + index % BLOCK_SIZE
    return start, np.float32(-1 if words[1][0] & 1 else 1)


def _number(address: int) -> np.float64:
    return np.float64(ctypes.c_double.from_address(int(address)).value)


def at(address: int, dtype: Any, count: int) -> np.ndarray:
    """Returns an array of the card's memory."""
    size = np.dtype(dtype).itemsize * count
    for array in pools:
        start = array.__array_interface__["data"][0]
        if start <= address < start + array.nbytes:
            assert address + size <= start + array.nbytes
    memory = (ctypes.c_uint8 * size).from_address(int(address))
    return np.ctypeslib.as_array(memory).view(dtype)
