"""Sockets of other hosts, brought near: a unix socket here that leads to one there.

The path here stays good while connections come and go: each client that connects gets a channel of the connection that
stands then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

from trafficd.errors import HostUnreachableError
from trafficd.ssh.connections import Connections, told_of
from trafficd.ssh.host import Host

log = logging.getLogger("trafficd.ssh")

_CHUNK = 65_536  # bytes


class _Source(Protocol):
    async def read(self, n: int = -1, /) -> bytes: ...


class _Sink(Protocol):
    def write(self, data: bytes, /) -> None: ...
    async def drain(self) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...


class Forwards:
    """The sockets that were brought near; closed by `aclose`."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._directory: Path | None = None
        self._servers: dict[tuple[Host, str], tuple[Path, asyncio.AbstractServer]] = {}
        self._making = asyncio.Lock()
        self._clients: set[asyncio.Task[Any]] = set()

    async def forward_unix(self, host: Host, remote_socket: str) -> Path:
        """The path of a socket here, for our user alone, that leads to `remote_socket` on `host`; always the same one.

        Raises `HostUnreachableError` when the host, or the socket on it, cannot be reached now.
        """
        _, sink = await self._channel(host, remote_socket)
        sink.close()
        key = (host, remote_socket)
        async with self._making:
            if key not in self._servers:
                self._servers[key] = await self._listen(host, remote_socket)
        return self._servers[key][0]

    async def _listen(self, host: Host, remote_socket: str) -> tuple[Path, asyncio.AbstractServer]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(host, remote_socket, reader, writer)

        if self._directory is None:
            # Not in the state directory: the path of a socket has at most 107 bytes.
            self._directory = Path(tempfile.mkdtemp(prefix="trafficd-ssh-"))
        path = self._directory / str(len(self._servers))
        return path, await asyncio.start_unix_server(serve, path)

    async def aclose(self) -> None:
        servers, self._servers = self._servers, {}
        for _, server in servers.values():
            server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    async def _channel(self, host: Host, remote_socket: str) -> tuple[_Source, _Sink]:
        import asyncssh

        connection = await self._connections.connect(host)
        with told_of(host):
            try:
                async with asyncio.timeout(self._connections.settings.connect_timeout):
                    return await connection.open_unix_connection(remote_socket)
            except asyncssh.ChannelOpenError as error:
                raise HostUnreachableError(
                    f"{remote_socket} on {host} cannot be reached: {error.reason}; is it there, may {host.user} use "
                    "it, and does its sshd_config have AllowStreamLocalForwarding?"
                ) from error

    async def _serve(
        self, host: Host, remote_socket: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None, "it is served by a task"
        self._clients.add(task)
        try:
            source, sink = await self._channel(host, remote_socket)
        except HostUnreachableError as error:
            log.warning("%s", error)
        else:
            await _join(reader, writer, source, sink)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._clients.discard(task)


async def _join(reader: _Source, writer: _Sink, source: _Source, sink: _Sink) -> None:
    """Pass bytes both ways until both sides have ended, or one is lost."""
    both = [asyncio.create_task(_copy(reader, sink)), asyncio.create_task(_copy(source, writer))]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for one in both:
            one.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        sink.close()


async def _copy(source: _Source, sink: _Sink) -> None:
    while data := await source.read(_CHUNK):
        sink.write(data)
        await sink.drain()
    sink.write_eof()
