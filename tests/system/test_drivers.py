"""What a rollout runs and waits for, end to end: prepare, hooks, the caller's own replacing, drains that time out."""

from __future__ import annotations

import asyncio
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from loadtest.websocket import WebSocketPlan, hold
from tests.system.conftest import BY_BOTH, QUICK, Raise
from tests.system.load import load, unexpected
from tests.system.test_deploy import deploy, service, versions
from trafficd.client import Client
from trafficd.demo import replace
from trafficd.demo.stage import Stage

pytestmark = BY_BOTH


def recorder(directory: Path) -> Path:
    """A program that notes what it was asked; it fails when told a version that begins with "nopull"."""
    script = directory / "record.sh"
    script.write_text(
        f"#!/bin/sh\necho $TRAFFICD_ACTION $TRAFFICD_UPSTREAM $TRAFFICD_VERSION $TRAFFICD_STATE >>{directory}/calls\n"
        'case "$TRAFFICD_ACTION $TRAFFICD_VERSION" in "prepare nopull"*) echo no such image >&2; exit 3;; esac\n'
    )
    script.chmod(0o755)
    return script


def calls(directory: Path) -> list[str]:
    return [line.strip() for line in (directory / "calls").read_text().splitlines()]


async def recorded(raise_stage: Raise) -> Stage:
    directory = Path(tempfile.mkdtemp(prefix="trafficd-"))
    script = recorder(directory)
    argv = [sys.executable, "-m", "trafficd.demo.replace", str(directory / "instances"), "bad=--warm-up 999"]
    hooks = "".join(
        f'{kind} = ["{script}"]\n'
        for kind in ("before_rollout", "before_swap", "after_swap", "after_rollout", "on_failure")
    )
    return await raise_stage(
        instances=2,
        directory=directory,
        settings=QUICK.replace("8s", "1s") + f"[services.web.hooks]\n{hooks}",
        swap=f'driver = "command"\ncommand = {argv!r}\nprepare = ["{script}"]',
    )


@pytest.mark.slow
async def test_hooks_and_prepare_run_in_their_order(raise_stage: Raise) -> None:
    stage = await recorded(raise_stage)
    assert (await deploy(stage, "v2"))["state"] == "succeeded"
    assert sorted(calls(stage.directory)[1:3]) == ["prepare a v2", "prepare b v2"]
    assert [line for line in calls(stage.directory) if not line.startswith("prepare")] == [
        "before_rollout v2",
        "before_swap a v2",
        "after_swap a v2",
        "before_swap b v2",
        "after_swap b v2",
        "after_rollout v2",
    ]


@pytest.mark.slow
async def test_a_version_that_cannot_be_prepared_touches_nothing(raise_stage: Raise) -> None:
    stage = await recorded(raise_stage)
    async with load(stage.url) as result:
        rollout = await deploy(stage, "nopull")
    assert rollout["state"] == "failed"
    assert "no such image" in rollout["reason"]
    assert not any("swap" in line for line in calls(stage.directory))
    assert calls(stage.directory)[-1] == "on_failure nopull failed"
    assert not unexpected(stage, result)
    assert versions(stage) == {"a": "v1", "b": "v1"}


@pytest.mark.slow
async def test_when_the_old_version_does_not_come_back_it_is_stuck_and_the_rest_serves(raise_stage: Raise) -> None:
    stage = await raise_stage(
        swap_options=("bad=--warm-up 999", "v1=--warm-up 999"), settings=QUICK.replace("8s", "1s")
    )
    async with load(stage.url) as result:
        rollout = await deploy(stage, "bad1")
    assert rollout["state"] == "stuck"
    assert "trafficd ready web" in rollout["reason"], "it says what to do"
    assert not unexpected(stage, result)
    assert {one["id"]: one["share"] for one in service(stage)["upstreams"]} == {"a": 0, "b": 50, "c": 50}


@pytest.mark.slow
async def test_the_caller_replaces_the_instances_of_a_rollout(raise_stage: Raise) -> None:
    stage = await raise_stage(swap='driver = "external"')
    client = stage.client()
    async with load(stage.url) as result:
        running = asyncio.create_task(deploy(stage, "v2"))
        for index, name in enumerate("abc"):
            await until_waits_for(client, name)
            await asyncio.to_thread(replace.stop, stage.app_directory / f"{stage.ports[index]}.pid")
            stage.processes.append(replace.start(stage.app_directory, stage.dial(index), "v2"))
            ready = f"/v1/services/web/upstreams/{name}/ready"
            answer = await asyncio.to_thread(client.call, "POST", ready, {"version": "v2"})
            assert answer["ready"]
        rollout = await running
    assert rollout["state"] == "succeeded", rollout
    assert not unexpected(stage, result)
    assert versions(stage) == dict.fromkeys("abc", "v2")
    client.close()


async def until_waits_for(client: Client, name: str) -> None:
    async with asyncio.timeout(10):
        while True:
            waits = (await asyncio.to_thread(client.call, "GET", "/v1/services/web"))["waits"]
            if any(wait["upstream"] == name and "caller to replace" in wait["what"] for wait in waits):
                return
            await asyncio.sleep(0.02)


async def test_a_drain_that_times_out_counts_requests_and_streams_apart(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=1)
    stop = asyncio.Event()
    plan = WebSocketPlan(stage.url.replace("http", "ws", 1) + "/ws", connections=2, interval=0.1)
    holding = asyncio.create_task(hold(plan, stop=stop))
    client = stage.client()
    async with load(stage.url, gets=0, posts=0, slow=0) as result:
        async with asyncio.timeout(5):
            while service(stage)["upstreams"][0]["in_flight"] != 2:
                await asyncio.sleep(0.02)
        body = {"timeout": "400ms", "force": True}
        answer = await asyncio.to_thread(client.call, "POST", "/v1/services/web/upstreams/a/drain", body)
    assert answer == {"drained": False, "in_flight": 2, "cut": {"requests": 0, "streams": 2}}
    stop.set()
    report = await holding
    assert (report.opened, report.cut) == (2, 0), "a drain cuts nothing by itself"
    assert not unexpected(stage, result)
    client.close()


async def test_the_socket_is_for_owner_and_group(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=1)
    assert stat.S_IMODE(stage.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE((stage.directory / "state" / "journal.sqlite").stat().st_mode) == 0o600
