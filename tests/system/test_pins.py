"""Pins in a whole installation: while nothing is pinned nobody notices them, whatever is done to the service."""

from __future__ import annotations

import asyncio
import contextlib
import os

import httpx
import pytest

from tests.system.ask import call, configuration
from tests.system.conftest import QUICK, Raise
from tests.system.load import load
from tests.system.test_deploy import deploy
from trafficd.demo.stage import Stage

PREVIEW = '[services.web.preview]\nheader = "X-Preview"\nvalues = ["yes"]\n'
COOKIE = '[services.web.pins.old]\ncookie = "version"\nvalues = ["v1"]\n'
SIGNS = {"X-Preview": "yes"}, {"Cookie": "version=v1"}


async def asked(stage: Stage, headers: dict[str, str]) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=10) as client:
        return await client.get(stage.url, headers=headers)


async def asked_after_a_change(stage: Stage, headers: dict[str, str]) -> httpx.Response:
    """The servers of Caddy's old configuration may take one more connection, and drop it."""
    with contextlib.suppress(httpx.TransportError):
        return await asked(stage, headers)
    return await asked(stage, headers)


async def text(stage: Stage) -> str:
    return str((await configuration(stage.admin_url))[0])


def pins(stage: Stage) -> list[str]:
    try:
        return sorted(os.listdir(stage.directory / "state" / "slots" / "web" / "pins"))
    except FileNotFoundError:
        return []


async def test_maintenance_a_hold_a_leave_and_a_plan_go_on_with_pins(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=1, settings=QUICK + PREVIEW)
    header, _ = SIGNS
    assert (await asked(stage, header)).status_code == 200
    assert (await call(stage, "GET", "/v1/plan"))["difference"] == []
    await call(stage, "POST", "/v1/services/web/maintenance", on=True, reason="moving")
    assert (await asked(stage, header)).status_code == 503
    await call(stage, "POST", "/v1/services/web/maintenance", on=False)
    await call(stage, "POST", "/v1/services/web/hold")
    waiting = asyncio.create_task(asked(stage, header))
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()
    await call(stage, "POST", "/v1/services/web/release")
    assert (await waiting).status_code == 200
    assert "/web/pins/preview/current/" in await text(stage)
    await call(stage, "POST", "/v1/services/web/leave")
    assert "/slots/web/" not in await text(stage)
    assert (await asked_after_a_change(stage, header)).status_code == 200
    await call(stage, "POST", "/v1/services/web/join")
    assert "/web/pins/preview/current/" in await text(stage)
    assert (await asked_after_a_change(stage, header)).status_code == 200


@pytest.mark.slow
async def test_pinned_users_lose_nothing_in_a_deploy_and_in_a_change_of_the_pins(raise_stage: Raise) -> None:
    stage = await raise_stage(settings=QUICK + PREVIEW)
    async with load(stage.url, sockets=2) as result:
        assert (await deploy(stage, "v2"))["state"] == "succeeded"
        assert (await asked(stage, SIGNS[0])).text.startswith("v2 GET")
    assert not result.troubles()
    assert pins(stage) == ["preview"]

    statuses: list[int] = []
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            for headers in SIGNS:
                with contextlib.suppress(httpx.TransportError):  # it came in the moment of a change of Caddy's
                    statuses.append((await asked(stage, headers)).status_code)

    asking = asyncio.create_task(ask())
    for settings, wanted in ((COOKIE, ["old"]), ("", []), (PREVIEW + COOKIE, ["old", "preview"])):
        stage.settings = QUICK + settings
        stage.config.write_text(stage.toml())
        await call(stage, "POST", "/v1/reload")
        async with asyncio.timeout(15):
            while pins(stage) != wanted or (("version=" in await text(stage)) != ("old" in wanted)):
                await asyncio.sleep(0.05)
        await stage.wait_ready()
    done.set()
    await asking
    assert len(statuses) > 50
    assert set(statuses) == {200}
