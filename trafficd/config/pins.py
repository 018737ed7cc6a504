"""`[services.NAME.pins.*]` and `[services.NAME.preview]`: which requests are pinned to a version.

The preview is a pin named "preview", with checks of what is to be previewed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from proxy.errors import AddressError
from proxy.pins import MOST, Pin, parse_field, parse_pin_name, parse_value
from trafficd.config.faults import Clash, Section, get, items

PREVIEW = "preview"
_KINDS: tuple[Literal["header", "cookie"], ...] = ("header", "cookie")

PinName = Annotated[str, AfterValidator(parse_pin_name)]


class PinSection(Section):
    """Requests with one of these values in one header or cookie."""

    header: Annotated[str, AfterValidator(lambda text: parse_field("header", text))] | None = None
    cookie: Annotated[str, AfterValidator(lambda text: parse_field("cookie", text))] | None = None
    values: Annotated[list[str], Field(min_length=1, max_length=100)]

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        kinds = [kind for kind in _KINDS if given.get(kind) is not None]
        if not kinds:
            yield (), 'set header = "X-Preview" or cookie = "preview": what a request must have to be pinned'
        if len(kinds) > 1:
            yield ("cookie",), "is another way than header; leave out one of them"
        for number, value in items(given.get("values")):
            for kind in kinds[:1] if isinstance(value, str) else ():
                try:
                    parse_value(kind, str(value))
                except AddressError as error:
                    yield ("values", number), str(error)

    def pin(self, name: str) -> Pin:
        """This pin, as the proxy has it."""
        by = _KINDS[0] if self.header is not None else _KINDS[1]
        return Pin(name, by, self.header or self.cookie or "", tuple(self.values))


class CheckSection(Section):
    """A request that is sent to what is to be previewed, and what it must be answered with."""

    path: Annotated[str, Field(pattern=r"^/[\x21-\x7e]*$")]
    status: list[Annotated[int, Field(ge=100, le=599)]] = Field(default_factory=lambda: [200], min_length=1)


class PreviewSection(PinSection):
    checks: list[CheckSection] = Field(default_factory=list)


def pin_clashes(given: Mapping[str, Any]) -> Iterator[Clash]:
    """What does not fit together in the pins of a service."""
    preview, pins = given.get(PREVIEW), given.get("pins")
    named: Mapping[str, object] = pins if isinstance(pins, dict) else {}
    if preview is not None and PREVIEW in named:
        yield ("pins", PREVIEW), "the section preview makes a pin of that name already; give this one another"
    if len(named) + (preview is not None) > MOST:
        yield ("pins",), f"at most {MOST} pins, with the preview: Caddy asks for each of them at every request"
    why = _no_place(given)
    for key in (PREVIEW, "pins"):
        if why and given.get(key):
            yield (key,), why
    yield from _doubles([((PREVIEW,), preview), *((("pins", name), pin) for name, pin in named.items())])


def _no_place(given: Mapping[str, Any]) -> str | None:
    """Why there can be no pins."""
    if given.get("route", "own") in ("adopt", "import"):
        return f'needs a route of our own: leave it out, or set route = "own" ({given["route"]})'
    if given.get("control") == "admin":
        return 'needs control = "slots": with "admin" each change of a pin would be a change of Caddy\'s configuration'
    return None


def _doubles(pins: list[tuple[tuple[str, ...], object]]) -> Iterator[Clash]:
    """Requests that two pins want, or one twice: the first is asked, and the second never."""
    seen: dict[tuple[str, str, object], tuple[str, ...]] = {}
    for place, pin in pins:
        for kind in _KINDS:
            field = get(pin, kind)
            if not isinstance(field, str):
                continue
            sign = field.lower() if kind == "header" else field
            for number, value in items(get(pin, "values")):
                first = seen.get((kind, sign, str(value)))
                if first is not None:
                    yield (
                        (*place, "values", number),
                        f"{kind} {field} = {value} is a value of {'.'.join(first)} already",
                    )
                else:
                    seen[kind, sign, str(value)] = place
