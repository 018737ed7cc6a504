"""Asks an HTTP proxy for a tunnel (RFC 9110, 9.3.6)."""

from __future__ import annotations

import asyncio
import re
import socket

from loadtest.model import Origin, Proxy

_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})[^\r\n]*\r?\n")
_MOST_HEAD = 64 * 1024


class TunnelError(Exception):
    """The proxy gave none; the message says what it said."""


async def open_tunnel(sock: socket.socket, proxy: Proxy, origin: Origin) -> None:
    """From now on what goes through `sock` goes to `origin`. Raises TunnelError, OSError."""
    loop = asyncio.get_running_loop()
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    authority = f"{host}:{origin.port}".encode("ascii" if host.isascii() else "idna")
    lines = [b"CONNECT %b HTTP/1.1" % authority, b"Host: " + authority]
    if proxy.authorization is not None:
        lines.append(b"Proxy-Authorization: " + proxy.authorization.encode())
    await loop.sock_sendall(sock, b"\r\n".join((*lines, b"", b"")))
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows is not ours to read
        if not (byte := await loop.sock_recv(sock, 1)):
            raise TunnelError("closed the connection instead of opening a tunnel")
        head += byte
        if len(head) > _MOST_HEAD:
            raise TunnelError("did not end its answer to CONNECT")
    status = _STATUS.match(head)
    if status is None:
        raise TunnelError("did not speak HTTP")
    if not status[1].startswith(b"2"):
        raise TunnelError(f"refused the tunnel with {status[0].strip().decode('latin-1')!r}")
