"""What the values of flags mean. Pure: each function reads one text, and raises PlanError that says what it should
look like."""

from __future__ import annotations

import base64
import math
import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from loadtest.model import PlanError, Proxy, Stage

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_AMOUNT = re.compile(f"({_NUMBER})({'|'.join(_UNITS)})")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_NO_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, 5.5


class Contents(NamedTuple):
    """What a file holds."""

    name: str
    data: bytes


def duration(text: str) -> float:
    """ "10s", "5m", "1m30s", "500ms", as in Go; in seconds. A bare number is seconds."""
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not re.fullmatch(f"(?:{_AMOUNT.pattern})+", text):
        raise PlanError(f"{text!r} is not a duration like 10s, 5m or 1m30s")
    return sum(float(number) * _UNITS[unit] for number, unit in _AMOUNT.findall(text))


def positive_duration(text: str) -> float:
    seconds = duration(text)
    if seconds <= 0:
        raise PlanError(f"{text!r} must be over 0 s")
    return seconds


def count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise PlanError(f"{text!r} is not a whole number over 0")
    return number


def rate(text: str) -> float:
    """Requests a second, over 0."""
    number = rate_or_none(text)
    if not number:
        raise PlanError(f"{text!r} is not a number of requests a second over 0, like 500 or 0.5")
    return number


def rate_or_none(text: str) -> float:
    """Requests a second; 0: no limit."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise PlanError(f"{text!r} is not a number of requests a second, like 500 or 0.5")
    return number


def stages(text: str) -> tuple[Stage, ...]:
    """ "10s:100,30s:1000": to 100 a second within 10 s, then to 1000 a second within 30 s."""
    return tuple(_stage(part.strip()) for part in text.split(","))


def _stage(text: str) -> Stage:
    length, colon, goal = text.partition(":")
    example = "is not like 10s:100 (a duration, and the rate a second at its end)"
    if not colon:
        raise PlanError(f"{text!r} {example}")
    try:
        stage = Stage(duration(length.strip()), float(goal))
    except (PlanError, ValueError):
        raise PlanError(f"{text!r} {example}") from None
    if not (stage.duration > 0 and 0 <= stage.rate < math.inf):
        raise PlanError(f"{text!r}: a stage takes more than 0 s, and its rate is not below 0")
    return stage


def header(text: str) -> tuple[str, str]:
    """ "Name: value". The value may be empty."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise PlanError(f"{text!r} is not like 'Name: value'")
    return header_name(name.strip()), header_value(value.strip())


def method(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise PlanError(f"{text!r} is no method: write it like GET or DELETE")
    return text.upper()


def header_name(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise PlanError(f"{text!r} is no header name: letters, digits and -_. only")
    return text


def header_value(text: str) -> str:
    if _NO_VALUE.search(text):
        raise PlanError(f"{text!r} cannot be the value of a header: control characters")
    return text


def basic(text: str) -> str:
    """ "user:password"; the value of an Authorization header (RFC 7617)."""
    user, colon, password = text.partition(":")
    if not colon:
        raise PlanError("credentials are like user:password")
    return _basic(user, password)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def address(text: str) -> tuple[str, int]:
    """ "host:port" or "[::1]:port"."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.netloc != text or parts.username is not None:
        raise PlanError(f"{text!r} is not like example.com:8080 or [::1]:8080")
    return host, port


def proxy(text: str) -> Proxy:
    """ "host:port", or "http://user:password@host:port" with or without credentials and port."""
    if "://" not in text:
        return Proxy(*address(text))
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 80
    if parts.scheme != "http" or not host or parts.path.strip("/") or parts.query:
        raise PlanError("a proxy is like host:port or http://user:password@host:port")
    if parts.username is None:
        return Proxy(host, port)
    return Proxy(host, port, _basic(unquote(parts.username), unquote(parts.password or "")))
