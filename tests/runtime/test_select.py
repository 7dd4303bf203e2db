"""What `--tune` names."""

from __future__ import annotations

import dataclasses

import pytest

from edgezo_runtime.bundle import Manifest, Parameter
from edgezo_runtime.errors import InputError
from edgezo_runtime.select import resolve, select


def parameter(name: str, kind: str, *aliases: str) -> Parameter:
    return Parameter(
        name, (2, 2) if kind in ("linear", "embedding") else (2,), "float32", kind, aliases
    )


TIED = (
    parameter("model.embed.weight", "embedding", "lm_head.weight"),
    parameter("model.layers.0.attn.q_proj.weight", "linear"),
    parameter("model.layers.0.attn.q_proj.bias", "bias"),
    parameter("model.layers.0.norm.weight", "norm"),
    parameter("model.layers.0.norm.bias", "bias"),
)
UNTIED = (
    dataclasses.replace(TIED[0], aliases=()),
    *TIED[1:],
    parameter("lm_head.weight", "linear"),
)


@pytest.mark.parametrize(
    ("tune", "expected"),
    [
        ("full", [0, 1, 2, 3, 4, 5]),
        ("head", [5]),
        ("norm", [3, 4]),
        ("bitfit", [2, 4]),
        ("head, norm", [3, 4, 5]),
        ("bitfit,*.q_proj.*", [1, 2, 4]),
        ("lm_head.weight", [5]),
    ],
)
def test_words_and_patterns(tune: str, expected: list[int]) -> None:
    assert select(UNTIED, tune) == [UNTIED[i] for i in expected]


@pytest.mark.parametrize(("word", "first"), [("upper", 2), ("upper-quarter", 5)])
def test_upper_is_a_share_of_each_stack(word: str, first: int) -> None:
    names = [f"{side}.block.{n}.layer.0.w" for side in ("encoder", "decoder") for n in range(7)]
    weights = [parameter(name, "linear") for name in ("shared.weight", *names, "norm.weight")]
    expected = {
        f"{side}.block.{n}.layer.0.w" for side in ("encoder", "decoder") for n in range(first, 7)
    }
    assert {p.name for p in select(weights, word)} == expected
    assert select(TIED, word) == list(TIED[1:])  # of one block, that


@pytest.mark.parametrize(
    ("parameters", "tune", "message"),
    [
        (TIED, "head", "tied to 'model.embed.weight'.*--tune model.embed.weight"),
        (TIED[1:2], "head", "no output projection"),
        (TIED[:2], "norm", "no parameter of kind norm"),
        (TIED[:2], "bitfit", "has none: try --tune norm"),
        (TIED[:1], "upper-quarter", "--tune upper-quarter finds no blocks"),
        (TIED, "nonesuch", "'nonesuch' matches no parameter"),
        (TIED, "uper", r"none of full, .*upper, .*lora.*`edgezo info BUNDLE --parameters`"),
        (TIED, "scales", r"export BUNDLE --quantize int4.*edgezo info FILE.onnx --parameters"),
    ],
)
def test_words_that_match_nothing(
    parameters: tuple[Parameter, ...], tune: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        select(parameters, tune)


def test_an_adapter_is_all_that_is_tuned() -> None:
    new = Parameter("q.lora_A.weight", (2, 2), "float32", "lora", init="zeros")
    manifest = Manifest((*TIED, new), (), (), 8, adapter={"kind": "lora"})
    assert resolve(manifest, "full") == resolve(manifest, "lora") == "lora"
    assert select(manifest.parameters, "lora") == [new]
    assert manifest.stored == TIED
    with pytest.raises(InputError, match="has a lora adapter"):
        resolve(manifest, "norm")
    with pytest.raises(InputError, match="edgezo export BUNDLE --tune lora"):
        resolve(Manifest(TIED, (), (), 8), "lora")
