"""Graphs that are damaged or hostile, read without the `onnx` package: refused, and quickly."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser
from test_split import GRAPH

from edgezo_runtime import dtypes, wire
from edgezo_runtime.constants import with_constants
from edgezo_runtime.safetensors_file import TensorEntry
from edgezo_runtime.split import split

EXTERNAL = onnx.TensorProto.EXTERNAL
MODEL = parser.parse_model(GRAPH).SerializeToString()
CONSTANT = TensorEntry("first", dtypes.FLOAT32, (4, 4), 0, 64)


def read(model: bytes) -> None:
    """Reads `model` in every way that sessions do; what is damaged raises ValueError alone."""
    for work in (
        lambda: split(model, {"second", "ask"}, {"first"}),
        lambda: with_constants(model, [CONSTANT], "model.safetensors"),
        lambda: wire.initializers(model),
        lambda: wire.op_types(model),
        lambda: wire.reads_files(model + b"location"),
    ):
        try:
            work()
        except ValueError as error:
            assert str(error)


@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    read(data)


@settings(deadline=None)
@given(st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    content = bytearray(MODEL)
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    read(bytes(content))


def test_every_cut() -> None:
    for length in range(len(MODEL)):
        read(MODEL[:length])


@pytest.mark.timeout(20)
def test_a_number_without_an_end() -> None:
    """Read to its end it would be one of seven million bits, made anew for each byte."""
    with pytest.raises(ValueError, match="too long"):
        wire.initializers(b"\x80" * (1 << 20))


def outside() -> onnx.TensorProto:
    """Returns a tensor whose data lies in a file."""
    tensor = onnx.TensorProto(name="w", dims=[4], data_type=1, data_location=EXTERNAL)
    tensor.external_data.add(key="location", value="w.data")
    return tensor


def in_a_node(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], ["c"], value=tensor)


def in_a_branch(tensor: onnx.TensorProto) -> onnx.NodeProto:
    branch = onnx.helper.make_graph([in_a_node(tensor)], "branch", [], [])
    return onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)


PLACES = {
    "initializer": lambda m: m.graph.initializer.append(outside()),
    "constant": lambda m: m.graph.node.append(in_a_node(outside())),
    "branch": lambda m: m.graph.node.append(in_a_branch(outside())),
    "sparse": lambda m: m.graph.sparse_initializer.add().values.CopyFrom(outside()),
    "function": lambda m: m.functions.add().node.append(in_a_node(outside())),
}


@pytest.mark.parametrize("place", PLACES)
def test_data_in_other_files_is_seen(place: str) -> None:
    model = onnx.load_from_string(MODEL)
    model.graph.doc_string = "no location"
    assert not wire.reads_files(model.SerializeToString())
    PLACES[place](model)
    assert wire.reads_files(model.SerializeToString())


def test_what_onnx_writes_is_read() -> None:
    numbers = [0, 127, 128, 2**32, 2**63 - 1]
    tensor = onnx.TensorProto(name="x", dims=numbers, data_type=1)
    fields = list(wire.fields(memoryview(tensor.SerializeToString())))
    assert [number for number, _, _ in fields] == [1] * 5 + [2, 8]
    for value, (_, raw, payload) in zip(numbers, fields, strict=False):
        assert wire.number(1, value) == bytes(raw) and raw[1:] == payload
