"""Groups of upstreams, as they are asked for and shown; and one slow host in a batch."""

from __future__ import annotations

import asyncio

import pytest

from tests.trafficd.conftest import Begin
from tests.trafficd.home import Home, Json, section
from trafficd.config import ServiceSection
from trafficd.show import service as shown

WEB = "/v1/services/web"
UPSTREAMS = f"{WEB}/upstreams"
ROLLOUTS = f"{WEB}/rollouts"


def zoned(*groups: str | None, **rollout: object) -> ServiceSection:
    """Upstreams a, b, c, ... of these groups."""
    upstreams: list[Json] = [
        {"id": chr(ord("a") + index), "dial": f"10.0.0.{index + 1}:80", "version": "v1", "group": group}
        for index, group in enumerate(groups)
    ]
    return section(upstreams=upstreams, rollout={"min_ready": 0, **rollout})


@pytest.fixture
async def home(begin: Begin) -> Home:
    """Two upstreams a and b in zone x, c in zone y, d in none."""
    return await begin(web=zoned("x", "x", "y", None))


def drain(name: str) -> str:
    return f"{UPSTREAMS}/{name}/drain"


async def test_a_group_is_shown(home: Home) -> None:
    assert [(await home.upstream(name))["group"] for name in "acd"] == ["x", "y", None]
    assert "GROUP" in shown((await home.get(WEB)).json)


async def test_where_nobody_has_a_group_there_is_no_column(begin: Begin) -> None:
    home = await begin()
    assert "GROUP" not in shown((await home.get(WEB)).json)


async def test_an_upstream_is_added_with_its_group_and_keeps_it(home: Home) -> None:
    body = {"id": "e", "dial": "10.0.0.5:80", "version": "v1", "group": "zone-c"}
    assert (await home.post(UPSTREAMS, body)).json["group"] == "zone-c"
    assert (await home.post(UPSTREAMS, body)).status == 201, "again is no change"
    assert (await home.post(UPSTREAMS, body | {"group": "zone-d"})).status == 409
    await home.restart()
    assert (await home.upstream("e"))["group"] == "zone-c"


@pytest.mark.parametrize("group", ["", "a b", "x/y", 3])
async def test_a_group_that_is_no_name(home: Home, group: object) -> None:
    answer = await home.post(UPSTREAMS, {"id": "e", "dial": "10.0.0.5:80", "group": group})
    assert answer.status == 422, answer


async def test_a_second_group_is_drained_by_force_only(home: Home) -> None:
    assert (await home.post(drain("a"))).status == 200
    assert (await home.post(drain("b"))).status == 200, "it is of the same group"
    refused = await home.post(drain("c"))
    assert refused.status == 409
    assert "of group x has no traffic or is being replaced, and nothing of group y" in refused.detail
    assert "force" in refused.detail
    assert (await home.ask("DELETE", f"{UPSTREAMS}/c")).status == 409
    assert not (await home.upstream("c"))["drained"]
    assert (await home.post(drain("c"), {"force": True})).status == 200
    assert (await home.ask("DELETE", f"{UPSTREAMS}/b")).status == 200, "it has no traffic to lose"


async def test_what_has_no_group_is_drained_at_any_time(home: Home) -> None:
    assert [(await home.post(drain(name))).status for name in "ad"] == [200, 200]


async def test_a_drain_beside_the_turn_of_another_group_is_refused(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    rollout = await home.deploy()
    await home.until(lambda: home.driver.swaps)
    refused = await home.post(drain("c"))
    assert (refused.status, "a of group x" in refused.detail) == (409, True)
    home.driver.wait.set()
    assert (await home.ended(rollout))["state"] == "succeeded"


async def test_a_rollout_beside_a_drained_group_is_refused_at_once(home: Home) -> None:
    await home.post(drain("c"))
    refused = await home.post(ROLLOUTS, {"version": "v2"})
    assert refused.status == 409
    assert "c of group y is drained, and nothing of x is taken out of traffic" in refused.detail
    assert (await home.post(f"{UPSTREAMS}/c/ready")).status == 200
    assert (await home.ended(await home.deploy()))["state"] == "succeeded"


async def test_a_rollout_that_waits_for_another_group_says_so(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    rollout = await home.deploy(max_parallel=1, healthy_deadline="20s")
    await home.until(lambda: home.driver.swaps)
    await home.post(drain("d"))
    await home.post(drain("b"))  # of the group in work: that is allowed
    home.driver.wait.set()
    await home.until(lambda: [w.what for w in home.engine.waits if "b to have traffic again" in w.what])
    assert [swap.upstream for swap in home.driver.swaps] == ["a", "b", "d"]
    assert (await home.post(f"{UPSTREAMS}/b/ready")).status == 200
    assert (await home.ended(rollout))["state"] == "succeeded"
    assert home.driver.swaps[-1].upstream == "c"


async def test_one_slow_host_holds_up_no_other(begin: Begin) -> None:
    home = await begin(web=zoned(*[None] * 8))
    home.driver.slow["b"] = asyncio.Event()
    rollout = await home.deploy(max_parallel=3)
    await home.until(lambda: sum(u.version == "v2" for u in home.engine.state.upstreams.values()) == 7)
    live = home.engine.state.live
    assert live is not None
    await home.until(lambda: home.engine.state.live and len(home.engine.state.live.running_steps()) == 1)
    assert {name for name, task in live.forward.items() if not task.over} <= {"b", "g", "h"}
    home.driver.slow["b"].set()
    assert (await home.ended(rollout))["state"] == "succeeded"
