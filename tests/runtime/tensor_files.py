"""Writes safetensors files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings

from edgezo_runtime import dtypes, safetensors_file

NUMPY_DTYPES = {d.name: d for d in dtypes.ALL if d != dtypes.BFLOAT16}
FILES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(path: Path, arrays: dict[str, np.ndarray], **options: dict[str, str]) -> str:
    entries = [(name, NUMPY_DTYPES[str(array.dtype)], array) for name, array in arrays.items()]
    return safetensors_file.write(path, entries, **options)
