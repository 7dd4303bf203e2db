"""Derivatives of what works on images, against torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest
import torch
from gradient_graphs import graph_of, run

from edgezo_export.gradients.reverse import add_gradients
from edgezo_export.tangents.forward import add_tangents
from edgezo_runtime.first_order.graph import cotangent_of, gradient_of, tangent_of

_conv = torch.nn.functional.conv2d
#: Of images (3, 4, 7, 6), a weight `w` of the shape that is named, and vectors of 4.
_IMAGE_RULES: Mapping[str, tuple[str, tuple[int, ...], Callable[..., torch.Tensor]]] = {
    "conv": ("y = Conv(x, w, b)", (4, 4, 3, 2), lambda x, w, b, s: _conv(x, w, b)),
    "padded": (
        "y = Conv<pads=[2, 0, 1, 1]>(x, w)",
        (5, 4, 3, 2),
        lambda x, w, b, s: _conv(torch.nn.functional.pad(x, (0, 1, 2, 1)), w),
    ),
    "strided": (
        "y = Conv<pads=[1, 1, 1, 1], strides=[2, 3]>(x, w, b)",
        (4, 4, 3, 2),
        lambda x, w, b, s: _conv(x, w, b, (2, 3), 1),
    ),
    "strided far": (
        'y = Conv<strides=[5, 4], auto_pad="VALID">(x, w)',
        (2, 4, 1, 1),
        lambda x, w, b, s: _conv(x, w, None, (5, 4)),
    ),
    "dilated": (
        "y = Conv<pads=[2, 1, 2, 1], dilations=[2, 3], strides=[2, 1]>(x, w, b)",
        (4, 4, 2, 2),
        lambda x, w, b, s: _conv(x, w, b, (2, 1), (2, 1), (2, 3)),
    ),
    "grouped": (
        "y = Conv<group=2, pads=[1, 1, 1, 1], strides=[2, 2]>(x, w)",
        (6, 2, 3, 3),
        lambda x, w, b, s: _conv(x, w, None, 2, 1, 1, 2),
    ),
    "depthwise": (
        "y = Conv<group=4, pads=[1, 1, 1, 1]>(x, w, b)",
        (4, 1, 3, 3),
        lambda x, w, b, s: _conv(x, w, b, 1, 1, 1, 4),
    ),
    "batch norm": (
        "m = Mul(x, w) y = BatchNormalization<epsilon=0.1>(m, s, b, mean, variance)",
        (1, 1, 1, 6),
        lambda x, w, b, s: torch.nn.functional.batch_norm(
            x * w,
            torch.tensor([0.5, -0.5, 1.0, 0.0]),
            torch.tensor([1.0, 2.0, 0.5, 4.0]),
            s,
            b,
            eps=0.1,
        ),
    ),
    "max pool": (
        "m = Mul(x, w) y = MaxPool<kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]>(m)",
        (1, 1, 1, 6),
        lambda x, w, b, s: torch.nn.functional.max_pool2d(x * w, (3, 2), 2, (1, 0)),
    ),
    "max pool, counted by columns": (
        "m = Mul(x, w) y = MaxPool<kernel_shape=[3, 2], storage_order=1>(m)",
        (1, 1, 1, 6),
        lambda x, w, b, s: torch.nn.functional.max_pool2d(x * w, (3, 2), 1),
    ),
    "pools": (
        "m = Mul(x, w) a = GlobalMaxPool(m) c = GlobalAveragePool(m) y = Add(a, c)",
        (1, 1, 1, 6),
        lambda x, w, b, s: (x * w).amax((2, 3), keepdim=True) + (x * w).mean((2, 3), keepdim=True),
    ),
}


@pytest.mark.parametrize("shape", ["[3,4,7,6]", "[n,4,height,width]"])
@pytest.mark.parametrize("name", _IMAGE_RULES)
def test_rules_of_images_are_torchs(name: str, shape: str) -> None:
    """By the image and all weights, in reverse; along all of them, and along each alone."""
    text, sizes, function = _IMAGE_RULES[name]
    rng = np.random.default_rng(0)
    shapes = {"x": (3, 4, 7, 6), "w": sizes, "b": (4,), "s": (4,)}
    drawn = {n: torch.from_numpy(rng.standard_normal(s, np.float32)) for n, s in shapes.items()}
    read = [n for n in drawn if f"{n}," in text or f"{n})" in text]
    statistics = "float[4] mean = {0.5, -0.5, 1.0, 0.0}, float[4] variance = {1.0, 2.0, 0.5, 4.0}"

    def graph() -> ir.Model:
        ports = [f"float{shape if n == 'x' else list(shapes[n])} {n}" for n in read]
        nodes = text.replace(") ", ")\n")
        made = graph_of(f"({', '.join(ports)}) => (float y) <{statistics}> {{ {nodes} }}")
        made.graph.outputs[0].shape = None
        return made

    weights = {n: drawn[n].requires_grad_() for n in read}
    output = function(*(drawn[n] for n in shapes))
    cotangent = torch.from_numpy(rng.standard_normal(tuple(output.shape), np.float32))
    output.backward(cotangent)
    values = {n: w.detach().numpy() for n, w in weights.items()}
    reverse = graph()
    add_gradients(reverse, read)
    given = {**values, cotangent_of("y"): cotangent.numpy()}
    for n, found in zip(read, run(reverse, given, [gradient_of(n) for n in read]), strict=True):
        expected = np.asarray(weights[n].grad)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=n)
    tangents = {n: rng.standard_normal(shapes[n], np.float32) for n in read}
    for along in (read, *([n] for n in read)):
        forward = graph()
        add_tangents(forward, along)
        given = {**values, **{tangent_of(n): tangents[n] for n in along}}
        (found,) = run(forward, given, ["y.tangent"])
        moved = tuple(
            torch.from_numpy(tangents[n]) if n in along else torch.zeros(shapes[n]) for n in shapes
        )
        still = tuple(drawn[n].detach() for n in shapes)
        expected = torch.func.jvp(function, still, moved)[1]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
