"""Who may talk to the daemon.

Over the unix socket the file's mode (0660) decides. Over TCP: a bearer token, a Host that is allowed (so
that a web page cannot reach us under a name of its own: DNS rebinding), and no foreign Origin.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from trafficd.api.problems import Handler, problem
from trafficd.errors import ConfigError

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = frozenset({"/healthz"})  # also without a token, and then says no more than whether all is well
STRANGER = web.RequestKey("stranger", bool)  # set on a request over TCP that brought no token


@dataclass(frozen=True)
class Guard:
    """The rules for connections over TCP."""

    token: str
    hosts: Collection[str]
    origins: Collection[str]

    def refuse(self, request: web.Request) -> web.Response | None:
        """A problem document when the request is not to be served."""
        host = _hostname(request.headers.get("Host", ""))
        if host not in _LOCAL and host not in {name.lower() for name in self.hosts}:
            detail = f"Host {host!r} is not allowed; add it to daemon.allowed_hosts"
            return problem(request, 421, "Misdirected request", detail)
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self.origins:
            detail = f"Origin {origin!r} is not allowed; add it to daemon.allowed_origins"
            return problem(request, 403, "Forbidden", detail)
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(_bytes(given.strip()), _bytes(self.token)):
            return None
        if request.path in OPEN:
            request[STRANGER] = True
            return None
        answer = problem(
            request, 401, "Unauthorized", "send the daemon's token as Authorization: Bearer TOKEN (--token-file)"
        )
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer


def _bytes(text: str) -> bytes:
    """Header bytes that are no UTF-8 arrive as half surrogate pairs."""
    return text.encode("utf-8", "surrogateescape")


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def read_token(path: Path) -> str:
    """The token in a file. Raises `ConfigError` when it is missing, readable by others, or weak."""
    try:
        mode, token = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"daemon.token_file {path}: cannot be read: {error}") from error
    if mode & 0o007:
        raise ConfigError(f"daemon.token_file {path}: others may read it; chmod o-rwx {path}")
    if len(token) < 16:
        raise ConfigError(f"daemon.token_file {path}: shorter than 16 characters; try: openssl rand -hex 32")
    return token


def middleware(guard: Guard | None) -> Middleware:
    """The guard for connections that did not come over the unix socket."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        # Of a connection that is gone already nothing is known: the guard looks at it too.
        sockname = None if request.transport is None else request.transport.get_extra_info("sockname")
        if guard is not None and not isinstance(sockname, str | bytes):
            refused = guard.refuse(request)
            if refused is not None:
                return refused
        return await handler(request)

    return check
