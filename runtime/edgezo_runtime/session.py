"""One ONNX Runtime session over weights that stay where they are.

Every parameter is a graph input bound once, as an OrtValue over memory that somebody else owns and
changes: this is the one way in which ONNX Runtime sees each change of each weight.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.batch import Batch, Outputs
from edgezo_runtime.bundle import Bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.ort import onnxruntime

OUTPUTS = ("logprobs", "candidate_logits")
_ORT_TYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


class Session:
    """Runs a bundle's text graph on the CPU.

    Args:
        bundle: its graph and its manifest, which must agree.
        weights: every parameter by name: C-contiguous arrays in storage dtype. They are aliased.
        threads: ONNX Runtime's intra-op threads.

    Raises:
        InputError: the manifest disagrees with the graph, or the graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, weights: Mapping[str, np.ndarray], threads: int) -> None:
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle workers would spin on the cores that the sweep needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(
                os.fspath(bundle.graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot load {bundle.graph}: {error}") from error
        self._check(bundle)
        self._binding = self._session.io_binding()
        self._values = []  # the binding does not keep them alive
        for parameter in bundle.manifest.parameters:
            value = _alias(weights[parameter.name], dtypes.named(parameter.dtype))
            self._values.append(value)
            self._binding.bind_ortvalue_input(parameter.name, value)

    def forward(self, batch: Batch) -> Outputs:
        """Runs one forward pass; raises EdgezoError if ONNX Runtime does."""
        for name, array in batch.feeds().items():
            self._binding.bind_cpu_input(name, array)
        for name in OUTPUTS:  # again for each run: a bound output keeps the last batch's shape
            self._binding.bind_output(name)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            rows, length = batch.input_ids.shape
            raise EdgezoError(
                f"ONNX Runtime failed on a batch of {rows} x {length} tokens: {error}"
            ) from error
        return Outputs(*self._binding.copy_outputs_to_cpu())

    def _check(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        declared: dict[str, tuple[Any, ...]] = {
            p.name: (_ORT_TYPES.get(p.dtype, p.dtype), *p.shape) for p in manifest.parameters
        }
        ports = {port.name for port in manifest.inputs}
        for node in self._session.get_inputs():
            if node.name in ports:
                ports.remove(node.name)
                continue
            found = (node.type.removeprefix("tensor(").removesuffix(")"), *node.shape)
            if declared.pop(node.name, None) != found:
                raise InputError(
                    f"the manifest of {bundle.folder} disagrees with its graph at input "
                    f"{node.name!r}, which is {found[0]} {list(found[1:])}: export it again"
                )
        missing = [*declared, *ports]
        outputs = {node.name for node in self._session.get_outputs()}
        missing += [name for name in OUTPUTS if name not in outputs]
        if missing:
            raise InputError(
                f"the graph of {bundle.folder} lacks {missing[0]!r}, which its manifest names"
            )


def _alias(array: np.ndarray, dtype: dtypes.Dtype) -> Any:
    """Returns an OrtValue over the memory of `array`; ONNX Runtime would copy a strided one."""
    value_type = onnxruntime().OrtValue
    if dtype == dtypes.BFLOAT16:
        value = value_type.ortvalue_from_numpy_with_onnx_type(array, dtype.onnx)
    else:
        value = value_type.ortvalue_from_numpy(array)
    if value.data_ptr() != array.__array_interface__["data"][0]:
        raise EdgezoError("ONNX Runtime copied a weight that it should share")
    return value
