"""Small ONNX files such as other exporters write, and bundles of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from edgezo_runtime.ort import onnxruntime

#: A convolution, a batch normalisation and a head, as an image classifier has them.
CLASSIFIER = """
<ir_version: 8, opset_import: ["" : {opset}]>
classifier (float[N, 2, 6, 6] image) => (float[N, 3] {output})
{{
    conv = Conv<pads=[1,1,1,1]>(image, {w}, {b})
    normed = BatchNormalization(conv, gamma, beta, mean, variance)
    active = Clip(normed, low, high)
    pooled = GlobalAveragePool(active)
    flat = Reshape(pooled, shape)
    scores = Gemm<transB=1>(flat, head, head_bias)
    {end}
}}
"""
SOFTMAX = "prob = Softmax<axis=1>(scores)"
SOFTMAX_IN_PIECES = """top = ReduceMax<axes=[1], keepdims=1>(scores)
    low_scores = Sub(scores, top)
    power = Exp(low_scores)
    total = ReduceSum<axes=[1], keepdims=1>(power)
    prob = Div(power, total)"""
BRANCHES = """
<ir_version: 8, opset_import: ["" : 16]>
branches (float[N, 4] x, int64 rate) => (float[N, 2] out)
{{
    fast = Equal(rate, limit)
    out = If(fast) <
        then_branch = yes () => (float[N, 2] t) {{
            a = Constant<value = float[4, 2] {{1, 2, 3, 4, 5, 6, 7, 8}}>()
            t = MatMul(x, a)
        }},
        else_branch = no () => (float[N, 2] e) {{
            b = Constant<value = float[4, 2] {{8, 7, 6, 5, 4, 3, 2, 1}}>()
            e = MatMul(x, b)
        }}
    >
}}
"""
LOOP = """
<ir_version: 8, opset_import: ["" : 16]>
loop (float[N, 4] x) => (float[N, 3] out)
{
    times = Constant<value = int64 {3}>()
    on = Constant<value = bool {1}>()
    last = Loop(times, on, x) <
        body = step (int64 i, bool c, float[N, 4] h) => (bool goes_on, float[N, 4] next) {
            goes_on = Identity(c)
            moved = MatMul(h, inner)
            next = Tanh(moved)
        }
    >
    out = MatMul(last, head)
}
"""
SCAN = """
<ir_version: 8, opset_import: ["" : 16]>
scan (float[N, 5, 4] x) => (float[N, 3] out)
{
    rows = Shape<start=0, end=1>(x)
    width = Constant<value = int64[1] {4}>()
    size = Concat<axis=0>(rows, width)
    first = ConstantOfShape(size)
    last, every = Scan(first, x) <
        num_scan_inputs = 1, scan_input_axes = [1],
        body = step (float[N, 4] h, float[N, 4] t) => (float[N, 4] next, float[N, 4] same) {
            moved = MatMul(h, inner)
            shifted = Add(moved, t)
            next = Tanh(shifted)
            same = Identity(next)
        }
    >
    out = MatMul(last, head)
}
"""
#: Two heads of four features over six tokens of eight numbers.
ATTENTION = """
<ir_version: 8, opset_import: ["" : {opset}]>
attend (float[N, 6, 8] x) => (float[N, 3] scores)
{{
    q0 = MatMul(x, wq)
    k0 = MatMul(x, wk)
    v0 = MatMul(x, wv)
    q1 = Reshape(q0, heads)
    k1 = Reshape(k0, heads)
    v1 = Reshape(v0, heads)
    q = Transpose<perm = [0, 2, 1, 3]>(q1)
    k = Transpose<perm = [0, 2, 3, 1]>(k1)
    v = Transpose<perm = [0, 2, 1, 3]>(v1)
    raw = MatMul(q, k)
    scaled = Div(raw, root)
    weights = Softmax<axis = 3>(scaled)
    mixed = MatMul(weights, v)
    turned = Transpose<perm = [0, 2, 1, 3]>(mixed)
    joined = Reshape(turned, flat)
    scores = MatMul(joined, head)
}}
"""


def with_weights(text: str, weights: dict[str, np.ndarray], constants: bool = False) -> ModelProto:
    """Returns the model of `text` with weights as initializers, or as Constant nodes."""
    model = parser.parse_model(text)
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    if not constants:
        model.graph.initializer.extend(tensors)
        return model
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def classifier_weights(w: str = "conv.w", b: str = "conv.b") -> dict[str, np.ndarray]:
    """Returns random weights of `CLASSIFIER`."""
    rng = np.random.default_rng(0)
    shapes = {
        w: (4, 2, 3, 3), b: (4,), "gamma": (4,), "beta": (4,), "mean": (4,), "head": (3, 4),
        "head_bias": (3,),
    }  # fmt: skip
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    weights["variance"] = np.ones(4, np.float32)
    weights["low"], weights["high"] = np.float32(-5).reshape(()), np.float32(6).reshape(())
    return weights | {"shape": np.array([-1, 4])}


def classifier(
    end: str = "", output: str = "scores", opset: int = 12, constants: bool = False
) -> ModelProto:
    """Returns an image classifier that ends in `end`."""
    text = CLASSIFIER.format(opset=opset, w="conv_w", b="conv_b", end=end, output=output)
    weights = classifier_weights("conv_w", "conv_b")
    return with_weights(text, weights, constants)


def attention(opset: int = 17) -> ModelProto:
    """Returns a classifier with one layer of attention."""
    rng = np.random.default_rng(0)
    shapes = {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "head": (48, 3)}
    weights = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    sizes = {"heads": np.array([0, -1, 2, 4]), "flat": np.array([-1, 48])}
    root = {"root": np.array(2, np.float32)}
    return with_weights(ATTENTION.format(opset=opset), weights | sizes | root)


def branching() -> ModelProto:
    """Returns a model whose weights lie in the branches of an If."""
    return with_weights(BRANCHES.format(), {"limit": np.array(16000)})


def save(model: ModelProto, path: Path, external: str | None = None) -> Path:
    """Writes `model`, with its initializers in the file `external` if that is given."""
    if external is None:
        path.write_bytes(model.SerializeToString())
    else:
        onnx.save_model(
            model, path, save_as_external_data=True, location=external, size_threshold=60
        )
    return path


def with_place(path: Path, location: str, name: str = "head") -> Path:
    """Rewrites the model at `path` so that one tensor lies at `location`."""
    model = onnx.load_model(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path.write_bytes(model.SerializeToString())
    return path


def plain(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Returns what ONNX Runtime's default session gives."""
    session = onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def images(rows: int = 3) -> np.ndarray:
    """Returns what `classifier` takes."""
    return np.random.default_rng(4).normal(size=(rows, 2, 6, 6)).astype(np.float32)
