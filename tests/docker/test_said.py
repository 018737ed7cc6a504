"""What is told of a container in one line."""

from __future__ import annotations

from typing import Any, cast

from trafficd.swap.docker.engine import Engine
from trafficd.swap.docker.said import said


class Silent:
    async def logs(self, container: str, lines: int) -> list[str]:
        return []


async def test_one_that_somebody_paused_does_not_just_run() -> None:
    inspect: dict[str, Any] = {"Id": "x", "Name": "/web", "State": {"Running": True, "Paused": True}}
    assert (await said(cast(Engine, Silent()), inspect)).reason.startswith("container web is paused")
