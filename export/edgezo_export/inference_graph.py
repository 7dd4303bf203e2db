"""Plain inference graphs of a tuned model: ``input_ids, attention_mask -> logits``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxruntime import AdapterFormat, OrtValue

from edgezo_export.adapters.lora import without_lora
from edgezo_runtime.bundle import WEIGHTS, Bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import atomic_writer
from edgezo_runtime.peft import scale
from edgezo_runtime.safetensors_file import read_header

MODEL = "model.onnx"
ADAPTER = "adapter.onnx_adapter"
_QUESTIONS = ("positions", "targets", "candidates")


def write_inference_graph(bundle: Bundle, folder: Path) -> None:
    """Writes `model.onnx`, whose weights are those of `model.safetensors` in `folder`.

    Any ONNX Runtime loads it. An adapter of the bundle is left out: the weights have it merged.

    Raises:
        InputError: the bundle's graph gives no logits.
    """
    model = ir.from_proto(onnx.load_from_string(bundle.read_graph()))
    without_lora(model)
    _give_logits(model, bundle)
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
        InputError: the bundle's graph gives no logits.
    """
    model = ir.from_proto(onnx.load_from_string(bundle.read_graph()))
    write_adapter(model, scale(bundle.manifest.adapter), tensors, folder)
    _give_logits(model, bundle)
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


def _give_logits(model: ir.Model, bundle: Bundle) -> None:
    """Asks for the logits of every token, and gives nothing else."""
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs}
    outputs = {str(value.name): value for value in graph.outputs}
    chosen = outputs.get("candidate_logits")
    gather = chosen.producer() if chosen is not None else None
    if gather is None or gather.op_type != "Gather" or gather.attributes.get_int("axis", 0) != 1:
        raise InputError(f"the graph of {bundle.folder} gives no logits of a vocabulary")
    nodes: list[ir.Node] = []

    def add(operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(operator, inputs, attributes=attributes or None))
        nodes[-1].outputs[0].name = f"every_token.{len(nodes)}"
        return nodes[-1].outputs[0]

    def constant(name: str, value: Any) -> ir.Value:
        tensor = ir.tensor(np.array(value, np.int64), name=f"every_token.{name}")
        made = ir.val(str(tensor.name), const_value=tensor)
        graph.register_initializer(made)
        return made

    count = add("Size", inputs["input_ids"])
    every = add("Range", constant("zero", 0), count, constant("one", 1))
    inputs["positions"].replace_all_uses_with(every)
    graph.insert_before(graph[0], nodes)
    tokens = add("Concat", add("Shape", inputs["input_ids"]), constant("rest", [-1]), axis=0)
    logits = add("Reshape", gather.inputs[0], tokens)
    graph.extend(node for node in nodes if node.graph is None)
    shape = inputs["input_ids"].shape
    assert shape is not None
    logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
    logits.shape = ir.Shape([*shape, gather.inputs[0].shape[-1]])  # type: ignore[union-attr,index]
    graph.outputs.clear()
    graph.outputs.append(logits)
    common_passes.RemoveUnusedNodesPass()(model)
    for name in _QUESTIONS:
        graph.inputs.remove(inputs[name])
    model.metadata_props.clear()


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
