"""Whole installations: instances, daemon, real Caddy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from trafficd.demo.stage import Stage

Raise = Callable[..., Awaitable[Stage]]

QUICK = """
[services.web.health]
interval = "200ms"
timeout = "1s"
rise = 1
[services.web.rollout]
min_healthy_time = "300ms"
healthy_deadline = "8s"
drain_timeout = "3s"
drain_quiet = "100ms"
"""


# A change through the admin API lets go of requests that wait, so what drains has to be given more time.
PATIENT = ('drain_timeout = "3s"', 'drain_timeout = "15s"')
BY_BOTH = pytest.mark.parametrize(
    "raise_stage", ["slots", pytest.param("admin", marks=pytest.mark.slow)], indirect=True
)
"""For a module whose tests run on slots, and also with `control = "admin"`."""


@pytest.fixture
async def raise_stage(request: pytest.FixtureRequest) -> AsyncIterator[Raise]:
    """Start an installation, and end it after the test."""
    stages: list[Stage] = []
    by_admin = getattr(request, "param", "slots") == "admin"

    async def start(**settings: Any) -> Stage:
        settings = {"settings": QUICK, **settings}
        if by_admin:
            settings["service"] = f'control = "admin"\n{settings.get("service", "")}'
            settings["settings"] = settings["settings"].replace(*PATIENT)
        stage = Stage(**settings)
        stages.append(stage)
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        return stage

    yield start
    for stage in stages:
        await stage.aclose()
