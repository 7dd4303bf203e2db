"""Plain text: every token but the first is predicted from those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgezo.tasks.answers import Answers
from edgezo.tasks.base import Example, Task
from edgezo.tasks.template import Template
from edgezo_runtime.text import Tokenizer

DEFAULT_TEMPLATE = "{text}"


class Text(Task):
    """Mean negative log-probability of a text's tokens; its exponential is the perplexity.

    A text longer than the context is read in windows that follow each other, so that each token
    but the first is predicted once, from the tokens before it in its window. A text of one token
    holds nothing to predict and is skipped.

    Args:
        tokenizer: the model's.
        context_length: the longest sequence that the model takes, in tokens.
        template: how a row's columns become the text.

    Raises:
        InputError: the template is wrong.
    """

    name = "text"

    def __init__(
        self, tokenizer: Tokenizer, context_length: int, template: str = DEFAULT_TEMPLATE
    ) -> None:
        super().__init__(tokenizer, context_length)
        self.template = Template.parse(template)

    def encode(self, row: Mapping[str, Any], place: str = "the row") -> list[Example]:
        """Returns one example for each window of the row's text."""
        tokens = self.tokenizer.encode(self.template.render(self.template.values(row, place)))
        step = self.context_length
        windows = [tokens[start : start + step + 1] for start in range(0, len(tokens) - 1, step)]
        self.skipped += not windows
        answers = Answers(self.tokenizer)
        return [Example((answers.score(window[:1], window[1:]),)) for window in windows]

    def settings(self) -> dict[str, Any]:
        """Returns the template."""
        return super().settings() | {"template": self.template.source}
