"""Deploys of containers on two hosts (an Engine each), through a whole daemon and a real Caddy, under load."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import trustme

from proxy.ports import free_port
from tests.docker.engine import Counting, Dockerd, needs_docker
from tests.docker.registry import Registry
from tests.docker.stage import DockerStage, program
from tests.system.conftest import QUICK
from tests.system.load import load
from tests.system.test_deploy import deploy, service, versions
from trafficd.client import Json

pytestmark = [needs_docker, pytest.mark.slow, pytest.mark.timeout(240)]

CRASHES = "#!/bin/sh\necho begins\necho no such table: users >&2\nexit 70\n"
OPTIONS = {"v1": "", "v2": "--warm-up 1", "sick": "--needs 127.0.0.1:1", "fades": "--healthy-for 4"}
BOTH_ORDERS = pytest.mark.parametrize("order", ["stop_first", "start_first"])


@dataclass
class Pair:
    """Two Engines; the second can also be reached at `tcp`, by who has the certificates in `docker`."""

    both: list[Dockerd]
    tcp: str
    docker: str  # lines for [services.web.docker]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name in ("127.0.0.1", "trafficd"):
        leaf = authority.issue_cert(name)
        leaf.private_key_pem.write_to_path(str(directory / f"{name}.key"))
        leaf.cert_chain_pems[0].write_to_path(str(directory / f"{name}.pem"))
    tcp = f"tcp://127.0.0.1:{free_port()}"
    secured = ["--tlsverify", f"--tlscacert={directory}/ca.pem"]
    secured += [f"--tlscert={directory}/127.0.0.1.pem", f"--tlskey={directory}/127.0.0.1.key"]
    files = {"tls_ca": "ca.pem", "tls_cert": "trafficd.pem", "tls_key": "trafficd.key"}
    docker = "\n".join(f'{key} = "{directory}/{file}"' for key, file in files.items())
    both = [Dockerd(None, "--live-restore"), Dockerd(None, "--live-restore", "-H", tcp, *secured)]
    try:
        for dockerd in both:
            await dockerd.start()
            for version, options in OPTIONS.items():
                await dockerd.image(f"shop/web:{version}", program(version, options))
            await dockerd.image("shop/web:crashes", CRASHES)
        yield Pair(both, tcp, docker)
    finally:
        for dockerd in both:
            await dockerd.aclose()


Raise = Callable[..., Awaitable[DockerStage]]


@pytest.fixture
async def raise_stage(pair: Pair) -> AsyncIterator[Raise]:
    stages: list[DockerStage] = []

    async def start(engines: Sequence[str] = (), **more: Any) -> DockerStage:
        stage = DockerStage(dockerds=pair.both, engines=list(engines), settings=QUICK, **more)
        stages.append(stage)
        await stage.start()
        return stage

    yield start
    for stage in stages:
        await stage.aclose()


async def test_two_hosts_are_deployed_and_nothing_is_lost(raise_stage: Raise, pair: Pair) -> None:
    """The second one over TCP with TLS."""
    stage = await raise_stage([pair.both[0].url, pair.tcp], docker=pair.docker)
    async with load(stage.url, sockets=2) as result:
        for version, order in (("v2", "stop_first"), ("v1", "start_first")):
            rollout = await deploy(stage, version, order=order, drain_timeout="1s")
            assert rollout["state"] == "succeeded", (rollout["reason"], stage.daemon_log())
            assert versions(stage) == dict.fromkeys("ab", version)
            assert await stage.standing() == {"a": [version], "b": [version]}
    assert not result.troubles()
    assert result.sent > 300
    for dockerd in stage.dockerds:
        (new,) = [one for one in await dockerd.containers() if one["State"] == "running"]
        shown = await dockerd.call("GET", f"/containers/{new['Id']}/json")
        assert "SECRET=s3" in shown["Config"]["Env"], "taken over"
        assert shown["Config"]["Labels"]["com.docker.compose.project"] == "shop"
    assert any("sha256:" in step["output"] for step in rollout["steps"] if step["step"] == "prepare")


BAD: dict[str, tuple[str, str, dict[str, str]]] = {
    "v99": ("failed", "shop/web:v99", {}),
    "crashes": ("reverted", "no such table: users", {}),
    "sick": ("reverted", "sick begins at", {}),
    "fades": ("reverted", "fades begins at", {"min_healthy_time": "4500ms", "healthy_deadline": "10s"}),
}


@BOTH_ORDERS
async def test_a_bad_version_is_taken_back_with_what_its_container_said(raise_stage: Raise, order: str) -> None:
    stage = await raise_stage()
    before = [one["Id"] for dockerd in stage.dockerds for one in await dockerd.containers()]
    async with load(stage.url, gets=4, posts=4) as result:
        for version, (state, reason, overrides) in BAD.items():
            if (version, order) == ("sick", "start_first"):
                continue  # to a gate it is what fades
            rollout = await deploy(stage, version, order=order, **overrides)
            assert (rollout["state"], result.troubles()) == (state, {}), (version, rollout["reason"])
            assert reason in rollout["reason"], rollout["reason"]
            assert versions(stage) == dict.fromkeys("ab", "v1")
            assert all(one["ready"] for one in service(stage)["upstreams"])
            after = [one["Id"] for dockerd in stage.dockerds for one in await dockerd.containers()]
            assert after == before, f"{version}: the very containers of before, and none beside them"
    assert not result.troubles()


class Kill:
    """Kills the daemon once, at the n-th change from now on that it asks an Engine for: before the Engine hears of it
    (`on_call`), or before the daemon hears what came of it (`on_answer`)."""

    def __init__(self, stage: DockerStage, counting: Counting, moment: str, number: int) -> None:
        self.at: str | None = None
        target = len(counting.calls) + number

        def kill(n: int, line: str) -> bool:
            if n != target or self.at is not None:
                return False
            assert stage.daemon is not None
            stage.daemon.kill()
            self.at = line
            return True

        setattr(counting, moment, kill)


async def deploy_whatever_happens(stage: DockerStage, version: str, order: str) -> Json:
    """A rollout to its end; the daemon is started again whenever it is gone."""
    async with (
        asyncio.timeout(60),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(stage.socket))) as session,
    ):
        body = {"version": version, "order": order}
        async with session.post("http://trafficd/v1/services/web/rollouts", json=body) as answer:
            assert answer.status == 201, await answer.text()
            begun = (await answer.json())["id"]
        while True:
            assert stage.daemon is not None
            if stage.daemon.poll() is not None:
                stage.start_daemon()
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with session.get(f"http://trafficd/v1/rollouts/{begun}") as answer:
                    view: Json = await answer.json()
                    if view["ended_at"] is not None:
                        return view
            await asyncio.sleep(0.05)


@BOTH_ORDERS
async def test_killed_between_any_two_calls_of_the_engines_the_deploy_goes_on(
    raise_stage: Raise, pair: Pair, order: str
) -> None:
    """Killed twice in each deploy, one call later in the next one, until a deploy has no such call: at a's n-th before
    it is made, and at b's n-th after it was made. With `keep = 1` that is the removal of the oldest, too."""
    async with Counting(pair.both[0]) as a, Counting(pair.both[1]) as b:
        stage = await raise_stage([a.url, b.url], docker="keep = 1")
        killed: list[str] = []
        async with load(stage.url, gets=4, posts=4) as result:
            for number in itertools.count(1):
                version = f"k{number}"
                for dockerd in pair.both:
                    await dockerd.call("POST", f"/images/shop/web:v1/tag?repo=shop/web&tag={version}")
                kills = [Kill(stage, a, "on_call", number), Kill(stage, b, "on_answer", number)]
                view = await deploy_whatever_happens(stage, version, order)
                log = (stage.directory / "daemon.log").read_text()
                assert view["state"] == "succeeded", (view["reason"], log)
                assert not result.troubles(), (version, [kill.at for kill in kills], log)
                assert await stage.standing() == {"a": [version], "b": [version]}
                for dockerd in pair.both:
                    assert len(await dockerd.containers()) == 2, "the one that runs, the one before, and no orphan"
                shown = service(stage)
                assert stage.listening(shown) == {one["dial"] for one in shown["upstreams"]}, "no port is left taken"
                killed += [kill.at for kill in kills if kill.at is not None]
                if not any(kill.at for kill in kills):
                    break
        for call in ("/create", "/start", "/stop", "DELETE /v", "/images/"):
            assert sum(call in line for line in killed) >= 2, (call, killed)


async def test_an_engine_that_is_restarted_in_mid_deploy_is_waited_for(raise_stage: Raise, pair: Pair) -> None:
    """Its containers live on (live-restore); what was asked of it is found again, or asked again."""
    async with Counting(pair.both[1]) as counting:
        stage = await raise_stage([pair.both[0].url, counting.url])
        restarts: list[asyncio.Task[None]] = []

        async def restart() -> None:
            await pair.both[1].stop(signal.SIGKILL)
            await asyncio.sleep(1)
            await pair.both[1].start()

        def cut(n: int, line: str) -> bool:
            if "/start" in line and not restarts:
                restarts.append(asyncio.create_task(restart()))
            return bool(restarts) and not restarts[0].done()

        counting.on_answer = cut
        async with load(stage.url) as result:
            rollout = await deploy(stage, "v2")
        assert restarts
        await restarts[0]
        assert rollout["state"] == "succeeded", (rollout["reason"], stage.daemon_log())
        assert not result.troubles()
        assert await stage.standing() == {"a": ["v2"], "b": ["v2"]}


async def test_a_rollback_needs_no_registry(
    raise_stage: Raise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    digest = {version: registry.push(f"shop/web:{version}", program(version)) for version in ("v2", "v3")}
    await registry.start()
    registry.write_credentials(tmp_path)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    stage = await raise_stage(image=f"{registry.address}/shop/web:{{version}}", pull="always")
    for version in ("v2", "v3"):
        rollout = await deploy(stage, version)
        assert rollout["state"] == "succeeded", (rollout["reason"], stage.daemon_log())
        prepared = [step["output"] for step in rollout["steps"] if step["step"] == "prepare"]
        assert len(prepared) == 2
        assert all(digest[version] in output for output in prepared)
    missing = await deploy(stage, "v9")
    assert missing["state"] == "failed"
    assert "v9" in missing["reason"]
    await registry.aclose()
    async with load(stage.url) as result:
        rollout = await deploy(stage, "v2")
    assert rollout["state"] == "succeeded", (rollout["reason"], stage.daemon_log())
    assert not result.troubles()
    assert versions(stage) == dict.fromkeys("ab", "v2")
    assert set(os.listdir(tmp_path)) == {"config.json"}
