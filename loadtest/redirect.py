"""The request that follows a redirect, or why there is none. Pure.

As browsers and hey do it: 301, 302 and 303 turn everything but HEAD into GET without a body, 307 and 308 keep method
and body (RFC 9110, 15.4, and the Fetch standard, 4.4). Credentials do not go to another place.
"""

from __future__ import annotations

from urllib.parse import urldefrag, urljoin, urlsplit

from loadtest.model import Origin, PlanError, RequestSpec
from loadtest.wire import Message

_TO_GET = frozenset({301, 302, 303})
_SAME = frozenset({307, 308})
_OF_THE_BODY = frozenset({b"content-length", b"content-type", b"content-encoding", b"transfer-encoding", b"expect"})
_OF_THE_PLACE = frozenset({b"authorization", b"cookie", b"host", b"proxy-authorization"})


def redirects(status: int, location: str | None) -> bool:
    """Whether an answer sends elsewhere. Without a Location it is an answer as any other."""
    return bool(location) and (status in _TO_GET or status in _SAME)


def follow(message: Message, status: int, location: str) -> Message:
    """The next request. Raises PlanError, with the reason, when `location` is none that can be requested."""
    url = _join(message.url, location)
    spec = RequestSpec(url)
    if "\\" in spec.authority or any(char.isspace() for char in spec.authority):
        raise PlanError(f"URL {url!r} has no usable host")
    method, headers, body = message.method, message.headers, message.body
    if status in _TO_GET and method != "HEAD":
        method, body = "GET", b""
        headers = tuple(field for field in headers if field[0].lower() not in _OF_THE_BODY)
    if not _trusted(message.origin, spec.origin):
        headers = tuple(field for field in headers if field[0].lower() not in _OF_THE_PLACE)
    return Message(method, spec.origin, spec.authority, spec.target, headers, body)


def _join(base: str, location: str) -> str:
    text = location.encode("latin-1", "replace").decode("utf-8", "replace")  # header bytes, which mostly are UTF-8
    try:
        parts = urlsplit(text.strip())
        if parts.scheme and not parts.netloc:  # urljoin would lend it the host that we come from
            raise PlanError(f"URL {text!r} has no host")
        return urldefrag(urljoin(base, text.strip())).url
    except ValueError as error:
        raise PlanError(f"URL {text!r} is malformed: {error}") from None


def _trusted(old: Origin, new: Origin) -> bool:
    """The same place, or the same host under TLS on the usual ports."""
    upgraded = (old.tls, old.port, new.tls, new.port) == (False, 80, True, 443)
    return old == new or (old.host == new.host and upgraded)
