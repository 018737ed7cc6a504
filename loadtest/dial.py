"""Opens connections, and says in the words of `ErrorKind` why one could not be opened.

Each step (look-up, connecting, the proxy's tunnel, TLS) is done and timed by itself.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Collection, Sized
from time import monotonic_ns
from typing import NamedTuple, Protocol, TypeVar

from loadtest.connection import Connection, Limits
from loadtest.exchange import Dialled, Failure, Requester
from loadtest.model import ErrorKind, Origin, Plan, PlanError, Proxy
from loadtest.tunnel import TunnelError, open_tunnel

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
_LARGER_BLOCK = 16 << 20  # bytes; never touched, so no memory is used

P = TypeVar("P", bound=asyncio.BaseProtocol)
Plain = socket.socket | None
"""The socket, where what is written to it is what the server reads; None within TLS."""


class DialError(Exception):
    """There is no connection to be had."""

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.failure = Failure(kind, detail)


class Place(NamedTuple):
    """Where to connect: a host and port, or the path of a socket."""

    host: str
    port: int
    unix: str | None = None


class Connector:
    """Connects to the origins of a plan, whatever protocol is then spoken."""

    def __init__(self, plan: Plan, alpn: tuple[str, ...] = ("http/1.1",)) -> None:
        self._plan = plan
        self._planned = {spec.origin for spec in plan.requests}
        self._alpn = alpn
        self._tls: ssl.SSLContext | None = None
        if plan.authorities is not None:
            self._tls_context()  # what cannot be read is refused before the run

    async def connect(self, origin: Origin, factory: Callable[[Plain], P]) -> tuple[P, Dialled]:
        """A protocol made by `factory`, connected. Raises DialError. May be cancelled at any time."""
        began = monotonic_ns()
        sock, dns_ns = await self._reach(self._place(origin))
        try:
            if origin.tls and self._plan.proxy is not None:
                await _through(self._plan.proxy, sock, origin)
            reached = monotonic_ns()
            protocol = await self._start(sock, origin, factory)
        except BaseException:
            sock.close()
            raise
        now = monotonic_ns()
        return protocol, Dialled(dns_ns, now - began, now - reached if origin.tls else 0)

    def _place(self, origin: Origin) -> Place:
        """Where a redirect leads to is connected to directly: `dial` and `unix` stand for the plan's own URLs."""
        plan = self._plan
        if plan.proxy is not None:
            return Place(plan.proxy.host, plan.proxy.port)
        if origin not in self._planned or (plan.dial is None and plan.unix is None):
            return Place(origin.host, origin.port)
        if plan.unix is not None:
            return Place("", 0, plan.unix)
        assert plan.dial is not None
        return Place(*plan.dial)

    async def _reach(self, place: Place) -> tuple[socket.socket, int]:
        """A connected socket, and the ns that the look-up took."""
        began = monotonic_ns()
        try:
            addresses = await _look_up(place)
            looked_up = monotonic_ns()
            return await _connect(addresses), looked_up - began
        except (OSError, UnicodeError) as error:
            failure = _failure(error)
            if self._plan.proxy is not None and failure.kind not in (ErrorKind.LOCAL, ErrorKind.CONNECT_TIMEOUT):
                failure = Failure(ErrorKind.PROXY, f"{place.host}:{place.port}: {failure.detail}")
            raise DialError(*failure) from None

    async def _start(self, sock: socket.socket, origin: Origin, factory: Callable[[Plain], P]) -> P:
        loop = asyncio.get_running_loop()
        create = loop.create_unix_connection if sock.family == socket.AF_UNIX else loop.create_connection
        try:
            if not origin.tls:
                return (await create(lambda: factory(sock), sock=sock))[1]
            _, protocol = await create(
                lambda: factory(None),
                sock=sock,
                ssl=self._tls_context(),
                server_hostname=origin.host,
                ssl_handshake_timeout=_NO_HANDSHAKE_LIMIT,
            )
        except OSError as error:
            raise DialError(*_failure(error)) from None
        return protocol

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            # uvloop reads TLS into blocks of 256 KB. glibc takes such blocks from the system and gives them back, page
            # by page, for every read, until a larger one was freed (mallopt(3), M_MMAP_THRESHOLD): then it keeps them.
            bytes(_LARGER_BLOCK)
            self._tls = tls_context(verify=self._plan.verify_tls, authorities=self._plan.authorities, alpn=self._alpn)
        return self._tls


class Dialer:
    """Opens an HTTP/1.1 connection whenever a lane asks for one."""

    def __init__(self, plan: Plan) -> None:
        self._attribute = plan.attribute
        self._connector = Connector(plan)
        self._limits = Limits.of(plan, plan.per_connection)
        self._opened = 0
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()

    def open(self, lane: Requester, origin: Origin) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._dial(lane, origin))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return task

    async def close(self, grace: float = 1.0) -> None:
        """Close what is open, and see it closed: within `grace` seconds in good order, then by force."""
        for task in tuple(self._opening):
            task.cancel()
        await see_closed(self._open, self._opening, grace)

    async def _dial(self, lane: Requester, origin: Origin) -> None:
        connection = Connection(self._attribute, self._open.discard, self._limits)

        def made(plain: Plain) -> Connection:
            connection.plain = plain
            return connection

        try:
            _, dialled = await self._connector.connect(origin, made)
        except DialError as error:
            lane.not_opened(error.failure)
            return
        except BaseException:
            connection.abort()
            raise
        if not connection.usable:
            connection.abort()
            lane.not_opened(_unusable(connection))
            return
        connection.number = self._opened
        self._opened += 1
        self._open.add(connection)
        lane.opened(connection, dialled)


class Closable(Protocol):
    def close(self) -> None: ...

    def abort(self) -> None: ...


async def see_closed(open_ones: Collection[Closable], opening: Sized, grace: float) -> None:
    """Close the connections, and wait until these collections are empty: for `grace` seconds in good order, then by
    force."""
    for connection in tuple(open_ones):
        connection.close()
    deadline = asyncio.get_running_loop().time() + grace
    while open_ones or len(opening):
        await asyncio.sleep(0.001)
        if asyncio.get_running_loop().time() > deadline:
            for connection in tuple(open_ones):
                connection.abort()


def _unusable(connection: Connection) -> Failure:
    if connection.spoke_unasked:
        return Failure(ErrorKind.PROTOCOL, "the server spoke before it was asked")
    return Failure(ErrorKind.DROPPED, "connection closed before a request was written")


def tls_context(
    *, verify: bool, authorities: str | None = None, alpn: tuple[str, ...] = ("http/1.1",)
) -> ssl.SSLContext:
    """`authorities`: a PEM file, in place of those of the system. Raises PlanError when it cannot be read."""
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise PlanError(f"authorities {authorities}: {error}") from error
    context.set_alpn_protocols(list(alpn))
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _look_up(place: Place) -> list[tuple[socket.AddressFamily, tuple[str, int] | str]]:
    """All addresses of a place; they are tried one after the other."""
    if place.unix is not None:
        return [(socket.AF_UNIX, place.unix)]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, place.host)
        except OSError:
            continue
        return [(family, (place.host, place.port))]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    return [(family, (str(address[0]), place.port)) for family, *_, address in found]


async def _connect(addresses: list[tuple[socket.AddressFamily, tuple[str, int] | str]]) -> socket.socket:
    """Connect to the first address that lets us; raises what the last one raised."""
    for number, (family, address) in enumerate(addresses, 1):
        try:
            return await _connect_to(family, address)
        except OSError:
            if number == len(addresses):
                raise
    raise socket.gaierror(socket.EAI_NONAME, "no address")


async def _connect_to(family: socket.AddressFamily, address: tuple[str, int] | str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _through(proxy: Proxy, sock: socket.socket, origin: Origin) -> None:
    try:
        await open_tunnel(sock, proxy, origin)
    except (OSError, TunnelError) as error:
        raise DialError(ErrorKind.PROXY, f"{proxy.host}:{proxy.port}: {str(error) or type(error).__name__}") from None


def _failure(error: OSError | UnicodeError) -> Failure:
    return Failure(_kind(error), str(error) or type(error).__name__)


def _kind(error: OSError | UnicodeError) -> ErrorKind:
    match error:
        case UnicodeError() | socket.gaierror():
            return ErrorKind.DNS
        case ssl.SSLError():
            return ErrorKind.TLS
        case TimeoutError():  # the kernel's own
            return ErrorKind.CONNECT_TIMEOUT
        case ConnectionRefusedError():
            return ErrorKind.REFUSED
        case ConnectionError():  # in the TLS handshake: connected, then gone
            return ErrorKind.DROPPED
        case OSError(errno=number) if number in _LOCAL:
            return ErrorKind.LOCAL
        case _:  # unreachable: no connection to be had there
            return ErrorKind.REFUSED
