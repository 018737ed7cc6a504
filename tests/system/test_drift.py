"""Somebody else changes or restarts Caddy."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import httpx
import pytest

from proxy.handler import route_ids
from proxy.server import CaddyServer
from tests.system.ask import configuration
from tests.system.conftest import BY_BOTH, QUICK, Raise
from tests.system.load import load, unexpected
from tests.system.test_deploy import service
from tests.system.test_faults import begin, ended
from trafficd.client import RefusedError
from trafficd.demo.stage import Stage

pytestmark = BY_BOTH
SLOW_GATE = QUICK.replace("300ms", "1500ms")


async def reload_without_our_route(stage: Stage) -> None:
    """What `caddy reload` does when the Caddyfile knows nothing of us."""
    config = {"apps": {"http": {"servers": {"theirs": {"listen": ["127.0.0.1:0"]}}}}}
    async with httpx.AsyncClient(trust_env=False) as client:
        (await client.post(f"{stage.admin_url}/load", json=config)).raise_for_status()


async def ids(stage: Stage) -> frozenset[str]:
    return route_ids((await configuration(stage.admin_url))[0])


@pytest.mark.slow
async def test_a_route_that_may_not_be_restored_pauses_the_rollout_within_two_seconds(raise_stage: Raise) -> None:
    stage = await raise_stage(service="restore = false", settings=SLOW_GATE)
    rollout = begin(stage, "v2")
    await reload_without_our_route(stage)
    begun = time.monotonic()
    async with asyncio.timeout(10):
        while not service(stage)["rollout"]["paused"]:
            await asyncio.sleep(0.02)
    assert time.monotonic() - begun < 2.0
    view = service(stage)
    assert "no longer has our route of web" in str(view["trouble"])
    assert view["rollout"]["state"] == "running"
    assert "trafficd-web" not in await ids(stage), "nothing is guessed, nothing is written"
    # As the message says: a restart writes the route again; the rollout then waits for its operator.
    stage.stop_daemon(signal.SIGTERM)
    stage.start_daemon()
    await stage.wait_socket()
    assert "trafficd-web" in await ids(stage)
    client = stage.client()
    assert client.call("GET", f"/v1/rollouts/{rollout}")["paused"]
    client.call("POST", f"/v1/rollouts/{rollout}/resume", {})
    client.close()
    assert (await ended(stage, rollout))["state"] == "succeeded"


@pytest.mark.slow
async def test_a_route_that_may_be_restored_comes_back_and_the_rollout_goes_on(raise_stage: Raise) -> None:
    stage = await raise_stage(settings=SLOW_GATE)
    rollout = begin(stage, "v2")
    await reload_without_our_route(stage)
    async with asyncio.timeout(5):
        while "trafficd-web" not in await ids(stage):
            await asyncio.sleep(0.05)
    async with load(stage.url) as result:
        view = await ended(stage, rollout)
    assert view["state"] == "succeeded"
    assert not unexpected(stage, result)


@pytest.mark.parametrize(
    "resume", [pytest.param(True, marks=pytest.mark.slow), False], ids=["with --resume", "without"]
)
@pytest.mark.slow
async def test_a_caddy_that_is_killed_in_mid_rollout_serves_again_and_the_rollout_ends(
    raise_stage: Raise, resume: bool
) -> None:
    stage = await raise_stage(settings=SLOW_GATE)
    caddy = CaddyServer(stage.directory / "state" / "caddy", stage.admin_url)
    rollout = begin(stage, "v2")
    await asyncio.sleep(0.5)
    pid = caddy.pid()
    assert pid is not None
    if not resume:
        (caddy.directory / "config" / "caddy" / "autosave.json").unlink()
    os.kill(pid, signal.SIGKILL)
    view = await ended(stage, rollout)
    assert view["state"] == "succeeded", view
    async with load(stage.url) as result:
        await asyncio.sleep(0.5)
    assert not unexpected(stage, result)


@pytest.mark.slow
async def test_a_hanging_admin_api_is_said_and_traffic_flows_on(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=2, caddy='timeout = "500ms"')
    caddy = CaddyServer(stage.directory / "state" / "caddy", stage.admin_url)
    pid = caddy.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            while not service(stage)["trouble"]:
                await asyncio.sleep(0.1)
        view = service(stage)
        assert "did not answer" in view["trouble"][0]
        assert [one["in_flight"] for one in view["upstreams"]] == [None, None], "unknown is not zero"
    finally:
        os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(10):
        while service(stage)["trouble"]:
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_an_address_that_somebody_else_names_too_is_said_with_its_place_and_no_rollout_begins(
    raise_stage: Raise,
) -> None:
    stage = await raise_stage(instances=2)
    theirs = {
        "listen": ["127.0.0.1:0"],
        "routes": [{"handle": [{"handler": "reverse_proxy", "upstreams": [{"dial": stage.dial(0)}]}]}],
    }
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"{stage.admin_url}/config/apps/http/servers/theirs"
        (await client.put(url, json=theirs)).raise_for_status()
    async with asyncio.timeout(10):
        while not service(stage)["trouble"]:
            await asyncio.sleep(0.1)
    said = service(stage)["trouble"][0]
    assert f"{stage.dial(0)} is also named at apps.http.servers.theirs.routes.0.handle.0.upstreams.0" in said
    with pytest.raises(RefusedError, match="also named"):
        begin(stage, "v2")
    async with httpx.AsyncClient(trust_env=False) as client:
        (await client.delete(url)).raise_for_status()
    async with asyncio.timeout(10):
        while service(stage)["trouble"]:
            await asyncio.sleep(0.1)
    assert (await ended(stage, begin(stage, "v2")))["state"] == "succeeded"
