"""HTML and SVG that cannot be broken out of: text is escaped unless it was made here. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element. In names of attributes `_` stands for `-`, and one at the end for nothing; None leaves one out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def table(headings: Sequence[str], rows: Iterable[Iterable[str]], *, numbers: bool = True) -> Markup:
    """`numbers`: all columns but the first are aligned as numbers."""
    names = tag("tr", *(tag("th", heading) for heading in headings))
    head = tag("thead", names) if headings else Markup()
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", head, body, class_="numbers" if numbers else None), class_="scroll")
