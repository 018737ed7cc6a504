"""Rolling deploys of a real application on a real Caddy under load: what happens when things go wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from tests.system.conftest import BY_BOTH, QUICK, Raise
from tests.system.load import load, unexpected
from trafficd.client import Json
from trafficd.demo.stage import Stage

pytestmark = BY_BOTH


async def deploy(stage: Stage, version: str, **overrides: object) -> Json:
    """A rollout to its end."""
    client = stage.client()

    def run() -> Json:
        begun = client.call("POST", "/v1/services/web/rollouts", {"version": version, **overrides})
        for _ in client.events(begun["id"]):
            pass
        return client.call("GET", f"/v1/rollouts/{begun['id']}")

    try:
        return await asyncio.to_thread(run)
    finally:
        client.close()


def service(stage: Stage) -> Json:
    client = stage.client()
    try:
        return client.call("GET", "/v1/services/web")
    finally:
        client.close()


def versions(stage: Stage) -> dict[str, str]:
    return {one["id"]: one["version"] for one in service(stage)["upstreams"]}


async def test_a_deploy_loses_nothing_and_cuts_no_websocket(raise_stage: Raise) -> None:
    stage = await raise_stage()
    async with load(stage.url, sockets=4) as result:
        rollout = await deploy(stage, "v2")
    assert rollout["state"] == "succeeded", rollout
    assert not unexpected(stage, result)
    assert result.sent > 500
    assert result.sockets is not None
    assert result.sockets.closed >= 1, "streams of drained upstreams were closed in good order"
    assert versions(stage) == dict.fromkeys("abc", "v2")
    assert all(32 < one["share"] < 35 for one in service(stage)["upstreams"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param("--warm-up 999", "503", marks=pytest.mark.slow),
        pytest.param("--healthy-for 1.0", "healthy", marks=pytest.mark.slow),
        pytest.param("--crash-after 0", "cannot connect", marks=pytest.mark.slow),
    ],
    ids=["never healthy", "healthy only at first", "crashes at start"],
)
async def test_a_bad_version_is_taken_back_and_nothing_is_lost(raise_stage: Raise, options: str, reason: str) -> None:
    settings = QUICK.replace("300ms", "1500ms").replace("8s", "6s")
    stage = await raise_stage(swap_options=(f"bad={options}",), settings=settings)
    async with load(stage.url) as result:
        rollout = await deploy(stage, "bad1")
    assert rollout["state"] == "reverted", rollout
    assert reason in rollout["failure"]
    assert not unexpected(stage, result)
    assert versions(stage) == dict.fromkeys("abc", "v1")
    assert all(one["ready"] for one in service(stage)["upstreams"])


@pytest.mark.slow
async def test_an_old_instance_that_crashes_in_mid_rollout_loses_its_slots(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=4)
    client = stage.client()
    client.call("POST", "/v1/services/web/rollouts", {"version": "v2", "min_healthy_time": "3s"})
    pid = int((stage.app_directory / f"{stage.ports[3]}.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while next(one for one in service(stage)["upstreams"] if one["id"] == "d")["weight"]:
            await asyncio.sleep(0.05)
    async with load(stage.url) as result:
        await asyncio.sleep(1)
    assert not unexpected(stage, result), "the others serve"
    assert service(stage)["rollout"]["state"] == "running"
    client.close()


@pytest.mark.slow
async def test_an_abort_in_mid_rollout_brings_the_old_version_back(raise_stage: Raise) -> None:
    stage = await raise_stage()
    client = stage.client()
    async with load(stage.url) as result:
        begun = client.call("POST", "/v1/services/web/rollouts", {"version": "v2"})
        for event in client.events(begun["id"]):
            if (event["type"], event["data"].get("upstream")) == ("task_started", "b"):
                break
        await asyncio.to_thread(client.call, "POST", f"/v1/rollouts/{begun['id']}/abort", {})
        await asyncio.to_thread(lambda: list(client.events(begun["id"])))
        ended = client.call("GET", f"/v1/rollouts/{begun['id']}")
    assert ended["state"] == "reverted", ended
    assert not unexpected(stage, result)
    assert versions(stage) == dict.fromkeys("abc", "v1")
    client.close()


async def test_start_first_brings_the_new_instance_up_beside_the_old(raise_stage: Raise) -> None:
    """A single upstream with a second address: never without a ready instance."""
    directory = Path(tempfile.mkdtemp(prefix="trafficd-"))
    argv = [sys.executable, "-m", "trafficd.demo.replace", str(directory / "instances")]
    stage = await raise_stage(
        instances=1,
        spares=True,
        directory=directory,
        settings=QUICK + 'order = "start_first"\n',
        swap=f'driver = "command"\ncommand = {argv!r}\nretire = {argv!r}',
    )
    async with load(stage.url) as result:
        rollout = await deploy(stage, "v2")
    assert rollout["state"] == "succeeded", rollout
    assert not unexpected(stage, result)
    (upstream,) = service(stage)["upstreams"]
    assert (upstream["dial"], upstream["spare_dial"]) == (stage.spare_dial(0), stage.dial(0))
    assert not (stage.app_directory / f"{stage.ports[0]}.pid").exists(), "the old instance was retired"
