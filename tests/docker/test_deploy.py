"""Deploys of containers on two hosts (an Engine each), through a whole daemon and a real Caddy, under load."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.docker.engine import Counting, Dockerd, needs_docker
from tests.docker.registry import Registry
from tests.system.conftest import QUICK
from tests.system.load import load
from tests.system.test_deploy import deploy, service, versions
from tests.system.test_faults import begin, ended
from trafficd.client import Json
from trafficd.demo.stage import Stage

pytestmark = [needs_docker, pytest.mark.slow, pytest.mark.containers, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
# The sample app, run with this machine's own Python, which is mounted into the container.
APP = """#!/bin/sh
export PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
echo {version} begins at $PORT
exec {python} -m trafficd.demo.app $PORT {version} {options}
"""
CRASHES = "#!/bin/sh\necho begins\necho no such table: users >&2\nexit 70\n"
PORTS = 15_000 + 100 * (os.getpid() % 40)  # of this process alone: others test beside it; and none of `free_port`
OPTIONS = {
    "v1": "",
    "v2": "--warm-up 1",
    "sick": "--warm-up 999",
    "fades": "--healthy-for 4",
}


def program(version: str) -> str:
    options = OPTIONS.get(version, "")
    return APP.format(root=ROOT, python=sys.executable, version=version, options=options)


def mounts() -> list[str]:
    places = {"/usr", "/lib", "/lib64", sys.base_prefix, str(Path(sys.prefix).resolve()), str(ROOT)}
    if (venv := Path(sys.prefix)).is_symlink():
        places.add(str(venv.resolve()))
    return [f"{place}:{place}:ro" for place in sorted(places) if Path(place).exists()]


class DockerStage(Stage):
    """Upstream a on the first Engine, b on the second; what runs at first was started by hand, and is taken over."""

    engines: list[str]
    dockerds: list[Dockerd]
    environment: dict[str, str]

    def toml(self) -> str:
        text = super().toml()
        for index, engine in enumerate(self.engines):
            name = self.upstream_id(index)
            text = text.replace(f'id = "{name}"\n', f'id = "{name}"\nengine = "{engine}"\n')
        return text

    def start_instances(self) -> None:
        self.app_directory.mkdir(exist_ok=True)

    async def start_containers(self) -> None:
        for index, dockerd in enumerate(self.dockerds):
            body = {
                "Image": "shop/web:v1",
                "Env": [f"PORT={self.ports[index]}", "SECRET=s3"],
                "Labels": {"com.docker.compose.project": "shop"},
                "HostConfig": {"NetworkMode": "host", "Binds": mounts()},
            }
            made = await dockerd.call("POST", f"/containers/create?name=web-{self.upstream_id(index)}", body)
            await dockerd.call("POST", f"/containers/{made['Id']}/start")

    async def standing(self) -> dict[str, list[str]]:
        """The versions that run on each host: one each, or something was left behind."""
        found = {}
        for index, dockerd in enumerate(self.dockerds):
            containers = await dockerd.containers()
            found[self.upstream_id(index)] = [
                one["Labels"].get("trafficd.version", one["Names"][0])
                for one in containers
                if one["State"] not in ("exited",)
            ]
        return found


Raise = Callable[..., Awaitable[DockerStage]]


@pytest.fixture
async def dockerds() -> AsyncIterator[list[Dockerd]]:
    both = [Dockerd(None, "--live-restore"), Dockerd(None, "--live-restore")]
    try:
        for dockerd in both:
            await dockerd.start()
            for version in ("v1", "v2", "sick", "fades"):
                await dockerd.image(f"shop/web:{version}", program(version))
            await dockerd.image("shop/web:crashes", CRASHES)
        yield both
    finally:
        for dockerd in both:
            await dockerd.aclose()


@pytest.fixture
async def raise_stage(dockerds: list[Dockerd]) -> AsyncIterator[Raise]:
    stages: list[DockerStage] = []

    async def start(engines: list[str] | None = None, docker: str = "", settings: str = QUICK) -> DockerStage:
        stage = DockerStage(
            instances=2,
            swap='driver = "docker"\n[services.web.docker]\n'
            + (docker or 'image = "shop/web:{version}"\npull = "missing"\n')
            + 'take_over = "web-{upstream}"\nenvironment = {PORT = "{port}"}\n'
            + f'port_range = "{PORTS}-{PORTS + 99}"\n',
            settings=settings,
        )
        stages.append(stage)
        stage.dockerds, stage.engines = dockerds, engines or [one.url for one in dockerds]
        await stage.start_containers()
        stage.start_daemon()
        await stage.wait_ready()
        return stage

    yield start
    for stage in stages:
        await stage.aclose()


@pytest.mark.parametrize("order", ["stop_first", "start_first"])
async def test_two_hosts_are_deployed_and_nothing_is_lost(raise_stage: Raise, order: str) -> None:
    stage = await raise_stage()
    async with load(stage.url, sockets=2) as result:
        rollout = await deploy(stage, "v2", order=order)
    assert rollout["state"] == "succeeded", rollout
    assert not result.troubles()
    assert result.sent > 300
    assert versions(stage) == dict.fromkeys("ab", "v2")
    assert await stage.standing() == {"a": ["v2"], "b": ["v2"]}
    for dockerd in stage.dockerds:
        (new,) = [one for one in await dockerd.containers() if one["State"] == "running"]
        shown = await dockerd.call("GET", f"/containers/{new['Id']}/json")
        assert "SECRET=s3" in shown["Config"]["Env"], "taken over"
        assert shown["Config"]["Labels"]["com.docker.compose.project"] == "shop"
    assert any("sha256:" in step["output"] for step in rollout["steps"] if step["step"] == "prepare")


@pytest.mark.parametrize("order", ["stop_first", "start_first"])
@pytest.mark.parametrize(
    ("version", "state", "reason"),
    [
        ("sick", "reverted", "sick begins at"),
        ("fades", "reverted", "fades begins at"),
        ("v99", "failed", "shop/web:v99"),
        ("crashes", "reverted", "no such table: users"),
    ],
)
async def test_a_bad_version_is_taken_back_with_what_its_container_said(
    raise_stage: Raise, version: str, state: str, reason: str, order: str
) -> None:
    stage = await raise_stage(settings=QUICK.replace("300ms", "4500ms").replace("8s", "14s"))
    before = [one["Id"] for dockerd in stage.dockerds for one in await dockerd.containers()]
    async with load(stage.url) as result:
        rollout = await deploy(stage, version, order=order)
    assert (rollout["state"], result.troubles()) == (state, {}), rollout["reason"]
    assert reason in rollout["reason"], rollout["reason"]
    assert versions(stage) == dict.fromkeys("ab", "v1")
    assert all(one["ready"] for one in service(stage)["upstreams"])
    after = [one["Id"] for dockerd in stage.dockerds for one in await dockerd.containers()]
    assert after == before, "the very containers of before, and none beside them"


@pytest.mark.parametrize("order", ["stop_first", "start_first"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("moment", ["on_call", "on_answer"])
async def test_killed_at_a_call_of_the_engine_the_deploy_goes_on(
    raise_stage: Raise, dockerds: list[Dockerd], order: str, number: int, moment: str
) -> None:
    counting = Counting(dockerds[0])
    await counting.start()
    stage = await raise_stage([counting.url, dockerds[1].url])
    killed: list[str] = []

    def kill(n: int, line: str) -> bool:
        if n == number and not killed:
            assert stage.daemon is not None
            stage.daemon.kill()
            killed.append(line)
            return True
        return False

    setattr(counting, moment, kill)
    async with load(stage.url) as result:
        begin_ = begin(stage, "v2") if order == "stop_first" else _begin_beside(stage)
        stage_daemon = stage.daemon
        assert stage_daemon is not None
        await asyncio.to_thread(stage_daemon.wait, 60)
        stage.start_daemon()
        await stage.wait_socket()
        view = await ended(stage, begin_)
    assert killed
    assert view["state"] == "succeeded", view["reason"]
    assert not result.troubles(), (stage.directory / "daemon.log").read_text()
    assert await stage.standing() == {"a": ["v2"], "b": ["v2"]}
    await counting.aclose()


def _begin_beside(stage: Stage) -> str:
    client = stage.client()
    try:
        body: Json = {"version": "v2", "order": "start_first"}
        return str(client.call("POST", "/v1/services/web/rollouts", body)["id"])
    finally:
        client.close()


async def test_an_engine_that_is_restarted_in_mid_deploy_is_waited_for(
    raise_stage: Raise, dockerds: list[Dockerd]
) -> None:
    """Its containers live on (live-restore); what was asked of it is found again, or asked again."""
    counting = Counting(dockerds[1])
    await counting.start()
    stage = await raise_stage([dockerds[0].url, counting.url])
    restarts: list[asyncio.Task[None]] = []

    async def restart() -> None:
        await dockerds[1].stop(signal.SIGKILL)
        await asyncio.sleep(1)
        await dockerds[1].start()

    def cut(n: int, line: str) -> bool:
        if "/start" in line and not restarts:
            restarts.append(asyncio.create_task(restart()))
        return bool(restarts) and not restarts[0].done()

    counting.on_answer = cut
    async with load(stage.url) as result:
        rollout = await deploy(stage, "v2")
    assert restarts
    await restarts[0]
    assert rollout["state"] == "succeeded", rollout
    assert not result.troubles()
    assert await stage.standing() == {"a": ["v2"], "b": ["v2"]}
    await counting.aclose()


async def test_a_rollback_needs_no_registry(
    raise_stage: Raise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    digest = {version: registry.push(f"shop/web:{version}", program(version)) for version in ("v2", "v3")}
    await registry.start()
    registry.write_credentials(tmp_path)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    image = f'image = "{registry.address}/shop/web:{{version}}"\npull = "always"\n'
    stage = await raise_stage(docker=image)
    for version in ("v2", "v3"):
        rollout = await deploy(stage, version)
        assert rollout["state"] == "succeeded", rollout
        prepared = [step["output"] for step in rollout["steps"] if step["step"] == "prepare"]
        assert len(prepared) == 2
        assert all(digest[version] in output for output in prepared)
    missing = await deploy(stage, "v9")
    assert missing["state"] == "failed"
    assert "v9" in missing["reason"]
    await registry.aclose()
    async with load(stage.url) as result:
        rollout = await deploy(stage, "v2")
    assert rollout["state"] == "succeeded", rollout
    assert not result.troubles()
    assert versions(stage) == dict.fromkeys("ab", "v2")
    assert set(os.listdir(tmp_path)) == {"config.json"}
