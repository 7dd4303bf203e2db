"""Graphs of onnxruntime-genai's model builder, under the names and in the layouts of checkpoints.

The builder turns weights to (in, out), packs those of queries, keys and values into one, and keeps
one matrix for tied embeddings. Its names, and its attention's attributes, tell what was what.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgezo_export.lift import KIND_KEY, ParameterNames
from edgezo_runtime.errors import InputError

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ATTENTION, _SKIP_NORM = "GroupQueryAttention", "SkipSimplifiedLayerNormalization"
_BUFFERS = ("cos_cache", "sin_cache")
_MATRIX = ".MatMul.weight"
_KEY = re.compile(
    r"model\.(embed_tokens|norm|layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj"
    r"|(input|post_attention)_layernorm))\.weight|model\.layers\.\d+\.self_attn\.[qkv]_proj\.bias"
    r"|lm_head\.weight"
)
#: The parts of a block in the order in which transformers makes them.
_BLOCK = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")


class GenaiGraph:
    """Gives a graph of the builder its checkpoint's parameters, in place.

    Args:
        model: the graph, with all constants as initializers.

    Raises:
        InputError: it holds weights that are quantised or in 16 bits, or of no known name.
    """

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._kinds: dict[str, str] = {}
        self._values: dict[str, Callable[[], np.ndarray]] = {}
        self._tied = False
        for node in list(model.graph):
            if node.op_type == _ATTENTION:
                self._unpack(node)
            elif node.op_type == _SKIP_NORM:
                _part(node)
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            assert tensor is not None
            if value.name in _BUFFERS:
                value.const_value = ir.tensor(np.array(tensor.numpy()), name=value.name)
                value.metadata_props[KIND_KEY] = "BUFFER"
            elif tensor.dtype not in (ir.DataType.INT32, ir.DataType.INT64) and (
                value.name not in self._kinds
            ):
                self._name(value, tensor)

    @property
    def names(self) -> ParameterNames:
        """The parameters, as the lift takes them."""
        keys = sorted(self._kinds, key=_place)
        aliases = {_EMBEDDING: (_HEAD,)} if self._tied else {}
        kinds = {key: self._kinds[key] for key in keys}
        return ParameterNames(kinds, {key: key for key in keys}, aliases)

    def array(self, key: str) -> np.ndarray:
        """Returns the value of a parameter in the checkpoint's layout, C-contiguous."""
        return np.ascontiguousarray(self._values[key]())

    def _new(self, key: str, kind: str, value: Callable[[], np.ndarray]) -> ir.Value:
        """Adds a parameter to the graph; its value is read when it is asked for."""
        shape = value().shape
        self._kinds[key], self._values[key] = kind, value
        weight = ir.Value(
            name=key,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(shape),
            const_value=ir.tensor(np.broadcast_to(np.float32(0), shape)),  # no memory is taken
            metadata_props={KIND_KEY: "PARAMETER"},
        )
        self._graph.initializers.pop(key, None)
        self._graph.register_initializer(weight)
        return weight

    def _name(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        """Replaces a weight of the builder's by the checkpoint's."""
        name = str(value.name)
        key = re.sub(
            r"layers\.\d+\.final_norm_layernorm", "norm", name.replace(".attn.", ".self_attn.")
        )
        key = key.replace(_MATRIX, ".weight").replace(".Add.bias", ".bias")
        if not _KEY.fullmatch(key) or tensor.dtype != ir.DataType.FLOAT:
            raise InputError(
                f"it holds {name!r}, {tensor.dtype.name.lower()}, which edgezo does not know: "
                "it reads Llama, Mistral and Qwen2 that were built with -p fp32"
            )
        uses = list(value.uses())
        if not name.endswith(_MATRIX):
            kind = "bias" if key.endswith(".bias") else "norm"
            weight = self._new(key, "embedding" if key == _EMBEDDING else kind, tensor.numpy)
            for node, index in uses:
                node.replace_input_with(index, weight)
            if key != name:
                del self._graph.initializers[name]
            return
        turns = [node for node, _ in uses if node.op_type == "Transpose"]
        if turns:  # for the Gather of tied embeddings
            self._tied, key = True, _EMBEDDING
        kind = "embedding" if turns else "linear"
        weight = self._new(key, kind, lambda: tensor.numpy().T)
        for node, _ in uses:
            if node in turns:
                node.outputs[0].replace_all_uses_with(weight)
                self._graph.remove(node, safe=True)
            else:
                node.replace_input_with(1, self._turned(node, weight))
        del self._graph.initializers[name]

    def _unpack(self, attention: ir.Node) -> None:
        """Gives `attention` queries, keys and values of three products, not of one."""
        add = attention.inputs[0].producer()  # type: ignore[union-attr]
        assert add is not None
        product = add.inputs[0].producer() if add.op_type == "Add" else add  # type: ignore[union-attr]
        if attention.inputs[1] is not None or product is None:
            return
        packed, bias = product.inputs[1], add.inputs[1] if add is not product else None
        assert packed is not None and packed.name is not None
        if packed.const_value is None or packed.const_value.dtype != ir.DataType.FLOAT:
            return  # refused by its name
        prefix = packed.name.partition(".attn.")[0]
        heads, groups = (attention.attributes[n].as_int() for n in ("num_heads", "kv_num_heads"))
        size = packed.const_value.shape.numpy()[1] // (heads + 2 * groups)
        start = 0
        for index, (part, count) in enumerate(zip("qkv", (heads, groups, groups), strict=True)):
            own = slice(start, start := start + count * size)
            name = f"{prefix}.self_attn.{part}_proj"
            matrix = packed.const_value
            weight = self._new(
                f"{name}.weight", "linear", lambda m=matrix, o=own: m.numpy()[:, o].T
            )
            turned = self._turned(attention, weight)
            made = [ir.node("MatMul", [product.inputs[0], turned])]
            if bias is not None:
                shift = bias.const_value
                assert shift is not None
                added = self._new(f"{name}.bias", "bias", lambda b=shift, o=own: b.numpy()[o])
                made.append(ir.node("Add", [made[0].outputs[0], added]))
            for node in made:
                _describe(node.outputs[0], product.outputs[0], count * size)
            self._graph.insert_before(attention, made)
            attention.replace_input_with(index, made[-1].outputs[0])
        for node in dict.fromkeys((add, product)):
            self._graph.remove(node, safe=True)
        for value in (packed, bias):
            if value is not None:
                del self._graph.initializers[str(value.name)]

    def _turned(self, before: ir.Node, weight: ir.Value) -> ir.Value:
        """Returns the transposed `weight`, of a node in front of `before`."""
        turn = ir.node("Transpose", [weight], attributes={"perm": [1, 0]})
        assert weight.shape is not None
        turn.outputs[0].type, turn.outputs[0].shape = weight.type, ir.Shape(weight.shape[::-1])
        self._graph.insert_before(before, turn)
        return turn.outputs[0]


def _part(node: ir.Node) -> None:
    """Writes a norm of a sum as the sum and its norm, which both work row by row."""
    graph = node.graph
    assert graph is not None
    left, right, scale = node.inputs
    total = ir.node("Add", [left, right])
    attributes = {"epsilon": node.attributes.get_float("epsilon"), "axis": -1, "stash_type": 1}
    norm = ir.node("SimplifiedLayerNormalization", [total.outputs[0], scale], attributes=attributes)
    graph.insert_before(node, [total, norm])
    for old, made in ((node.outputs[0], norm), (node.outputs[-1], total)):
        made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        old.replace_all_uses_with(made.outputs[0])
        if len(node.outputs) == 1:
            total.outputs[0].type, total.outputs[0].shape = old.type, old.shape
            break
    graph.remove(node, safe=True)


def _describe(value: ir.Value, like: ir.Value, width: int) -> None:
    assert like.shape is not None
    value.type, value.shape = like.type, ir.Shape([*like.shape[:-1], width])


def _place(key: str) -> tuple[float, int]:
    """Returns where transformers has a parameter: its block, and its part of that."""
    parts = key.split(".")
    if parts[1] == "layers":
        return int(parts[2]), _BLOCK.index(parts[3])
    return (-1, 0) if key == _EMBEDDING else (float("inf"), int(key == _HEAD))
