"""Rows of data: JSON Lines files, checked once while they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, overload

from edgezo_runtime.errors import InputError

Row = dict[str, Any]
#: Makes a row of a row, whose place errors name.
Derive = Callable[[Row, str], Row]
LAYOUTS = (
    '{"text", "label"}, {"prompt", "choices", "label"}, {"prompt", "completion"}, {"messages"} '
    'or {"text"}'
)
_TEXTS = ("text", "prompt", "completion", "label_text")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """Rows and where they came from; a sequence of dicts.

    Attributes:
        items: the rows.
        lines: each row's line in the file, from 1.
        path: the file, or None for rows given in memory.
        sha256: of the file's bytes; for rows in memory, of their JSON.
        kind: what the columns suggest: ``"classify"``, ``"choice"``, ``"generate"``, ``"chat"`` or
            ``"text"``.
    """

    items: tuple[Row, ...] = field(repr=False)
    lines: tuple[int, ...] = field(repr=False)
    path: Path | None
    sha256: str
    kind: str

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.items[index]

    def row(self, index: int) -> Row:
        """Returns row `index`."""
        return self.items[index]

    def place(self, index: int) -> str:
        """Returns the words by which errors name row `index`."""
        return place_of(self.path, self.lines[index])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the first row."""
        return tuple(self.items[0])


def read_rows(path: Path | str, derive: Derive | None = None) -> Rows:
    """Reads the JSONL file at `path`; blank lines are skipped, further columns are kept.

    Args:
        path: the file.
        derive: makes the rows of the file's, before they are checked.

    Raises:
        InputError: the file is missing, empty, of arrays or not UTF-8, a line is not a JSON object,
            or a row lacks a column of the first row's layout or has the wrong thing in it.
    """
    path = Path(path)
    if path.suffix == ".npz":
        raise InputError(
            f"data file {path} holds arrays, but text is read here: give rows as JSONL"
        )
    items, lines, digest = read_items(path)
    return _checked(items, lines, path, digest, derive)


def read_items(path: Path) -> tuple[list[Row], list[int], str]:
    """Returns the rows of a JSONL file, whatever their columns, their lines, and its SHA-256.

    Raises:
        InputError: the file is missing or not UTF-8, or a line is not a JSON object.
    """
    digest = hashlib.sha256()
    items: list[Row] = []
    lines: list[int] = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                line = line.removeprefix(_BOM) if number == 1 else line
                if not line.strip():
                    continue
                items.append(_parse(line, place_of(path, number)))
                lines.append(number)
    except FileNotFoundError as error:
        raise InputError(
            f"data file {path} does not exist; give the path of a JSONL file"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"data file {path} cannot be read: {reason}; give the path of a JSONL file"
        ) from error
    return items, lines, digest.hexdigest()


def rows_from(items: Iterable[Mapping[str, Any]], derive: Derive | None = None) -> Rows:
    """Returns rows given in memory, checked like those of a file; `derive` as for `read_rows`.

    Raises:
        InputError: as `read_rows`, naming the row's number in place of its line.
    """
    parsed: list[Row] = []
    for number, item in enumerate(items, start=1):
        place = place_of(None, number)
        try:
            text = json.dumps(dict(item), ensure_ascii=False, allow_nan=False)
            parsed.append(_parse(text.encode(errors="surrogatepass"), place))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{place} cannot be written as a JSON object: {error}") from error
    digest = hashlib.sha256("\n".join(json.dumps(row) for row in parsed).encode())
    return _checked(parsed, list(range(1, len(parsed) + 1)), None, digest.hexdigest(), derive)


def text_value(row: Mapping[str, Any], column: str, place: str) -> str:
    """Returns the text in `column`.

    Raises:
        InputError: there is no such column, or it holds no text, or only white space.
    """
    value = _value(row, column, place)
    if not isinstance(value, str):
        raise InputError(f"{place}: column {quoted(column)} is {_type(value)}; it should be text")
    if not value.strip():
        raise InputError(f"{place}: column {quoted(column)} is empty; give it text or drop the row")
    return value


def label_value(row: Mapping[str, Any], place: str) -> str:
    """Returns the row's label as text: 1 and "1" are the same label.

    Raises:
        InputError: there is no label, or it is neither text nor a whole number.
    """
    value = _value(row, "label", place)
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise InputError(
            f'{place}: column "label" is {_type(value)}; it should be text or a whole number'
        )
    return text_value(row, "label", place)


def quoted(text: object, limit: int = 60) -> str:
    """Returns `text` in quotes on one line, shortened, for errors."""
    text = str(text)
    return json.dumps(text if len(text) <= limit else text[: limit - 3] + "...", ensure_ascii=False)


def listed(names: Iterable[object], limit: int = 12) -> str:
    """Returns quoted names, comma-separated and shortened, for errors."""
    names = list(names)
    shown = ", ".join(quoted(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def place_of(path: Path | None, number: int) -> str:
    """Returns the words by which errors name a row: its line in a file, or its number."""
    return f"row {number} of the data" if path is None else f"{path} line {number}"


def _value(row: Mapping[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise InputError(
            f"{place} has no column {quoted(column)}; its columns are {listed(row) or 'none'}"
        )
    return row[column]


def _type(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


class _Refused(ValueError):
    """Something that Python's JSON reader takes and edgezo does not."""


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON; write null or a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f"column {quoted(twice)} occurs twice; keep one")
    return row


def _parse(line: bytes, place: str) -> Row:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise InputError(
            f"{place} is not UTF-8 text (byte 0x{byte:02x} at position {error.start}); "
            "save the file as UTF-8"
        ) from error
    try:
        row = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except _Refused as error:
        raise InputError(f"{place}: {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{place} is not JSON ({error.msg} at column {error.colno}); "
            "write one JSON object per line"
        ) from error
    except RecursionError as error:
        raise InputError(f"{place} is nested too deeply; write one flat JSON object") from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise InputError(
            f"{place} has a number of too many digits; write it as text, in quotes"
        ) from error
    if not isinstance(row, dict):
        raise InputError(f"{place} is {_type(row)}; write one JSON object per line")
    if "\\u" in text:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{place} has half of a surrogate pair (a \\ud... escape), which is no character; "
                "write both halves, or the character itself"
            ) from error
    return row


def _checked(
    items: list[Row], lines: list[int], path: Path | None, digest: str, derive: Derive | None
) -> Rows:
    if not items:
        name = "the data" if path is None else f"data file {path}"
        raise InputError(f"{name} has no rows; give one JSON object per line, with {LAYOUTS}")
    if derive:
        places = [place_of(path, number) for number in lines]
        items = [derive(row, place) for row, place in zip(items, places, strict=True)]
    kind, required = _layout(items[0], place_of(path, lines[0]))
    first = lines[0]
    for row, number in zip(items, lines, strict=True):
        place = place_of(path, number)
        for column in required:
            if column not in row:
                raise InputError(
                    f"{place} has no column {quoted(column)} (it has {listed(row) or 'none'}), "
                    f"but {'row' if path is None else 'line'} {first} has; "
                    "give every row the same columns"
                )
        for column in _TEXTS:
            if column in row:
                text_value(row, column, place)
        if kind == "classify":
            label_value(row, place)
    return Rows(tuple(items), tuple(lines), path, digest, kind)


def _layout(row: Row, place: str) -> tuple[str, tuple[str, ...]]:
    """Returns the kind of data that `row`, the first one, begins, and the columns it needs."""
    if "messages" in row:
        return "chat", ("messages",)
    if "completion" in row:
        return "generate", ("prompt", "completion") if "prompt" in row else ("completion",)
    if "choices" in row and "label" in row:
        return "choice", ("choices", "label")
    if "label" in row:
        return "classify", ("text", "label") if "text" in row else ("label",)
    if "text" in row:
        return "text", ("text",)
    raise InputError(f"{place} has columns {listed(row) or 'none'}; edgezo reads {LAYOUTS}")
