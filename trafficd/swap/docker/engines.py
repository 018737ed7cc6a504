"""From an Engine's URL to a client, made once for all upstreams on that host.

An Engine behind ssh:// is reached through a socket on this machine, which `forward` brings here; all the rest is the
same. The library is imported when the first Engine is asked: most daemons never do.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trafficd.errors import ConfigError, TrafficdError

if TYPE_CHECKING:
    import aiodocker

REMOTE_SOCKET = "/var/run/docker.sock"
_CONNECT = 10.0  # s

Forward = Callable[[str, str], Awaitable[str | Path]]
"""`forward(host, remote_socket)`: the path of a local socket that leads there; host is "user@name:port"."""


class Certificates(NamedTuple):
    """Files for an Engine at tcp://: its authority, and our own certificate and key."""

    authority: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Raises `ConfigError`."""
        try:
            context = ssl.create_default_context(cafile=self.authority)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"docker.tls_ca, tls_cert, tls_key: {self.authority.parent}: {error}") from error
        return context


class Engines:
    """Clients by URL. `forward` is None where Engines on other hosts cannot be reached over ssh."""

    def __init__(self, certificates: Certificates | None = None, forward: Forward | None = None) -> None:
        self._certificates = certificates
        self._forward = forward
        self._clients: dict[str, aiodocker.Docker] = {}
        self._lost: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}

    @property
    def secured(self) -> bool:
        """Whether certificates are shown to Engines at tcp://."""
        return self._certificates is not None

    def lock(self, url: str) -> asyncio.Lock:
        """Held while a port of a host is chosen and taken."""
        return self._locks.setdefault(url, asyncio.Lock())

    async def client(self, url: str) -> aiodocker.Docker:
        """The client of an Engine. Raises `TrafficdError`."""
        if url in self._lost:  # its socket here is still the same one; but whether it leads anywhere, and why not
            await self._forwarded(url)
            self._lost.discard(url)
        if url not in self._clients:
            made = await self._connect(url)
            if url in self._clients:  # somebody else was faster
                await made.close()
            else:
                self._clients[url] = made
        return self._clients[url]

    def lost(self, url: str) -> None:
        """An Engine gave no answer. Before one that is forwarded is asked again, its host is reached again."""
        if url.startswith("ssh://") and url in self._clients:
            self._lost.add(url)

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def _connect(self, url: str) -> aiodocker.Docker:
        import aiodocker
        import aiohttp

        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT)
        if url.startswith("unix://"):
            return aiodocker.Docker(url=url, timeout=timeout)
        if url.startswith("ssh://"):
            return aiodocker.Docker(url=f"unix://{await self._forwarded(url)}", timeout=timeout)
        # Given, so that nothing of the environment (DOCKER_TLS_VERIFY) decides.
        context = self._certificates.context() if self._certificates is not None else None
        scheme = "http" if context is None else "https"
        connector = aiohttp.TCPConnector(ssl=True if context is None else context)
        session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        client = aiodocker.Docker(
            url=f"{scheme}://{url.removeprefix('tcp://')}", connector=connector, session=session, timeout=timeout
        )
        client._owns_session = True  # or nobody would close it
        return client

    async def _forwarded(self, url: str) -> str | Path:
        host, socket = split(url)
        if self._forward is None:
            raise TrafficdError(f"{url}: Engines cannot be reached over ssh here; use unix:// or tcp://")
        return await self._forward(host, socket)


def split(url: str) -> tuple[str, str]:
    """Host and socket of "ssh://deploy@web1:22/run/podman/podman.sock"."""
    match = re.fullmatch(r"ssh://([^/]+)(/.+)?", url)
    assert match is not None, "the configuration has looked at it"
    return match[1], match[2] or REMOTE_SOCKET
