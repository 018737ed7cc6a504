"""A changed configuration is taken up without a gap, or refused with the reason."""

from __future__ import annotations

import asyncio
import signal
import sys
import time

import httpx
import pytest

from tests.system.conftest import QUICK, Raise
from tests.system.load import load
from tests.system.test_deploy import service
from tests.system.test_drift import ids
from tests.system.test_faults import begin, ended
from trafficd.client import Client, RefusedError
from trafficd.demo import replace
from trafficd.demo.stage import Stage, free_ports
from trafficd.errors import DaemonUnreachableError


def with_another_upstream(stage: Stage, dial: str) -> str:
    addition = f'[[services.web.upstreams]]\nid = "new"\ndial = "{dial}"\nversion = "v1"\n'
    return stage.toml().replace("[services.web.swap]", addition + "[services.web.swap]")


@pytest.mark.slow
async def test_a_reload_under_load_refuses_nobody_and_takes_the_change_up(raise_stage: Raise) -> None:
    stage = await raise_stage()
    assert stage.daemon is not None
    pid = stage.daemon.pid
    dial = f"127.0.0.1:{free_ports(1)[0]}"
    stage.processes.append(replace.start(stage.app_directory, dial, "v1"))
    stage.config.write_text(with_another_upstream(stage, dial))
    refused: list[Exception] = []
    done = asyncio.Event()

    async def ask() -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(stage.socket))
        while not done.is_set():
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
                try:
                    (await client.get("/v1/services/web")).raise_for_status()
                except httpx.ConnectError as error:
                    refused.append(error)
                except httpx.TransportError:
                    pass  # it was being answered while the daemon ended
            await asyncio.sleep(0.01)

    asking = asyncio.create_task(ask())
    async with load(stage.url, sockets=2) as result:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trafficd", "reload", "--socket", str(stage.socket))
        )
        assert await process.wait() == 0
        async with asyncio.timeout(10):
            while [one["ready"] for one in (await look(stage))["upstreams"]] != [True] * 4:
                await asyncio.sleep(0.05)
    done.set()
    await asking
    assert not refused
    assert not result.troubles()
    assert stage.daemon.poll() is None
    assert stage.daemon.pid == pid, "the same process, so that systemd follows"


async def look(stage: Stage) -> dict[str, list[dict[str, object]]]:
    return await asyncio.to_thread(service, stage)


def refusal(client: Client) -> str:
    try:
        client.call("POST", "/v1/reload", {})
    except RefusedError as error:
        return str(error)
    raise AssertionError("it was taken up")


async def test_a_configuration_with_a_fault_is_refused_and_the_old_one_goes_on(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=2)
    stage.config.write_text(stage.toml().replace("slots = 100", "slots = 0"))
    client = stage.client()
    assert "services.web.slots" in await asyncio.to_thread(refusal, client)
    assert stage.daemon is not None
    stage.daemon.send_signal(signal.SIGHUP)
    await asyncio.sleep(0.5)
    assert all(one["ready"] for one in service(stage)["upstreams"])
    assert "not reloaded" in stage.daemon_log()
    client.close()


@pytest.mark.slow
async def test_what_a_live_rollout_stands_on_cannot_be_changed_under_it(raise_stage: Raise) -> None:
    stage = await raise_stage(settings=QUICK.replace("300ms", "1s"))
    client = stage.client()
    rollout = begin(stage, "v2")
    stage.config.write_text(with_another_upstream(stage, "127.0.0.1:9"))
    assert f"rollout {rollout} is live" in await asyncio.to_thread(refusal, client)
    # What it does not stand on can be: the rollout goes on in the daemon's next life.
    stage.config.write_text(stage.toml().replace('interval = "200ms"', 'interval = "300ms"'))
    await asyncio.to_thread(client.call, "POST", "/v1/reload", {})
    client.close()
    await asyncio.sleep(0.5)
    assert (await ended(stage, rollout))["state"] == "succeeded"


@pytest.mark.slow
async def test_a_renamed_service_leaves_no_route_of_its_old_name(raise_stage: Raise) -> None:
    stage = await raise_stage()
    stage.config.write_text(stage.toml().replace("services.web", "services.shop"))
    client = stage.client()
    await asyncio.to_thread(client.call, "POST", "/v1/reload", {})
    async with asyncio.timeout(15):
        while "trafficd-shop" not in await ids(stage):
            await asyncio.sleep(0.1)
    assert "trafficd-web" not in await ids(stage)
    async with asyncio.timeout(15):
        while [u["in_flight"] for u in client.call("GET", "/v1/services/shop")["upstreams"]] != [0] * 3:
            await asyncio.sleep(0.1)
    async with load(stage.url) as result:
        assert client.call("POST", "/v1/services/shop/upstreams/a/drain", {})["drained"]
        begun = time.monotonic_ns()
        await asyncio.sleep(0.5)
    assert result.between(begun, time.monotonic_ns())[stage.dial(0)] == 0
    assert not result.troubles()
    client.close()


@pytest.mark.slow
async def test_what_the_next_life_could_not_start_with_is_refused(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=1)
    tls = '[services.web.transport]\ntls = true\ntls_ca = "/nonexistent.pem"\n'
    stage.config.write_text(stage.toml() + tls)
    client = stage.client()
    assert "tls_ca: /nonexistent.pem" in await asyncio.to_thread(refusal, client)
    # What Caddy refuses is that service's trouble, and nobody else's.
    other = f'[services.other]\nlisten = ["127.0.0.1:{stage.ports[0]}"]\n'
    stage.config.write_text(stage.toml() + other)
    await asyncio.to_thread(client.call, "POST", "/v1/reload", {})
    async with asyncio.timeout(20):
        while "address already in use" not in str((found := await troubles(stage)).get("other")) or found["web"]:
            await asyncio.sleep(0.1)
    assert (await asyncio.to_thread(service, stage))["upstreams"][0]["ready"]
    client.close()


async def troubles(stage: Stage) -> dict[str, list[str]]:
    client = stage.client()
    try:
        found = (await asyncio.to_thread(client.call, "GET", "/v1/services"))["services"]
        return {one["name"]: one["trouble"] for one in found}
    except DaemonUnreachableError:
        return {}
    finally:
        client.close()


@pytest.mark.slow
async def test_hangups_in_a_row_are_no_end(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=1)
    assert stage.daemon is not None
    for gap in (0.02, 0.1, 0.3, 0.6, 0.1):
        stage.daemon.send_signal(signal.SIGHUP)
        await asyncio.sleep(gap)
    await asyncio.sleep(1.0)
    assert stage.daemon.poll() is None
    await stage.wait_ready()
