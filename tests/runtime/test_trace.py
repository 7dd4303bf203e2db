"""Rules as formulas: what they say is what the rules do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cuda_kernels import evaluate
from method_cases import RATE, SPECS, every_method, short
from runtime_helpers import Quadratic, make_arena

from edgezo_runtime.devices import cuda_rule
from edgezo_runtime.devices.trace import Formula, trace
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.sweep import Rule, State

#: The methods that update element by element, and into how many kernels their rules make.
UPDATING = {
    "zo-sgd-sign": 1,
    "zo-sgd-mmt": 1,
    "zo-adam": 1,
    "mezo-adam": 4,  # of one estimate, two, ... as many as its window has
    "zo-adamu": 2,  # a move, and the update
    "mezo-svrg": 2,  # a copy, and an exchange
    "hizoo": 2,
    "helene": 2,  # with second derivatives, and without
}


@every_method
def test_formulas_are_the_rules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = make_arena(SPECS)
    method = short(name, arena, weight_decay=0.1)
    update = arena.sweeper.update
    seen: list[Formula] = []

    def checked(
        rule: Rule, directions: Sequence[AnyDirection], decay: np.float32, state: State
    ) -> None:
        formula = trace(rule, list(state), len(directions))
        assert len(cuda_rule.code(formula).splitlines()) > len(formula.nodes)
        zs = [direction.draw(np, arena.size)(0, arena.size) for direction in directions]
        weights = np.random.default_rng(len(seen)).standard_normal(arena.size, np.float32)
        new, changed = rule(np, weights, state, *zs)
        values = evaluate(formula, weights, [*state.values()], zs)
        assert values[formula.weights].tobytes() == new.tobytes()
        names = list(state)
        assert [names[i] for i, _ in formula.changed] == list(changed)
        for (_, place), array in zip(formula.changed, changed.values(), strict=True):
            assert values[place].dtype == np.float32
            assert values[place].tobytes() == array.tobytes()
        seen.append(formula)
        update(rule, directions, decay, state)

    monkeypatch.setattr(arena.sweeper, "update", checked)
    for number in range(1, 10):
        method.step(number, Quadratic(arena), RATE)
    assert len(set(seen)) == UPDATING.get(name, 0)
    assert len(seen) >= 9 * (name in UPDATING)


def test_numbers_are_no_part_of_a_formula() -> None:
    def rule_with(one: float, other: float) -> Rule:
        def rule(xp: Any, weights: Any, state: State, z: Any) -> Any:
            return weights - np.float32(one) * z / np.float32(other), {}

        return rule

    first, second, same = (trace(rule_with(*pair), [], 1) for pair in ((1, 2), (3, 4), (3, 3)))
    assert first == second == same and hash(first) == hash(second)
    assert cuda_rule.code(first) == cuda_rule.code(same)
    assert first.numbers == (1, 2) and same.numbers == (3, 3)


def test_a_branch_for_single_elements_is_refused() -> None:
    def rule(xp: Any, weights: Any, state: State) -> Any:
        return (weights if weights > 0 else -weights), {}

    with pytest.raises(TypeError, match="use where"):
        trace(rule, [], 0)
