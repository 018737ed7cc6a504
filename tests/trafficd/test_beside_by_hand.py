"""Instances beside the serving ones, and what people do by hand meanwhile; and what fails at a bad moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.model import InFlight
from tests.trafficd.conftest import Begin
from tests.trafficd.home import A, B, C, Home, section
from tests.trafficd.test_strategies import GATED, ROLLOUTS, SPARES, WEB, at_stage, new, rainbow, with_spares

SPARE = SPARES[0]


@pytest.fixture
async def beside(begin: Begin) -> Home:
    """Three upstreams with second addresses."""
    return await begin(web=with_spares(rollout={"keep_old": 60.0}))


async def succeeded(home: Home, version: str = "v2", **body: Any) -> None:
    ended = await home.ended(await home.deploy(version, **body))
    assert ended["state"] == "succeeded", ended["reason"]


def running_beside(home: Home) -> set[tuple[str, str]]:
    return {(one.version, one.dial) for _, one in home.engine.state.besides()}


# -- new instances that die --------------------------------------------------------------------------------


async def test_new_instances_that_are_all_down_are_no_version_to_flip_to(beside: Home) -> None:
    """Their traffic is with the old ones again, and a flip would take it from these."""
    steps = [{"percent": 100, "min_time": "300ms"}]
    rollout = await beside.deploy(strategy="blue_green", steps=steps)
    await beside.until(lambda: new(beside) == 100)
    beside.probe.dead |= dict.fromkeys(SPARES, "crashed")
    ended = await beside.ended(rollout)
    assert (ended["state"], "down" in ended["reason"]) == ("reverted", True)
    assert set(beside.pool.shares()) == {A, B, C}
    assert beside.engine.panic is None


async def test_a_step_does_not_end_while_a_new_instance_is_down(beside: Home) -> None:
    steps = [{"percent": 50, "min_time": "300ms"}]
    rollout = await beside.deploy(
        strategy="canary", steps=steps, on_inconclusive="promote", step_max_time="300ms", healthy_deadline="10s"
    )
    await beside.until(lambda: new(beside) == 50)
    beside.probe.dead[SPARE] = "crashed"
    await beside.until(lambda: SPARE not in beside.pool.shares())
    await asyncio.sleep(0.6)
    view = (await beside.get(f"/v1/rollouts/{rollout}")).json
    assert view["stage"] == 0
    assert SPARE in view["waits"][0]["what"]
    beside.probe.dead.clear()
    assert (await beside.ended(rollout))["state"] == "succeeded"


async def test_a_new_instance_that_stays_down_gives_the_rollout_up(beside: Home) -> None:
    steps = [{"percent": 50, "min_time": "200ms"}]
    rollout = await beside.deploy(strategy="canary", steps=steps, on_inconclusive="promote", step_max_time="200ms")
    await beside.until(lambda: new(beside) == 50)
    beside.probe.dead[SPARE] = "crashed"
    ended = await beside.ended(rollout)
    assert (ended["state"], SPARE in ended["reason"]) == ("reverted", True)


# -- drain and ready ---------------------------------------------------------------------------------------


async def test_a_drain_waits_for_what_is_open_beside_as_well(beside: Home) -> None:
    await rainbow(beside)
    beside.pool.open[SPARE] = InFlight(2, 1)
    answer = await beside.post(f"{WEB}/upstreams/a/drain", {"timeout": 0.05})
    assert SPARE not in beside.pool.shares()
    assert (answer.json["drained"], answer.json["in_flight"], answer.json["cut"]) == (
        False,
        3,
        {"requests": 2, "streams": 1},
    )
    assert (await beside.post(f"{WEB}/upstreams/a/drain", {"wait": False})).json["in_flight"] == 3
    beside.pool.open.clear()
    assert (await beside.post(f"{WEB}/upstreams/a/drain")).json["drained"]


async def test_ready_of_a_new_version_does_not_rename_what_serves_in_a_canary(beside: Home) -> None:
    """As an external driver says it a second time, or an operator who is in doubt."""
    rollout = await beside.deploy(strategy="canary", steps=GATED)
    await at_stage(beside, rollout, 0)
    again = await beside.post(f"{WEB}/upstreams/a/ready", {"version": "v2"})
    assert again.status == 200, again
    other = await beside.post(f"{WEB}/upstreams/a/ready", {"version": "v9"})
    assert (other.status, rollout in other.detail) == (409, True)
    assert (await beside.upstream("a"))["version"] == "v1"
    assert new(beside) == 5


async def test_ready_at_the_address_of_a_warm_instance_makes_it_the_serving_one(beside: Home) -> None:
    await succeeded(beside, strategy="blue_green", keep_old=0.4)
    answer = await beside.post(f"{WEB}/upstreams/a/ready", {"version": "v1", "dial": A})
    assert answer.status == 200, answer
    await beside.until(lambda: not running_beside(beside))
    assert not beside.engine.trouble.lines()
    assert beside.engine.state.upstreams["a"].serving == A
    assert ("retire", A) not in {(swap.action, swap.dial) for swap in beside.driver.swaps}


# -- retirement --------------------------------------------------------------------------------------------


async def test_an_instance_that_could_not_be_stopped_is_told_of_until_its_place_is_used_again(beside: Home) -> None:
    beside.driver.fails["v1"] = "broken"
    await succeeded(beside, strategy="blue_green", keep_old=0)
    await beside.until(lambda: not running_beside(beside))
    assert len([line for line in beside.engine.trouble.lines() if "stop it by hand" in line]) == 3
    beside.driver.fails.clear()
    await succeeded(beside, "v3", strategy="blue_green", keep_old=0)
    await beside.until(lambda: not running_beside(beside))
    assert not beside.engine.trouble.lines()


async def test_instances_of_one_upstream_are_retired_one_after_the_other(beside: Home) -> None:
    """Two commands for one upstream at once are refused by whoever runs them."""
    await rainbow(beside)
    beside.driver.names = {name: f"10.0.0.{n}:82" for n, name in enumerate("abc", 1)}
    await succeeded(beside, "v3", strategy="rainbow", percent=10)
    beside.driver.names = {}
    beside.driver.wait = asyncio.Event()
    beside.driver.swaps.clear()
    for version in ("v2", "v3"):
        assert (await beside.post(f"{WEB}/retire", {"version": version})).status == 200
    await beside.until(lambda: len(beside.driver.swaps) >= 3)
    await asyncio.sleep(0.1)
    assert sorted(swap.upstream for swap in beside.driver.swaps) == ["a", "b", "c"]
    beside.driver.wait.set()
    await beside.until(lambda: not running_beside(beside))
    assert len(beside.driver.swaps) == 6


async def test_a_new_instance_that_cannot_be_stopped_leaves_nothing_stuck(beside: Home) -> None:
    """The old version serves all the time: nobody has to repair anything before the next rollout."""
    rollout = await beside.deploy(strategy="canary", steps=GATED)
    await at_stage(beside, rollout, 0)
    beside.driver.fails["v2"] = "broken"
    await beside.post(f"/v1/rollouts/{rollout}/abort")
    ended = await beside.ended(rollout)
    assert ended["state"] == "failed"
    assert all(spare in ended["reason"] for spare in SPARES), "it is said where something may still run"
    assert [swap.action for swap in beside.driver.swaps].count("retire") == 3, "the others are stopped all the same"
    assert not running_beside(beside)
    await succeeded(beside, "v3", strategy="blue_green")


async def test_a_warm_version_that_was_not_gone_back_to_is_retired_in_its_time(beside: Home) -> None:
    await succeeded(beside, strategy="blue_green", keep_old=0.6)
    back = await beside.deploy("v1", strategy="canary", steps=GATED)
    await at_stage(beside, back, 0)
    await beside.post(f"/v1/rollouts/{back}/abort")
    await beside.ended(back)
    assert running_beside(beside) == {("v1", A), ("v1", B), ("v1", C)}
    await beside.until(lambda: not running_beside(beside))


async def test_new_instances_that_nobody_wanted_stopped_are_named_to_whoever_deploys_next(beside: Home) -> None:
    rollout = await beside.deploy(strategy="canary", steps=GATED)
    await at_stage(beside, rollout, 0)
    await beside.post(f"/v1/rollouts/{rollout}/abort", {"revert": False})
    await beside.ended(rollout)
    assert {version for version, _ in running_beside(beside)} == {"v2"}
    ended = await beside.ended(await beside.deploy("v3", strategy="canary", steps=GATED))
    assert "trafficd retire web v2" in ended["reason"]
    assert (await beside.post(f"{WEB}/retire", {"version": "v2"})).status == 200
    await beside.until(lambda: not running_beside(beside))


async def test_a_driver_that_names_the_address_of_an_instance_beside_is_not_believed(beside: Home) -> None:
    await rainbow(beside)
    beside.driver.names = {"a": SPARE}
    ended = await beside.ended(await beside.deploy("v3", strategy="rainbow", percent=10))
    assert (ended["state"], SPARE in ended["reason"], "v2" in ended["reason"]) == ("reverted", True, True)
    assert ("v2", SPARE) in running_beside(beside)


# -- versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["rolling", "hold"])
async def test_a_version_beside_that_is_rolled_out_in_place_is_beside_no_more(beside: Home, strategy: str) -> None:
    await rainbow(beside)
    await succeeded(beside, strategy=strategy)
    await beside.until(lambda: not running_beside(beside))
    view = (await beside.get(WEB)).json
    assert (view["stable"], view["shares"]) == ("v2", {})
    assert set(beside.pool.shares()) == {A, B, C}


async def test_the_stable_version_has_no_share_of_its_own(beside: Home) -> None:
    answer = await beside.post(ROLLOUTS, {"version": "v1", "strategy": "rainbow", "percent": 10})
    assert (answer.status, "stable version" in answer.detail) == (409, True)


async def test_shares_of_rainbows_leave_something_to_the_stable_version(beside: Home) -> None:
    await rainbow(beside, 60)
    beside.driver.names = {name: f"10.0.0.{n}:82" for n, name in enumerate("abc", 1)}
    answer = await beside.post(ROLLOUTS, {"version": "v3", "strategy": "rainbow", "percent": 50})
    assert (answer.status, "60 %" in answer.detail) == (409, True)
    await succeeded(beside, "v3", strategy="rainbow", percent=40)


async def test_a_share_goes_with_the_last_instance_that_had_it(beside: Home) -> None:
    """Or the next instance of that version would have traffic before anybody has looked at it."""
    await rainbow(beside)
    for name in "ab":
        assert (await beside.ask("DELETE", f"{WEB}/upstreams/{name}")).status == 200
    assert (await beside.get(WEB)).json["shares"] == {"v2": 20}
    for u, d in (("d", "10.0.0.4:80"), ("e", "10.0.0.5:80")):
        await beside.post(f"{WEB}/upstreams", {"id": u, "dial": d, "version": "v1"})
    assert (await beside.ask("DELETE", f"{WEB}/upstreams/c")).status in (200, 409)
    await beside.until(lambda: beside.engine.world().up("d"))
    await beside.ask("DELETE", f"{WEB}/upstreams/c?force=true")
    assert (await beside.get(WEB)).json["shares"] == {}


async def test_what_an_upstream_itself_runs_is_not_retired(begin: Begin) -> None:
    home = await begin(web=section("v1", "v1", "v2"))
    answer = await home.post(f"{WEB}/retire", {"version": "v2"})
    assert (answer.status, "trafficd drain web c" in answer.detail) == (409, True)


async def test_a_rollback_tells_of_a_version_only_beside(beside: Home) -> None:
    await rainbow(beside)
    answer = await beside.post(f"{WEB}/rollback")
    assert answer.status == 409
    assert "no version before" in answer.detail


# -- queue -------------------------------------------------------------------------------------------------


async def test_a_canary_does_not_inherit_a_take_over(beside: Home) -> None:
    beside.driver.wait = asyncio.Event()
    await beside.deploy()
    await beside.until(lambda: beside.driver.swaps)
    await beside.deploy("v3", if_live="supersede")
    answer = await beside.post(ROLLOUTS, {"version": "v4", "strategy": "canary", "steps": GATED, "if_live": "queue"})
    assert answer.status == 409, answer
    beside.driver.wait.set()


async def test_a_canary_that_waited_does_not_begin_beside_two_versions(beside: Home) -> None:
    beside.driver.wait = asyncio.Event()
    first = await beside.deploy()
    await beside.until(lambda: beside.driver.swaps)
    second = await beside.deploy("v3", strategy="canary", steps=GATED, if_live="queue")
    beside.driver.fails["v1"] = "broken"
    beside.probe.dead[B] = "dead"
    beside.driver.wait.set()
    assert (await beside.ended(first))["state"] == "stuck"
    assert (await beside.post(f"/v1/rollouts/{second}/resume")).status == 200
    await beside.until(lambda: beside.engine.state.pending is None)
    view = (await beside.get(f"/v1/rollouts/{second}")).json
    assert (view["state"], "beside" in view["reason"]) == ("failed", True)


async def test_pause_and_abort_of_a_canary_behind_a_rollback(beside: Home) -> None:
    await succeeded(beside, strategy="blue_green")
    back = await beside.post(f"{WEB}/rollback")
    queued = await beside.deploy("v3", strategy="canary", steps=GATED, if_live="queue")
    await beside.until(lambda: beside.engine.state.live is None or beside.engine.state.live.id == queued)
    assert (await beside.get(f"/v1/rollouts/{back.json['id']}")).json["state"] == "succeeded"
    await at_stage(beside, queued, 0)
    await beside.post(f"/v1/rollouts/{queued}/abort")
    assert (await beside.ended(queued))["state"] == "reverted"
