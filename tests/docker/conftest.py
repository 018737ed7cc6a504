"""Engines for the tests; one each for a whole module, as they take a second to start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.docker.engine import CRASHES, SERVES, Dockerd


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_dockerd() -> AsyncIterator[Dockerd]:
    dockerd = Dockerd()
    try:
        await dockerd.start()
        for version in ("v1", "v2", "v3", "v4", "v5", "v6"):
            await dockerd.image(f"shop/web:{version}", SERVES.replace("{version}", version), env=f"RELEASE={version}")
        await dockerd.image("shop/web:crashes", CRASHES)
        yield dockerd
    finally:
        await dockerd.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def dockerd(shared_dockerd: Dockerd) -> AsyncIterator[Dockerd]:
    """An Engine without containers."""
    yield shared_dockerd
    await shared_dockerd.clear()
