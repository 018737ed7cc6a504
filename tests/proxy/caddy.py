"""A real Caddy with one service of ours, and small upstreams that tell what reached them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from proxy.admin import Admin
from proxy.handler import Route
from proxy.install import install, prepare_root
from proxy.pools import OpenCounts, SlotPool, pin_directories
from proxy.server import CaddyServer
from proxy.slots import SlotDirectory
from proxy.ways import Own
from trafficd.demo.stage import free_ports


@dataclass
class Upstream:
    """A raw HTTP/1.1 server. `mode` is looked at for every request: "ok", "error" (500), "hang", "reset" (connection
    reset after the request was read), "slow" (0.3 s), "truncate" (the connection ends within the body), "chunk" (the
    same without a length), "stall" (the rest of the body never comes)."""

    name: str
    dial: str = ""
    mode: str = "ok"
    hits: int = 0
    streams: int = 0
    seen: Counter[str] = field(default_factory=Counter)  # by path
    hosts: Counter[str] = field(default_factory=Counter)  # by Host
    release: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=tls)
        self.dial = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path, _ = head.split(" ", 2)
        lines = (line.partition(": ") for line in head.split("\r\n")[1:] if line)
        headers = {name.lower(): value for name, _, value in lines}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.hits += 1
        self.seen[path] += 1
        self.hosts[headers.get("host", "")] += 1
        if headers.get("upgrade"):
            await self._stream(reader, writer)
            return False
        if self.mode == "reset":
            writer.transport.abort()
            return False
        if self.mode == "hang":
            await self.release.wait()
        if self.mode == "slow":
            await asyncio.sleep(0.3)
        answer = f"{self.name} {method} {len(body)}"
        if self.mode in ("truncate", "chunk", "stall"):
            return await self._part(writer, answer)
        status = "500 Internal Server Error" if self.mode == "error" else "200 OK"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\nX-Upstream: {self.name}\r\n\r\n{answer}".encode()
        )
        await writer.drain()
        return True

    async def _part(self, writer: asyncio.StreamWriter, answer: str) -> bool:
        """An answer that is not all there."""
        if self.mode == "chunk":
            writer.write(
                f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{len(answer):x}\r\n{answer}\r\n".encode()
            )
        else:
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{answer}".encode())
        await writer.drain()
        if self.mode == "stall":
            await self.release.wait()
        return False

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An upgraded stream that echoes bytes."""
        self.streams += 1
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()


async def new_users(port: int, count: int) -> list[tuple[str, str]]:
    """So many users without a cookie: who answered each of them, and the Cookie that they send from then on."""
    users = []
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        for _ in range(count):
            answer = await client.get(f"http://127.0.0.1:{port}/")
            users.append((answer.headers["X-Upstream"], answer.headers["Set-Cookie"].partition(";")[0]))
            client.cookies.clear()
    return users


async def answered_by(port: int, cookie: str) -> str:
    """Who answers a user with this Cookie."""
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/", headers={"Cookie": cookie})
        return str(answer.headers["X-Upstream"])


@dataclass
class Stream:
    """The client's end of an upgraded stream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int, connection: str = "Upgrade", more: str = "") -> Stream:
        """`more`: lines of the request's header, each with its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nUpgrade: echo\r\n{more}\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 101"), head
        return cls(reader, writer)

    async def echoes(self) -> bool:
        """Whether the stream is alive to its other end."""
        self.writer.write(b"?")
        try:
            return await asyncio.wait_for(self.reader.read(1), 2) == b"?"
        except (OSError, TimeoutError):
            return False

    def close(self) -> None:
        self.writer.close()


class RealCaddy:
    """One Caddy, its admin API, and one service "web" with upstreams a, b, c."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o755)
        self.port, admin_port = free_ports(2)
        self.root = directory / "slots"
        self.server = CaddyServer(directory / "caddy", f"http://127.0.0.1:{admin_port}")
        self.admin = Admin(self.server.admin_url)
        self.upstreams = {name: Upstream(name) for name in "abc"}

    async def start(self) -> None:
        await self.server.start()
        for upstream in self.upstreams.values():
            await upstream.start()

    def route(self, **changes: object) -> Route:
        settings: dict[str, object] = {"listen": (f"127.0.0.1:{self.port}",), "slots": 12, "try_duration": 10.0}
        settings |= changes
        return Route("web", str(self.root / "web" / "current"), **settings)  # type: ignore[arg-type]

    async def serve(self, weights: Mapping[str, int], **changes: object) -> SlotPool:
        """Install the service and give its upstreams these weights, by name."""
        route = self.route(**changes)
        directory = SlotDirectory(self.root, "web", route.slots)
        prepare_root(self.root, [directory, *pin_directories(directory, route)])
        way = Own(route)
        await install(self.admin, [way], self.root)
        pool = SlotPool(directory, OpenCounts(self.admin), way)
        await pool.open()
        await pool.shift(self.weights(weights))
        return pool

    def weights(self, by_name: Mapping[str, int]) -> dict[str, int]:
        return {self.upstreams[name].dial: weight for name, weight in by_name.items()}

    def dial(self, name: str) -> str:
        return self.upstreams[name].dial

    async def aclose(self) -> None:
        for upstream in self.upstreams.values():
            upstream.release.set()
            await upstream.stop()
        await self.admin.aclose()
        with contextlib.suppress(OSError):
            await self.server.stop()
