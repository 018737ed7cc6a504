"""What tests ask a daemon over its API, and Caddy over its admin API, from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.admin import Admin
from trafficd.client import Json
from trafficd.demo.stage import Stage


async def call(stage: Stage, method: str, path: str, **body: object) -> Json:
    """One call; what is to be changed is described by the keywords."""
    client = stage.client()
    try:
        return await asyncio.to_thread(client.call, method, path, body if method in ("POST", "PUT") else None)
    finally:
        client.close()


async def service(stage: Stage) -> Json:
    return await call(stage, "GET", "/v1/services/web")


async def until(stage: Stage, holds: Callable[[Json], bool], timeout: float = 40.0) -> Json:
    """The service's state as soon as that holds of it."""
    view: Json = {}
    try:
        async with asyncio.timeout(timeout):
            while not holds(view := await service(stage)):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it never came to that: {view}") from None
    return view


async def configuration(admin_url: str) -> tuple[Json, str]:
    """Caddy's configuration and its ETag; asked again where Caddy closes its admin API to take up a change."""
    admin = Admin(admin_url)
    try:
        config, etag = await admin.config()
    finally:
        await admin.aclose()
    return config or {}, etag
