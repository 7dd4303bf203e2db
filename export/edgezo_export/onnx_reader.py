"""Reads somebody else's ONNX file: checked before anything in it is believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto

from edgezo_export.quiet import quiet
from edgezo_runtime.errors import InputError

OLDEST_OPSET = 11  # the first with GatherElements, which the loss needs
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.ms.internal.nhwc"}
_EXTERNAL = TensorProto.EXTERNAL
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16, TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16,
    TensorProto.UINT16: 16, TensorProto.INT32: 32, TensorProto.UINT32: 32, TensorProto.INT64: 64,
    TensorProto.UINT64: 64, TensorProto.BOOL: 8, TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128, TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8, TensorProto.FLOAT8E5M2FNUZ: 8, TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}  # fmt: skip
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def read_onnx(path: Path) -> ir.Model:
    """Reads the model at `path`; every constant becomes an initializer of the main graph.

    Raises:
        InputError: what `load_sound` refuses.
    """
    return _guarded(path, lambda: _with_lifted_constants(load_sound(path)))


def load_sound(path: Path) -> ir.Model:
    """Reads the model at `path` as it is, once it is seen to be sound.

    Nothing outside the file's folder is opened, and no tensor may claim more bytes than there are.

    Raises:
        InputError: the file is missing, damaged or unsafe, or uses operators of an unknown domain
            or an opset before 11.
    """
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's own exceptions, and whatever it meets in damaged bytes
        raise InputError(f"{path} is not an ONNX file: {reason_of(error)}") from error
    if not proto.graph.node:
        raise InputError(f"{path} is not an ONNX file, or one without operators")
    return _guarded(path, lambda: _checked(path, proto))


def _guarded(path: Path, work: Callable[[], ir.Model]) -> ir.Model:
    try:
        return work()
    except InputError:
        raise
    except Exception as error:  # the file's structure is wrong in one of a thousand ways
        raise InputError(f"{path} is not a sound ONNX file: {reason_of(error)}") from error


def _with_lifted_constants(model: ir.Model) -> ir.Model:
    return ir.passes.Sequential(
        common_passes.InlinePass(),
        common_passes.RemoveInitializersFromInputsPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.LiftSubgraphInitializersToMainGraphPass(),
        common_passes.TopologicalSortPass(),
    )(model).model


def _checked(path: Path, proto: ModelProto) -> ir.Model:
    _check_texts(path, proto)
    _check_operators(path, proto)
    for tensor in _tensors(path, proto):
        _check_tensor(path, tensor)
    with quiet():  # what is missing is logged, too
        model = ir.from_proto(proto)
    model.ir_version = max(model.ir_version, 4)  # before, every initializer is an input too
    _set_base_folder(model, path.parent)
    return model


def _check_texts(path: Path, message: Any) -> None:
    """Raises InputError where a text of a protobuf `message` is not UTF-8: it comes as bytes."""
    for field, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_MESSAGE:
            for inner in values:
                _check_texts(path, inner)
        elif field.type == field.TYPE_STRING and not all(isinstance(v, str) for v in values):
            raise InputError(f"{path} is damaged: {field.full_name} holds a text that is not UTF-8")


def _check_operators(path: Path, proto: ModelProto) -> None:
    known = _DOMAINS | {function.domain for function in proto.functions}
    unknown = sorted({f"{n.domain}.{n.op_type}" for n in _nodes(proto) if n.domain not in known})
    if unknown:
        raise InputError(
            f"{path} uses {', '.join(unknown[:5])}, which ONNX Runtime does not have by itself: "
            "export the model with standard operators"
        )
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset < OLDEST_OPSET:
        raise InputError(
            f"{path} has opset {opset}, edgezo reads {OLDEST_OPSET} and later: "
            "convert it with onnx.version_converter"
        )


def _check_tensor(path: Path, tensor: TensorProto) -> None:
    """Raises InputError where the tensor's data is not there, or lies outside the folder."""
    if any(n < 0 for n in tensor.dims):
        raise InputError(f"{path}: tensor {tensor.name!r} has a negative dimension")
    bits = _BITS.get(tensor.data_type)
    size = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        if len(tensor.string_data) != size:
            raise InputError(f"{path}: tensor {tensor.name!r} is cut")
        return
    if bits is None:
        raise InputError(f"{path}: tensor {tensor.name!r} has type {tensor.data_type}, not known")
    needed = -(-size * bits // 8)
    if tensor.data_location == _EXTERNAL:
        _check_external(path, tensor, needed)
        return
    counts = [len(getattr(tensor, name)) for name in _TYPED]
    # Where numbers are not raw, four-bit ones lie two in each, complex ones take two.
    typed = size * 2 if bits == 128 or tensor.data_type == TensorProto.COMPLEX64 else size
    typed = -(-typed // 2) if bits == 4 else typed
    if len(tensor.raw_data) != needed if tensor.HasField("raw_data") else sum(counts) != typed:
        raise InputError(f"{path}: tensor {tensor.name!r} is cut, or its shape is wrong")


def _check_external(path: Path, tensor: TensorProto, needed: int) -> None:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve()
        inside = location and file.is_relative_to(folder) and not Path(location).is_absolute()
        offset, length = int(fields.get("offset", 0)), int(fields.get("length", needed))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: tensor {tensor.name!r} has a damaged place: {error}") from error
    if not inside or "\\" in location:
        raise InputError(
            f"{path}: tensor {tensor.name!r} lies in {location!r}, outside the file's folder"
        )
    if not file.is_file():
        raise InputError(f"{path} needs {location!r} beside it, which is not there")
    if offset < 0 or length != needed or offset + needed > file.stat().st_size:
        raise InputError(f"{file} is cut: it does not hold all of tensor {tensor.name!r}")


def _set_base_folder(model: ir.Model, folder: Path) -> None:
    for graph in model.graphs():
        tensors = [value.const_value for value in graph.initializers.values()]
        tensors += [
            attribute.value
            for node in graph
            for attribute in node.attributes.values()
            if attribute.type == ir.AttributeType.TENSOR
        ]
        for tensor in tensors:
            if isinstance(tensor, ir.ExternalTensor):
                tensor.base_dir = folder.resolve()


def _graphs(proto: ModelProto) -> Iterator[onnx.GraphProto]:
    """Yields the graph and all that lie within operators, not those within functions."""
    waiting = [proto.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _inner(graph.node)
    waiting = [graph for function in proto.functions for graph in _inner(function.node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _inner(graph.node)


def _inner(nodes: Iterable[onnx.NodeProto]) -> list[onnx.GraphProto]:
    found: list[onnx.GraphProto] = []
    for node in nodes:
        for attribute in node.attribute:
            found += [attribute.g] if attribute.HasField("g") else []
            found += attribute.graphs
    return found


def _nodes(proto: ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def _tensors(path: Path, proto: ModelProto) -> Iterator[TensorProto]:
    attributes = [a for function in proto.functions for a in function.attribute_proto]
    attributes += [a for node in _nodes(proto) for a in node.attribute]
    sparse = any(graph.sparse_initializer for graph in _graphs(proto))
    if sparse or any(a.HasField("sparse_tensor") or a.sparse_tensors for a in attributes):
        raise InputError(f"{path} has sparse tensors: store them as dense ones")
    for graph in _graphs(proto):
        yield from graph.initializer
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def reason_of(error: BaseException) -> str:
    """Returns in one line what went wrong first: onnx-ir wraps it in its own objects' texts."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
