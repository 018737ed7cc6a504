"""The proof that slots work, by the service's own traffic: it shows what it shows, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from proxy import proof
from proxy.candidates import slot_dials
from proxy.handler import PROBE_ID, Json, Route, route_ids
from proxy.install import install, prepare_root
from proxy.slots import SlotDirectory
from proxy.ways import Imported
from tests.proxy.caddy import RealCaddy
from tests.proxy.test_adopt import proxy_to
from trafficd.demo.stage import free_ports


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "_LOOKING", 1.5)
    monkeypatch.setattr(proof, "_OLD_TRAFFIC", 0.3)


async def imported(caddy: RealCaddy, *others: Json) -> Route:
    """A site of somebody else's with the slots of "web" in it, all of which hold the upstream a."""
    directory = SlotDirectory(caddy.root, "web", 12)
    prepare_root(caddy.root, [directory])
    directory.write((caddy.dial("a"),) * 12)
    route = replace(caddy.route(), hosts=(), listen=())
    site = {
        "listen": [f"127.0.0.1:{caddy.port}"],
        "routes": [{"handle": [proxy_to(*(f"tcp/{dial}" for dial in slot_dials(route)))]}],
    }
    before, etag = await caddy.admin.config()
    servers = {f"srv{number}": server for number, server in enumerate([site, *others])}
    await caddy.admin.write({**(before or {}), "apps": {"http": {"servers": servers}}}, etag)
    return route


@contextlib.asynccontextmanager
async def requests(port: int) -> AsyncIterator[None]:
    async def ask() -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            while True:
                await client.get(f"http://127.0.0.1:{port}/")
                await asyncio.sleep(0.1)  # nothing is open for a while, and so a count rises

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
            await asking


async def test_requests_that_come_show_it_and_nothing_is_written(caddy: RealCaddy) -> None:
    caddy.upstreams["a"].mode = "slow"
    route = await imported(caddy)
    etag = (await caddy.admin.config())[1]
    async with requests(caddy.port):
        told = await install(caddy.admin, [Imported(route)], caddy.root)
    assert not told.written
    assert not told.refused
    assert (await caddy.admin.config())[1] == etag
    # That holds for this process of Caddy, and no longer.
    assert not (await install(caddy.admin, [Imported(route)], caddy.root)).written
    await caddy.server.stop()
    await caddy.server.start()
    assert (await install(caddy.admin, [Imported(route)], caddy.root)).written


async def test_without_requests_a_server_of_our_own_shows_it(caddy: RealCaddy) -> None:
    route = await imported(caddy)
    assert (await install(caddy.admin, [Imported(route)], caddy.root)).written
    assert PROBE_ID in route_ids((await caddy.admin.config())[0])


async def test_a_request_that_was_open_before_shows_nothing(caddy: RealCaddy) -> None:
    caddy.upstreams["a"].mode = "hang"
    route = await imported(caddy)
    async with requests(caddy.port):
        while not caddy.upstreams["a"].hits:
            await asyncio.sleep(0.01)
        assert not await proof.shown_by_traffic(caddy.admin, [SlotDirectory(caddy.root, "web", route.slots)])
        caddy.upstreams["a"].release.set()


async def test_requests_by_another_way_to_the_same_address_show_nothing(caddy: RealCaddy) -> None:
    caddy.upstreams["a"].mode = "slow"
    (port,) = free_ports(1)
    plain = {"listen": [f"127.0.0.1:{port}"], "routes": [{"handle": [proxy_to(caddy.dial("a"))]}]}
    route = await imported(caddy, plain)
    async with requests(port):
        assert not await proof.shown_by_traffic(caddy.admin, [SlotDirectory(caddy.root, "web", route.slots)])
