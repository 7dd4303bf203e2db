"""In-context learning: solved rows in front of the one that is asked."""

from __future__ import annotations

import dataclasses

from edgezo.data.rows import Rows
from edgezo.tasks.base import BaseTask
from edgezo.tasks.choice import Choice
from edgezo.tasks.classify import Classify
from edgezo.tasks.generate import Generate
from edgezo_runtime.errors import InputError

SEPARATOR = "\n\n"


def show_shots(task: BaseTask, rows: Rows) -> None:
    """Puts `rows` in front of the prompt of `task`, each with its answer.

    Where they do not all fit, the first ones are left out, as many as need be.

    Args:
        task: of a causal model, to classify, choose or generate.
        rows: the demonstrations, in their order.

    Raises:
        InputError: another task, or a row is wrong.

    References:
        Brown et al., "Language Models are Few-Shot Learners", 2020.
    """
    if not isinstance(task, Classify | Choice | Generate) or task.answers.decoder_start is not None:
        raise InputError(
            f"task {task.name} of this model takes no demonstrations; they are for causal models "
            "that classify, choose or generate"
        )
    solved = [task.solved(row, rows.place(index)).strip() for index, row in enumerate(rows)]
    shots = ("".join(text + SEPARATOR for text in solved[i:]) for i in range(len(solved)))
    task.template = dataclasses.replace(task.template, shots=tuple(shots))
