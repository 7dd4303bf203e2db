"""The weight dtypes edgezo knows, and how each is named in NumPy, safetensors and ONNX.

NumPy has no bfloat16: such weights are held as the uint16 of their bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime.errors import InputError


@dataclass(frozen=True)
class Dtype:
    """One weight dtype.

    Attributes:
        name: the name used in manifests, e.g. ``"bfloat16"``.
        storage: the NumPy dtype that holds its bits.
        safetensors: its name in a safetensors header.
        onnx: its number in ONNX's ``TensorProto.DataType``.
    """

    name: str
    storage: np.dtype
    safetensors: str
    onnx: int


FLOAT32 = Dtype("float32", np.dtype("<f4"), "F32", 1)
FLOAT16 = Dtype("float16", np.dtype("<f2"), "F16", 10)
BFLOAT16 = Dtype("bfloat16", np.dtype("<u2"), "BF16", 16)
INT64 = Dtype("int64", np.dtype("<i8"), "I64", 7)
INT8 = Dtype("int8", np.dtype("i1"), "I8", 3)
UINT8 = Dtype("uint8", np.dtype("u1"), "U8", 2)

ALL = (FLOAT32, FLOAT16, BFLOAT16, INT64, INT8, UINT8)
TRAINABLE = (FLOAT32, FLOAT16, BFLOAT16)
_EXPONENTS = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80}  # all ones: NaN or infinity
_PIECE = 1 << 20  # elements checked at once
_BY_NAME = {dtype.name: dtype for dtype in ALL}
_BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in ALL}


def named(name: str) -> Dtype:
    """Returns the dtype of a manifest's `name`; raises InputError for an unknown one."""
    try:
        return _BY_NAME[name]
    except KeyError:
        known = ", ".join(_BY_NAME)
        raise InputError(f"dtype {name!r} is not supported; use one of {known}") from None


def from_safetensors(name: str) -> Dtype:
    """Returns the dtype of a safetensors header's `name`; raises InputError for an unknown one."""
    try:
        return _BY_SAFETENSORS[name]
    except KeyError:
        known = ", ".join(_BY_SAFETENSORS)
        raise InputError(f"safetensors dtype {name!r} is not supported; use {known}") from None


def to_float32(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Returns float `values` in storage of `dtype` as float32."""
    if dtype == BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def from_float32(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Returns float32 `values` in storage of `dtype`, rounded to nearest, ties to even."""
    if dtype == BFLOAT16:
        bits = values.astype(np.float32, order="C", copy=False).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return values.astype(dtype.storage, order="C")


def finite(xp: Any, values: Any, dtype: Dtype) -> bool:
    """Whether flat `values` in storage of `dtype` hold neither NaN nor infinity.

    They are read in pieces, with the array module `xp`.
    """
    exponent = _EXPONENTS.get(dtype)
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE]
        if exponent is not None:  # NumPy's arithmetic on float16 is slow
            whole = int((piece.view(np.uint16) & np.uint16(exponent)).max()) != exponent
        elif dtype != FLOAT32:
            whole = True
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                # A finite dot product needs no array of answers; it may overflow, though.
                whole = bool(xp.isfinite(xp.dot(piece, piece)) or xp.isfinite(piece).all())
        if not whole:
            return False
    return True
