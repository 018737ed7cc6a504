"""A daemon's inside, for the tests of the API and of the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.trafficd.home import Home, section
from trafficd.api.guard import Guard
from trafficd.config import ServiceSection

Begin = Callable[..., Awaitable[Home]]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Starts a `Home` of these services; it has settled when this returns."""
    homes: list[Home] = []

    async def start(guard: Guard | None = None, **services: ServiceSection) -> Home:
        home = Home(tmp_path, services or {"web": section()}, guard)
        await home.start()
        homes.append(home)
        await home.settled()
        return home

    yield start
    for home in homes:
        await home.stop()


@pytest.fixture
async def home(begin: Begin) -> Home:
    """One service, "web", of three upstreams a, b, c that run v1."""
    return await begin()
