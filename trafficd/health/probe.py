"""One HTTP probe, over httpx. The whole answer must come within the time-out, and its status must fit."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field

import httpx

_BODY_LIMIT = 65_536  # a health answer is small; an endless one must not hold the probe


@dataclass(frozen=True)
class Check:
    """What to ask and what counts as healthy. `timeout` in seconds, for the whole exchange."""

    path: str = "/healthz"
    host: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    status: frozenset[int] = frozenset({200})
    timeout: float = 2.0
    tls: bool = False


class HttpProbe:
    """`trafficd.ports.Probe` for one service. Connections are not kept: a probe proves that the
    instance still accepts new ones."""

    def __init__(self, check: Check, *, verify: ssl.SSLContext | bool = True) -> None:
        self._check = check
        headers = {"User-Agent": "trafficd-probe", "Connection": "close", **check.headers}
        if check.host:
            headers["Host"] = check.host
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=check.timeout,
            verify=verify if check.tls else False,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def __call__(self, dial: str) -> str | None:
        check = self._check
        url = f"{'https' if check.tls else 'http'}://{dial}{check.path}"
        try:
            async with asyncio.timeout(check.timeout), self._client.stream("GET", url) as response:
                size = 0
                async for chunk in response.aiter_raw():
                    size += len(chunk)
                    if size > _BODY_LIMIT:
                        break
                status = response.status_code
        except TimeoutError:
            return f"no answer from {dial}{check.path} within {check.timeout:g} s"
        except httpx.TimeoutException:
            return f"no answer from {dial}{check.path} within {check.timeout:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return f"{dial}{check.path}: {_explain(error)}"
        if status not in check.status:
            wanted = ", ".join(str(code) for code in sorted(check.status))
            return f"{dial}{check.path} answered {status}, not {wanted}"
        return None

    async def aclose(self) -> None:
        await self._client.aclose()


def _explain(error: Exception) -> str:
    if isinstance(error, httpx.ConnectError):
        return "cannot connect"
    return str(error) or type(error).__name__
