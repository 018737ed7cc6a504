"""One HTTP probe. The whole answer must come within the time-out, and its status must fit.

Each probe is one HTTP/1.1 exchange on a connection of its own, parsed by h11 over asyncio streams. Not httpx:
a pooling client costs several times the processor time for a request that never shares a connection, and
probing is most of what an idle daemon does.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field

import h11

_BODY_LIMIT = 65_536  # a health answer is small; an endless one must not hold the probe
_HEAD_LIMIT = 65_536
_READ = 16_384


@dataclass(frozen=True)
class Check:
    """What to ask and what counts as healthy. `timeout` in seconds, for the whole exchange.

    `server_name` is the name a TLS certificate is checked against, by default the host of the address.
    """

    path: str = "/healthz"
    host: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    status: frozenset[int] = frozenset({200})
    timeout: float = 2.0
    tls: bool = False
    server_name: str | None = None


class HttpProbe:
    """`trafficd.ports.Probe` for one service. Connections are not kept: a probe proves that the
    instance still accepts new ones.

    `verify` is for TLS: True for the system's authorities, False for no check at all, or a context.
    """

    def __init__(self, check: Check, *, verify: ssl.SSLContext | bool = True) -> None:
        self._check = check
        self._tls = _context(verify) if check.tls else None

    async def __call__(self, dial: str) -> str | None:
        check = self._check
        place = f"{dial}{check.path}"
        try:
            async with asyncio.timeout(check.timeout):
                status = await self._ask(dial)
        except TimeoutError:
            return f"no answer from {place} within {check.timeout:g} s"
        except (OSError, h11.ProtocolError, UnicodeError, ValueError) as error:
            return f"{place}: {_explain(error)}"
        if status not in check.status:
            wanted = ", ".join(str(code) for code in sorted(check.status))
            return f"{place} answered {status}, not {wanted}"
        return None

    async def aclose(self) -> None:
        """Nothing is kept open between probes."""

    async def _ask(self, dial: str) -> int:
        """The status of one exchange, read to its end. Raises OSError, h11.ProtocolError, ValueError."""
        host, _, port = dial.rpartition(":")
        host = host.strip("[]")
        name = (self._check.server_name or host) if self._tls else None
        reader, writer = await asyncio.open_connection(host, int(port), ssl=self._tls, server_hostname=name)
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_LIMIT)
            request = h11.Request(method="GET", target=self._check.path, headers=self._headers(dial))
            head = connection.send(request)
            assert head is not None, "a request has bytes"
            writer.write(head + (connection.send(h11.EndOfMessage()) or b""))
            return await _answer(connection, reader)
        finally:
            # Not close(): that would wait for TLS goodbyes and for what an endless body still sends.
            writer.transport.abort()

    def _headers(self, dial: str) -> list[tuple[str, str]]:
        own = {"host": self._check.host or dial, "user-agent": "trafficd-probe", "connection": "close"}
        return list((own | {name.lower(): text for name, text in self._check.headers.items()}).items())


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader) -> int:
    status = size = received = 0
    while True:
        event = connection.next_event()
        match event:
            case h11.NEED_DATA:
                data = await reader.read(_READ)
                received += len(data)
                if not data and not status:
                    how = "before a complete HTTP answer" if received else "without an answer"
                    raise ValueError(f"the connection was closed {how}")
                connection.receive_data(data)
            case h11.Response():
                status = event.status_code
            case h11.Data():
                size += len(event.data)
                if size > _BODY_LIMIT:
                    return status
            case h11.InformationalResponse() if event.status_code == 101:
                return 101
            case h11.EndOfMessage():
                return status


def _context(verify: ssl.SSLContext | bool) -> ssl.SSLContext:
    if isinstance(verify, ssl.SSLContext):
        return verify
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _explain(error: Exception) -> str:
    match error:
        case ConnectionRefusedError():
            return "cannot connect: refused, nothing listens there"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not accepted: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {error.reason or error}"
        case ConnectionResetError():
            return "the connection was reset without a complete answer"
        case OSError():
            return f"cannot connect: {error.strerror or error}"
        case h11.LocalProtocolError():
            return f"the probe cannot be sent as configured: {error}"
        case h11.ProtocolError():
            return f"not a complete HTTP answer: {error}"
        case _:
            return str(error) or type(error).__name__
