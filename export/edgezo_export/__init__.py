"""The workstation's side: checkpoints become bundles. Never needed on a device."""

import os

# Before anything here imports ONNX Runtime: later releases report usage unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
