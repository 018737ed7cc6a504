"""Opens connections, and says in the words of `ErrorKind` why one could not be opened."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl

from loadtest.connection import Connection, Failure
from loadtest.model import ErrorKind, Plan, PlanError

_LOCAL = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.EADDRNOTAVAIL,
        errno.EADDRINUSE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EACCES,
        errno.EPERM,
    }
)
_NO_HANDSHAKE_LIMIT = 86_400.0  # s; the request's own time-out is the limit


class Dialer:
    def __init__(self, plan: Plan) -> None:
        self._origin = plan.origin
        self._address = plan.dial or (plan.origin.host, plan.origin.port)
        self._attribute = plan.attribute
        self._tls = tls_context(verify=plan.verify_tls, authorities=plan.authorities) if plan.origin.tls else None
        self._opened = 0
        self._open: set[Connection] = set()

    async def open(self, timeout: float | None) -> Connection | Failure:
        """A new connection, or why there is none. `timeout` in seconds; None: no limit."""
        connection = Connection(self._attribute, self._open.discard)
        try:
            async with asyncio.timeout(timeout):
                await self._connect(connection)
        except TimeoutError as error:  # ours, or the kernel's ETIMEDOUT
            return Failure(ErrorKind.CONNECT_TIMEOUT, str(error) or "not connected in time")
        except (OSError, UnicodeError) as error:
            return Failure(_kind(error), str(error) or type(error).__name__)
        if not connection.usable:
            connection.abort()
            if connection.spoke_unasked:
                return Failure(ErrorKind.PROTOCOL, "the server spoke before it was asked")
            return Failure(ErrorKind.DROPPED, "connection closed before a request was written")
        connection.number = self._opened
        self._opened += 1
        self._open.add(connection)
        return connection

    async def close(self, grace: float = 1.0) -> None:
        """Close what is open, and see it closed: within `grace` seconds in good order, then by force."""
        for connection in tuple(self._open):
            connection.close()
        deadline = asyncio.get_running_loop().time() + grace
        while self._open:
            await asyncio.sleep(0.001)
            if asyncio.get_running_loop().time() > deadline:
                for connection in tuple(self._open):
                    connection.abort()

    async def _connect(self, connection: Connection) -> None:
        """Try each address of the host in turn. Raises what the last one raised."""
        last: OSError | None = None
        for host, port in await _resolve(*self._address):
            try:
                await self._connect_to(host, port, connection)
            except OSError as error:
                last = error
            else:
                return
        if last is not None:
            raise last

    async def _connect_to(self, host: str, port: int, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        if self._tls is None:
            await loop.create_connection(lambda: connection, host, port)
            return
        await loop.create_connection(
            lambda: connection,
            host,
            port,
            ssl=self._tls,
            server_hostname=self._origin.host,
            ssl_handshake_timeout=_NO_HANDSHAKE_LIMIT,
        )


def tls_context(*, verify: bool, authorities: str | None = None) -> ssl.SSLContext:
    """Raises PlanError when the authorities cannot be read."""
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise PlanError(f"authorities {authorities}: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _resolve(host: str, port: int) -> list[tuple[str, int]]:
    """All addresses of a host. One address at a time is tried, as the event loop merges their errors."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(str(address[0]), port) for *_, address in found]
    return [(host, port)]


def _kind(error: OSError | UnicodeError) -> ErrorKind:
    match error:
        case UnicodeError() | socket.gaierror():
            return ErrorKind.DNS
        case ssl.SSLError():
            return ErrorKind.TLS
        case ConnectionRefusedError():
            return ErrorKind.REFUSED
        case ConnectionError():  # in the TLS handshake: connected, then gone
            return ErrorKind.DROPPED
        case OSError(errno=number) if number in _LOCAL:
            return ErrorKind.LOCAL
        case _:  # unreachable: no connection to be had there
            return ErrorKind.REFUSED
