"""Every strategy on a real Caddy under load: nothing is lost, whatever moves and whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.canary.arms import users
from tests.system.ask import call, service, until
from tests.system.conftest import QUICK, Raise
from tests.system.load import load
from trafficd.client import Json
from trafficd.demo.stage import Stage

STEPS = {"steps": [5, 50], "step_min_time": "500ms", "step_max_time": "30s", "keep_old": "60s"}
ROLLOUTS = "/v1/services/web/rollouts"


async def begin(stage: Stage, version: str, strategy: str, **overrides: object) -> str:
    asked = await call(stage, "POST", ROLLOUTS, version=version, strategy=strategy, **overrides)
    return str(asked["id"])


async def ended(stage: Stage, rollout: str, timeout: float = 60.0) -> Json:
    view = await until(stage, lambda view: view["rollout"]["id"] == rollout and view["rollout"]["ended_at"], timeout)
    found: Json = view["rollout"]
    return found


def at_stage(number: int) -> Callable[[Json], bool]:
    return lambda view: view["rollout"] is not None and view["rollout"]["stage"] == number


def versions(view: Json) -> set[str]:
    return {one["version"] for one in view["upstreams"]}


def share(view: Json, version: str) -> float:
    rows = [one for upstream in view["upstreams"] for one in (upstream, *upstream["beside"])]
    return float(sum(one["share"] for one in rows if one["version"] == version))


@contextlib.asynccontextmanager
async def judged(raise_stage: Raise, directory: Path, **settings: object) -> AsyncIterator[Stage]:
    """Three instances with second addresses, and an access log."""
    settings = {"instances": 3, "spares": True, **settings}
    yield await raise_stage(caddy=f'access_log = "{directory}/access.log"', **settings)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["canary", "blue_green"])
async def test_a_version_beside_the_old_one_takes_over_and_nothing_is_lost(
    raise_stage: Raise, tmp_path: Path, strategy: str
) -> None:
    async with judged(raise_stage, tmp_path) as stage:
        async with load(stage.url, sockets=4, qps=25) as result:
            overrides = STEPS if strategy == "canary" else {"keep_old": "60s"}
            rollout = await ended(stage, await begin(stage, "v2", strategy, **overrides))
            assert rollout["state"] == "succeeded", rollout["reason"]
            view = await service(stage)
            assert (view["stable"], versions(view), round(share(view, "v2"))) == ("v2", {"v2"}, 100)
            back = await call(stage, "POST", "/v1/services/web/rollback")
            back = await ended(stage, back["id"])
            assert back["state"] == "succeeded"
            assert "swap" not in {step["step"] for step in back["steps"]}, "the old version was warm"
            assert round(share(await service(stage), "v1")) == 100
        assert not result.troubles()
        assert result.sockets is not None
        assert result.sockets.cut == 0
        print(f"{strategy}: {result.sent} requests, rollback in {back['seconds']} s")


@pytest.mark.slow
async def test_versions_of_a_rainbow_come_and_go_and_nothing_is_lost(raise_stage: Raise, tmp_path: Path) -> None:
    settings = QUICK + '[services.web.pins.next]\nheader = "X-Next"\nvalues = ["1"]\n'
    async with judged(raise_stage, tmp_path, settings=settings) as stage, load(stage.url, sockets=4, qps=25) as result:
        rollout = await ended(stage, await begin(stage, "v2", "rainbow", percent=20))
        assert rollout["state"] == "succeeded", rollout["reason"]
        view = await service(stage)
        assert (view["stable"], view["shares"], share(view, "v2")) == ("v1", {"v2": 20.0}, 20.0)
        await call(stage, "PUT", "/v1/services/web/pins/next", version="v2")
        await call(stage, "PUT", "/v1/services/web/shares", version="v2", percent=50)
        await until(stage, lambda view: share(view, "v2") == 50)
        await call(stage, "POST", "/v1/services/web/retire", version="v2")
        view = await until(stage, lambda view: not any(one["beside"] for one in view["upstreams"]))
        assert (view["shares"], view["pins"]) == ({}, {})
    assert not result.troubles()


@pytest.mark.slow
async def test_a_single_instance_is_replaced_twenty_times_and_nothing_is_lost(raise_stage: Raise) -> None:
    """The tutorial's claim is that a single server always shows errors under `hey -c 20`."""
    stage = await raise_stage(instances=1)
    async with load(stage.url, gets=20, posts=20, slow=0, qps=20) as result:
        for number in range(20):
            rollout = await ended(stage, await begin(stage, f"v{number + 2}", "hold", watch_time="0s"))
            assert rollout["state"] == "succeeded", rollout["reason"]
    assert not result.troubles()
    waited = max(outcome.finished_ns - (outcome.written_ns or outcome.finished_ns) for outcome in result.outcomes)
    print(f"hold: {result.sent} requests over 20 restarts, the longest waited {waited / 1e9:.2f} s")
    assert result.sent > 1000


@pytest.mark.slow
async def test_a_version_that_hold_cannot_bring_up_is_taken_back_and_nothing_is_lost(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=1, swap_options=["bad=--warm-up 100"])
    async with load(stage.url, gets=8, posts=8, slow=0, qps=20) as result:
        rollout = await ended(stage, await begin(stage, "bad2", "hold", healthy_deadline="2s", watch_time="0s"))
        assert rollout["state"] == "reverted"
        assert versions(await service(stage)) == {"v1"}
    assert not result.troubles()


@pytest.mark.slow
async def test_a_new_instance_is_watched_before_the_next_is_touched(raise_stage: Raise, tmp_path: Path) -> None:
    """Its health page says 200, and its answers are errors: the judge tells, after one of three."""
    async with judged(raise_stage, tmp_path, swap_options=["bad=--answers 500"]) as stage, users(stage.public):
        await asyncio.sleep(1)
        rollout = await ended(stage, await begin(stage, "bad2", "rolling", watch_time="20s"))
        assert rollout["state"] == "reverted"
        assert "judge" in rollout["reason"]
        assert {s["upstream"] for s in rollout["steps"] if s["step"] == "swap" and s["direction"] == "forward"} == {"a"}


@pytest.mark.slow
async def test_what_is_put_back_gets_its_weight_in_even_steps(raise_stage: Raise) -> None:
    stage = await raise_stage(service='slow_start = "4s"')
    await asyncio.sleep(4)  # all began together: while the others are on their way, too, a share may fall
    async with load(stage.url, sockets=2, qps=25) as result:
        await call(stage, "POST", "/v1/services/web/upstreams/a/drain")
        await call(stage, "POST", "/v1/services/web/upstreams/a/ready")
        loop = asyncio.get_running_loop()
        began, seen = loop.time(), [0.0]
        while seen[-1] < 32:
            seen.append((await service(stage))["upstreams"][0]["share"])
            if loop.time() - began < 1:
                assert seen[-1] < 20, "half of what is its own, and that after a second"
            assert loop.time() - began < 10
            await asyncio.sleep(0.1)
    assert not result.troubles()
    assert seen == sorted(seen)
    assert len(set(seen)) > 8, seen
    assert loop.time() - began > 3


# -- the daemon is killed in each phase ------------------------------------------------------------------


def raising(view: Json) -> bool:
    return any(s["step"] == "swap" and s["upstream"] == "b" for s in view["rollout"]["steps"])


def reverting(view: Json) -> bool:
    return bool(view["rollout"]["state"] == "reverting")


def warm(view: Json) -> bool:
    return view["rollout"]["state"] == "succeeded" and any(one["beside"] for one in view["upstreams"])


def retiring(view: Json) -> bool:
    return any(one["retiring"] for upstream in view["upstreams"] for one in upstream["beside"])


# By strategy: overrides, and where the daemon is killed, again and again.
JOURNEYS: dict[str, tuple[Json, list[Callable[[Json], bool]]]] = {
    "canary": (
        {**STEPS, "steps": [25, 50, {"percent": 100, "min_time": "3s"}], "keep_old": "6s"},
        [raising, at_stage(0), at_stage(1), at_stage(2), warm, retiring],
    ),
    "blue_green": ({"steps": [{"percent": 0, "gate": True}, 100]}, [raising, at_stage(0), warm]),
    "rainbow": ({"percent": 20}, [raising]),
}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("strategy", JOURNEYS)
async def test_killed_in_every_phase_it_goes_on(raise_stage: Raise, tmp_path: Path, strategy: str) -> None:
    overrides, phases = JOURNEYS[strategy]
    async with judged(raise_stage, tmp_path) as stage, load(stage.url, sockets=4, qps=25) as result:
        rollout = await begin(stage, "v2", strategy, **overrides)
        for reached in phases:
            view = await until(stage, reached)
            kill(stage)
            await asyncio.sleep(0.7)
            stage.start_daemon()
            await stage.wait_socket()
            if strategy == "blue_green" and view["rollout"]["stage"] == 0:
                await until(stage, lambda view: view["rollout"]["waits_for_promote"])
                await call(stage, "POST", f"/v1/rollouts/{rollout}/promote")
        view = await until(stage, lambda view: view["rollout"]["ended_at"] is not None)
        assert view["rollout"]["state"] == "succeeded", view["rollout"]["reason"]
        if strategy == "rainbow":
            assert share(view, "v2") == 20
        else:
            assert (view["stable"], round(share(view, "v2"))) == ("v2", 100)
        if strategy == "canary":
            await until(stage, lambda view: not any(one["beside"] for one in view["upstreams"]))
    assert not result.troubles()


@pytest.mark.slow
async def test_killed_while_a_bad_canary_is_taken_back_it_goes_on(raise_stage: Raise, tmp_path: Path) -> None:
    async with judged(raise_stage, tmp_path, swap_options=["bad=--answers 500"]) as stage, users(stage.public):
        await asyncio.sleep(1)
        await begin(stage, "bad2", "canary", **{**STEPS, "steps": [25]})
        await until(stage, reverting)
        kill(stage)
        await asyncio.sleep(0.5)
        stage.start_daemon()
        await stage.wait_socket()
        view = await until(stage, lambda view: view["rollout"]["ended_at"] is not None)
        assert view["rollout"]["state"] == "reverted"
        assert not any(one["beside"] for one in view["upstreams"])
        assert round(share(view, "v1")) == 100


def kill(stage: Stage) -> None:
    """kill -9, which leaves Caddy and the instances running."""
    assert stage.daemon is not None
    os.kill(stage.daemon.pid, signal.SIGKILL)
    stage.daemon.wait()
    stage.daemon = None
