"""TOML with comments. Pure.

Names of containers and hosts come from strangers: whatever they are, a value stays one value, and a comment one line.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_WIDTH = 112
_COLUMN = 46  # at most: where the comments of a table begin
_BARE = re.compile(r"[A-Za-z0-9_-]+")

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Mapping[str, str]


class Key(NamedTuple):
    """A key of a table. `why`: where its value comes from; `off`: it stands there as a comment, with its default."""

    name: str
    value: Value
    why: str = ""
    off: bool = False


class Table(NamedTuple):
    """A table of the file; `header` is "caddy" or "[services.web.upstreams]" without the outer brackets. `above` are
    remarks, each wrapped as a paragraph; one that begins with two spaces is a line to be copied, and stays whole.
    `off`: all of it stands there as a comment."""

    header: str
    keys: tuple[Key, ...]
    above: tuple[str, ...] = ()
    off: bool = False


def render(head: Sequence[str], tables: Sequence[Table], tail: Sequence[str] = ()) -> str:
    """The text of the file."""
    parts = ["\n".join(_remarks(head)), *("\n".join(_table(table)) for table in tables), "\n".join(_remarks(tail))]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    """One line that a comment or a terminal can show: what is not printable is written as its number."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def name(*parts: str) -> str:
    """A dotted key."""
    return ".".join(part if _BARE.fullmatch(part) else quoted(part) for part in parts)


def quoted(text: str) -> str:
    """A basic string (TOML 1.0, "String")."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    code = ord(char)
    if char in '"\\':
        return f"\\{char}"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"  # half a character, which no file can hold
    if char.isprintable():
        return char
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def written(value: Value) -> str:
    """A value as TOML."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return quoted(value)
        case Mapping():
            return "{" + ", ".join(f"{name(key)} = {quoted(text)}" for key, text in value.items()) + "}"
        case _:
            return "[" + ", ".join(map(written, value)) + "]"


def _remarks(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        if text.startswith("  "):
            yield f"# {plain(text)}"
        elif text:
            wrapped = textwrap.wrap(plain(text), _WIDTH, break_long_words=False, break_on_hyphens=False)
            yield from (f"# {line}" for line in wrapped)
        else:
            yield "#"


def _table(table: Table) -> Iterator[str]:
    yield from _remarks(table.above)
    yield f"# [{table.header}]" if table.off else f"[{table.header}]"
    lines = [
        (f"{'# ' if key.off or table.off else ''}{name(key.name)} = {written(key.value)}", key) for key in table.keys
    ]
    column = max((len(text) for text, key in lines if key.why and len(text) <= _COLUMN), default=0)
    for text, key in lines:
        why = plain(key.why)
        if not why:
            yield text
        elif len(text) <= column and column + len(why) < _WIDTH:
            yield f"{text:<{column}}  # {why}"
        else:
            yield from _remarks((why,))
            yield text
