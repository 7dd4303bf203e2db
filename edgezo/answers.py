"""Generated answers against the right ones: exact match and token F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgezo.data.rows import Rows, text_value
from edgezo.generate import generate_batch
from edgezo.tasks.base import BaseTask
from edgezo.tasks.generate import Generate
from edgezo.tasks.template import fit
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> list[str]:
    """Returns the words of `text` in lower case, without punctuation and articles.

    As SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, truth: str) -> float:
    """Returns 1 if both are the same once normalised, else 0."""
    return float(normalised(answer) == normalised(truth))


def token_f1(answer: str, truth: str) -> float:
    """Returns the harmonic mean of precision and recall over the normalised words."""
    ours, theirs = normalised(answer), normalised(truth)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


#: What `edgezo eval --metric` computes, by name.
METRICS: dict[str, Callable[[str, str], float]] = {"em": exact_match, "f1": token_f1}


def truths_of(row: Mapping[str, Any], place: str) -> list[str]:
    """Returns a row's right answers: the texts of its list ``answers``, else its completion."""
    answers = row.get("answers")
    if isinstance(answers, list) and answers and all(isinstance(text, str) for text in answers):
        return answers
    return [text_value(row, "completion", place)]


def best(metric: Callable[[str, str], float], answer: str, truths: Sequence[str]) -> float:
    """Returns the metric of `answer` against the right answer that it comes closest to."""
    return max(metric(answer, truth) for truth in truths)


def fitted_prompts(
    task: Generate, rows: Sequence[Mapping[str, Any]], places: Sequence[str], max_tokens: int
) -> list[str]:
    """Returns the prompt of each row, with room for `max_tokens` after it.

    Raises:
        InputError: there is no room, or a row is wrong.
    """
    room = task.answers.room(task.context_length, max_tokens)
    if room < 1:
        raise InputError(
            f"answers of {max_tokens} tokens leave no room for a prompt in a context of "
            f"{task.context_length}: use a smaller --max-tokens"
        )
    return [
        fit(
            task.template,
            task.template.values(row, place),
            task.tokenizer,
            room,
            place,
            "end",
            encode=task.answers.encode_prompt,
        ).text
        for row, place in zip(rows, places, strict=True)
    ]


def check_metrics(task: BaseTask, metrics: Sequence[str]) -> None:
    """Raises InputError if there is no such metric, or the answers to `task` are no texts."""
    for name in metrics:
        if name not in METRICS:
            raise InputError(f"metric is {name!r}; use one of {', '.join(METRICS)}")
    if not isinstance(task, Generate):
        raise InputError(
            f"task {task.name} has no completion to compare answers with; give rows of "
            '{"prompt", "completion"}, or leave the metrics out'
        )


def metric_names(task: BaseTask, metric: str) -> list[str]:
    """Returns the names in `metric`, which has commas between them; of labels ``"f1"`` alone.

    Raises:
        InputError: there is no such metric, or the answers to `task` have none.
    """
    names = [name.strip() for name in metric.split(",")]
    if not (task.chooses and names == ["f1"]):
        check_metrics(task, names)
    return names


def evaluate_answers(
    model: Model,
    task: BaseTask,
    rows: Rows,
    metrics: Sequence[str] = tuple(METRICS),
    max_tokens: int = 64,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Lets `model` answer each row's prompt greedily, and returns the mean of each metric.

    Args:
        model: it is not changed.
        task: a `Generate` task.
        rows: with a completion each.
        metrics: names from `METRICS`.
        max_tokens: longest answer.
        batch_size: prompts that are read together.
        progress: called with (rows done, rows in all).

    Raises:
        InputError: another task, an unknown metric, a bad row, or answers longer than the context.
    """
    check_metrics(task, metrics)
    assert isinstance(task, Generate)  # what the check has seen
    places = [rows.place(index) for index in range(len(rows))]
    prompts = fitted_prompts(task, rows, places, max_tokens)
    truths = [truths_of(row, place) for row, place in zip(rows, places, strict=True)]
    totals = dict.fromkeys(metrics, 0.0)
    order = np.argsort([len(task.tokenizer.encode(text)) for text in prompts], kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = [prompts[i] for i in chosen]
        answers = generate_batch(model, texts, max_tokens, stop=task.stop)
        for name in totals:
            pairs = zip(answers, (truths[i] for i in chosen), strict=True)
            totals[name] += sum(best(METRICS[name], answer, right) for answer, right in pairs)
        if progress:
            progress(start + len(chosen), len(order))
    return {name: total / len(order) for name, total in totals.items()}
