"""Ports on the loopback for small servers of our own in Caddy."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import zlib
from collections.abc import Container, Iterable, Iterator
from itertools import count

from proxy.handler import Json

PORTS = range(20_000, 32_000)  # below what Linux gives to outgoing connections
_MOST = 10_000  # ports of one listen address
_PORT = re.compile(r":(\d{1,5})(?:-(\d{1,5}))?$")


def free_port(purpose: str | None = None, taken: Container[int] = ()) -> int:
    """A port that nobody listens on now, that is not `taken` by somebody who may listen there later, and that no
    outgoing connection will be given: Caddy must be able to listen there again whenever it is restarted. For the same
    purpose the same one, while that holds of it."""
    for attempt in count():
        number = secrets.randbelow(len(PORTS)) if purpose is None else zlib.crc32(f"{purpose}{attempt or ''}".encode())
        port = PORTS[number % len(PORTS)]
        if port in taken:
            continue
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


def listened_on(config: Json | None, *, but: str) -> frozenset[int]:
    """The ports that Caddy's servers have by its configuration, but for one of them, by its name."""
    servers: Json = (((config or {}).get("apps") or {}).get("http") or {}).get("servers") or {}
    addresses = (address for name, one in servers.items() if name != but for address in one.get("listen") or [])
    return frozenset(ports_of(addresses))


def ports_of(addresses: Iterable[str]) -> Iterator[int]:
    """Those of addresses to dial or to listen on (":80", "10.0.0.1:8000-8010"); a path has none."""
    for found in filter(None, map(_PORT.search, addresses)):
        first, last = int(found[1]), int(found[2] or found[1])
        yield from range(first, min(last, first + _MOST) + 1)
