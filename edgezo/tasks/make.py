"""Which task the rows call for, and tasks from their recorded settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgezo.data.rows import Rows, listed, quoted
from edgezo.tasks import classify, generate, text
from edgezo.tasks.base import Task
from edgezo.tasks.chat import Chat
from edgezo.tasks.classify import Classify
from edgezo.tasks.generate import Generate
from edgezo.tasks.labels import GivenWords, Labels, labels_for
from edgezo.tasks.template import Template
from edgezo.tasks.text import Text
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

TASKS = (Classify.name, Generate.name, Chat.name, Text.name)
_DEFAULT_TEMPLATES = {
    Classify.name: classify.DEFAULT_TEMPLATE,
    Generate.name: generate.DEFAULT_TEMPLATE,
    Text.name: text.DEFAULT_TEMPLATE,
}
_ANSWER = {Classify.name: "label", Generate.name: "completion", Chat.name: "messages"}


def make_task(
    name: str | None,
    rows: Rows,
    tokenizer: Tokenizer,
    context_length: int,
    template: str | None = None,
    label_words: GivenWords | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Task:
    """Returns the task for `rows`, the training rows, which fix the labels.

    Args:
        name: one of `TASKS`; default: that of `defaults` if the rows have its columns, else what
            the rows' columns suggest.
        rows: the training rows.
        tokenizer: the model's.
        context_length: the longest sequence that the model takes, in tokens.
        template: the prompt, with ``{column}`` where a column's text goes.
        label_words: the labels' words: ``"a,b"`` or a list, in the order of labels 0, 1, ...;
            or ``"0=a,1=b"`` or a mapping. Default: each row's ``label_text``, else the label.
        defaults: the bundle's own task, as `Task.settings` has it; what it says about the template
            and the words holds for a task of its name where nothing was given.

    Raises:
        InputError: there is no such task, the rows lack a column that it needs, or the template
            or label words are wrong.
    """
    defaults = {} if defaults is None else defaults
    if name is None:
        name = _suits(defaults, rows) or rows.kind
    _check_name(name, "task")
    if defaults.get("name") != name:
        defaults = {}
    if label_words is not None and name != Classify.name:
        raise InputError(f"label words were given, but task {name} has no labels; leave them out")
    answer = _ANSWER.get(name)
    if answer is not None and answer not in rows.columns:
        raise InputError(
            f"{rows.place(0)} has no column {quoted(answer)}, which task {name} needs; "
            f"its columns are {listed(rows.columns)}"
        )
    if name == Chat.name:
        if template is not None:
            raise InputError("task chat has the model's own chat template; give no other")
        return Chat(tokenizer, context_length)
    if template is None:
        template = _template(name, defaults, rows)
        lacking = set(Template.parse(template).columns) - set(rows.columns)
        if lacking:
            raise InputError(
                f"{rows.place(0)} has no column {listed(sorted(lacking))}; give a template over "
                f"its columns, which are {listed(rows.columns)}"
            )
    task: Task
    if name == Classify.name:
        labels = labels_for(rows, label_words, _default_labels(defaults))
        task = Classify(tokenizer, context_length, labels, template)
    elif name == Generate.name:
        task = Generate(tokenizer, context_length, template)
    else:
        task = Text(tokenizer, context_length, template)
    task.template.check(rows.columns, rows.place(0))
    return task


def task_from_settings(settings: Mapping[str, Any], tokenizer: Tokenizer) -> Task:
    """Returns the task whose `Task.settings` are `settings`: it encodes rows the same way.

    Raises:
        InputError: the settings are damaged.
    """
    _check_name(settings.get("name"), "task in the settings")
    try:
        context_length = int(settings["context_length"])
        if settings["name"] == Chat.name:
            return Chat(tokenizer, context_length)
        template = str(settings["template"])
        if settings["name"] == Classify.name:
            labels = Labels(tuple(settings["labels"]), tuple(settings["words"]))
            return Classify(tokenizer, context_length, labels, template)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the settings of task {settings['name']} are damaged: {error!r}; "
            "use those that edgezo wrote"
        ) from error
    cls = Generate if settings["name"] == Generate.name else Text
    return cls(tokenizer, context_length, template)


def _check_name(name: object, what: str) -> None:
    if name not in TASKS:
        raise InputError(f"{what} is {quoted(name)}; use one of {', '.join(TASKS)}")


def _suits(defaults: Mapping[str, Any], rows: Rows) -> str | None:
    """Returns the default task's name if `rows` have the columns for it."""
    name = defaults.get("name")
    if name not in TASKS:
        return None
    needed = set()
    if name != Chat.name:
        needed |= set(Template.parse(_template(name, defaults, rows)).columns)
    needed |= {_ANSWER[name]} if name in _ANSWER else set()
    return name if needed <= set(rows.columns) else None


def _template(name: str, defaults: Mapping[str, Any], rows: Rows) -> str:
    """Returns the default template, the bundle's own first if `rows` have its columns."""
    own = defaults.get("template")
    if isinstance(own, str) and set(Template.parse(own).columns) <= set(rows.columns):
        return own
    return _DEFAULT_TEMPLATES[name]


def _default_labels(defaults: Mapping[str, Any]) -> Labels | None:
    labels, words = defaults.get("labels"), defaults.get("words")
    if not isinstance(labels, Sequence) or not isinstance(words, Sequence) or not words:
        return None
    return Labels(tuple(map(str, labels)), tuple(map(str, words)))
