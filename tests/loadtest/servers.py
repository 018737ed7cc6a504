"""Small servers that count what reaches them and misbehave as told."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Version: v1\r\n\r\nhello"


class Received(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """The server's end of one connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.served = 0
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Close with RST in place of FIN."""
        end: socket.socket = self._writer.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def receive(self) -> Received:
        """Raises IncompleteReadError when the client is gone."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Received(method, target, headers, body)


Behaviour = Callable[[Peer, Received], Awaitable[None]]


@dataclass
class Server:
    behaviour: Behaviour
    port: int = 0
    connections: int = 0
    delivered: Counter[str] = field(default_factory=Counter)  # how often each target arrived
    received: list[Received] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    scheme: str = "http"

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        peer = Peer(self.connections, reader, writer)
        self.connections += 1
        try:
            while not writer.transport.is_closing():
                request = await peer.receive()
                self.delivered[request.target] += 1
                self.received.append(request)
                await self.behaviour(peer, request)
                peer.served += 1
        except (EOFError, OSError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.close()


@asynccontextmanager
async def serving(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(behaviour, scheme="http" if tls is None else "https")
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls, backlog=512)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tuple(server.tasks):
            task.cancel()
        while server.tasks:
            await asyncio.sleep(0)
        await listener.wait_closed()


def free_port() -> int:
    """A port of the loopback where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# behaviours


async def answer(peer: Peer, request: Received) -> None:
    await peer.send(RESPONSE)


async def close_unanswered(peer: Peer, request: Received) -> None:
    peer.close()


async def reset_unanswered(peer: Peer, request: Received) -> None:
    peer.reset()


async def truncate_body(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello")
    peer.close()


async def reset_in_body(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello")
    await asyncio.sleep(0.02)
    peer.reset()


async def truncate_chunks(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    peer.close()


async def truncate_head(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 2")
    peer.close()


async def stall(peer: Peer, request: Received) -> None:
    await asyncio.sleep(30)


async def stall_in_body(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello")
    await asyncio.sleep(30)


async def garbage(peer: Peer, request: Received) -> None:
    await peer.send(b"this is not the protocol\r\n\r\n")


async def garbage_and_close(peer: Peer, request: Received) -> None:
    await peer.send(b"nonsense")
    peer.close()


async def hints_first(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    await asyncio.sleep(0.001)
    await peer.send(RESPONSE)


async def hints_only(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    peer.close()


async def chunked(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n")
    await asyncio.sleep(0.001)
    await peer.send(b"3\r\nllo\r\n0\r\n\r\n")


async def head_only(peer: Peer, request: Received) -> None:
    assert request.method == "HEAD"
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")


async def no_content(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")


async def not_modified(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n")


async def until_close(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhel")
    await asyncio.sleep(0.001)
    await peer.send(b"lo")
    peer.close()


async def until_reset(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhel")
    await asyncio.sleep(0.02)
    peer.reset()


async def old_version(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    peer.close()


async def unasked_surplus(peer: Peer, request: Received) -> None:
    await peer.send(RESPONSE + b"HTTP/1.1 500 Unasked\r\nContent-Length: 0\r\n\r\n")


async def unavailable(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")


async def missing(peer: Peer, request: Received) -> None:
    await peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
