r"""What an adapter's tensors begin with: drawn from the run's seed, the same bits everywhere.

LoRA's A is uniform as Kaiming's, :math:`A_{ij} \sim U(-1/\sqrt{n}, 1/\sqrt{n})` for `n` inputs, as
PEFT draws it; its B is zero, so that a run begins as the base model. A prompt begins as the
embeddings of tokens drawn at random, a prefix as their keys and values, which the base computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.activations import activations
from edgezo_runtime.bundle import Bundle, Parameter
from edgezo_runtime.errors import InputError
from edgezo_runtime.noise import Purpose, random_words

FILE = "adapter_init.safetensors"
ROWS, ACTIVATIONS = "rows", "activations"
_FLOATS = {dtype.storage: dtype for dtype in dtypes.TRAINABLE}


def draw(
    parameters: Sequence[Parameter],
    seed: int,
    base: Mapping[str, np.ndarray] | None = None,
    bundle: Bundle | None = None,
) -> dict[str, np.ndarray]:
    """Returns the first value of each of an adapter's tensors, float32.

    Args:
        parameters: the adapter's, in manifest order.
        seed: the run's.
        base: the frozen weights by name, for tensors that begin as what they give.
        bundle: whose weights these are.

    Raises:
        InputError: a tensor begins in a way that this edgezo does not know.
    """
    values: dict[str, np.ndarray] = {}
    for number, parameter in enumerate(parameters):
        how, _, source = parameter.init.partition(":")
        if how == ROWS and base is not None and source in base:
            values[parameter.name] = _rows(base[source], parameter.shape, seed, number)
        elif how == ACTIVATIONS and base is not None and bundle is not None:
            values = values or _activations(parameters, seed, base, bundle)
        elif how in _INITS:
            values[parameter.name] = _INITS[how](parameter.shape, seed, number)
        else:
            raise InputError(
                f"{parameter.name} begins as {parameter.init!r}; this edgezo knows "
                + ", ".join((*_INITS, f"{ROWS}:EMBEDDINGS", ACTIVATIONS))
            )
    return values


def digest(values: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the file that `write` makes of `values`."""
    return safetensors_file.digest(_tensors(values))


def write(run: Path, values: Mapping[str, np.ndarray]) -> None:
    """Writes `values` into the run's folder."""
    safetensors_file.write(run / FILE, _tensors(values))


def restore(
    parameters: Sequence[Parameter],
    header: Mapping[str, Any],
    run: Path,
    base: Mapping[str, np.ndarray] | None = None,
    bundle: Bundle | None = None,
) -> dict[str, np.ndarray]:
    """Returns what the adapter of a journal's run began with: its file, or else drawn again.

    Args:
        parameters: the adapter's, in manifest order.
        header: the journal's.
        run: the run's folder; where it lacks the file the values are drawn.
        base: as for `draw`; what it computes may differ in other machines' last bits.
        bundle: as for `draw`.

    Raises:
        InputError: they are not those that the run began with.
    """
    path = run / FILE
    if path.is_file():
        values = {p.name: np.empty(p.shape, np.float32) for p in parameters}
        if safetensors_file.read_into(path, values) != header["adapter_init"]:
            raise InputError(
                f"{path} is not what the run began with: it was changed or damaged; without the "
                "file edgezo draws the values again"
            )
        return values
    values = draw(parameters, header["seed"], base, bundle)
    if digest(values) != header["adapter_init"]:
        raise InputError(f"the run began with other values than its seed gives: restore {path}")
    return values


def _zeros(shape: tuple[int, ...], seed: int, number: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _kaiming_uniform(shape: tuple[int, ...], seed: int, number: int) -> np.ndarray:
    # The square root is correctly rounded by IEEE 754: no library has a say in these bits.
    bound = np.float32(1 / math.sqrt(shape[-1]))
    return bound * _uniform(shape, seed, number)


def _rows(table: np.ndarray, shape: tuple[int, ...], seed: int, number: int) -> np.ndarray:
    """Returns rows of `table` at random, as a prompt of real tokens would look them up."""
    words = random_words(seed, Purpose.ADAPTER_INIT, 0, shape[0], number)[0]
    rows = table[words.astype(np.int64) % len(table)]
    return dtypes.to_float32(rows, _FLOATS[rows.dtype])


def _activations(
    parameters: Sequence[Parameter], seed: int, base: Mapping[str, np.ndarray], bundle: Bundle
) -> dict[str, np.ndarray]:
    count = parameters[0].shape[2]
    vocabulary = max(p.shape[0] for p in bundle.manifest.stored if p.kind == "embedding")
    words = random_words(seed, Purpose.ADAPTER_INIT, 0, count)[0]
    return activations(bundle, base, words.astype(np.int64) % vocabulary)


def _uniform(shape: tuple[int, ...], seed: int, number: int) -> np.ndarray:
    """Draws odd multiples of 2**-24 between -1 and 1, which float32 holds exactly."""
    size = math.prod(shape)
    words = random_words(seed, Purpose.ADAPTER_INIT, 0, -(-size // 4), number)
    whole = np.stack(words, axis=1).reshape(-1)[:size] >> np.uint32(8)
    odd = 2 * whole.astype(np.int32) + 1 - (1 << 24)
    return (odd.astype(np.float32) * np.float32(2**-24)).reshape(shape)


_INITS: Mapping[str, Callable[[tuple[int, ...], int, int], np.ndarray]] = {
    "zeros": _zeros,
    "kaiming_uniform": _kaiming_uniform,
}


def _tensors(values: Mapping[str, np.ndarray]) -> list[tuple[str, dtypes.Dtype, np.ndarray]]:
    return [(name, dtypes.FLOAT32, value) for name, value in values.items()]
