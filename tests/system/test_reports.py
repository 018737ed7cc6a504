"""The report of a canary rollout on a real Caddy: what it counts is what stands in the access log, also over a kill."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from proxy.accessline import Answer
from proxy.accesslog import Follower, before_end
from tests.canary.arms import users
from tests.system.ask import call, until
from tests.system.conftest import Raise
from tests.system.test_strategies import at_stage, begin, ended, judged, kill
from trafficd.client import Json
from trafficd.demo.stage import Stage

pytestmark = pytest.mark.slow


def logged(stage: Stage, directory: Path) -> list[Answer]:
    """All answers of second addresses, where the first new version runs."""
    path = directory / "access.log"
    follower = Follower(path, before_end(path, 1 << 30))
    spares = {stage.spare_dial(index) for index in range(stage.instances)}
    try:
        return [answer for answer in follower.read(1 << 30) if answer.upstream in spares]
    finally:
        follower.close()


async def report(stage: Stage, rollout: str) -> Json:
    return await call(stage, "GET", f"/v1/rollouts/{rollout}/report")


def trafficd(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trafficd", arguments[0], "--socket", str(stage.socket), *arguments[1:]]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TRAFFICD_")}
    return subprocess.run(command, env=plain, capture_output=True, text=True, check=False)


async def test_killed_in_the_midst_it_counts_every_answer_once(raise_stage: Raise, tmp_path: Path) -> None:
    async with judged(raise_stage, tmp_path, instances=2) as stage, users(stage.public):
        await asyncio.sleep(2)
        steps = [{"percent": 25, "min_time": "15s", "max_time": "60s"}, {"percent": 100, "min_time": "2s"}]
        rollout = await begin(stage, "v2", "canary", steps=steps, keep_old="60s")
        await until(stage, at_stage(0))
        file = stage.directory / "state" / "reports" / f"{rollout}.json"
        async with asyncio.timeout(20):
            while not (file.exists() and orjson.loads(file.read_bytes())["points"]):
                await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        kill(stage)
        await asyncio.sleep(1)
        stage.start_daemon()
        await stage.wait_socket()
        view = await ended(stage, rollout, timeout=90)
        assert view["state"] == "succeeded", view["reason"]
        await asyncio.sleep(5)  # what was open at the end is in the log, and counted
        found = await report(stage, rollout)
        judge, first = found["judge"], found["stages"][0]
        (gap,) = judge["evidence"]["gaps"]
        assert gap["why"] == "the daemon was restarted here"
        assert first["begin"] < gap["since"] < gap["until"] < first["end"]
        began = [answer.at - answer.duration for answer in logged(stage, tmp_path)]
        until_end = [at for at in began if at < found["ended_at"]]
        assert judge["exposure"]["requests"] == len(until_end)
        in_first = [at for at in until_end if at < found["stages"][1]["begin"]]
        assert first["exposure"]["requests"] == len(in_first)
        assert judge["exposure"]["seconds"] == pytest.approx(until_end[-1] - until_end[0], abs=0.5)
        points = [point["at"] for point in judge["evidence"]["points"]]
        assert points[0] < gap["since"] + 1e-3, "what was seen before the kill is kept"
        assert points[-1] > gap["until"]
        assert 0 < first["judge"]["metrics"][0]["canary"]["total"] <= len(in_first)


async def test_a_canary_that_fails_leaves_a_report_and_deploy_names_it(raise_stage: Raise, tmp_path: Path) -> None:
    async with (
        judged(raise_stage, tmp_path, instances=2, swap_options=["bad=--answers 500"]) as stage,
        users(stage.public),
    ):
        await asyncio.sleep(2)
        options = ("--strategy", "canary", "--steps", "25, 100", "--step-min-time", "1s", "--message", "<b>bold</b>")
        deploy = await asyncio.to_thread(trafficd, stage, "deploy", "web", "bad2", *options)
        assert deploy.returncode == 1, deploy
        (rollout,) = [one["id"] for one in (await call(stage, "GET", "/v1/rollouts"))["rollouts"]]
        assert deploy.stdout.rstrip().endswith(f"trafficd report {rollout}")
        await asyncio.sleep(5)
        found = await report(stage, rollout)
        judge, failure = found["judge"], found["judge"]["failure"]
        assert (found["state"], judge["verdict"]) == ("reverted", "FAIL")
        assert failure["why"].startswith("errors: of the canary's requests")
        assert judge["worst_route"]["route"] == "GET /"
        answers = logged(stage, tmp_path)
        assert judge["exposure"]["requests"] == judge["exposure"]["bad"] == len(answers)
        assert judge["exposure"]["clients"] == len({answer.client for answer in answers})
        assert not judge["exposure"]["at_least"]
        after = [answer for answer in answers if answer.at - answer.duration > failure["at"]]
        assert failure["requests_after"] == len(after)
        print(f"{len(answers)} requests, {len(after)} of them after the verdict, the last {failure['seconds']} s later")
        assert failure["seconds"] < 5
        html = await asyncio.to_thread(trafficd, stage, "report", "web", "--html", "-")
        assert "FAIL at 200" in html.stdout
        assert "&lt;b&gt;bold&lt;/b&gt;" in html.stdout
        assert "<b>bold" not in html.stdout
        text = await asyncio.to_thread(trafficd, stage, "report")
        assert text.stdout.startswith(f"REVERTED: web to bad2 ({rollout})")
