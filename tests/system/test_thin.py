"""Where there is little traffic, on a real Caddy: the plan says how little, and a verification's load stands in."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import orjson
import pytest

from loadtest import runner
from loadtest.model import Plan, RequestSpec
from tests.canary.arms import Instance
from tests.system.ask import call, service, until
from tests.system.conftest import QUICK, Raise
from tests.system.test_canary import beside, share, verdict
from trafficd.client import Json
from trafficd.demo.stage import Stage


async def plan(stage: Stage, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trafficd", "plan", *arguments), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def forecast(stage: Stage, *arguments: str) -> Json:
    """That of the one service, of a plan in JSON."""
    status, text = await plan(stage, *arguments, "--json")
    assert status == 0, text
    (one,) = orjson.loads(text)["services"]
    found: Json = one["forecast"]
    return found


@pytest.mark.slow
async def test_the_plan_tells_the_rate_and_what_comes_of_it(raise_stage: Raise, tmp_path: Path) -> None:
    stage = await raise_stage(instances=2, caddy=f'access_log = "{tmp_path}/logs/access.log"')
    daemon, file = ("--socket", str(stage.socket)), ("--config", str(stage.config))
    quiet = await forecast(stage, *daemon)
    assert quiet["traffic"] is None
    assert "not known" in quiet["why"]
    stop = asyncio.Event()
    user = RequestSpec(f"{stage.url}/", headers=(("X-Trafficd-Stratum", ""),))  # an empty one is none
    sending = asyncio.create_task(runner.run(Plan((user,), 4, None, 60.0, rate=40.0), stop=stop))
    await asyncio.sleep(8)  # over 200 requests, which tell a rate
    found, of_file, (status, text) = await asyncio.gather(
        forecast(stage, *daemon, "--within", "2m"), forecast(stage, *file), plan(stage, *daemon)
    )
    stop.set()
    report = await sending
    # What was really sent, as a busy machine may send less than it should.
    rate = report.sent / (report.intervals[-1].begin + 1)
    for one in (found, of_file):
        assert one["traffic"]["rate"] == pytest.approx(rate, rel=0.2)
        assert one["traffic"]["stable_bad"] == 0
        assert all(share["fail_broken"] < share["fail_worse"] for share in one["shares"])
    assert (found["within"], of_file["within"]) == (120, 300)
    assert of_file["suggested"] is not None
    assert (status, text.splitlines()[-1]) == (0, "nothing is written")
    assert "requests/s in the last" in text
    assert f"for a verdict within 5 min: trafficd canary web {of_file['suggested']:g}" in text
    refused = await asyncio.gather(*(plan(stage, *of, "--within", "soon") for of in (daemon, file)))
    assert [status for status, _ in refused] == [2, 2]


def settings(strata: str) -> str:
    return QUICK + (
        f"[services.web.canary]\nstrata = {strata}\n"
        '[services.web.verify]\nrate = 120\nwarm_up = "60s"\nrequests = [{path = "/"}]\n'
    )


async def under_load(stage: Stage, percent: float) -> str:
    """The canary gets a share, and no request comes but those of a verification in its warm-up; its name."""
    await share(stage, percent)
    begun = await call(stage, "POST", "/v1/verifications", service="web")
    return str(begun["id"])


@pytest.mark.slow
async def test_load_alone_fails_a_canary_where_it_is_judged(raise_stage: Raise, tmp_path: Path) -> None:
    instance = Instance("errors", rate=0.05)
    async with beside(raise_stage, instance, tmp_path / "access.log", settings('["verify"]')) as stage:
        verification = await under_load(stage, 50)
        view = await until(stage, lambda view: view["canary_percent"] == 0, 45)
        assert view["analysis"]["verdict"] == "FAIL"
        assert view["analysis"]["why"].startswith("errors")
        await call(stage, "POST", f"/v1/verifications/{verification}/abort")


@pytest.mark.slow
async def test_load_alone_passes_a_good_one(raise_stage: Raise, tmp_path: Path) -> None:
    async with beside(raise_stage, Instance(), tmp_path / "access.log", settings('["verify"]')) as stage:
        verification = await under_load(stage, 50)
        view = await until(stage, lambda view: verdict(view) == "PASS", 45)
        assert view["canary_percent"] == 50
        await call(stage, "POST", f"/v1/verifications/{verification}/abort")


@pytest.mark.slow
async def test_load_is_no_users_where_it_is_not_named(raise_stage: Raise, tmp_path: Path) -> None:
    instance = Instance("errors", rate=0.5)
    async with beside(raise_stage, instance, tmp_path / "access.log", settings("[]")) as stage:
        verification = await under_load(stage, 50)
        async with asyncio.timeout(30):
            while instance.seen < 500:
                await asyncio.sleep(0.2)
        view = await service(stage)
        assert (view["canary_percent"], verdict(view)) == (50, "HOLD")
        assert [one["canary_total"] for one in view["analysis"]["metrics"] if one["name"] == "errors"] == [0]
        await call(stage, "POST", f"/v1/verifications/{verification}/abort")
