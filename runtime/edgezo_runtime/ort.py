"""ONNX Runtime, imported when first needed and without its telemetry."""

from __future__ import annotations

import os
from types import ModuleType

from edgezo_runtime.errors import EdgezoError

# From 1.29 on, ONNX Runtime reports home unless this is set before its first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def onnxruntime() -> ModuleType:
    """Returns the `onnxruntime` module; raises EdgezoError with the two ways to install it."""
    try:
        import onnxruntime as module
    except ImportError as error:
        raise EdgezoError(
            "ONNX Runtime is not installed: run `pip install 'edgezo[cpu]'`, "
            "or `pip install 'edgezo[cuda]'` on a machine with an NVIDIA card"
        ) from error
    return module
