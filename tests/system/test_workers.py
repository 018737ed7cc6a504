"""A service that no proxy knows: real worker processes, the real daemon, and no Caddy anywhere."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.system import jobs
from tests.system.conftest import QUICK, Raise
from tests.system.load import load
from tests.system.test_deploy import deploy
from trafficd.client import Json, RefusedError
from trafficd.demo.stage import Stage

HOOKS = ("before_rollout", "before_swap", "after_swap", "after_rollout", "on_failure")
JOBS = "/v1/services/jobs"


class WorkerStage(Stage):
    """Three workers a, b, c behind one service, "jobs". The address of Caddy's admin API is nobody's."""

    def toml(self) -> str:
        argv = [sys.executable, "-I", "-S", jobs.__file__, str(self.app_directory), "do"]
        upstreams = ", ".join(f'{{id = "{self.upstream_id(i)}", version = "v1"}}' for i in range(self.instances))
        hooks = "\n".join(f"{hook} = {argv!r}" for hook in HOOKS)
        return f"""
[daemon]
state_dir = "{self.directory}/state"
socket = "{self.socket}"
[caddy]
admin = "{self.admin_url}"
[services.jobs]
route = "none"
upstreams = [{upstreams}]
[services.jobs.health]
command = {argv!r}
interval = "200ms"
rise = 1
[services.jobs.rollout]
min_healthy_time = "200ms"
healthy_deadline = "4s"
[services.jobs.swap]
driver = "command"
command = {argv!r}
prepare = {argv!r}
[services.jobs.hooks]
{hooks}
{self.settings}
"""

    def start_instances(self) -> None:
        self.app_directory.mkdir(exist_ok=True)
        for index in range(self.instances):
            jobs.start(self.app_directory, self.upstream_id(index), self.version)

    def _stop_all(self) -> None:
        for index in range(self.instances):
            jobs.stop(self.app_directory, self.upstream_id(index))

    # -- looking ---------------------------------------------------------------------------------------

    async def call(self, method: str, path: str, body: Json | None = None) -> Json:
        client = self.client()
        try:
            return await asyncio.to_thread(client.call, method, path, body)
        finally:
            client.close()

    async def wait_workers(self) -> Json:
        """Wait until all count as ready; the service's state then."""
        await self.wait_socket()
        async with asyncio.timeout(20):
            while True:
                view = await self.call("GET", JOBS)
                if all(one["ready"] for one in view["upstreams"]):
                    return view
                await asyncio.sleep(0.05)

    async def deploy(self, version: str, **overrides: object) -> str:
        return str((await self.call("POST", f"{JOBS}/rollouts", {"version": version, **overrides}))["id"])

    async def ended(self, rollout: str) -> Json:
        async with asyncio.timeout(60):
            while True:
                view = await self.call("GET", f"/v1/rollouts/{rollout}")
                if view["ended_at"] is not None:
                    return view
                await asyncio.sleep(0.05)

    def log(self) -> list[str]:
        """What the programs were asked to do, in order."""
        try:
            return (self.app_directory / "log").read_text().splitlines()
        except OSError:
            return []

    async def logged(self, line: str) -> None:
        async with asyncio.timeout(20):
            while line not in self.log():
                await asyncio.sleep(0.01)

    def versions(self) -> dict[str, str]:
        """What truly runs."""
        return {
            name: jobs.running(self.app_directory, name)[1] for name in map(self.upstream_id, range(self.instances))
        }


Start = Callable[..., Awaitable[WorkerStage]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    stages: list[WorkerStage] = []

    async def begin(settings: str = "", instances: int = 3) -> WorkerStage:
        stage = WorkerStage(settings=settings, instances=instances, looked_at=JOBS)
        stages.append(stage)
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_workers()
        return stage

    yield begin
    for stage in stages:
        await stage.aclose()


def turn(name: str, version: str) -> list[str]:
    return [f"{action} {name} {version}" for action in ("before_swap", "swap", "after_swap")]


async def test_workers_are_replaced_one_by_one_and_nobody_asks_for_caddy(start: Start) -> None:
    stage = await start()
    before = stage.versions()
    rollout = await stage.ended(await stage.deploy("v2"))
    assert rollout["state"] == "succeeded", rollout
    assert (before, stage.versions()) == (dict.fromkeys("abc", "v1"), dict.fromkeys("abc", "v2"))
    log = stage.log()
    assert log[0] == "before_rollout  v2"
    assert sorted(log[1:4]) == [f"prepare {name} v2" for name in "abc"], "all, before the first is touched"
    assert log[4:] == [*turn("a", "v2"), *turn("b", "v2"), *turn("c", "v2"), "after_rollout  v2"]
    view = await stage.wait_workers()
    assert (view["trouble"], view["stable"]) == ([], "v2")
    assert (await stage.call("GET", "/healthz"))["ok"]
    said = stage.daemon_log()
    assert "addy" not in said, said
    assert "traffic goes to" not in said
    assert "WARNING" not in said
    assert not (stage.directory / "state" / "slots").exists()


@pytest.mark.slow
async def test_a_version_whose_probe_never_becomes_good_is_taken_back(start: Start) -> None:
    stage = await start()
    rollout = await stage.ended(await stage.deploy("bad1", healthy_deadline="3s"))
    assert rollout["state"] == "reverted", rollout
    assert "takes no jobs" in rollout["failure"], "it says what the probe said"
    assert stage.versions() == dict.fromkeys("abc", "v1")
    assert [line for line in stage.log() if not line.startswith("prepare")] == [
        "before_rollout  bad1",
        *turn("a", "bad1"),
        *turn("a", "v1"),
        "on_failure  bad1",
    ]
    await stage.wait_workers()


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param("before_rollout  v2", marks=pytest.mark.slow),
        "swap a v2",
        pytest.param("after_swap b v2", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
async def test_killed_in_mid_rollout_the_next_daemon_ends_it(start: Start, seen: str) -> None:
    stage = await start()
    (stage.app_directory / "slow").write_text("0.6")
    rollout = await stage.deploy("v2")
    await stage.logged(seen)
    assert stage.stop_daemon(signal.SIGKILL) == -signal.SIGKILL
    (stage.app_directory / "slow").unlink()
    stage.start_daemon()
    await stage.wait_socket()
    view = await stage.ended(rollout)
    assert view["state"] == "succeeded", view
    assert stage.versions() == dict.fromkeys("abc", "v2")
    swaps = [line for line in stage.log() if line.startswith("swap")]
    assert swaps == [f"swap {name} v2" for name in "abc"], "each ran once"
    assert "addy" not in stage.daemon_log(), "nor does the next daemon ask for Caddy"


@pytest.mark.slow
async def test_two_at_a_time_abort_and_back(start: Start) -> None:
    stage = await start()
    (stage.app_directory / "slow").write_text("2")
    rollout = await stage.deploy("v2", max_parallel=2)
    await stage.logged("swap a v2")
    await stage.logged("swap b v2")
    (stage.app_directory / "slow").unlink()
    await stage.call("POST", f"/v1/rollouts/{rollout}/abort", {})
    view = await stage.ended(rollout)
    assert view["state"] == "reverted", view
    began, ended = (
        {one["upstream"]: one[key] for one in view["steps"] if (one["step"], one["direction"]) == ("swap", "forward")}
        for key in ("started_at", "ended_at")
    )
    assert began["b"] < ended["a"], "side by side"
    assert stage.versions() == dict.fromkeys("abc", "v1")
    assert "swap c v2" not in stage.log()


@pytest.mark.slow
async def test_a_route_does_not_appear_under_a_live_rollout(start: Start) -> None:
    stage = await start(instances=2)
    (stage.app_directory / "slow").write_text("0.6")
    rollout = await stage.deploy("v2")
    await stage.logged("swap a v2")
    (stage.app_directory / "slow").unlink()
    routed = f"""
[daemon]
state_dir = "{stage.directory}/state"
socket = "{stage.socket}"
[caddy]
admin = "{stage.admin_url}"
[services.jobs]
upstreams = [{{id = "a", dial = "127.0.0.1:9"}}, {{id = "b", dial = "127.0.0.1:10"}}]
"""
    kept = stage.config.read_text()
    stage.config.write_text(routed)
    with pytest.raises(RefusedError, match=r"services\.jobs\.route"):
        await stage.call("POST", "/v1/reload", {})
    # Nor by a restart, where nobody is asked: a proxy must never be given a worker's place.
    assert stage.stop_daemon(signal.SIGKILL) == -signal.SIGKILL
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trafficd", "run", "--config", str(stage.config)), stderr=asyncio.subprocess.PIPE
    )
    _, said = await second.communicate()
    assert second.returncode == 2
    assert f"rollout {rollout} began without addresses for a, b" in said.decode()
    assert kept == stage.toml()
    stage.start_daemon()
    await stage.wait_socket()
    assert (await stage.ended(rollout))["state"] == "succeeded"
    # And one more reload in passing: workers go on as they are.
    pids = {name: jobs.running(stage.app_directory, name)[0] for name in "ab"}
    await stage.call("POST", "/v1/reload", {})
    await asyncio.sleep(0.3)
    await stage.wait_workers()
    assert {name: jobs.running(stage.app_directory, name)[0] for name in "ab"} == pids


ASKS = """
import os, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(f"http://{os.environ['TRAFFICD_DIAL']}/healthz", timeout=2) as answer:
    version = answer.headers["X-App-Version"]
assert version == os.environ["TRAFFICD_VERSION"], f"{version} answers"
"""


@pytest.mark.slow
async def test_beside_a_service_with_a_route_whose_probe_is_a_command_too(raise_stage: Raise, tmp_path: Path) -> None:
    script = tmp_path / "asks.py"
    script.write_text(ASKS)
    argv = [sys.executable, "-I", str(script)]
    web = QUICK.replace("[services.web.health]", f"[services.web.health]\ncommand = {argv!r}")
    beside = '[services.jobs]\nroute = "none"\nupstreams = [{id = "a"}]\nhealth.command = ["true"]\n'
    stage = await raise_stage(instances=2, settings=web + beside)
    async with load(stage.url) as result:
        rollout = await deploy(stage, "v2")
    assert rollout["state"] == "succeeded", rollout
    assert not result.troubles()
    client = stage.client()
    (worker,) = (await asyncio.to_thread(client.call, "GET", JOBS))["upstreams"]
    assert (worker["ready"], worker["share"]) == (True, None)
    client.close()
