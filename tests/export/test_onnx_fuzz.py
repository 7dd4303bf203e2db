"""Damaged and hostile ONNX files: read, or refused in one sentence; nothing else."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from foreign_files import SOFTMAX, branching, classifier, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgezo_export.onnx_reader import read_onnx
from edgezo_export.trainable import find_weights
from edgezo_export.weight_inputs import graph_bytes, lift_weights
from edgezo_runtime.errors import InputError

FILES = {
    "initializers": classifier(SOFTMAX, "prob").SerializeToString(),
    "constants": classifier(constants=True).SerializeToString(),
    "branches": branching().SerializeToString(),
}
_ROOM = 256 << 20  # bytes; the files are smaller than 3 kB
FUZZED = settings(
    max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(path: Path, data: bytes) -> None:
    """Reads `data` as the commands do."""
    path.write_bytes(data)
    try:
        model = read_onnx(path)
        weights = [w for w in find_weights(model, model.graph.outputs) if w.trainable]
        for weight in weights:
            assert weight.array().nbytes <= len(data)
        lift_weights(model, weights)
        graph_bytes(model, path)
    except InputError as error:
        assert str(error) and "\n" not in str(error)


@pytest.fixture
def limited() -> Iterator[None]:
    """A little more memory than now: what asks for more fails here and not on the machine."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", FILES)
@FUZZED
@given(data=st.data())
def test_flipped_bits(tmp_path: Path, limited: None, name: str, data: st.DataObject) -> None:
    content = bytearray(FILES[name])
    for at in data.draw(st.lists(st.integers(0, len(content) * 8 - 1), min_size=1, max_size=6)):
        content[at // 8] ^= 1 << at % 8
    read(tmp_path / "m.onnx", bytes(content))


@pytest.mark.parametrize("name", FILES)
@FUZZED
@given(data=st.data())
def test_cut_and_stuffed(tmp_path: Path, limited: None, name: str, data: st.DataObject) -> None:
    content = FILES[name]
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    read(tmp_path / "m.onnx", content[:start] + data.draw(st.binary(max_size=40)) + content[end:])


@FUZZED
@given(
    dims=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    kind=st.integers(0, 30),
    place=st.text(max_size=12),
    offset=st.text("-0123456789", max_size=20),
)
def test_claims_of_a_tensor(
    tmp_path: Path, limited: None, dims: list[int], kind: int, place: str, offset: str
) -> None:
    model = classifier()
    tensor = next(t for t in model.graph.initializer if t.name == "head")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    tensor.data_type = kind
    if place:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", place), ("offset", offset)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    read(tmp_path / "m.onnx", model.SerializeToString())


def test_a_loop_of_operators(tmp_path: Path) -> None:
    model = classifier()
    model.graph.node[0].input[0] = model.graph.output[0].name
    with pytest.raises(InputError, match="a sound ONNX file: Graph contains a cycle"):
        read_onnx(save(model, tmp_path / "m.onnx"))


def test_an_operator_twice(tmp_path: Path) -> None:
    model = classifier()
    model.graph.node.append(model.graph.node[-1])
    with pytest.raises(InputError, match=r"not a sound ONNX file: Output 'scores' is redeclared"):
        read_onnx(save(model, tmp_path / "m.onnx"))


@pytest.mark.parametrize("text", [b"branches", b"t", b"Equal"])
def test_a_name_that_is_no_text(tmp_path: Path, text: bytes) -> None:
    length = bytes([len(text)])
    content = FILES["branches"].replace(length + text, length + b"\xe1" + text[1:])
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged: .* holds a text that is not UTF-8"):
        read_onnx(tmp_path / "m.onnx")


def test_a_graph_within_a_graph_within(tmp_path: Path) -> None:
    model = branching()
    for _ in range(20):
        outer = branching()
        branch = next(n for n in outer.graph.node if n.op_type == "If").attribute[0].g
        branch.node.extend(model.graph.node)
        model = outer
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        read_onnx(path)
    except InputError as error:
        assert str(error)
