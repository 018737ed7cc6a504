"""The driver on Podman's compatible socket."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest

from tests.docker.engine import CRASHES, SERVES, Counting, Podman, needs_docker
from tests.docker.test_driver import Shop

pytestmark = [
    needs_docker,
    pytest.mark.skipif(shutil.which("podman") is None, reason="needs podman"),
    pytest.mark.slow,
]


@pytest.fixture
async def podman() -> AsyncIterator[Podman]:
    podman = Podman()
    try:
        await podman.start()
        for version in ("v1", "v2"):
            await podman.image(f"shop/web:{version}", SERVES.replace("{version}", version))
        await podman.image("shop/web:crashes", CRASHES)
        yield podman
    finally:
        await podman.aclose()


async def test_in_place_beside_and_back(podman: Podman) -> None:
    async with Counting(podman) as counting:
        web = Shop(podman, counting)
        try:
            prepared = await web.run(web.swap("v1", None, "r0", action="prepare", dial=None, previous_dial=""))
            assert prepared.ok, prepared
            assert (await web.run(web.swap("v1", None, "r0"))).ok
            await web.until_answers(web.dial, "v1")
            outcome = await web.run(web.swap("v2", "v1"))
            assert outcome.ok, outcome
            await web.until_answers(web.dial, "v2")
            assert await web.made() == {"v1": "exited", "v2": "running"}
            back = await web.run(web.swap("v1", "v2"))
            assert back.ok, back
            await web.until_answers(web.dial, "v1")
            assert await web.made() == {"v1": "running"}
            beside = await web.run(web.swap("v2", "v1", "r2", dial=web.spare))
            assert beside.ok, beside
            await web.until_answers(web.spare, "v2")
            crashed = await web.run(web.swap("crashes", "v1", "r3"))
            assert not crashed.ok
            assert "no such table: users" in crashed.reason
        finally:
            await web.engines.aclose()
