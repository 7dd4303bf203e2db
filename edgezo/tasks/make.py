"""Which task the rows call for, and tasks from their recorded settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgezo.data.rows import Rows, listed, quoted
from edgezo.tasks import choice, classify, generate, head, masked, text
from edgezo.tasks.base import Task
from edgezo.tasks.chat import Chat
from edgezo.tasks.choice import Choice
from edgezo.tasks.classify import Classify
from edgezo.tasks.generate import Generate
from edgezo.tasks.head import Head, head_labels
from edgezo.tasks.labels import GivenWords, Labels, labels_for
from edgezo.tasks.masked import Masked
from edgezo.tasks.template import Template
from edgezo.tasks.text import Text
from edgezo_runtime.bundle import CAUSAL
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

TASKS = (Classify.name, Choice.name, Masked.name, Head.name, Generate.name, Chat.name, Text.name)
#: What each kind of model can do; the first is what it does with labels.
_SUITABLE = {
    "causal": (Classify.name, Choice.name, Generate.name, Chat.name, Text.name),
    "masked": (Masked.name,),
    "head": (Head.name,),
    "seq2seq": (Classify.name, Choice.name, Generate.name),
}
#: What errors call each kind of model.
MODELS = {
    "causal": "a causal language model",
    "masked": "a masked language model",
    "head": "a sequence classifier",
    "seq2seq": "an encoder and decoder",
}
_DEFAULT_TEMPLATES = {
    Classify.name: classify.DEFAULT_TEMPLATE,
    Choice.name: choice.DEFAULT_TEMPLATE,
    Masked.name: masked.DEFAULT_TEMPLATE,
    Head.name: head.DEFAULT_TEMPLATE,
    Generate.name: generate.DEFAULT_TEMPLATE,
    Text.name: text.DEFAULT_TEMPLATE,
}
_WITH_WORDS = (Classify.name, Masked.name)
_ANSWER = {
    Classify.name: "label",
    Choice.name: "choices",
    Masked.name: "label",
    Head.name: "label",
    Generate.name: "completion",
    Chat.name: "messages",
}


def make_task(
    name: str | None,
    rows: Rows,
    tokenizer: Tokenizer,
    context_length: int,
    template: str | None = None,
    label_words: GivenWords | None = None,
    defaults: Mapping[str, Any] | None = None,
    form: Mapping[str, Any] = CAUSAL,
    stop: str | None = None,
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
        form: what kind of model it is; see `Manifest.form`.
        stop: the text that ends a generated answer; None: the model's end of text.

    Raises:
        InputError: there is no such task, the model cannot do it, the rows lack a column that it
            needs, or the template or label words are wrong.
    """
    defaults = {} if defaults is None else defaults
    suitable = _SUITABLE[form["kind"]]
    if name is None:
        name = _suits(defaults, rows) or rows.kind
        if name not in suitable and rows.kind == Classify.name:
            name = suitable[0]
    name = _known(name, "task", suitable)
    if name not in suitable:
        raise InputError(
            f"task {name} is not for {MODELS[form['kind']]}, which this model is; "
            f"use {' or '.join(suitable)}"
        )
    if defaults.get("name") != name:
        defaults = {}
    if label_words is not None and name not in _WITH_WORDS:
        why = "takes the head's own labels" if name == Head.name else "has no labels"
        raise InputError(f"label words were given, but task {name} {why}; leave them out")
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
        lacking = _columns(name, template) - set(rows.columns)
        if lacking:
            raise InputError(
                f"{rows.place(0)} has no column {listed(sorted(lacking))}; give a template over "
                f"its columns, which are {listed(rows.columns)}"
            )
    task: Task
    start = form.get("decoder_start")
    if name in _WITH_WORDS:
        labels = labels_for(rows, label_words, _default_labels(defaults))
        if name == Masked.name:
            task = Masked(tokenizer, context_length, labels, template)
        else:
            task = Classify(tokenizer, context_length, labels, template, start)
    elif name == Head.name:
        labels = head_labels(rows, form["labels"])
        task = Head(tokenizer, context_length, labels, template, form["position"])
    elif name == Choice.name:
        task = Choice(tokenizer, context_length, template, start)
    elif name == Generate.name:
        task = Generate(tokenizer, context_length, template, start, stop)
    else:
        task = Text(tokenizer, context_length, template)
    task.template.check(rows.columns, rows.place(0))
    return task


def task_from_settings(settings: Mapping[str, Any], tokenizer: Tokenizer) -> Task:
    """Returns the task whose `Task.settings` are `settings`: it encodes rows the same way.

    Raises:
        InputError: the settings are damaged.
    """
    name = _known(settings.get("name"), "task in the settings", TASKS)
    try:
        context_length = int(settings["context_length"])
        if name == Chat.name:
            return Chat(tokenizer, context_length)
        template = str(settings["template"])
        start = settings.get("decoder_start")
        start = None if start is None else int(start)
        if name == Text.name:
            return Text(tokenizer, context_length, template)
        if name == Choice.name:
            return Choice(tokenizer, context_length, template, start)
        if name == Generate.name:
            return Generate(tokenizer, context_length, template, start, settings.get("stop"))
        labels = Labels(tuple(settings["labels"]), tuple(settings["words"]))
        if name == Masked.name:
            return Masked(tokenizer, context_length, labels, template)
        if name == Head.name:
            return Head(tokenizer, context_length, labels, template, int(settings["position"]))
        own_tokens = bool(settings.get("own_tokens", False))
        return Classify(tokenizer, context_length, labels, template, start, own_tokens)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the settings of task {name} are damaged: {error!r}; use those that edgezo wrote"
        ) from error


def _known(name: object, what: str, suitable: Sequence[str]) -> str:
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(f"{what} is {quoted(name)}; use one of {', '.join(suitable)}")
    return name


def _suits(defaults: Mapping[str, Any], rows: Rows) -> str | None:
    """Returns the default task's name if `rows` have the columns for it."""
    name = defaults.get("name")
    if name not in TASKS:
        return None
    needed = {_ANSWER[name]} if name in _ANSWER else set()
    if name != Chat.name:
        needed |= _columns(name, _template(name, defaults, rows))
    return name if needed <= set(rows.columns) else None


def _template(name: str, defaults: Mapping[str, Any], rows: Rows) -> str:
    """Returns the default template, the bundle's own first if `rows` have its columns."""
    own = defaults.get("template")
    if isinstance(own, str) and _columns(name, own) <= set(rows.columns):
        return own
    return _DEFAULT_TEMPLATES[name]


def _columns(name: str, template: str) -> set[str]:
    """Returns the columns that task `name` shows with `template`."""
    if name == Masked.name:
        return masked.columns_of(template)
    return set(Template.parse(template).columns)


def _default_labels(defaults: Mapping[str, Any]) -> Labels | None:
    labels, words = defaults.get("labels"), defaults.get("words")
    if not isinstance(labels, Sequence) or not isinstance(words, Sequence) or not words:
        return None
    return Labels(tuple(map(str, labels)), tuple(map(str, words)))
