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


@pytest.fixture
async def raise_stage() -> AsyncIterator[Raise]:
    """Start an installation, and end it after the test."""
    stages: list[Stage] = []

    async def start(**settings: Any) -> Stage:
        stage = Stage(**{"settings": QUICK, **settings})
        stages.append(stage)
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        return stage

    yield start
    for stage in stages:
        await stage.aclose()
