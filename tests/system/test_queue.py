"""Under load, a rollout that is queued behind another one, and one that takes over from it: nothing is lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.system.conftest import Raise
from tests.system.load import load
from tests.system.test_deploy import service, versions
from tests.system.test_faults import begin, ended, kill
from trafficd.client import Json
from trafficd.demo.stage import Stage


async def turn_of(stage: Stage, rollout: str, upstream: str) -> None:
    """Wait until the rollout works on that upstream."""

    def follow() -> None:
        client = stage.client()
        try:
            for event in client.events(rollout):
                if (event["type"], event["data"].get("upstream")) == ("task_started", upstream):
                    return
        finally:
            client.close()

    await asyncio.to_thread(follow)


def ask(stage: Stage, version: str, how: str) -> Json:
    client = stage.client()
    try:
        return client.call("POST", "/v1/services/web/rollouts", {"version": version, "if_live": how})
    finally:
        client.close()


@pytest.mark.parametrize("how", ["queue", "supersede"])
@pytest.mark.slow
async def test_another_version_in_mid_rollout_loses_nothing(raise_stage: Raise, how: str) -> None:
    stage = await raise_stage()
    async with load(stage.url) as result:
        first = begin(stage, "v2")
        await turn_of(stage, first, "b")
        second = await asyncio.to_thread(ask, stage, "v3", how)
        assert second["state"] == "pending"
        rollout = await ended(stage, second["id"])
    assert rollout["state"] == "succeeded", rollout
    assert (await ended(stage, first))["state"] == ("succeeded" if how == "queue" else "failed")
    assert not result.troubles()
    assert versions(stage) == dict.fromkeys("abc", "v3")
    assert {one["weight"] for one in service(stage)["upstreams"]} <= {33, 34}


@pytest.mark.slow
async def test_a_daemon_that_is_killed_keeps_what_was_queued(raise_stage: Raise) -> None:
    stage = await raise_stage()
    async with load(stage.url) as result:
        first = begin(stage, "v2")
        await turn_of(stage, first, "b")
        second = await asyncio.to_thread(ask, stage, "v3", "queue")
        kill(stage)
        await asyncio.sleep(0.3)
        stage.start_daemon()
        await stage.wait_ready()
        rollout = await ended(stage, second["id"])
    assert rollout["state"] == "succeeded", rollout
    assert not result.troubles()
    assert versions(stage) == dict.fromkeys("abc", "v3")
