"""Chat templates, rendered as transformers does, in a sandbox that cannot change anything."""

from __future__ import annotations

import datetime
import functools
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.parser import Parser

# Noncharacters: no text holds them, and no template touches them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


def render(source: str, **variables: Any) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of a template, and where its ``{% generation %}`` blocks lie in it.

    Args:
        source: the template.
        variables: what it may use.

    Raises:
        Exception: whatever jinja2 or the template's own code raises.
    """
    marked = _compiled(source).render(**variables)
    text, spans, start = "", [], 0
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", marked):
        if piece == _OPEN:
            start = len(text)
        elif piece == _CLOSE:
            spans.append((start, len(text)))
        else:
            text += piece
    return text, spans


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    # Imported here: most work never needs it.
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The ``{% generation %}`` tag, which marks the assistant's words."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance variable

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

        def mark(self, caller: Any) -> str:
            return f"{_OPEN}{caller()}{_CLOSE}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson  # jinja2's own escapes for HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)
