"""Requests made ready to be written, as HTTP/1.1 bytes: once where they do not change, else anew for each hit.

No clock and no I/O. A request of which every field is filled in is a `Message`; with its bytes it is a `Wire`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loadtest.model import Origin, Plan, PlanError, Proxy
from loadtest.template import QUOTED_PLACE, Template

Headers = tuple[tuple[bytes, bytes], ...]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, 5.5
LENGTHY = frozenset({"POST", "PUT", "PATCH"})  # say so when there is no body (RFC 9110, 8.6)
_BULKY = 64 * 1024  # more than a socket surely takes at once
_MOST_TURNS = 1_000_000


class Message(NamedTuple):
    """A request, before it is bytes."""

    method: str
    origin: Origin
    authority: str  # of the URL
    target: str  # path and query, percent-encoded
    headers: Headers  # as given, which may include Host
    body: bytes

    @property
    def url(self) -> str:
        return f"{'https' if self.origin.tls else 'http'}://{self.authority}{self.target}"

    @property
    def host(self) -> bytes:
        """What the Host header says."""
        return next((value for name, value in self.headers if name.lower() == b"host"), self.authority.encode())


class Wire:
    """One request as it is written. A lane sends it to one carrier, which writes it once."""

    __slots__ = ("closes", "data", "fields", "head_only", "held", "message", "origin", "request", "special")

    def __init__(self, message: Message, request: int, data: bytes, *, held: bytes = b"", closes: bool = False) -> None:
        self.message = message
        self.origin = message.origin
        self.request = request  # which of the plan's
        self.data = data
        self.fields: Headers | None = None  # the same for HTTP/2, once they were asked for
        self.held = held  # a body that waits for "100 Continue"
        self.closes = closes  # it says that the connection ends with its answer
        self.head_only = message.method == "HEAD"  # its answer has no body
        self.special = closes or bool(held) or len(data) > _BULKY  # look twice before the connection is used again


@dataclass(frozen=True)
class Encoder:
    """Writes messages as HTTP/1.1."""

    keepalive: bool = True
    proxy: Proxy | None = None

    def wire(self, message: Message, request: int = 0) -> Wire:
        """Raises PlanError when the message cannot be written as HTTP/1.1."""
        framing, body = _framing(message)
        head = self._head(message, framing)
        closes = not self.keepalive or b"close" in _value(message, b"connection").lower()
        if body and _value(message, b"expect").lower() == b"100-continue":
            return Wire(message, request, head, held=body, closes=closes)
        return Wire(message, request, head + body, closes=closes)

    def _head(self, message: Message, framing: Headers) -> bytes:
        if not _TOKEN.fullmatch(message.method.encode()):
            raise PlanError(f"method {message.method!r} cannot be sent")
        proxy = None if message.origin.tls else self.proxy  # https goes through a tunnel, unseen by the proxy
        headers = [*message.headers, *framing]
        if (hosts := _count(message, b"host")) > 1:
            raise PlanError(f"{message.url} cannot be requested with {hosts} Host headers")
        if not hosts:
            headers.insert(0, (b"Host", ascii_authority(message.authority)))
        if not self.keepalive and not _count(message, b"connection"):
            headers.append((b"Connection", b"close"))
        if proxy is not None and proxy.authorization is not None:
            headers.append((b"Proxy-Authorization", proxy.authorization.encode()))
        target = message.target if proxy is None else message.url
        lines = [f"{message.method} {target} HTTP/1.1".encode(), *map(_line, headers)]
        return b"\r\n".join((*lines, b"", b""))


def _line(header: tuple[bytes, bytes]) -> bytes:
    name, value = header
    if not _TOKEN.fullmatch(name) or _NO_VALUE.search(value):
        raise PlanError(f"header {name.decode(errors='replace')!r} cannot be sent, or not with this value")
    return name + b": " + value


def _framing(message: Message) -> tuple[Headers, bytes]:
    """The header that says how long the body is, if one has to be added, and the body as it is written."""
    lengths, codings = _count(message, b"content-length"), _count(message, b"transfer-encoding")
    size = len(message.body)
    if lengths + codings > 1:
        raise PlanError(f"{message.url}: the length of the body is given twice")
    if codings:
        if _value(message, b"transfer-encoding").lower() != b"chunked":
            raise PlanError(f"{message.url}: the only Transfer-Encoding that can be sent is chunked")
        chunk = b"%x\r\n%b\r\n" % (size, message.body) if size else b""
        return (), chunk + b"0\r\n\r\n"
    if lengths:
        if _value(message, b"content-length") != str(size).encode():
            raise PlanError(f"{message.url}: the Content-Length given is not that of the body, {size}")
        return (), message.body
    if size or message.method in LENGTHY:
        return ((b"Content-Length", str(size).encode()),), message.body
    return (), b""


def _count(message: Message, name: bytes) -> int:
    return sum(1 for known, _ in message.headers if known.lower() == name)


def _value(message: Message, name: bytes) -> bytes:
    return next((value for known, value in message.headers if known.lower() == name), b"")


def ascii_authority(authority: str) -> bytes:
    try:
        return authority.encode("ascii" if authority.isascii() else "idna")
    except UnicodeError as error:
        raise PlanError(f"{authority!r} is no usable host name: {error}") from None


class Recipes:
    """The requests of a plan in turn: hit k is always of the same one."""

    def __init__(self, plan: Plan, encoder: Encoder, chance: random.Random) -> None:
        """Raises PlanError when one of them cannot be written."""
        self._recipes = [_recipe(plan, number, encoder, chance) for number in range(len(plan.requests))]
        self._turns = turns([spec.weight for spec in plan.requests])
        only = self._recipes[0] if len(self._recipes) == 1 else None
        self.fixed = only if isinstance(only, Wire) else None  # the one wire of all hits

    def wire(self, hit: int) -> Wire:
        recipe = self._recipes[self._turns[hit % len(self._turns)]]
        return recipe if isinstance(recipe, Wire) else recipe(hit)


def turns(weights: Sequence[int]) -> tuple[int, ...]:
    """Indices, each as often as its weight says and spread as evenly as can be; to be gone through in a circle.

    The j-th turn of a weight w is at (j + 1/2) / w of the circle (Webster's method). Raises PlanError.
    """
    if min(weights) < 1:
        raise PlanError("the weight of a request must be a whole number over 0")
    divisor = math.gcd(*weights)
    shares = [weight // divisor for weight in weights]
    if sum(shares) > _MOST_TURNS:
        raise PlanError(f"the weights of the requests are too fine: their sum is over {_MOST_TURNS:,}")
    places = [((turn + 0.5) / share, index) for index, share in enumerate(shares) for turn in range(share)]
    return tuple(index for _, index in sorted(places))


def _recipe(plan: Plan, number: int, encoder: Encoder, chance: random.Random) -> Wire | Callable[[int], Wire]:
    spec, sequence = plan.requests[number], (plan.sequence_header or "").encode()
    headers = [(name.encode(), value.encode()) for name, value in spec.headers]
    if sequence:
        headers = [(name, value) for name, value in headers if name.lower() != sequence.lower()]
    message = Message(spec.method, spec.origin, spec.authority, spec.target, tuple(headers), spec.body)
    if spec.template:
        if sequence:
            message = message._replace(headers=(*message.headers, (sequence, b"{{seq}}")))
        return _templated(message, number, encoder, chance)
    return _numbered(message, number, encoder, sequence) if sequence else encoder.wire(message, number)


def _templated(message: Message, number: int, encoder: Encoder, chance: random.Random) -> Callable[[int], Wire]:
    target = Template(message.target.encode(), chance, QUOTED_PLACE)
    headers = [(name, Template(value, chance)) for name, value in message.headers]
    body = Template(message.body, chance)

    def make(hit: int) -> Wire:
        filled = message._replace(
            target=target.fill(hit).decode(),
            headers=tuple((name, value.fill(hit)) for name, value in headers),
            body=body.fill(hit),
        )
        return encoder.wire(filled, number)

    make(0)  # what cannot be written is refused before the run
    return make


def _numbered(message: Message, number: int, encoder: Encoder, name: bytes) -> Callable[[int], Wire]:
    """Only the value of one header changes: the bytes around it are made once."""
    sample = encoder.wire(message._replace(headers=(*message.headers, (name, b""))), number)
    before, line, after = sample.data.partition(b"\r\n%b: \r\n" % name)
    before, after = before + line[:-2], line[-2:] + after

    def make(hit: int) -> Wire:
        value = b"%d" % hit
        filled = message._replace(headers=(*message.headers, (name, value)))
        return Wire(filled, number, before + value + after, held=sample.held, closes=sample.closes)

    return make
