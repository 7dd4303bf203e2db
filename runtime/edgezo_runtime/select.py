"""Which parameters are trained: all, those of an adapter, or those that words and patterns name."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from edgezo_runtime.bundle import QUANTIZED, Manifest, Parameter
from edgezo_runtime.errors import InputError

FULL = "full"
UPPER = "upper"
QUARTER = "upper-quarter"
SCALES = "scales"
ADAPTERS = ("lora", "prefix", "prompt")
#: Last parts of the names that checkpoints give to what turns hidden states into answers.
_HEADS = ("lm_head", "embed_out", "score", "classifier", "qa_outputs", "cls")
_LISTED = "`edgezo info BUNDLE --parameters` lists them"
_BLOCK = re.compile(r"((?:.*?\.)?)(\d+)\.")


def resolve(manifest: Manifest, tune: str) -> str:
    """Returns what `tune` means for a bundle: one with an adapter tunes that and nothing else.

    Raises:
        InputError: an adapter that the bundle has not, or weights beneath one that it has.
    """
    kind = manifest.adapter.get("kind")
    if kind is None:
        if tune in ADAPTERS:
            raise InputError(
                f"the bundle has no {tune} adapter: make a bundle that has one with "
                f"`edgezo export BUNDLE --tune {tune} --out NEW`"
            )
        return tune
    if tune in (FULL, kind):
        return str(kind)
    raise InputError(f"the bundle has a {kind} adapter, so --tune is {kind}, not {tune!r}")


def select(parameters: Sequence[Parameter], tune: str) -> list[Parameter]:
    """Returns the parameters that `tune` names, in their order.

    Args:
        parameters: a bundle's.
        tune: ``"full"``; an adapter's kind; or, with commas between them, ``"head"`` (the output
            projection), ``"norm"`` (scales and shifts of the norms), ``"bitfit"`` (all biases),
            ``"scales"`` (of quantised weights, whose integers are never trained), ``"upper"`` (the
            upper two thirds of the blocks), ``"upper-quarter"`` and glob patterns of parameter
            names.

    Raises:
        InputError: a word or a pattern matches none.

    References:
        Ben Zaken et al., "BitFit", ACL 2022.
    """
    parameters = [p for p in parameters if p.kind != QUANTIZED]
    if tune == FULL:
        return parameters
    if tune in ADAPTERS:
        return [p for p in parameters if p.init]
    chosen: set[str] = set()
    for word in map(str.strip, tune.split(",")):
        named = WORDS.get(word)
        matched = named(parameters) if named else _matching(parameters, word)
        chosen.update(p.name for p in matched)
    return [p for p in parameters if p.name in chosen]


def blocks(parameters: Sequence[Parameter]) -> dict[str, dict[int, list[Parameter]]]:
    """Returns the parameters of each block, by what is before the first number in their names.

    An encoder's blocks and a decoder's are counted apart.
    """
    found: dict[str, dict[int, list[Parameter]]] = {}
    for parameter in parameters:
        if match := _BLOCK.match(parameter.name):
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(parameter)
    return found


def _matching(parameters: Sequence[Parameter], pattern: str) -> list[Parameter]:
    if pattern in ADAPTERS:
        raise InputError(f"--tune {pattern} adds weights of its own: give it alone")
    matched = [p for p in parameters if fnmatch.fnmatchcase(p.name, pattern)]
    if not matched:
        names = f"names look like {parameters[-1].name!r}" if parameters else "the model has none"
        words = ", ".join((FULL, *WORDS, *ADAPTERS))
        raise InputError(
            f"--tune {pattern!r} matches no parameter and is none of {words}; {names} ({_LISTED})"
        )
    return matched


def _head(parameters: Sequence[Parameter]) -> list[Parameter]:
    for parameter in parameters:
        if any(_in_head(alias) for alias in parameter.aliases):
            raise InputError(
                f"the output projection is tied to {parameter.name!r}, so tuning it tunes the "
                f"embeddings: ask for that with --tune {parameter.name}"
            )
    matched = [p for p in parameters if _in_head(p.name)]
    if not matched:
        raise InputError(
            "--tune head finds no output projection by its usual names "
            f"({', '.join(_HEADS)}): give a pattern of its name"
        )
    return matched


def _in_head(name: str) -> bool:
    return any(part in _HEADS for part in name.split("."))


def _norm(parameters: Sequence[Parameter]) -> list[Parameter]:
    layers = {_layer(p) for p in parameters if p.kind == "norm"}
    matched = [p for p in parameters if p.kind in ("norm", "bias") and _layer(p) in layers]
    if not matched:
        raise InputError(f"--tune norm finds no parameter of kind norm ({_LISTED})")
    return matched


def _layer(parameter: Parameter) -> str:
    return parameter.name.rpartition(".")[0]


def _bitfit(parameters: Sequence[Parameter]) -> list[Parameter]:
    matched = [p for p in parameters if p.kind == "bias"]
    if not matched:
        raise InputError("--tune bitfit needs biases, and this model has none: try --tune norm")
    return matched


def _scales(parameters: Sequence[Parameter]) -> list[Parameter]:
    matched = [p for p in parameters if p.kind == "scale"]
    if not matched:
        raise InputError(
            "--tune scales finds no scales that can be tuned: make a bundle that has them with "
            "`edgezo export BUNDLE --quantize int4 --out NEW`, or, of a file that is quantised "
            "already, see with `edgezo info FILE.onnx --parameters` why they stay as they are"
        )
    return matched


def _upper(parameters: Sequence[Parameter], word: str, below: Fraction) -> list[Parameter]:
    """Returns what `word` names: all blocks but the share `below`, rounded down."""
    stacks = [sorted(stack.items()) for stack in blocks(parameters).values()]
    kept = [stack[int(below * len(stack)) :] for stack in stacks]
    matched = [p for stack in kept for _, block in stack for p in block]
    if not matched:
        raise InputError(
            f"--tune {word} finds no blocks, which have numbers in their parameters' names "
            f"({_LISTED}): give patterns of names"
        )
    return matched


WORDS: Mapping[str, Callable[[Sequence[Parameter]], list[Parameter]]] = {
    "head": _head,
    "norm": _norm,
    "bitfit": _bitfit,
    SCALES: _scales,
    UPPER: functools.partial(_upper, word=UPPER, below=Fraction(1, 3)),
    QUARTER: functools.partial(_upper, word=QUARTER, below=Fraction(3, 4)),
}
