"""Plain inference graphs of a tuned model: a text to logits, or what an ONNX file took and gave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxruntime import AdapterFormat, OrtValue

from edgezo_export.adapters.lora import without_lora
from edgezo_export.adapters.nodes import Maker
from edgezo_export.bundle_graph import bundle_graph
from edgezo_export.losses import LOSSES, TARGETS
from edgezo_runtime.bundle import WEIGHTS, Bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import atomic_writer
from edgezo_runtime.peft import scale
from edgezo_runtime.safetensors_file import read_header

MODEL = "model.onnx"
ADAPTER = "adapter.onnx_adapter"
_QUESTIONS = ("positions", TARGETS, "candidates")


def write_inference_graph(bundle: Bundle, folder: Path) -> None:
    """Writes `model.onnx`, whose weights are those of `model.safetensors` in `folder`.

    Any ONNX Runtime loads it. An adapter of the bundle is left out: the weights have it merged.

    Raises:
        InputError: the bundle's graph is none that edgezo exports.
    """
    model = bundle_graph(bundle.read_graph())
    without_lora(model)
    _give_output(model, bundle)
    store_weights(model, folder)
    save_model(model, folder)


def write_adapter_graph(bundle: Bundle, tensors: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes `model.onnx` with LoRA inputs, empty by default, and `adapter.onnx_adapter` for them.

    The weights are those of the base's `model.safetensors` in `folder`. As Olive converts them,
    the adapter's tensors are transposed, and B is scaled.

    Args:
        bundle: one with a LoRA adapter.
        tensors: the adapter's, by parameter name.
        folder: holds `model.safetensors`.

    Raises:
        InputError: the bundle's graph is none that edgezo exports.
    """
    model = bundle_graph(bundle.read_graph())
    write_adapter(model, scale(bundle.manifest.adapter), tensors, folder)
    _give_output(model, bundle)
    store_weights(model, folder)
    save_model(model, folder)


def write_adapter(
    model: ir.Model, factor: float, tensors: Mapping[str, np.ndarray], folder: Path
) -> None:
    """Writes `adapter.onnx_adapter`, and makes the LoRA inputs of `model` such as take it.

    Args:
        model: a graph that `add_lora` changed.
        factor: what the product of B and A is multiplied with; the file's B has it inside.
        tensors: the adapter's, by parameter name.
        folder: exists.
    """
    values = {}
    for value in model.graph.inputs:
        tensor = tensors.get(str(value.name))
        if tensor is None:
            continue
        is_up = str(value.name).endswith("lora_B.weight")
        scaled = tensor * np.float32(factor) if is_up else tensor
        values[value.name] = np.ascontiguousarray(scaled.T)
        _take_transposed(value)
    adapter = AdapterFormat()
    adapter.set_parameters({name: OrtValue.ortvalue_from_numpy(v) for name, v in values.items()})
    adapter.export_adapter(str(folder / ADAPTER))  # pyright: ignore[reportArgumentType]


def _take_transposed(value: ir.Value) -> None:
    """Makes a LoRA input (in, r) or (r, out) with the scale in it; r is free, and 0 by default."""
    assert value.shape is not None and value.graph is not None
    is_up = str(value.name).endswith("lora_B.weight")
    size = value.shape[0 if is_up else 1]
    assert isinstance(size, int)
    for transpose, _ in list(value.uses()):
        for product, _ in list(transpose.outputs[0].uses()):
            scaled = product.inputs[0].producer() if product.inputs[0] is not None else None
            if is_up and scaled is not None:
                product.replace_input_with(0, scaled.inputs[0])
        transpose.outputs[0].replace_all_uses_with(value)
    value.shape = ir.Shape(["rank", size] if is_up else [size, "rank"])
    value.const_value = ir.tensor(
        np.zeros((0, size) if is_up else (size, 0), np.float32), name=value.name
    )
    value.graph.register_initializer(value)


def _give_output(model: ir.Model, bundle: Bundle) -> None:
    """Lets the graph ask for no targets, and give what the model is there for.

    That is a file's own output, or logits as transformers gives them: of every token, or of a text.
    """
    if bundle.manifest.context_length is None:
        kept = [value for value in model.graph.outputs if value.name != LOSSES]
    else:
        kept = [_logits(model, bundle)]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    common_passes.RemoveUnusedNodesPass()(model)
    for value in [value for value in model.graph.inputs if value.name in _QUESTIONS]:
        model.graph.inputs.remove(value)
    model.metadata_props.clear()


def _logits(model: ir.Model, bundle: Bundle) -> ir.Value:
    """Returns the logits at every position that is worth one; `positions` is not read any more."""
    graph, form = model.graph, bundle.manifest.form
    inputs = {str(value.name): value for value in graph.inputs}
    outputs = {str(value.name): value for value in graph.outputs}
    chosen = outputs.get("candidate_logits")
    gather = chosen.producer() if chosen is not None else None
    if gather is None or gather.op_type != "Gather" or gather.attributes.get_int("axis", 0) != 1:
        raise InputError(f"the graph of {bundle.folder} gives no logits of a vocabulary")
    ids = inputs.get("decoder_input_ids", inputs["input_ids"])
    assert ids.shape is not None and gather.inputs[0] is not None
    dims: list[Any] = [*ids.shape]
    make = Maker(graph, "every_token")
    zero, one = make.constant("zero", 0), make.constant("one", 1)
    if form["kind"] == "head":
        count, length = (
            make.node("Squeeze", make.node("Shape", ids, start=axis, end=axis + 1))
            for axis in (0, 1)
        )
        asked = make.node("Mul", make.node("Range", zero, count, one), length)
        if form["position"] == -1:
            axis = make.constant("axis", [1])
            tokens = make.node("ReduceSum", inputs["attention_mask"], axis, keepdims=0)
            asked = make.node("Add", asked, make.node("Sub", tokens, one))
        dims = dims[:1]
    else:
        asked = make.node("Range", zero, make.node("Size", ids), one)
    inputs["positions"].replace_all_uses_with(asked)
    graph.insert_before(graph[0], make.nodes)
    make = Maker(graph, "logits")
    rest = make.constant("rest", [-1])
    shape = make.node("Concat", make.node("Shape", ids, start=0, end=len(dims)), rest, axis=0)
    logits = make.node("Reshape", gather.inputs[0], shape)
    graph.extend(make.nodes)
    logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
    logits.shape = ir.Shape([*dims, gather.inputs[0].shape[-1]])  # type: ignore[index]
    return logits


def store_weights(model: ir.Model, folder: Path) -> None:
    """Makes each parameter an initializer whose data lies in the folder's weights."""
    entries = read_header(folder / WEIGHTS)
    for value in list(model.graph.inputs):
        entry = entries.get(str(value.name))
        if entry is None:
            continue
        value.const_value = ir.ExternalTensor(
            WEIGHTS,
            entry.start,
            entry.stop - entry.start,
            ir.DataType(entry.dtype.onnx),
            shape=ir.Shape(entry.shape),
            name=entry.name,
            base_dir=folder,
        )
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)


def save_model(model: ir.Model, folder: Path) -> None:
    """Writes `model` into `folder` as `model.onnx`."""
    with atomic_writer(folder / MODEL) as file:
        file.write(ir.to_proto(model).SerializeToString(deterministic=True))
