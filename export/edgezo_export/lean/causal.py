"""Whether an attention mask is the causal one, found out by computing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgezo_export.lean.edit import constant
from edgezo_runtime.ort import onnxruntime

_LEAST = -1e4  # what is added to the score of a key that is not seen, or less
_LONGEST = 2048  # tokens of a mask that is computed
_DATA = ("input_ids", "attention_mask")


def is_causal(scores: ir.Value, product: ir.Value, scale: float) -> bool:
    """Whether tokens attend to themselves and all before them, and to nothing else.

    Texts are padded on the right, so that no token sees padding then; what padding sees does not
    matter, for nobody reads it.

    Args:
        scores: what the softmax takes, (batch, heads, length, length).
        product: of queries and keys, of that shape; `scores` depends on it elementwise.
        scale: what the product is multiplied with.
    """
    nodes = _above(scores, product)
    if nodes is None:
        return False
    # A window shows at its own length only: a number in the mask may be one.
    numbers = {abs(int(n)) for node in nodes for v in node.inputs for n in _integers(v)}
    lengths = {5, *(n + 3 for n in numbers if n < 1 << 31)}
    if max(lengths) > _LONGEST:
        return False
    session, names = _session(nodes, scores, product)
    return all(_causal_at(session, names, product, length, scale) for length in sorted(lengths))


def _above(scores: ir.Value, product: ir.Value) -> list[ir.Node] | None:
    """Returns what makes `scores` of `product` and data, in order; None if weights do too."""
    found: dict[ir.Node, None] = {}
    waiting, seen = [scores], {product}
    while waiting:
        value = waiting.pop()
        if value in seen or constant(value) is not None:
            continue
        seen.add(value)
        node = value.producer()
        if node is None and value.name not in _DATA:
            return None
        if node is not None:
            found[node] = None
            waiting += [v for v in node.inputs if v is not None]
    graph = next(iter(found)).graph if found else None
    assert graph is not None
    return [node for node in graph if node in found]


def _integers(value: ir.Value | None) -> Sequence[int]:
    array = constant(value)
    if array is None or array.dtype.kind not in "iu" or array.size > 8:
        return ()
    return array.reshape(-1).tolist()


def _session(nodes: Sequence[ir.Node], scores: ir.Value, product: ir.Value) -> tuple[Any, set[str]]:
    inputs = {str(v.name): v for node in nodes for v in node.inputs if v is not None}
    data = [value for value in inputs.values() if value is product or value.name in _DATA]
    constants = [v for v in inputs.values() if constant(v) is not None]
    described = [
        onnx.helper.make_tensor_value_info(str(v.name), int(v.dtype or 1), [None] * rank)
        for v, rank in [(v, 4 if v is product else 2) for v in data]
    ]
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "mask",
        described,
        [onnx.helper.make_tensor_value_info(str(scores.name), int(scores.dtype or 1), None)],
        [_tensor(value) for value in constants],
    )
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session, {str(value.name) for value in data}


def _tensor(value: ir.Value) -> onnx.TensorProto:
    array = constant(value)
    assert array is not None
    return onnx.numpy_helper.from_array(array, str(value.name))


def _causal_at(session: Any, names: set[str], product: ir.Value, length: int, scale: float) -> bool:
    mask = np.ones((2, length), np.int64)
    mask[1, length // 2 + 1 :] = 0
    assert product.dtype is not None
    kind = product.dtype.numpy()
    feeds: dict[str, np.ndarray] = {"input_ids": mask, "attention_mask": mask}
    found = []
    for raw in (0, 2):
        feeds[str(product.name)] = np.full((2, 1, length, length), raw, kind)
        try:
            (scores,) = session.run(None, {name: feeds[name] for name in names})
        except Exception:  # longer than the model's positions
            return length > 5
        found.append(np.broadcast_to(scores.astype(np.float64), feeds[str(product.name)].shape))
    real = mask[:, None, :, None].astype(bool)
    seen = np.tril(np.ones((length, length), bool))
    zero, two = found
    return bool(
        np.all((zero == 0) | ~(real & seen))
        and np.allclose(two[np.broadcast_to(real & seen, two.shape)], 2 * scale, rtol=1e-3)
        and np.all((two < _LEAST) | ~(real & ~seen))
    )
