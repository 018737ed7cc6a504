"""An abort on a full disk: a real file system, in a file, with not a block to spare."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.system.conftest import QUICK
from tests.system.test_deploy import service
from tests.system.test_faults import begin, ended
from trafficd.demo.stage import Stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system"),
]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """An installation with its state on an ext4 of its own, which takes blocks for directories too."""
    directory = Path(tempfile.mkdtemp(prefix="trafficd-"))
    image, state = directory / "disk", directory / "state"
    state.mkdir()
    image.touch()
    os.truncate(image, 16 * 1024 * 1024)
    run("mkfs.ext4", "-q", "-m", "0", str(image))
    run("mount", "-o", "loop", str(image), str(state))
    stage = Stage(directory=directory, instances=4, settings=QUICK, spares=True, swap_options=("v2=--warm-up 3",))
    stage.start_instances()
    stage.start_daemon()
    yield stage
    await stage.aclose()
    run("umount", str(state))
    shutil.rmtree(directory)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def fill(state: Path) -> None:
    """Take every block, also those that only a directory would fit into."""
    for name, size in (("fill", 4096), ("rest", 512)):
        with (state / name).open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    try:
        for number in range(20_000):
            (state / f"d{number}").mkdir()
    except OSError:
        return


@contextlib.asynccontextmanager
async def aborted_on_a_full_disk(stage: Stage, rollout: str, *, requests: int) -> AsyncIterator[None]:
    """Fill the disk and abort: so many requests then see the old version alone. With space again it is reverted."""
    fill(stage.directory / "state")
    client = stage.client()
    answer = await asyncio.to_thread(client.call, "POST", f"/v1/rollouts/{rollout}/abort", {})
    client.close()
    assert "not in the journal yet" in answer["warning"]
    yield
    async with httpx.AsyncClient(trust_env=False) as public:
        answers = [(await public.get(stage.url)).headers["X-App-Version"] for _ in range(requests)]
    assert set(answers) == {"v1"}
    for path in (stage.directory / "state").glob("fill"):
        path.unlink()
    (stage.directory / "state" / "rest").unlink(missing_ok=True)
    assert (await ended(stage, rollout))["state"] == "reverted"


async def test_an_abort_moves_traffic_on_a_full_disk(stage: Stage) -> None:
    await stage.wait_ready()
    rollout = begin(stage, "v2")
    async with asyncio.timeout(30):
        while not _half_way(service(stage)["rollout"]["upstreams"]):
            await asyncio.sleep(0.05)
    async with aborted_on_a_full_disk(stage, rollout, requests=30):
        shares = {one["id"]: one["share"] for one in service(stage)["upstreams"]}
        assert (shares["a"], shares["b"]) == (0, 0)
        assert (shares["c"], shares["d"]) == (50, 50)


async def test_a_canary_loses_its_traffic_on_a_full_disk(stage: Stage) -> None:
    await stage.wait_ready()
    client = stage.client()
    wanted = {"version": "v3", "strategy": "canary", "steps": [{"percent": 25, "gate": True}]}
    rollout = str((await asyncio.to_thread(client.call, "POST", "/v1/services/web/rollouts", wanted))["id"])
    async with asyncio.timeout(60):
        while not service(stage)["rollout"]["waits_for_promote"]:
            await asyncio.sleep(0.05)
    client.close()
    async with aborted_on_a_full_disk(stage, rollout, requests=100):
        pass


def _half_way(upstreams: dict[str, str]) -> bool:
    return upstreams["a"] == "done" and upstreams["b"] in ("swap", "gate")
