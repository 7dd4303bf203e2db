"""The shipped graphs are what the exporter makes today, and compute what transformers computes."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from edgezo_export.lean.verify import agree
from edgezo_export.make_graphs import export_config, make_graphs
from edgezo_export.random_bundle import random_bundle
from edgezo_export.shipped_graphs import find_graphs, read_config, shipped, shipped_folder
from edgezo_export.signature import read_signature
from edgezo_export.verify import GraphRunner, check_parity
from edgezo_export.verify_generation import check_reading, open_generation
from edgezo_runtime.bundle import GENERATE, GRAPH, LEAN, is_bundle, open_bundle
from edgezo_runtime.errors import InputError


@pytest.mark.timeout(1800)  # torch takes minutes for each on a busy machine
@pytest.mark.parametrize("name", ["opt-125m", "smollm2-135m"])
def test_a_fresh_export_is_the_same_to_the_byte(name: str, tmp_path: Path) -> None:
    """But for the build of PyTorch, which its version names.

    Of SmolLM2 without the generation graph, which takes as long again: its layers repeat.
    """
    folder = shipped_folder(name)
    graphs = (GRAPH, LEAN) if name == "smollm2-135m" else (GRAPH, GENERATE, LEAN)
    made = make_graphs(folder, tmp_path, graphs)
    assert {path.name for path in made} == {*graphs}
    for fresh in made:
        assert _without_build(fresh) == _without_build(folder / fresh.name)


def _without_build(path: Path) -> bytes:
    model = onnx.load(path)
    model.producer_version = model.producer_version.partition("+")[0]
    return model.SerializeToString(deterministic=True)


def test_smollm2_is_its_layers_repeated() -> None:
    config = read_config(shipped_folder("smollm2-135m"))
    one, two = (
        Counter(n.op_type for n in export_config(config | {"num_hidden_layers": layers}).graph)
        for layers in (1, 2)
    )
    layer = Counter({op: two[op] - one[op] for op in two})
    expected = Counter({op: one[op] + 29 * layer[op] for op in two})
    shipped_graph = ir.load(shipped_folder("smollm2-135m") / GRAPH).graph
    assert Counter(node.op_type for node in shipped_graph) == expected


@pytest.mark.parametrize(
    ("name", "count", "size"),
    [("smollm2-135m", 272, 134_515_008), ("opt-125m", 196, 125_239_296)],
)
def test_random_weights_agree_with_transformers(
    name: str, count: int, size: int, tmp_path: Path
) -> None:
    folder = random_bundle(name, tmp_path / f"{name}.edgezo", seed=3)
    bundle = open_bundle(folder)
    assert len(bundle.manifest.parameters) == count
    assert sum(parameter.size for parameter in bundle.manifest.parameters) == size
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    parity = check_parity(GraphRunner(bundle), model)
    assert max(parity.logprobs, parity.candidate_logits) <= 1e-4
    lean = GraphRunner(bundle, folder / LEAN)
    assert agree(GraphRunner(bundle), lean, model.config.vocab_size)
    assert check_reading(open_generation(bundle)[0], model) <= 1e-4
    shutil.rmtree(folder)


def test_graphs_are_small_and_found_by_their_config() -> None:
    for name in shipped():
        folder = shipped_folder(name)
        assert all((folder / file).stat().st_size < 500_000 for file in (GRAPH, GENERATE, LEAN))
        config = AutoConfig.for_model(**read_config(folder)).to_dict()
        assert find_graphs(config) == folder
        assert find_graphs(config | {"hidden_size": 8}) is None
        assert read_signature(folder / GRAPH).parameters[0].aliases == ("lm_head.weight",)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="opt-125m"):
        random_bundle("gpt-17", tmp_path / "b.edgezo")
    assert not is_bundle(tmp_path / "b.edgezo")
