"""Pins: requests that carry a certain header or cookie go by slots of their own. Pure.

A pin has a table of its own beside that of everybody else, in a directory beside it:

    <root>/<service>/current              where everybody goes
    <root>/<service>/pins/<name>/current  where requests with this pin's header or cookie go

So who is pinned to what changes as all routing does, by replacing a symbolic link.

What a request must have is compared exactly:
- A header by Caddy's `header` matcher. It takes an asterisk at an end of a value for a wildcard, so none may be there.
- A cookie by a regular expression on the whole Cookie header. Caddy has no matcher for cookies, and its placeholder
  for one takes names for the same that differ in case. A cookie begins where the header does or after a semicolon, and
  ends before one or where the header does (RFC 6265, 4.2.1); some clients put a value in quotes. Of a name that is
  sent twice, one with the value is enough.

All texts end up in Caddy's JSON, where braces are placeholders, so there are none in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from proxy.errors import AddressError
from proxy.model import parse_name

Json = dict[str, Any]

DIRECTORY = "pins"  # in that of the service's slots
MOST = 16  # pins of a service: Caddy asks one after the other at every request
SLOTS = 16  # of one pin, at most: those who are pinned are few, and every slot is a line in Caddy's list of upstreams

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110, 5.6.2
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")  # spaces around it are no part of it (RFC 9110, 5.5)
_COOKIE_VALUE = re.compile(r"[!#-+\--:<-\[\]-~]{1,200}")  # RFC 6265, 4.1.1
_NO_SIGNS = frozenset({"cookie", "host", "connection", "upgrade", "te", "transfer-encoding", "content-length"})
_VARIABLES = frozenset({"access_logger_names", "client_ip", "trusted_proxy"})  # Caddy's own, in every request


@dataclass(frozen=True)
class Pin:
    """`field` is the name of the header or cookie, and one of `values` the whole of what it must say.

    Raises `AddressError` for what cannot be matched exactly.
    """

    name: str
    by: Literal["header", "cookie"]
    field: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        parse_pin_name(self.name)
        parse_field(self.by, self.field)
        for value in self.values:
            parse_value(self.by, value)
        if not self.values:
            raise AddressError(f"the pin {self.name} has no values, so no request could have one")

    def matcher(self) -> Json:
        """What Caddy matches requests by."""
        if self.by == "header":
            return {"header": {self.field: list(self.values)}}
        return {"header_regexp": {"Cookie": {"pattern": _cookie_pattern(self.field, self.values)}}}


def parse_pin_name(text: str) -> str:
    """The name of a pin: it stands in paths, and as it is in the access log. Raises `AddressError`."""
    if text in _VARIABLES:
        raise AddressError(
            f"{text!r} cannot be the name of a pin: Caddy has a variable of that name, and would log that"
        )
    return parse_name(text)


def parse_field(by: str, text: str) -> str:
    """The name of a header or cookie. Raises `AddressError`."""
    if not _TOKEN.fullmatch(text):
        raise AddressError(f"{text[:80]!r} is not the name of a {by}")
    if by == "header" and text.lower() in _NO_SIGNS:
        remedy = (
            "set cookie, to the name of one" if text.lower() == "cookie" else "choose one of your own, as X-Preview"
        )
        raise AddressError(f"the header {text} means something else to every proxy; {remedy}")
    return text


def parse_value(by: str, text: str) -> str:
    """What a header or cookie says. Raises `AddressError`."""
    if "{" in text or "}" in text:
        raise AddressError(f"{text[:80]!r} must be without braces: Caddy would put something else in their place")
    if by == "cookie":
        if not _COOKIE_VALUE.fullmatch(text):
            raise AddressError(
                f"{text[:80]!r} cannot be in a cookie: at most 200 visible ASCII characters, without quotes, commas, "
                "semicolons and backslashes"
            )
        return text
    if not _HEADER_VALUE.fullmatch(text):
        raise AddressError(
            f"{text[:80]!r} cannot be in a header: at most 200 ASCII characters, no space at the ends, and no control "
            "characters"
        )
    if text.startswith("*") or text.endswith("*"):
        raise AddressError(f"{text[:80]!r}: Caddy takes an asterisk at an end for a wildcard; choose another value")
    return text


def _cookie_pattern(name: str, values: tuple[str, ...]) -> str:
    """In Go's syntax (RE2), where every punctuation character may be escaped."""
    any_of = "|".join(_literal(value) for value in values)
    return rf'(?:^|;)[ \t]*{_literal(name)}=(?:(?:{any_of})|"(?:{any_of})")[ \t]*(?:;|$)'


def _literal(text: str) -> str:
    return re.sub(r"(\W)", r"\\\1", text, flags=re.ASCII)
