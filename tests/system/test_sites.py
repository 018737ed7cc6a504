"""A public name beside a service, through what happens to daemon and Caddy."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.system.ask import configuration
from tests.system.conftest import Raise
from tests.system.test_drift import ids, reload_without_our_route
from trafficd.client import RefusedError
from trafficd.demo.stage import Stage

SHOP = "shop.test"
SITE = f"trafficd-site:web:{SHOP}"


async def etag(stage: Stage) -> str:
    return (await configuration(stage.admin_url))[1]


async def statuses(stage: Stage, name: str, count: int = 20) -> set[tuple[int, str]]:
    """What the name is answered with: status and body's length, as an unknown name gets an empty 200."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answers = [await client.get(stage.url, headers={"Host": name}) for _ in range(count)]
    return {(answer.status_code, "body" if answer.content else "empty") for answer in answers}


def call(stage: Stage, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, object]:
    client = stage.client()
    try:
        return client.call(method, path, body)
    finally:
        client.close()


@pytest.mark.slow
async def test_a_site_outlives_restarts_reloads_and_changed_slots(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=2, service='hosts = ["web.test"]')
    assert await statuses(stage, SHOP, 1) == {(200, "empty")}
    await asyncio.to_thread(call, stage, "POST", "/v1/sites", {"name": SHOP, "service": "web"})
    assert await statuses(stage, SHOP) == {(200, "body")}
    await asyncio.sleep(6)  # the daemon has looked at the configuration
    before = await etag(stage)

    stage.stop_daemon()
    stage.start_daemon()
    await stage.wait_ready()
    await asyncio.sleep(1.5)
    assert await etag(stage) == before, "a restart writes nothing"

    await reload_without_our_route(stage)
    async with asyncio.timeout(10):
        while SITE not in await ids(stage):
            await asyncio.sleep(0.1)
    assert await statuses(stage, SHOP) == {(200, "body")}

    stage.stop_daemon()
    stage.slots = 4
    stage.start_daemon()
    await stage.wait_ready()
    assert await statuses(stage, SHOP) == {(200, "body")}

    stage.stop_daemon()
    stage.service = 'hosts = ["web.test"]\ncontrol = "admin"'
    stage.start_daemon()
    await stage.wait_ready()
    await asyncio.to_thread(call, stage, "POST", "/v1/services/web/upstreams/a/drain")
    stage.processes[0].terminate()  # what still went there would be a 502
    await asyncio.to_thread(stage.processes[0].wait)
    assert await statuses(stage, SHOP) == {(200, "body")}

    await asyncio.to_thread(call, stage, "DELETE", f"/v1/sites/{SHOP}")
    assert await statuses(stage, SHOP, 1) == {(200, "empty")}
    await reload_without_our_route(stage)
    async with asyncio.timeout(10):
        while "trafficd-web" not in await ids(stage):
            await asyncio.sleep(0.1)
    assert SITE not in await ids(stage), "what was removed is not put back"


async def test_a_site_that_cannot_be_put_back_is_said_and_forgotten_on_request(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=2, service='hosts = ["web.test"]')
    await asyncio.to_thread(call, stage, "POST", "/v1/sites", {"name": SHOP, "service": "web"})
    taken = {"match": [{"host": [SHOP]}], "handle": [{"handler": "static_response"}]}
    server = {"listen": [f"127.0.0.1:{stage.public}"], "routes": [taken], "automatic_https": {"disable": True}}
    async with httpx.AsyncClient(trust_env=False) as client:
        config = {"apps": {"http": {"servers": {"theirs": server}}}}
        (await client.post(f"{stage.admin_url}/load", json=config)).raise_for_status()
    view: dict[str, object] = {}
    async with asyncio.timeout(15):
        while f"site {SHOP}" not in str(view.get("trouble")):
            await asyncio.sleep(0.1)
            view = await asyncio.to_thread(call, stage, "GET", "/v1/services/web")
    assert "answered already" in str(view["trouble"])
    assert "trafficd-web" in await ids(stage), "the service's own route is back all the same"
    await asyncio.to_thread(call, stage, "DELETE", f"/v1/sites/{SHOP}")
    async with asyncio.timeout(15):
        while view["trouble"]:
            await asyncio.sleep(0.1)
            view = await asyncio.to_thread(call, stage, "GET", "/v1/services/web")
    with pytest.raises(RefusedError, match="not a site that trafficd added"):
        await asyncio.to_thread(call, stage, "DELETE", f"/v1/sites/{SHOP}")
