"""An upstream behind a real Caddy whose health page says 200 while its users get 500."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.canary.arms import Instance, users
from tests.system.ask import call, until
from tests.system.conftest import QUICK, Raise
from trafficd.client import Json

OUTLIERS = QUICK + '[services.web.outliers]\nenabled = true\neject_for = "4s"\n'


def third(view: Json) -> Json:
    found: Json = view["upstreams"][-1]
    return found


@pytest.mark.slow
async def test_one_that_fails_its_users_is_sent_nothing_until_it_has_had_time_to_heal(
    raise_stage: Raise, tmp_path: Path
) -> None:
    instance = Instance()
    stage = await raise_stage(instances=2, settings=OUTLIERS, caddy=f'access_log = "{tmp_path / "access.log"}"')
    await instance.start()
    try:
        await call(stage, "POST", "/v1/services/web/upstreams", id="c", dial=instance.dial, version="v1")
        await until(stage, lambda view: third(view)["share"] > 0)
        async with users(stage.public, rate=100) as answers:
            while instance.seen < 50:
                await asyncio.sleep(0.05)
            assert set(answers) == {"200"}
            instance.mode = "errors"
            view = await until(stage, lambda view: third(view)["share"] == 0, 30)
            assert third(view)["health"] == "up"
            assert third(view)["ejected_until"] is not None
            assert third(view)["reason"].startswith("ejected for ")
            assert view["trouble"] == []
            await asyncio.sleep(0.5)
            bad, seen, good = answers["500"], instance.seen, answers["200"]
            await asyncio.sleep(1)
            assert (answers["500"], instance.seen) == (bad, seen), "not one more request"
            assert answers["200"] > good, "the others serve"
            instance.mode = "ok"
            await until(stage, lambda view: third(view)["ready"] and third(view)["share"] > 0, 30)
            while instance.seen < seen + 20:
                await asyncio.sleep(0.05)
            assert set(answers) == {"200", "500"}
            assert answers["500"] == bad
    finally:
        await instance.stop()
