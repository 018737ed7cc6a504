"""Drain, ready, upstreams and shares: what people ask of a service, alone, twice, and against each other."""

from __future__ import annotations

import asyncio

import pytest

from proxy.model import InFlight
from tests.trafficd.conftest import Begin
from tests.trafficd.fakes import FlakyJournal
from tests.trafficd.home import A, B, C, Home, section

WEB = "/v1/services/web"
UPSTREAMS = f"{WEB}/upstreams"


def drain(name: str) -> str:
    return f"{UPSTREAMS}/{name}/drain"


def ready(name: str) -> str:
    return f"{UPSTREAMS}/{name}/ready"


# -- drain -------------------------------------------------------------------------------------------------


async def test_drain_shifts_and_waits_for_nothing_open(home: Home) -> None:
    home.pool.open[A] = InFlight(1, 0)
    asking = asyncio.create_task(home.post(drain("a"), {"timeout": "5s"}))
    await home.until(lambda: A not in home.pool.shares())
    await asyncio.sleep(0.05)
    assert not asking.done()
    home.pool.open[A] = InFlight(0, 0)
    answer = await asking
    assert (answer.status, answer.json) == (
        200,
        {"drained": True, "in_flight": 0, "cut": {"requests": 0, "streams": 0}},
    )
    assert home.pool.shares() == {B: 50, C: 50}


async def test_draining_again_changes_nothing(home: Home) -> None:
    first = await home.post(drain("a"))
    events, shifts = await home.journalled("drain_requested"), len(home.pool.shifts)
    again = await home.post(drain("a"))
    assert again.json == first.json
    assert await home.journalled("drain_requested") == events
    assert len(home.pool.shifts) == shifts
    assert len(await home.journalled("drain_ended")) == 1


async def test_at_the_timeout_what_was_open_is_counted(home: Home) -> None:
    home.pool.open[A] = InFlight(3, 2)
    answer = await home.post(drain("a"), {"timeout": 0.05})
    assert (answer.status, answer.json) == (
        200,
        {"drained": False, "in_flight": 5, "cut": {"requests": 3, "streams": 2}},
    )
    assert (await home.journalled("drain_ended"))[0]["data"]["cut"] == {"requests": 3, "streams": 2}


@pytest.mark.parametrize("raises", [True, False])
async def test_what_cannot_be_counted_is_not_drained(home: Home, raises: bool) -> None:
    home.pool.open[A] = None
    home.pool.uncounted = "connection refused" if raises else ""
    answer = await home.post(drain("a"), {"timeout": "20ms"})
    assert (answer.status, answer.json["title"]) == (503, "Proxy not available")
    assert "admin API" in answer.detail
    assert not await home.journalled("drain_ended")
    assert A not in home.pool.shares()
    home.pool.open[A], home.pool.uncounted = InFlight(0, 0), ""
    assert (await home.post(drain("a"))).json["drained"]


async def test_drain_without_waiting_says_what_is_open(home: Home) -> None:
    home.pool.open[A] = InFlight(2, 0)
    answer = await home.post(drain("a"), {"wait": False})
    assert answer.json == {"drained": False, "in_flight": 2, "cut": {"requests": 0, "streams": 0}}
    home.pool.open[B] = None
    assert (await home.post(drain("b"), {"wait": False})).json["in_flight"] is None
    assert home.pool.shares() == {C: 100}


async def test_the_last_ready_upstream_is_drained_by_force_only(home: Home) -> None:
    home.probe.dead = {B: "refused", C: "refused"}
    await home.until(lambda: home.pool.shares() == {A: 100})
    refused = await home.post(drain("a"))
    assert (refused.status, refused.json["title"]) == (409, "Refused")
    assert "force" in refused.detail
    assert home.pool.shares() == {A: 100}
    assert (await home.post(drain("a"), {"force": True})).json["drained"]
    assert home.pool.shifts[-1] != {A: 100}


async def test_when_all_look_dead_the_last_one_with_traffic_is_the_last(home: Home) -> None:
    home.probe.dead = dict.fromkeys((A, B, C), "the health check is broken")
    for name in "abc":  # all in one moment, or the routing would still follow the first two
        home.engine.monitor._fold(name, "the health check is broken")
    await home.until(lambda: home.engine.panic)
    assert [(await home.post(drain(name))).status for name in "abc"] == [200, 200, 409]
    assert home.pool.shares() == {C: 100}


async def test_while_held_the_last_one_is_the_last_too(home: Home) -> None:
    assert (await home.post(f"{WEB}/hold")).json["held"]
    assert [(await home.post(drain(name))).status for name in "abc"] == [200, 200, 409]
    await home.post(f"{WEB}/release")
    assert home.pool.shares() == {C: 100}


@pytest.mark.parametrize("slow", [True, False])
async def test_two_operators_cannot_drain_the_last_two(begin: Begin, slow: bool) -> None:
    home = await begin(web=section("v1", "v1"))
    if slow:
        _slow_for(home.journal, 0.05)
    answers = await asyncio.gather(home.post(drain("a")), home.post(drain("b")))
    assert sorted(answer.status for answer in answers) == [200, 409]
    assert len(home.pool.shares()) == 1


def _slow_for(journal: FlakyJournal, seconds: float) -> None:
    journal.slow = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, journal.slow.set)


async def test_two_drains_of_one_upstream_at_once_are_one(home: Home) -> None:
    _slow_for(home.journal, 0.05)
    answers = await asyncio.gather(home.post(drain("a")), home.post(drain("a")))
    assert [answer.json["drained"] for answer in answers] == [True, True]
    assert len(await home.journalled("drain_requested")) == 1


async def test_a_drain_that_a_ready_overtakes_does_not_say_drained(home: Home) -> None:
    home.pool.open[A] = InFlight(1, 0)
    draining = asyncio.create_task(home.post(drain("a"), {"timeout": "150ms"}))
    await home.until(lambda: home.engine.state.upstreams["a"].drained)
    assert (await home.post(ready("a"))).status == 200
    answer = await draining
    assert (answer.status, "made ready again" in answer.detail) == (409, True)


async def test_a_caller_that_hangs_up_does_not_cancel_the_work(home: Home) -> None:
    home.pool.open[A] = InFlight(1, 0)
    _, writer = await asyncio.open_unix_connection(str(home.socket))
    writer.write(b"POST " + drain("a").encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    await home.until(lambda: home.engine.state.upstreams["a"].drained)
    writer.transport.abort()
    await asyncio.sleep(0.05)
    home.pool.open[A] = InFlight(0, 0)
    for _ in range(100):
        if ended := await home.journalled("drain_ended"):
            break
        await asyncio.sleep(0.01)
    assert ended[0]["data"]["drained"] is True


async def test_a_drain_that_cannot_be_routed_is_no_drain(home: Home) -> None:
    home.pool.broken = "read-only file system"
    answer = await home.post(drain("a"))
    assert (answer.status, "read-only" in answer.detail) == (503, True)
    home.pool.broken = ""
    assert (await home.post(drain("a"))).json["drained"]
    assert A not in home.pool.shares()


async def test_drain_and_removal_survive_a_restart(home: Home) -> None:
    await home.post(drain("a"))
    await home.ask("DELETE", f"{UPSTREAMS}/b")
    await home.post(UPSTREAMS, {"id": "d", "dial": "10.0.0.4:80", "version": "v1"})
    await home.restart()
    assert set(home.engine.state.upstreams) == {"a", "c", "d"}
    assert home.engine.state.upstreams["a"].drained
    await home.until(lambda: set(home.pool.shares()) == {C, "10.0.0.4:80"})


# -- ready -------------------------------------------------------------------------------------------------


async def test_ready_again_changes_nothing(home: Home) -> None:
    before = (await home.get("/v1/events")).json["events"]
    for body in ({}, {"version": "v1"}, {"dial": A}):
        answer = await home.post(ready("a"), body)
        assert (answer.status, answer.json["ready"]) == (200, True)
    assert (await home.get("/v1/events")).json["events"] == before


async def test_two_readys_at_once_are_one(home: Home) -> None:
    await home.post(drain("a"))
    answers = await asyncio.gather(*(home.post(ready("a"), {"version": "v1"}) for _ in range(3)))
    assert [answer.json["ready"] for answer in answers] == [True] * 3
    assert len(await home.journalled("ready_requested")) == 1


async def test_ready_brings_a_drained_upstream_back(home: Home) -> None:
    await home.post(drain("a"))
    answer = await home.post(ready("a"))
    assert (answer.json["ready"], answer.json["weight"] > 0) == (True, True)
    assert home.pool.shares()[A] > 0


async def test_what_was_replaced_passes_the_whole_gate(begin: Begin) -> None:
    home = await begin(web=section(rollout={"min_healthy_time": 0.2}))
    await home.post(drain("a"))
    asking = asyncio.create_task(home.post(ready("a"), {"version": "v1", "dial": "10.0.0.9:80"}))
    await home.until(lambda: "10.0.0.9:80" in home.probe.asked)
    await asyncio.sleep(0.1)
    assert (await home.upstream("a"))["gating"]
    assert "10.0.0.9:80" not in home.pool.shares()
    assert (await asking).json["dial"] == "10.0.0.9:80"
    assert home.pool.shares()["10.0.0.9:80"] > 0


@pytest.mark.parametrize("drained", [True, False])
async def test_never_healthy_is_a_504_with_the_reason(home: Home, drained: bool) -> None:
    if drained:
        await home.post(drain("a"))
    home.probe.dead["10.0.0.9:80"] = "answered 500"
    answer = await home.post(ready("a"), {"version": "v2", "dial": "10.0.0.9:80"})
    assert (answer.status, answer.json["title"]) == (504, "Not healthy in time")
    assert "answered 500" in answer.detail
    assert (await home.upstream("a"))["version"] == "v1"
    assert (A in home.pool.shares()) is not drained


async def test_a_ready_that_another_one_overtakes_says_so(home: Home) -> None:
    await home.post(drain("a"))
    home.probe.dead["10.0.0.8:80"] = "refused"
    first = asyncio.create_task(home.post(ready("a"), {"dial": "10.0.0.8:80"}))
    await home.until(lambda: home.engine.state.upstreams["a"].gating)
    second = await home.post(ready("a"), {"dial": "10.0.0.9:80"})
    assert (second.status, second.json["dial"]) == (200, "10.0.0.9:80")
    assert (await first).status == 409


async def test_a_ready_that_a_drain_overtakes_says_so(home: Home) -> None:
    home.probe.dead["10.0.0.9:80"] = "refused"
    asking = asyncio.create_task(home.post(ready("a"), {"dial": "10.0.0.9:80"}))
    await home.until(lambda: home.engine.state.upstreams["a"].gating)
    assert (await home.post(drain("a"))).json["drained"]
    answer = await asking
    assert (answer.status, "something else" in answer.detail) == (409, True)


async def test_a_gate_outlives_a_journal_that_fails(home: Home) -> None:
    await home.post(drain("a"))
    home.probe.dead[A] = "starting"
    asking = asyncio.create_task(home.post(ready("a"), {"version": "v2"}))
    await home.until(lambda: home.engine.state.upstreams["a"].gating)
    home.journal.full = "disk full"
    home.probe.dead.clear()
    await home.until(lambda: home.engine.trouble.journal)
    home.journal.full = ""
    assert (await asyncio.wait_for(asking, 3.0)).status == 200


async def test_no_two_upstreams_at_one_address(begin: Begin) -> None:
    home = await begin(web=section(), api=section("v1").model_copy(update={"upstreams": _other()}))
    home.probe.dead["10.0.0.9:80"] = "starting"
    assert (await home.post(ready("a"), {"dial": "10.0.0.9:80", "wait": False})).status == 200
    for path, body in (
        (ready("b"), {"dial": "10.0.0.9:80"}),
        (ready("b"), {"dial": A}),
        (UPSTREAMS, {"id": "d", "dial": "10.0.0.9:80"}),
        (UPSTREAMS, {"id": "d", "dial": "10.0.0.8:80", "spare_dial": C}),
        (UPSTREAMS, {"id": "d", "dial": "10.1.0.1:80"}),
        (ready("b"), {"dial": "10.1.0.1:80"}),
        ("/v1/services/api/upstreams", {"id": "d", "dial": "10.0.0.9:80"}),
    ):
        answer = await home.post(path, body)
        assert (answer.status, "already an address of upstream" in answer.detail) == (409, True), (path, body)


def _other() -> object:
    upstream = section("v1").upstreams[0]
    return [upstream.model_copy(update={"dial": "10.1.0.1:80"})]


# -- upstreams ---------------------------------------------------------------------------------------------


async def test_an_upstream_is_added_and_removed(home: Home) -> None:
    body = {"id": "d", "dial": "10.0.0.4:80", "version": "v1"}
    answer = await home.post(UPSTREAMS, body)
    assert (answer.status, answer.json["dial"]) == (201, "10.0.0.4:80")
    await home.until(lambda: home.pool.shares().get("10.0.0.4:80") == 25)
    assert (await home.post(UPSTREAMS, body)).status == 201
    assert len(await home.journalled("upstream_added")) == 4
    assert (await home.post(UPSTREAMS, body | {"dial": "10.0.0.5:80"})).status == 409
    answer = await home.ask("DELETE", f"{UPSTREAMS}/d")
    assert [one["id"] for one in answer.json["upstreams"]] == ["a", "b", "c"]
    assert (await home.ask("DELETE", f"{UPSTREAMS}/d")).status == 404


async def test_no_more_upstreams_than_slots(begin: Begin) -> None:
    home = await begin(web=section("v1", slots=1))
    answer = await home.post(UPSTREAMS, {"id": "d", "dial": "10.0.0.4:80"})
    assert (answer.status, "slots" in answer.detail) == (409, True)


async def test_the_last_ready_upstream_is_removed_by_force_only(begin: Begin) -> None:
    home = await begin(web=section("v1"))
    assert (await home.ask("DELETE", f"{UPSTREAMS}/a")).status == 409
    assert (await home.ask("DELETE", f"{UPSTREAMS}/a?force=1")).status == 200


async def test_an_upstream_that_vanishes_while_it_is_answered_about(home: Home) -> None:
    home.pool.stalled = asyncio.Event()
    adding = asyncio.create_task(home.post(UPSTREAMS, {"id": "d", "dial": "10.0.0.4:80"}))
    await home.until(lambda: "d" in home.engine.state.upstreams)
    removing = asyncio.create_task(home.ask("DELETE", f"{UPSTREAMS}/d"))
    await home.until(lambda: "d" not in home.engine.state.upstreams)
    home.pool.stalled.set()
    assert (await removing).status == 200
    assert (await adding).status in (201, 404)


# -- shares ------------------------------------------------------------------------------------------------


async def test_a_canary_gets_its_exact_share(begin: Begin) -> None:
    home = await begin(web=section("v1", "v1", "v2"))
    assert home.pool.shares() == {A: 50, B: 50}
    for percent, shares in ((5, {A: 48, B: 47, C: 5}), (0, {A: 50, B: 50}), (100, {C: 100}), (33.0, None)):
        answer = await home.ask("PUT", f"{WEB}/canary", {"percent": percent})
        assert (answer.status, answer.json["canary_percent"]) == (200, percent)
        assert shares is None or home.pool.shares() == shares
        assert home.pool.shares().get(C, 0) == percent
    events = await home.journalled("canary_set")
    await home.ask("PUT", f"{WEB}/canary", {"percent": 33})
    assert await home.journalled("canary_set") == events
    await home.restart()
    assert home.engine.state.canary_percent == 33


async def test_no_share_where_there_is_no_canary(home: Home) -> None:
    answer = await home.ask("PUT", f"{WEB}/canary", {"percent": 5})
    assert (answer.status, "no canary" in answer.detail) == (409, True)


async def test_the_same_share_is_refused_too_once_the_canary_is_gone(begin: Begin) -> None:
    home = await begin(web=section("v1", "v2"))
    assert (await home.ask("PUT", f"{WEB}/canary", {"percent": 5})).status == 200
    await home.ask("DELETE", f"{UPSTREAMS}/b")
    assert (await home.ask("PUT", f"{WEB}/canary", {"percent": 5})).status == 409


async def test_hold_and_release(home: Home) -> None:
    answer = await home.post(f"{WEB}/hold")
    assert (answer.json["held"], home.pool.shares()) == (True, {})
    await asyncio.gather(home.post(f"{WEB}/hold"), home.post(f"{WEB}/hold"))
    assert len(await home.journalled("held")) == 1
    await home.restart()
    assert home.pool.shares() == {}
    assert (await home.post(f"{WEB}/release")).json["held"] is False
    await home.post(f"{WEB}/release")
    assert len(await home.journalled("released")) == 1
    assert set(home.pool.shares()) == {A, B, C}
