"""The daemon killed, stopped, doubled: traffic flows on, and the rollout ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

import httpx
import pytest

from proxy.server import CaddyServer
from tests.system.ask import configuration
from tests.system.conftest import BY_BOTH, QUICK, Raise
from tests.system.load import load, unexpected
from tests.system.test_deploy import service, versions
from trafficd.client import Json
from trafficd.demo.stage import Stage

pytestmark = BY_BOTH


def journalled(stage: Stage) -> int:
    """How many events the journal holds."""
    connection = sqlite3.connect(f"file:{stage.directory}/state/journal.sqlite?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM events").fetchone()[0])
    finally:
        connection.close()


async def until_journalled(stage: Stage, count: int) -> None:
    async with asyncio.timeout(60):
        while journalled(stage) < count:
            await asyncio.sleep(0.002)


def begin(stage: Stage, version: str) -> str:
    client = stage.client()
    try:
        return str(client.call("POST", "/v1/services/web/rollouts", {"version": version})["id"])
    finally:
        client.close()


async def ended(stage: Stage, rollout: str) -> Json:
    client = stage.client()
    try:
        async with asyncio.timeout(60):
            while True:
                view = await asyncio.to_thread(client.call, "GET", f"/v1/rollouts/{rollout}")
                if view["ended_at"] is not None:
                    return view
                await asyncio.sleep(0.05)
    finally:
        client.close()


def kill(stage: Stage) -> None:
    assert stage.stop_daemon(signal.SIGKILL) == -signal.SIGKILL


# One upstream's turn is task, drain, swap, gate and admit, two events a step: 9 to 33 cover three turns.
BOUNDARIES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 19, 27, 28)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "boundaries",
    [pytest.param((5,), id="once"), pytest.param(BOUNDARIES, id="each life is short")],
)
async def test_killed_in_mid_rollout_it_ends_the_rollout_after_a_restart(
    raise_stage: Raise, boundaries: tuple[int, ...]
) -> None:
    # A gate's deadline goes on while there is no daemon.
    stage = await raise_stage(settings=QUICK.replace("8s", "60s"))
    before = journalled(stage)
    async with load(stage.url, sockets=2) as result:
        rollout = begin(stage, "v2")
        for boundary in boundaries:
            await until_journalled(stage, before + boundary)
            kill(stage)
            await asyncio.sleep(0.5)
            stage.start_daemon()
            await stage.wait_socket()
        view = await ended(stage, rollout)
    assert view["state"] == "succeeded", view["reason"]
    assert not unexpected(stage, result)
    assert versions(stage) == dict.fromkeys("abc", "v2")
    assert all(one["ready"] for one in service(stage)["upstreams"])


@pytest.mark.slow
async def test_killed_while_it_reverts_it_goes_on_reverting(raise_stage: Raise) -> None:
    settings = QUICK.replace("8s", "2s")
    stage = await raise_stage(swap_options=("bad=--warm-up 999",), settings=settings)
    async with load(stage.url) as result:
        rollout = begin(stage, "bad1")
        async with asyncio.timeout(20):
            while service(stage)["rollout"]["state"] != "reverting":
                await asyncio.sleep(0.01)
        kill(stage)
        stage.start_daemon()
        await stage.wait_socket()
        view = await ended(stage, rollout)
    assert view["state"] == "reverted", view
    assert not unexpected(stage, result)
    assert versions(stage) == dict.fromkeys("abc", "v1")


@pytest.mark.slow
async def test_stopped_for_a_while_it_loses_nothing(raise_stage: Raise) -> None:
    stage = await raise_stage()
    assert stage.daemon is not None
    async with load(stage.url, sockets=2) as result:
        rollout = begin(stage, "v2")
        await asyncio.sleep(0.7)
        stage.daemon.send_signal(signal.SIGSTOP)
        await asyncio.sleep(15)
        stage.daemon.send_signal(signal.SIGCONT)
        view = await ended(stage, rollout)
    assert view["state"] == "succeeded", view
    assert not unexpected(stage, result)


@pytest.mark.slow
async def test_a_swap_command_that_outlives_the_daemon_is_waited_for_and_runs_once(
    raise_stage: Raise, tmp_path: Path
) -> None:
    log = tmp_path / "swaps"
    script = tmp_path / "swap.sh"
    stage = await raise_stage(swap=f'driver = "command"\ncommand = ["{script}"]')
    script.write_text(
        f"#!/bin/sh\necho begin $TRAFFICD_UPSTREAM >>{log}\nsleep 1\n"
        f"{sys.executable} -m trafficd.demo.replace {stage.app_directory} && echo end $TRAFFICD_UPSTREAM >>{log}\n"
    )
    script.chmod(0o755)
    rollout = begin(stage, "v2")
    async with asyncio.timeout(10):
        while not log.exists():
            await asyncio.sleep(0.01)
    kill(stage)
    stage.start_daemon()
    await stage.wait_socket()
    view = await ended(stage, rollout)
    assert view["state"] == "succeeded", view
    assert log.read_text().split("\n")[:-1] == [f"{word} {name}" for name in "abc" for word in ("begin", "end")]


async def test_a_second_daemon_on_the_same_state_refuses_to_start(raise_stage: Raise) -> None:
    stage = await raise_stage()
    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "trafficd", "run", "--config", str(stage.config), stderr=asyncio.subprocess.PIPE
    )
    _, said = await second.communicate()
    assert second.returncode == 1
    assert b"another trafficd (pid" in said
    assert all(one["ready"] for one in service(stage)["upstreams"]), "the first one goes on"


@pytest.mark.slow
async def test_a_daemon_that_finds_its_socket_taken_has_not_touched_caddy(raise_stage: Raise, tmp_path: Path) -> None:
    """Where another daemon listens, it is that one's Caddy too."""
    stage = await raise_stage()
    before = await configuration(stage.admin_url)
    theirs = stage.toml().replace(str(stage.directory / "state"), str(tmp_path / "state"))
    theirs = theirs.replace("[services.web", "[services.other").replace("managed = true", "managed = false")
    assert theirs.count(str(tmp_path / "state")) == 1
    (tmp_path / "second.toml").write_text(theirs)
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trafficd", "run", "--config", str(tmp_path / "second.toml")),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await second.communicate()
    assert second.returncode == 1
    assert b"another daemon listens there" in said, said
    assert await configuration(stage.admin_url) == before


@pytest.mark.slow
async def test_a_caddy_of_our_own_that_hangs_does_not_keep_a_restarted_daemon_from_starting(
    raise_stage: Raise,
) -> None:
    stage = await raise_stage(caddy='timeout = "500ms"')
    pid = CaddyServer(stage.directory / "state" / "caddy", stage.admin_url).pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        kill(stage)
        stage.start_daemon()
        await stage.wait_socket()
        assert "did not answer" in service(stage)["trouble"][0]
    finally:
        os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(10):
        while service(stage)["trouble"]:
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_restarting_the_daemon_changes_nothing_in_caddy(raise_stage: Raise) -> None:
    stage = await raise_stage()
    before = await configuration(stage.admin_url)
    async with load(stage.url, sockets=2) as result:
        assert stage.stop_daemon(signal.SIGTERM) == 0
        await asyncio.sleep(0.5)  # nobody is there, and Caddy serves
        stage.start_daemon()
        await stage.wait_ready()
    assert await configuration(stage.admin_url) == before
    assert not unexpected(stage, result)


@pytest.mark.slow
async def test_our_caddy_is_started_again_when_it_is_gone(raise_stage: Raise) -> None:
    stage = await raise_stage()
    caddy = CaddyServer(stage.directory / "state" / "caddy", stage.admin_url)
    pid = caddy.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    async with httpx.AsyncClient(trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                answer = await client.get(stage.url)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                break
    assert answer.status_code == 200
    assert caddy.pid() not in (None, pid)


@pytest.mark.slow
async def test_all_instances_dead_keeps_the_routing_and_says_so(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=2)
    for pid_file in stage.app_directory.glob("*.pid"):
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
    async with asyncio.timeout(10):
        while service(stage)["panic"] is None:
            await asyncio.sleep(0.05)
    view = service(stage)
    assert sum(one["share"] for one in view["upstreams"]) == pytest.approx(100), "who was seen alive last keeps it"
    assert "look dead" in view["panic"]
