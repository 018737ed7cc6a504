"""The strategies over the API: what is asked, what is refused and why, and what people see."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trafficd.conftest import Begin
from tests.trafficd.home import A, Home, section
from trafficd.config import ServiceSection

WEB = "/v1/services/web"
ROLLOUTS = f"{WEB}/rollouts"
SPARES = tuple(f"10.0.0.{number}:81" for number in (1, 2, 3))
GATED = [{"percent": 5, "gate": True}, {"percent": 50, "gate": True}]


def with_spares(**changes: Any) -> ServiceSection:
    upstreams = [
        {"id": name, "dial": f"10.0.0.{n}:80", "spare_dial": f"10.0.0.{n}:81", "version": "v1"}
        for n, name in enumerate("abc", 1)
    ]
    swap = {"driver": "command", "command": ["replace"], "retire": ["stop"]}
    return section(**({"upstreams": upstreams, "swap": swap} | changes))


@pytest.fixture
async def beside(begin: Begin) -> Home:
    """Three upstreams with second addresses."""
    pins = {"blue": {"header": "X-Blue", "values": ["1"]}}
    return await begin(web=with_spares(pins=pins, rollout={"keep_old": 60.0}))


async def at_stage(home: Home, rollout: str, number: int) -> dict[str, Any]:
    await home.until(lambda: home.engine.state.live and home.engine.state.live.stage == number)
    return (await home.get(f"/v1/rollouts/{rollout}")).json


def new(home: Home) -> float:
    """The share of the instances at the second addresses, in percent."""
    shares = home.pool.shares()
    return 100 * sum(shares.get(dial, 0) for dial in SPARES) / sum(shares.values())


async def test_a_canary_goes_from_gate_to_gate_and_back(beside: Home) -> None:
    rollout = await beside.deploy(strategy="canary", steps=GATED)
    view = await at_stage(beside, rollout, 0)
    assert [one["percent"] for one in view["stages"]] == [5, 50, 100]
    assert (view["stage"], view["waits_for_promote"], new(beside)) == (0, True, 5)
    assert "trafficd promote" in view["waits"][0]["what"]
    service = (await beside.get(WEB)).json
    assert service["shares"] == {"v2": 5}
    assert [one["version"] for upstream in service["upstreams"] for one in upstream["beside"]] == ["v2"] * 3
    await beside.post(f"/v1/rollouts/{rollout}/promote", {"gate": 0})
    await at_stage(beside, rollout, 1)
    assert new(beside) == 50
    assert (await beside.post(f"/v1/rollouts/{rollout}/abort")).status == 200
    assert new(beside) == 0
    ended = await beside.ended(rollout)
    assert ended["state"] == "reverted"
    assert [swap.action for swap in beside.driver.swaps].count("retire") == 3


async def test_two_operators_who_promote_the_same_gate_pass_one(beside: Home) -> None:
    rollout = await beside.deploy(strategy="canary", steps=GATED)
    await at_stage(beside, rollout, 0)
    for _ in range(2):
        assert (await beside.post(f"/v1/rollouts/{rollout}/promote", {"gate": 0})).status == 200
    await at_stage(beside, rollout, 1)
    assert new(beside) == 50
    nothing_waits = await beside.post(f"/v1/rollouts/{rollout}/promote", {"gate": 0})
    assert nothing_waits.status == 200
    assert new(beside) == 50
    late = await beside.post(f"/v1/rollouts/{rollout}/promote", {"gate": 7})
    assert (late.status, "does not wait at its step 8" in late.detail) == (409, True)


async def test_a_promote_where_no_gate_waits_gives_everything(beside: Home) -> None:
    rollout = await beside.deploy(strategy="canary", steps=[5, 50])
    await at_stage(beside, rollout, 0)
    assert (await beside.post(f"/v1/rollouts/{rollout}/promote")).status == 200
    assert (await beside.ended(rollout))["state"] == "succeeded"
    assert new(beside) == 100
    warm = (await beside.get(WEB)).json["upstreams"][0]["beside"][0]
    assert (warm["version"], warm["dial"], warm["share"]) == ("v1", A, 0)
    assert warm["keep_until"] is not None


async def test_where_there_are_gates_all_traffic_has_to_be_asked_for_by_name(beside: Home) -> None:
    rollout = await beside.deploy(strategy="canary", steps=[5, {"percent": 50, "gate": True}])
    await at_stage(beside, rollout, 0)
    answer = await beside.post(f"/v1/rollouts/{rollout}/promote")
    assert (answer.status, "--all" in answer.detail, new(beside)) == (409, True, 5)
    assert (await beside.post(f"/v1/rollouts/{rollout}/promote", {"all": True})).status == 200
    assert (await beside.ended(rollout))["state"] == "succeeded"


async def test_a_rollback_to_a_warm_version_swaps_nothing(beside: Home) -> None:
    rollout = await beside.deploy(strategy="blue_green")
    assert (await beside.ended(rollout))["state"] == "succeeded"
    before = len(beside.driver.swaps)
    back = await beside.post(f"{WEB}/rollback")
    assert back.status == 201
    assert (await beside.ended(back.json["id"]))["state"] == "succeeded"
    assert (len(beside.driver.swaps), new(beside)) == (before, 0)


async def test_the_share_of_a_canary_may_be_set_by_hand_in_between(beside: Home) -> None:
    rollout = await beside.deploy(strategy="canary", steps=GATED)
    await at_stage(beside, rollout, 0)
    assert (await beside.ask("PUT", f"{WEB}/canary", {"percent": 10})).json["shares"] == {"v2": 10}
    assert new(beside) == 10


async def test_what_is_begun_survives_a_restart(beside: Home) -> None:
    rollout = await beside.deploy(strategy="canary", steps=GATED)
    await at_stage(beside, rollout, 0)
    await beside.restart()
    view = (await beside.get(f"/v1/rollouts/{rollout}")).json
    assert (view["stage"], view["waits_for_promote"]) == (0, True)
    await beside.until(lambda: new(beside) == 5)


async def test_a_queued_canary_keeps_its_steps(beside: Home) -> None:
    first = await beside.deploy(strategy="canary", steps=GATED)
    await at_stage(beside, first, 0)
    second = await beside.deploy("v3", strategy="canary", steps="1, 10:gate", if_live="queue")
    (queued,) = await beside.journalled("rollout_queued")
    assert isinstance(queued["data"]["overrides"]["steps"], str)
    await beside.post(f"/v1/rollouts/{first}/abort")
    await beside.until(lambda: beside.engine.state.live and beside.engine.state.live.id == second)
    view = (await beside.get(f"/v1/rollouts/{second}")).json
    assert [(one["percent"], one["gate"]) for one in view["stages"]] == [(1, False), (10, True), (100, False)]


# -- rainbow -------------------------------------------------------------------------------------------


async def rainbow(home: Home, percent: float = 20) -> None:
    rollout = await home.deploy(strategy="rainbow", percent=percent)
    assert (await home.ended(rollout))["state"] == "succeeded"


async def test_a_version_with_a_share_of_its_own(beside: Home) -> None:
    await rainbow(beside)
    assert new(beside) == 20
    assert (await beside.ask("PUT", f"{WEB}/shares", {"version": "v2", "percent": 30})).json["shares"] == {"v2": 30}
    assert new(beside) == 30
    pinned = await beside.ask("PUT", f"{WEB}/pins/blue", {"version": "v2"})
    assert pinned.json["pins"] == {"blue": "v2"}
    assert set(beside.pool.pins["blue"]) == set(SPARES)
    stable = await beside.ask("PUT", f"{WEB}/pins/blue", {"version": "v1"})
    assert stable.json["pins"] == {"blue": "v1"}
    assert not set(beside.pool.pins["blue"]) & set(SPARES)
    await beside.ask("PUT", f"{WEB}/pins/blue", {"version": "v2"})
    gone = await beside.post(f"{WEB}/retire", {"version": "v2"})
    assert (gone.json["shares"], gone.json["pins"], new(beside)) == ({}, {}, 0)
    await beside.until(lambda: not list(beside.engine.state.besides()))
    assert [swap.action for swap in beside.driver.swaps].count("retire") == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("PUT", "/shares", {"version": "v2", "percent": 101}, 422, "percent"),
        ("PUT", "/shares", {"version": "v2", "percent": 0.5}, 422, "less than one of 100 slots"),
        ("PUT", "/shares", {"version": "v9", "percent": 5}, 409, "does not run beside"),
        ("PUT", "/shares", {"version": "v1", "percent": 5}, 409, "is the stable version"),
        ("POST", "/retire", {"version": "v1"}, 409, "is the stable version"),
        ("POST", "/retire", {"version": "v9"}, 409, "--strategy rainbow"),
        ("PUT", "/pins/green", {"version": "v2"}, 404, "[services.web.pins.green]"),
        ("PUT", "/pins/blue", {"version": "v9"}, 409, "does not run beside"),
    ],
)
async def test_what_cannot_be_is_refused_with_a_remedy(
    beside: Home, method: str, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    await rainbow(beside)
    answer = await beside.ask(method, WEB + path, body)
    assert answer.status == status
    assert said in str(answer.json), answer.json
    assert new(beside) == 20


# -- what is refused at once ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"strategy": "canary", "steps": []}, "at least one step"),
        ({"strategy": "canary", "steps": [5, 5]}, "larger than the one before"),
        ({"strategy": "canary", "steps": [50, 5]}, "larger than the one before"),
        ({"strategy": "canary", "steps": [0, 5]}, "needs gate = true"),
        ({"strategy": "canary", "steps": [0.5]}, "less than one of 100 slots"),
        ({"strategy": "canary", "steps": [101]}, "steps"),
        ({"strategy": "canary", "steps": [True]}, "steps"),
        ({"strategy": "canary", "steps": ["5"]}, "steps"),
        ({"strategy": "canary", "steps": [[5]]}, "steps"),
        ({"strategy": "canary", "steps": [{"percent": 5, "minimum": 3}]}, "no such key"),
        ({"strategy": "canary", "steps": "5, x"}, "is no list of steps"),
        ({"strategy": "canary", "steps": "5:door"}, "is no list of steps"),
        ({"strategy": "canary", "steps": [True]}, "True is no step; write a percentage"),
        ({"strategy": "canary", "steps": list(range(1, 200))}, "steps"),
        ({"strategy": "canary", "on_inconclusive": "guess"}, "on_inconclusive"),
        ({"strategy": "blue_green", "steps": [50]}, "flips at once"),
        ({"strategy": "rainbow"}, "percent"),
        ({"strategy": "rainbow", "percent": 0.1}, "less than one of 100 slots"),
        ({"strategy": "canary", "step_min_time": "soon"}, "step_min_time"),
    ],
)
async def test_steps_that_cannot_be_are_a_422_that_says_why(beside: Home, body: dict[str, Any], said: str) -> None:
    answer = await beside.post(ROLLOUTS, {"version": "v2", **body})
    assert answer.status == 422
    assert said in str(answer.json), answer.json
    assert beside.engine.state.rollout is None


async def test_a_canary_takes_over_from_nobody_and_nobody_from_it(beside: Home) -> None:
    rollout = await beside.deploy(strategy="canary", steps=GATED)
    await at_stage(beside, rollout, 0)
    for body in ({"strategy": "canary"}, {}):
        answer = await beside.post(ROLLOUTS, {"version": "v3", "if_live": "supersede", **body})
        assert answer.status in (409, 422)
        assert "queue" in answer.detail


async def test_a_rolling_rollout_has_nothing_to_promote(beside: Home) -> None:
    rollout = await beside.deploy(min_healthy_time=1)
    answer = await beside.post(f"/v1/rollouts/{rollout}/promote")
    assert (answer.status, "no share to promote" in answer.detail) == (409, True)


async def test_workers_have_no_traffic_to_share(begin: Begin) -> None:
    jobs = ServiceSection.model_validate(
        {
            "route": "none",
            "upstreams": [{"id": "a", "version": "v1"}, {"id": "b", "version": "v1"}],
            "health": {"command": ["check"], "interval": 0.05},
        }
    )
    home = await begin(jobs=jobs)
    for strategy in ("canary", "blue_green", "hold"):
        answer = await home.post("/v1/services/jobs/rollouts", {"version": "v2", "strategy": strategy})
        assert (answer.status, "workers" in answer.detail) == (422, True)


async def test_a_canary_needs_one_stable_version(beside: Home) -> None:
    beside.probe.dead["10.0.0.2:80"] = "dead"
    beside.driver.fails["v1"] = "broken"
    assert (await beside.ended(await beside.deploy()))["state"] == "stuck"
    answer = await beside.post(ROLLOUTS, {"version": "v3", "strategy": "canary", "steps": GATED})
    assert (answer.status, "serves v2 beside v1" in answer.detail) == (409, True)
    assert "trafficd rollback web" in answer.detail
