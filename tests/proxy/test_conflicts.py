"""Another tool changes Caddy's configuration at the same moments as we do: no update is lost on either side."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from proxy.admin import Admin
from proxy.handler import PROBE_ID, ensure, remove, route_ids
from tests.proxy.caddy import RealCaddy


@pytest.mark.parametrize("changes", [60, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
async def test_no_update_is_lost(caddy: RealCaddy, changes: int) -> None:
    chance = random.Random(changes)
    theirs = Admin(caddy.server.admin_url)
    done: list[int] = []
    ours = 0

    async def another_tool() -> None:
        """Counts in a place of its own, one step an edit."""
        for number in range(1, changes + 1):

            def count(config: Any, number: int = number) -> Any:
                assert _count(config) == number - 1, "one of theirs was lost"
                server = {"listen": ["127.0.0.1:0"], "logs": {"default_logger_name": f"n{number}"}}
                servers = config["apps"]["http"]["servers"]
                apps = {**config["apps"], "http": {**config["apps"]["http"], "servers": {**servers, "theirs": server}}}
                return {**config, "apps": apps}

            await theirs.edit(count)
            done.append(number)
            await asyncio.sleep(chance.random() * 0.01)

    route = caddy.route(slots=3)
    await caddy.serve({"a": 1}, slots=3)
    tool = asyncio.create_task(another_tool())
    there = True
    while not tool.done():
        if there:
            await caddy.admin.edit(lambda config: remove(config, {route.id}))
        else:
            await caddy.admin.edit(lambda config: ensure(config, [route]))
        there = not there
        ours += 1
        config, _ = await caddy.admin.config()
        assert (route.id in route_ids(config)) is there, "one of ours was lost"
        assert PROBE_ID in route_ids(config)
        await asyncio.sleep(chance.random() * 0.01)
    await tool
    assert _count((await caddy.admin.config())[0]) == changes == len(done)
    assert ours > changes / 10
    await theirs.aclose()


def _count(config: Any) -> int:
    server = config["apps"]["http"]["servers"].get("theirs")
    return 0 if server is None else int(server["logs"]["default_logger_name"][1:])
