"""A Caddy that sees other files than we do, as one in a container does: a mount namespace of its own, made as a
container's is. It shares the host's network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tests.system.conftest import QUICK
from tests.system.load import load
from tests.system.strangers import StrangersCaddy
from tests.system.test_adoption import ADOPT, taken_over, until
from tests.system.test_deploy import deploy, service
from trafficd.demo.stage import Stage


def contained(hidden: Path, mounts: dict[Path, Path]) -> Sequence[str]:
    """A program that runs another one where `hidden` is empty, and each of `mounts` is seen at another place."""
    binds = " && ".join(f"mount --bind {source} {target}" for source, target in mounts.items())
    script = f'{binds or "true"} && mount -t tmpfs none {hidden} && exec "$@"'
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--mount", *mapped, "sh", "-c", script, "sh"]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage(instances=2, settings=QUICK, managed=False, stands=ADOPT)
    stage.caddy = f'slots_path = "{stage.directory}/seen"'
    for name in ("state", "state/slots", "seen"):
        (stage.directory / name).mkdir(mode=0o755)
    stage.start_instances()
    yield stage
    await stage.aclose()


@pytest.mark.slow
async def test_slots_at_another_path_in_the_container_are_as_good(stage: Stage) -> None:
    state, seen = stage.directory / "state", stage.directory / "seen"
    caddy = StrangersCaddy(stage, contained(state, {state / "slots": seen}))
    await caddy.start(caddy.tutorial())
    try:
        stage.start_daemon()
        await stage.wait_ready()
        await until(lambda: taken_over(stage))
        async with load(caddy.url) as result:
            rollout = await deploy(stage, "v2")
        assert rollout["state"] == "succeeded", rollout
        assert not result.troubles()
    finally:
        await asyncio.to_thread(caddy.end)


@pytest.mark.slow
async def test_a_missing_mount_is_named_and_the_site_is_given_back(stage: Stage) -> None:
    caddy = StrangersCaddy(stage, contained(stage.directory / "state", {}))
    await caddy.start(caddy.tutorial())
    try:
        etag = await caddy.etag()
        stage.start_daemon()
        await stage.wait_socket()
        await until(lambda: "missing mount" in str(service(stage)["trouble"]))
        said = service(stage)["trouble"][0]
        assert f"{stage.directory}/seen/.probe" in said
        assert "restart Caddy" in said
        assert await caddy.etag() == etag, "the very configuration that was there before"
        async with load(caddy.url) as result:
            await asyncio.sleep(3.0)  # long enough for further attempts, of which there are none
        assert not result.troubles()
    finally:
        await asyncio.to_thread(caddy.end)
