"""One HTTP probe. The whole answer must come within the time-out, and its status must fit.

Each probe is one HTTP/1.1 exchange on a connection of its own: a bare protocol around the load generator's reader of
responses. Not httpx, and no streams: a pooling client costs several times the processor time for a request that never
shares a connection, and probing is most of what an idle daemon does.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass, field
from typing import cast

from loadtest.response import BadResponseError, ResponseReader
from trafficd.core.health import Unreachable

_BODY_LIMIT = 65_536  # a health answer is small; an endless one must not hold the probe
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t -~]*")
_PATH = re.compile(r"[!-~]+")


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
        given = {name.lower(): text for name, text in check.headers.items()}
        self._host = given.pop("host", check.host)
        self._headers = {"user-agent": "trafficd-probe", "connection": "close"} | given

    async def __call__(self, dial: str) -> str | None:
        check = self._check
        place = f"{dial}{check.path}"
        try:
            exchange = _Exchange(self._request(dial))
        except ValueError as error:
            return f"{place}: {error}"
        try:
            async with asyncio.timeout(check.timeout):
                status = await self._ask(dial, exchange)
        except TimeoutError:
            why = f"no answer from {place} within {check.timeout:g} s"
            return why if exchange.connected else Unreachable(why)
        except (ssl.SSLError, BadResponseError, UnicodeError, ValueError) as error:
            return f"{place}: {_explain(error)}"
        except OSError as error:
            why = f"{place}: {_explain(error)}"
            return why if exchange.connected else Unreachable(why)
        if status not in check.status:
            wanted = ", ".join(str(code) for code in sorted(check.status))
            return f"{place} answered {status}, not {wanted}"
        return None

    async def aclose(self) -> None:
        """Nothing is kept open between probes."""

    async def _ask(self, dial: str, exchange: _Exchange) -> int:
        """The status of one exchange, read to its end. Raises OSError, BadResponseError, ValueError."""
        host, _, port = dial.rpartition(":")
        host = host.strip("[]")
        name = (self._check.server_name or host) if self._tls else None
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(
            lambda: exchange, host, int(port), ssl=self._tls, server_hostname=name
        )
        try:
            return await exchange.status
        finally:
            # Not close(): that would wait for TLS goodbyes and for what an endless body still sends.
            transport.abort()

    def _request(self, dial: str) -> bytes:
        """Raises ValueError for what cannot be sent."""
        headers = {"host": self._host or dial, **self._headers}
        for name, text in headers.items():
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(text):
                raise ValueError(f"the probe cannot be sent as configured: header {name!r}: {text!r}")
            if name in ("content-length", "transfer-encoding"):
                raise ValueError(f"the probe cannot be sent as configured: it has no body, and so no {name}")
        if not _PATH.fullmatch(self._check.path):
            raise ValueError(f"the probe cannot be sent as configured: path {self._check.path!r}")
        lines = [f"GET {self._check.path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
        return "\r\n".join((*lines, "", "")).encode()


class _Exchange(asyncio.Protocol):
    """Sends one request as soon as it is connected; `status` is that of the answer, once it is complete."""

    def __init__(self, request: bytes) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.connected = False
        self._request = request
        self._reader = ResponseReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connected = True
        self._reader.expect()
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's transports are not of that class

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            complete = not self.status.done() and reader.feed(data)
        except BadResponseError as error:
            return self._fail(error)
        if (complete or reader.size > _BODY_LIMIT) and not self.status.done():
            self.status.set_result(reader.head.status)
        return None

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _end(self, exc: Exception | None) -> None:
        reader = self._reader
        if exc is not None:
            return self._fail(exc)
        if self.status.done():
            return None
        try:
            if reader.finish():
                self.status.set_result(reader.head.status)
                return None
        except BadResponseError as error:
            return self._fail(error)
        if reader.headed:
            return self._fail(BadResponseError("the connection was closed in the midst of the body"))
        how = "before a complete HTTP answer" if reader.begun else "without an answer"
        return self._fail(ValueError(f"the connection was closed {how}"))

    def _fail(self, error: Exception) -> None:
        if not self.status.done():
            self.status.set_exception(error)


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
        case BadResponseError():
            return f"not a complete HTTP answer: {error}"
        case _:
            return str(error) or type(error).__name__
