"""What a weight-free graph takes and gives, read with ONNX Runtime alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezo_runtime.bundle import Parameter, Port
from edgezo_runtime.errors import InputError
from edgezo_runtime.ort import onnxruntime

#: Where a graph's own metadata keeps each parameter's kind and tied names.
PARAMETERS_KEY = "edgezo.parameters"

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class Signature:
    """The parameters of a graph, in arena order, and its data inputs and outputs."""

    parameters: tuple[Parameter, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def parameters_text(parameters: Iterable[tuple[str, str, Iterable[str]]]) -> str:
    """Returns what a graph's metadata says under `PARAMETERS_KEY`.

    Args:
        parameters: name, kind and aliases of each parameter, in arena order.
    """
    described = {
        name: {"kind": kind, "aliases": list(aliases)} for name, kind, aliases in parameters
    }
    return json.dumps(described, separators=(",", ":"))


def read_signature(graph: Path) -> Signature:
    """Reads the signature of the graph at `graph`.

    Raises:
        InputError: the file is no ONNX graph, or not one that edgezo exported.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise InputError(f"{graph} is not a graph that ONNX Runtime can read: {error}") from error
    described = session.get_modelmeta().custom_metadata_map.get(PARAMETERS_KEY)
    if described is None:
        raise InputError(f"{graph} names no parameters; make the graph with `edgezo export`")
    parameters: dict[str, Any] = json.loads(described)
    ports = {port.name: port for port in _ports(session.get_inputs())}
    return Signature(
        tuple(
            _parameter(ports[name], fields["kind"], fields["aliases"])
            for name, fields in parameters.items()
        ),
        tuple(port for name, port in ports.items() if name not in parameters),
        tuple(_ports(session.get_outputs())),
    )


def _ports(values: Iterable[Any]) -> list[Port]:
    return [Port(v.name, str(_DTYPES.get(v.type, v.type)), tuple(v.shape)) for v in values]


def _parameter(port: Port, kind: str, aliases: Iterable[str]) -> Parameter:
    shape = tuple(int(n) for n in port.shape)
    return Parameter(port.name, shape, port.dtype, kind, tuple(aliases))
