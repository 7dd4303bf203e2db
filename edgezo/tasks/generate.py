"""Completion: the model should write a row's completion after its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgezo.data.rows import text_value
from edgezo.tasks.answers import Answers
from edgezo.tasks.base import Example, Task
from edgezo.tasks.template import Template, fit
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

DEFAULT_TEMPLATE = "{prompt}"
ANSWERS = ("completion",)


class Generate(Task):
    """Mean negative log-probability of the completion's tokens and of what ends it.

    Prompt and completion are joined as they are: a completion that should begin with a space has
    to bring it.

    Args:
        tokenizer: the model's.
        context_length: the longest sequence that the model takes, in tokens.
        template: the prompt.
        decoder_start: the token that begins an answer in a decoder; see `Answers`.
        stop: the text that ends an answer, in the place of the end-of-text token.

    Raises:
        InputError: the template is wrong, or `stop` is empty.
    """

    name = "generate"

    def __init__(
        self,
        tokenizer: Tokenizer,
        context_length: int,
        template: str = DEFAULT_TEMPLATE,
        decoder_start: int | None = None,
        stop: str | None = None,
    ) -> None:
        super().__init__(tokenizer, context_length)
        if stop == "":
            raise InputError("the text that ends an answer is empty; leave it out")
        self.stop = stop
        self.answers = Answers(tokenizer, decoder_start)
        self.template = Template.parse(template, ANSWERS)

    def encode(self, row: Mapping[str, Any], place: str = "the row") -> list[Example]:
        """Returns the row's one example; the longest columns are cut at their start to fit.

        The end stays, because it is what the completion follows.
        """
        completion = text_value(row, "completion", place)
        values = self.template.values(row, place)
        # Tokenised after the uncut prompt, as it stands in the data.
        answer = self.answers.encode(self.template.render(values), completion + (self.stop or ""))
        if self.stop is None and self.tokenizer.eos_id is not None:
            answer.append(self.tokenizer.eos_id)
        if not answer:
            raise InputError(
                f'{place}: column "completion" has no tokens; give it text that the model knows'
            )
        if len(answer) > self.context_length:
            raise InputError(
                f'{place}: column "completion" has {len(answer)} tokens, the model\'s context '
                f"{self.context_length}, and completions are never cut; shorten it"
            )
        prompt = fit(
            self.template,
            values,
            self.tokenizer,
            self.answers.room(self.context_length, len(answer) - 1),
            place,
            keep="end",
            encode=self.answers.encode_prompt,
        )
        self.truncated += prompt.cut
        return [Example((self.answers.score(prompt.tokens, answer),))]

    def solved(self, row: Mapping[str, Any], place: str) -> str:
        """Returns the row's prompt and its completion."""
        prompt = self.template.render(self.template.values(row, place))
        return prompt + text_value(row, "completion", place)

    def settings(self) -> dict[str, Any]:
        """Returns the template."""
        return super().settings() | {
            "template": self.template.source,
            **({} if self.stop is None else {"stop": self.stop}),
            **self.answers.settings(),
        }
