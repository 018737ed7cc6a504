"""A canary with a share of real traffic behind a real Caddy: one that is worse loses it, one that is not keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.canary.arms import Instance, users
from tests.system.ask import call, service, until
from tests.system.conftest import QUICK, Raise
from tests.system.load import load
from tests.system.test_faults import kill
from tests.system.test_full_disk import run
from trafficd.client import Json, RefusedError
from trafficd.demo import replace
from trafficd.demo.stage import Stage


@contextlib.asynccontextmanager
async def beside(raise_stage: Raise, instance: Instance, log: Path, settings: str = QUICK) -> AsyncIterator[Stage]:
    """Two stable instances, and this one as another version that has passed its gate and has no share yet."""
    stage = await raise_stage(instances=2, settings=settings, caddy=f'access_log = "{log}"')
    await instance.start()
    try:
        await call(stage, "POST", "/v1/services/web/upstreams", id="c", dial=instance.dial, version="v2")
        await until(stage, lambda view: view["upstreams"][-1]["health"] == "up")
        yield stage
    finally:
        await instance.stop()


def verdict(view: Json) -> str | None:
    return None if view["analysis"] is None else str(view["analysis"]["verdict"])


def errors(view: Json) -> Json:
    return next(one for one in view["analysis"]["metrics"] if one["name"] == "errors")


async def share(stage: Stage, percent: float) -> None:
    await call(stage, "PUT", "/v1/services/web/canary", percent=percent)


@pytest.mark.parametrize(
    ("mode", "metric"),
    [
        pytest.param("errors", "errors", marks=pytest.mark.slow),
        pytest.param("truncate", "errors", marks=pytest.mark.slow),
        pytest.param("hang", "in_flight", marks=pytest.mark.slow),
        pytest.param("slow", "slower", marks=pytest.mark.slow),
    ],
)
async def test_a_canary_that_is_worse_loses_its_traffic(
    raise_stage: Raise, tmp_path: Path, mode: str, metric: str
) -> None:
    instance = Instance(mode)
    async with beside(raise_stage, instance, tmp_path / "access.log") as stage, users(stage.public) as answers:
        await asyncio.sleep(3)
        assert set(answers) == {"200"}
        assert instance.seen == 0, "no share, no traffic"
        loop = asyncio.get_running_loop()
        began = loop.time()
        await share(stage, 25)
        # Latency is looked at once caches are warm, after 30 s.
        view = await until(stage, lambda view: view["canary_percent"] == 0, 60 if mode == "slow" else 20)
        took = loop.time() - began
        assert view["analysis"]["verdict"] == "FAIL"
        assert view["analysis"]["why"].startswith(metric), view["analysis"]
        assert instance.seen > 0
        ended = loop.time()
        await asyncio.sleep(1)
        assert instance.last_at < ended + 0.1, "not a new request after the verdict"
        print(f"{mode}: {took:.1f} s until the traffic was away, {instance.seen} requests, answers {dict(answers)}")


@pytest.mark.slow
async def test_a_canary_as_good_as_the_stable_version_keeps_its_share(raise_stage: Raise, tmp_path: Path) -> None:
    instance = Instance()
    log = tmp_path / "logs of ours" / "access.log"  # made by the daemon
    async with beside(raise_stage, instance, log) as stage, users(stage.public) as answers:
        await asyncio.sleep(2)
        await share(stage, 25)
        view = await until(
            stage, lambda view: view["analysis"] is not None and view["analysis"]["verdict"] == "PASS", 30
        )
        assert view["canary_percent"] == 25
        assert instance.seen > 100
        assert set(answers) == {"200"}
        # Another share wants a proof of its own.
        await share(stage, 50)
        begun = await until(stage, lambda view: view["analysis"]["verdict"] == "HOLD", 5)
        view = await until(stage, lambda view: view["analysis"]["verdict"] == "PASS", 30)
        seen = errors(view)["canary_total"] - errors(begun)["canary_total"]
        # A daemon that begins later judges what was logged since the share was given.
        kill(stage)
        stage.start_daemon()
        await stage.wait_socket()
        view = await until(stage, lambda view: verdict(view) is not None)
        assert view["analysis"]["verdict"] == "PASS", (seen, view["analysis"])
        assert errors(view)["canary_total"] >= seen


@pytest.mark.slow
async def test_a_log_that_cannot_be_read_is_no_evidence_and_that_is_said(raise_stage: Raise, tmp_path: Path) -> None:
    instance, log = Instance("errors"), tmp_path / "access.log"
    async with beside(raise_stage, instance, log) as stage, users(stage.public):
        while not (log.exists() and log.stat().st_size):
            await asyncio.sleep(0.1)
        log.unlink()  # Caddy writes on into what has no name any more
        await share(stage, 10)
        view = await until(stage, lambda view: bool(view["trouble"]))
        assert "writes no access log" in view["trouble"][0]
        await asyncio.sleep(2)
        view = await service(stage)
        assert (view["canary_percent"], view["analysis"]["verdict"]) == (10, "HOLD")


@pytest.mark.slow
async def test_a_log_that_is_removed_while_it_is_read_is_judged_and_that_is_said(
    raise_stage: Raise, tmp_path: Path
) -> None:
    instance, log = Instance(), tmp_path / "access.log"
    async with beside(raise_stage, instance, log) as stage, users(stage.public):
        await share(stage, 25)
        await until(stage, lambda view: verdict(view) is not None and errors(view)["canary_total"] > 0)
        log.unlink()  # Caddy writes on, and we read on
        view = await until(stage, lambda view: bool(view["trouble"]))
        assert "what is still written into it is judged" in view["trouble"][0]
        instance.mode = "hang"
        view = await until(stage, lambda view: view["canary_percent"] == 0, 20)
        assert view["analysis"]["why"].startswith("in_flight"), view["analysis"]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
async def test_a_log_whose_disk_is_full_is_no_evidence_and_that_is_said(raise_stage: Raise, tmp_path: Path) -> None:
    instance, disk = Instance("errors"), tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk))
    try:
        async with beside(raise_stage, instance, disk / "access.log") as stage, users(stage.public):
            (disk / "fill").write_bytes(b"x" * os.statvfs(disk).f_bavail * 4096)
            await asyncio.sleep(1)
            await share(stage, 10)
            view = await until(stage, lambda view: bool(view["trouble"]))
            assert "its disk is full: make room there" in view["trouble"][0]
            assert view["analysis"]["verdict"] == "HOLD"
            (disk / "fill").unlink()
            await until(stage, lambda view: view["canary_percent"] == 0, 20)
    finally:
        run("umount", "-l", str(disk))


@pytest.mark.slow
async def test_a_canary_may_only_be_reported_on(raise_stage: Raise, tmp_path: Path) -> None:
    settings = QUICK + '[services.web.canary]\non_fail = "report"\n'
    async with beside(raise_stage, Instance("errors"), tmp_path / "access.log", settings) as stage, users(stage.public):
        await share(stage, 25)
        await until(stage, lambda view: verdict(view) == "FAIL", 20)
        await asyncio.sleep(1)
        assert (await service(stage))["canary_percent"] == 25


@pytest.mark.slow
async def test_with_nobody_of_the_stable_version_left_the_canary_is_not_flooded(
    raise_stage: Raise, tmp_path: Path
) -> None:
    """Requests wait then, as the refusal says, and go on when somebody is back."""
    instance = Instance()
    async with beside(raise_stage, instance, tmp_path / "access.log") as stage:
        await share(stage, 25)
        await call(stage, "POST", "/v1/services/web/upstreams/a/drain")
        with pytest.raises(RefusedError, match="requests then wait at the proxy"):
            await call(stage, "POST", "/v1/services/web/upstreams/b/drain")
        await call(stage, "POST", "/v1/services/web/upstreams/b/drain", force=True)
        assert "get no more than their share" in (await until(stage, lambda view: view["panic"] is not None))["panic"]
        before = instance.seen
        async with load(stage.url) as result:
            await asyncio.sleep(1)
            assert instance.seen == before
            await call(stage, "POST", "/v1/services/web/upstreams/b/ready")
        assert not result.troubles()
        assert instance.seen > before
        # Nor where nobody can connect to it: what is refused is tried at another slot until one answers.
        replace.stop(stage.app_directory / f"{stage.ports[1]}.pid", grace=0.0)
        await until(stage, lambda view: view["panic"] is not None)
        before = instance.seen
        async with load(stage.url) as result:
            await asyncio.sleep(1)
            assert instance.seen == before
            stage.processes.append(replace.start(stage.app_directory, stage.dial(1), "v1"))
        assert not result.troubles()
        assert instance.seen > before
