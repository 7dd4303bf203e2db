"""ONNX files of other exporters: they become bundles that compute the same, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_files import (
    LOOP,
    SCAN,
    SOFTMAX,
    SOFTMAX_IN_PIECES,
    branching,
    classifier,
    images,
    plain,
    save,
    with_place,
    with_weights,
)
from onnx import ModelProto

from edgezo_export.onnx_file import DEAD, onnx_to_bundle
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import load

TRAINED = {"conv_w", "conv_b", "gamma", "beta", "head", "head_bias"}


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize(
    ("end", "output"), [("", "scores"), (SOFTMAX, "prob"), (SOFTMAX_IN_PIECES, "prob")]
)
def test_cross_entropy(tmp_path: Path, end: str, output: str, constants: bool) -> None:
    path = save(classifier(end, output, constants=constants), tmp_path / "model.onnx")
    exported = onnx_to_bundle(path, tmp_path / "b.edgezo", labels=["a", "b", "c"])
    reasons = {weight.name: weight.reason for weight in exported.weights}
    assert {name for name, reason in reasons.items() if not reason} == TRAINED
    assert reasons["mean"] == "a running mean of BatchNormalization"
    assert reasons["low"] == "a single number" or reasons["low"] == "a bound"
    assert reasons["shape"].startswith("int64")
    model = load(tmp_path / "b.edgezo", threads=1)
    assert model.bundle.manifest.task["labels"] == ["a", "b", "c"]
    labels = np.array([0, 2, 1])
    outputs = model.forward(ArrayBatch({"image": images()}, labels, RowLoss(labels, output)))
    expected = plain(path, {"image": images()})
    np.testing.assert_allclose(outputs[output], expected, rtol=1e-5, atol=1e-6)
    probabilities = expected
    if output == "scores":
        probabilities = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    wanted = -np.log(probabilities[np.arange(3), labels])
    np.testing.assert_allclose(outputs["losses"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("opset", [12, 18])
def test_mean_squared_error(tmp_path: Path, opset: int) -> None:
    path = save(classifier(opset=opset), tmp_path / "model.onnx")
    onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")
    model = load(tmp_path / "b.edgezo", threads=1)
    targets = np.ones((3, 3), np.float32)
    found = model.loss(ArrayBatch({"image": images()}, targets, RowLoss()))
    expected = plain(path, {"image": images()})
    assert found == pytest.approx(((expected - 1) ** 2).mean(), rel=1e-5)


def test_weights_inside_branches(tmp_path: Path) -> None:
    path = save(branching(), tmp_path / "model.onnx")
    exported = onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")
    assert {w.name for w in exported.weights if w.trainable} == {"a", "b"}
    model = load(tmp_path / "b.edgezo", threads=1)
    x, targets = np.ones((2, 4), np.float32), np.zeros((2, 2), np.float32)
    for rate, name in ((16000, "a"), (8000, "b")):
        feeds = {"x": x, "rate": np.array(rate)}
        batch = ArrayBatch(feeds, targets, RowLoss())
        np.testing.assert_allclose(model.forward(batch)["out"], plain(path, feeds))
        before = model.loss(batch)
        model.arena.views[name][...] += 1
        assert model.loss(batch) != before


@pytest.mark.parametrize(("text", "shape"), [(LOOP, (2, 4)), (SCAN, (2, 5, 4))])
def test_weights_inside_bodies(tmp_path: Path, text: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)

    def draw() -> dict[str, np.ndarray]:
        sizes = {"inner": (4, 4), "head": (4, 3)}
        return {n: rng.normal(size=size).astype(np.float32) for n, size in sizes.items()}

    path = save(with_weights(text, draw()), tmp_path / "model.onnx")
    exported = onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")
    assert {w.name for w in exported.weights if w.trainable} == {"inner", "head"}
    model = load(tmp_path / "b.edgezo", threads=1)
    others = draw()
    for name, view in model.arena.views.items():
        view[...] = others[name]
    changed = save(with_weights(text, others), tmp_path / "changed.onnx")
    feeds = {"x": rng.normal(size=shape).astype(np.float32)}
    batch = ArrayBatch(feeds, np.zeros((2, 3), np.float32), RowLoss())
    np.testing.assert_allclose(model.forward(batch)["out"], plain(changed, feeds), atol=1e-6)


def test_a_batch_of_one_becomes_free(tmp_path: Path) -> None:
    model = classifier()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    path = save(model, tmp_path / "model.onnx")
    assert onnx_to_bundle(path, tmp_path / "b.edgezo").difference <= 1e-5


def test_rows_that_mix_are_refused(tmp_path: Path) -> None:
    path = save(
        with_weights(
            """
            <ir_version: 8, opset_import: ["" : 13]>
            mix (float[N, 4] x) => (float[N, 2] out)
            {
                product = MatMul(x, w)
                mean = ReduceMean<axes=[0], keepdims=1>(product)
                out = Sub(product, mean)
            }
            """,
            {"w": np.arange(8, dtype=np.float32).reshape(4, 2)},
        ),
        tmp_path / "model.onnx",
    )
    with pytest.raises(InputError, match="rows"):
        onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")
    assert not (tmp_path / "b.edgezo").exists()


@pytest.mark.parametrize("end", ["total = ReduceSum<keepdims=0>(scores)", "total = ArgMax(scores)"])
def test_an_output_without_rows_or_slope_is_refused(tmp_path: Path, end: str) -> None:
    model = classifier(end, "total")
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    if "ArgMax" in end:
        model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("total", 7, None))
    path = save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError):
        onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")


def test_a_fixed_batch_inside_is_refused(tmp_path: Path) -> None:
    model = classifier()
    shape = next(t for t in model.graph.initializer if t.name == "shape")
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 4]), "shape"))
    path = save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"one row but not 3.*free batch size"):
        onnx_to_bundle(path, tmp_path / "b.edgezo")


def test_a_dead_weight_stays_a_constant(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    dead (float[N, 4] x) => (float[N, 2] out)
    {
        product = MatMul(x, w)
        square = Mul(gone, gone)
        nothing = Mul(square, zero)
        out = Add(product, nothing)
    }
    """
    weights = {
        "w": np.ones((4, 2), np.float32),
        "gone": np.ones(2, np.float32),
        "zero": np.zeros((), np.float32),
    }
    path = save(with_weights(text, weights), tmp_path / "model.onnx")
    exported = onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")
    assert {w.name: w.reason for w in exported.weights if w.name == "gone"} == {"gone": DEAD}
    assert [p.name for p in load(tmp_path / "b.edgezo").bundle.manifest.parameters] == ["w"]


NARROW = """
<ir_version: 8, opset_import: ["" : 17]>
narrow (float[N, 4] x) => (float[N, 2] out)
{{
    first = Cast<to = 1>(w)
    a = MatMul(x, first)
    {end}
}}
"""


def narrow(end: str, **weights: np.ndarray) -> ModelProto:
    model = with_weights(NARROW.format(end=end), weights)
    values = np.arange(8).tolist()
    model.graph.initializer.append(onnx.helper.make_tensor("w", 16, [4, 2], values))
    return model


def test_bfloat16_stays_a_constant(tmp_path: Path) -> None:
    file = narrow("out = Add(a, bias)", bias=np.ones(2, np.float32))
    exported = onnx_to_bundle(save(file, tmp_path / "model.onnx"), tmp_path / "b.edgezo")
    reasons = {weight.name: weight.reason for weight in exported.weights}
    assert reasons == {"bias": "", "w": "bfloat16: only float32 and float16 are tuned"}


def test_a_file_of_bfloat16_is_refused(tmp_path: Path) -> None:
    path = save(narrow("out = Identity(a)"), tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"bfloat16, .* with float32 or float16 weights"):
        onnx_to_bundle(path, tmp_path / "b.edgezo")


def test_names_are_made_safe(tmp_path: Path) -> None:
    model = classifier()
    for old, new in (("head", "a,b*[c]"), ("gamma", "targets"), ("beta", "losses")):
        for tensor in model.graph.initializer:
            tensor.name = new if tensor.name == old else tensor.name
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = new if name == old else name
    exported = onnx_to_bundle(save(model, tmp_path / "m.onnx"), tmp_path / "b.edgezo")
    names = {w.name for w in exported.weights if w.trainable}
    assert {"a_b_c_", "targets.2", "losses.2"} <= names


def test_external_data(tmp_path: Path) -> None:
    path = save(classifier(), tmp_path / "model.onnx", external="model.data")
    onnx_to_bundle(path, tmp_path / "b.edgezo")
    model = load(tmp_path / "b.edgezo", threads=1)
    labels = np.array([0, 2, 1])
    found = model.forward(ArrayBatch({"image": images()}, labels, RowLoss()))["scores"]
    np.testing.assert_allclose(found, plain(path, {"image": images()}), rtol=1e-5, atol=1e-6)


def test_external_constants(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    codes (int64[N] id) => (float[N, 2] out)
    {
        found = Gather(codes, id)
        x = Cast<to = 1>(found)
        out = MatMul(x, w)
    }
    """
    weights = {"codes": np.arange(400).reshape(100, 4), "w": np.ones((4, 2), np.float32)}
    path = save(with_weights(text, weights), tmp_path / "model.onnx", external="model.data")
    onnx_to_bundle(path, tmp_path / "b.edgezo")
    (tmp_path / "model.data").unlink()
    model = load(tmp_path / "b.edgezo", threads=1)
    batch = ArrayBatch({"id": np.array([0, 99])}, np.array([0, 1]), RowLoss())
    np.testing.assert_allclose(model.forward(batch)["out"], [[6, 6], [1590, 1590]])


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "link", "", "a/../../secret"])
def test_external_data_outside_the_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(100))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    path = with_place(save(classifier(), folder / "model.onnx"), place)
    with pytest.raises(InputError, match="outside the file's folder"):
        onnx_to_bundle(path, tmp_path / "b.edgezo")


def cut_external(folder: Path) -> ModelProto:
    save(classifier(), folder / "x.onnx", external="x.data")
    (folder / "x.data").write_bytes((folder / "x.data").read_bytes()[:40])
    return onnx.load_model(folder / "x.onnx", load_external_data=False)


def changed(**change: str) -> ModelProto:
    model = classifier()
    for node in model.graph.node:
        if node.op_type in change:
            node.domain = change[node.op_type]
    return model


def with_operator(name: str) -> ModelProto:
    model = classifier()
    next(node for node in model.graph.node if node.op_type == "Clip").op_type = name
    return model


def with_sparse() -> ModelProto:
    model = classifier()
    model.graph.node[0].attribute.add(name="sparse_value").sparse_tensor.values.name = "v"
    return model


def with_width(size: int) -> ModelProto:
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = size
    return model


def without_output() -> ModelProto:
    model = classifier()
    del model.graph.output[:]
    return model


REFUSED = {
    "no operator": (lambda f: with_operator("Clap"), "Clap"),
    "a custom domain": (lambda f: changed(Clip="my.own"), r"my\.own\.Clip"),
    "an old opset": (lambda f: classifier(opset=9), "opset 9"),
    "no such output": (lambda f: classifier(), "give --output, one of 'scores'"),
    "cut data": (cut_external, "is cut"),
    "a sparse constant": (lambda f: with_sparse(), "has sparse tensors"),
    "a huge input": (lambda f: with_width(1 << 40), "too large to try"),
    "no output": (lambda f: without_output(), "has no output"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path: Path, case: str) -> None:
    make, sentence = REFUSED[case]
    path = save(make(tmp_path), tmp_path / "model.onnx")
    output = "none" if case == "no such output" else None
    with pytest.raises(InputError, match=sentence):
        onnx_to_bundle(path, tmp_path / "b.edgezo", output=output)


RANDOM = {
    "RandomNormalLike": "n = RandomNormalLike<seed = 1.0>(x) y = Add(x, n)",
    "RandomUniform": "n = RandomUniform<shape = [4]>() y = Add(x, n)",
    "Bernoulli": "p = Sigmoid(x) y = Bernoulli(p)",
    "Multinomial": "n = Multinomial<sample_size = 4>(x) y = Cast<to = 1>(n)",
    "training mode": "rate = Constant<value_float = 0.5>() on = Constant<value = bool {1}>()"
    " y = Dropout(x, rate, on)",
}


def drawing(operator: str) -> ModelProto:
    ports = "(float[N, 4] x) => (float[N, 3] out)"
    text = f'<ir_version: 8, opset_import: ["" : 15]> g {ports} {{{RANDOM[operator]} '
    return with_weights(text + "out = MatMul(y, w)}", {"w": np.ones((4, 3), np.float32)})


@pytest.mark.parametrize("operator", RANDOM)
def test_files_that_draw_random_numbers_are_refused(tmp_path: Path, operator: str) -> None:
    path = save(drawing(operator), tmp_path / "model.onnx")
    with pytest.raises(InputError, match=rf"{operator}.* two runs of it do not compare"):
        onnx_to_bundle(path, tmp_path / "b.edgezo")


def test_noise_of_an_operator_that_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgezo_export.random_operators._RANDOM", set())
    path = save(drawing("RandomNormalLike"), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="may draw random numbers"):
        onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")


def test_dropout_for_inference_is_none(tmp_path: Path) -> None:
    model = drawing("training mode")
    model.graph.node[1].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array(False)))
    onnx_to_bundle(save(model, tmp_path / "model.onnx"), tmp_path / "b.edgezo")


@pytest.mark.parametrize(
    ("loss", "labels", "sentence"),
    [
        ("hinge", None, "loss is 'hinge'"),
        ("cross-entropy", ["a", "b"], "2 labels were given"),
        ("cross-entropy", ["a", "b", "a"], "occurs twice"),
        ("mse", ["a", "b", "c"], "3 labels were given"),
    ],
)
def test_bad_settings(tmp_path: Path, loss: str, labels: list[str], sentence: str) -> None:
    path = save(classifier(), tmp_path / "model.onnx")
    with pytest.raises(InputError, match=sentence):
        onnx_to_bundle(path, tmp_path / "b.edgezo", loss=loss, labels=labels)
