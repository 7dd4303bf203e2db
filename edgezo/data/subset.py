"""Some of the rows, drawn by a seed: to train on, to judge by, to show."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from edgezo.data.rows import Rows, label_value, quoted
from edgezo_runtime.errors import InputError
from edgezo_runtime.noise import Purpose, shuffled


def subset(rows: Rows, seed: int, examples: int | None = None, shots: int | None = None) -> Rows:
    """Returns some of `rows`, in the data's order; all if nothing was asked.

    Args:
        rows: the data.
        seed: names the draw.
        examples: how many rows; of rows with labels about as many of each, and more of the others
            where one has too few.
        shots: how many rows of each label.

    Raises:
        InputError: both were asked, there are too few rows, or `shots` of rows without labels.
    """
    if examples is None and shots is None:
        return rows
    if examples is not None and shots is not None:
        raise InputError("examples and shots were both given; give one of them")
    groups: dict[str, list[int]] = defaultdict(list)
    labelled = rows.kind == "classify"
    for index in shuffled(seed, Purpose.SUBSET, len(rows)).tolist():
        groups[label_value(rows[index], rows.place(index)) if labelled else ""].append(index)
    if shots is not None:
        if not labelled:
            raise InputError(
                f"{rows.path or 'the data'} has no labels to take {shots} rows of each; "
                "use examples"
            )
        label, fewest = min(groups.items(), key=lambda group: len(group[1]))
        if len(fewest) < shots:
            raise InputError(
                f"{rows.path or 'the data'} has {len(fewest)} rows of label {quoted(label)}; "
                f"{shots} of each were asked"
            )
        drawn = [index for group in groups.values() for index in group[:shots]]
    else:
        assert examples is not None
        if examples > len(rows):
            raise _too_few(rows, examples)
        # One of each label in turn, until there are enough.
        turns = sorted(
            (place, group[place]) for group in groups.values() for place in range(len(group))
        )
        drawn = [index for _, index in turns[:examples]]
    return _take(rows, sorted(drawn))


def held_back(rows: Rows, seed: int, count: int) -> tuple[Rows, Rows]:
    """Divides `rows` into `count` to judge by and the rest.

    They are drawn as they come, so that a score on them is an estimate of that on all rows, however
    rare a label is.

    Raises:
        InputError: there are too few rows.
    """
    if count > len(rows):
        raise _too_few(rows, count)
    order = shuffled(seed, Purpose.SUBSET, len(rows)).tolist()
    return _take(rows, sorted(order[:count])), _take(rows, sorted(order[count:]))


def demonstrations(rows: Rows, seed: int, count: int) -> Rows:
    """Returns `count` drawn rows, about as many of each label, in an order drawn too.

    Raises:
        InputError: there are too few rows.
    """
    drawn = subset(rows, seed, examples=count)
    return _take(drawn, shuffled(seed, Purpose.SUBSET, count).tolist())


def _too_few(rows: Rows, asked: int) -> InputError:
    return InputError(f"{rows.path or 'the data'} has {len(rows)} rows; {asked} were asked")


def _take(rows: Rows, indices: list[int]) -> Rows:
    return dataclasses.replace(
        rows,
        items=tuple(rows.items[i] for i in indices),
        lines=tuple(rows.lines[i] for i in indices),
    )
