"""Rollouts over the API: begun once, followed, paused, aborted whatever else is stuck, and rolled back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.model import InFlight
from tests.trafficd.conftest import Begin
from tests.trafficd.home import A, Answer, B, C, Home, section
from trafficd.core import events as ev
from trafficd.core.model import Phase, StepKey, StepKind
from trafficd.ports import Said

WEB = "/v1/services/web"
ROLLOUTS = f"{WEB}/rollouts"
EXTERNAL: dict[str, Any] = {"swap": {"driver": "external"}}


async def in_swap(home: Home, version: str = "v2") -> str:
    """A rollout whose first upstream is being replaced, until `home.driver.wait` is set."""
    home.driver.wait = asyncio.Event()
    rollout = await home.deploy(version)
    await home.until(lambda: home.driver.swaps)
    return rollout


# -- begun once --------------------------------------------------------------------------------------------


async def test_a_rollout_begins_and_has_an_address(home: Home) -> None:
    answer = await home.post(
        ROLLOUTS, {"version": "v2", "message": "fix", "drain_timeout": "1s"}, X_Trafficd_Actor="eve"
    )
    assert answer.status == 201
    assert answer.headers["Location"] == f"/v1/rollouts/{answer.json['id']}"
    ended = await home.ended(answer.json["id"])
    assert (ended["state"], ended["actor"], ended["message"]) == ("succeeded", "eve", "fix")
    assert ended["previous"] == {"a": "v1", "b": "v1", "c": "v1"}
    assert ended["upstreams"] == {"a": "done", "b": "done", "c": "done"}
    view = (await home.get(WEB)).json
    assert (view["stable"], [one["version"] for one in view["upstreams"]]) == ("v2", ["v2"] * 3)
    assert set(home.pool.shares()) == {A, B, C}


async def test_one_live_rollout_a_service(home: Home) -> None:
    rollout = await in_swap(home)
    answer = await home.post(ROLLOUTS, {"version": "v3"})
    assert (answer.status, rollout in answer.detail) == (409, True)
    assert (await home.ask("DELETE", f"{WEB}/upstreams/c")).status == 409
    assert (await home.ask("PUT", f"{WEB}/canary", {"percent": 5})).status == 409
    assert (await home.post(f"{WEB}/rollback")).status == 409


async def test_two_rollouts_at_once_are_one(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    answers = await asyncio.gather(*(home.post(ROLLOUTS, {"version": f"v{n}"}) for n in range(2, 6)))
    assert sorted(answer.status for answer in answers) == [201, 409, 409, 409]
    assert len(await home.journalled("rollout_started")) == 1


async def test_what_a_rollout_works_on_is_left_alone(home: Home) -> None:
    await in_swap(home)
    for path in ("a/drain", "a/ready"):
        answer = await home.post(f"{WEB}/upstreams/{path}")
        assert (answer.status, "is working on a" in answer.detail) == (409, True)


async def test_a_rollout_without_upstreams_or_capacity_is_refused(begin: Begin) -> None:
    home = await begin(web=section("v1"))
    answer = await home.post(ROLLOUTS, {"version": "v2"})
    assert (answer.status, "start_first" in answer.detail) == (409, True)
    await home.ask("DELETE", f"{WEB}/upstreams/a?force=1")
    answer = await home.post(ROLLOUTS, {"version": "v2"})
    assert (answer.status, "no upstreams" in answer.detail) == (409, True)


async def test_a_gate_by_hand_ends_where_the_rollouts_turn_begins(begin: Begin) -> None:
    home = await begin(web=section(rollout={"min_healthy_time": 0.3}))
    await home.post(f"{WEB}/upstreams/a/drain")
    asking = asyncio.create_task(home.post(f"{WEB}/upstreams/a/ready", {"version": "v1"}))
    await home.until(lambda: home.engine.state.upstreams["a"].gating)
    await in_swap(home)
    await asyncio.sleep(0.4)  # the gate would have passed by now, on the instance that is being replaced
    assert A not in home.pool.shares()
    assert (await asking).status == 409


# -- Idempotency-Key ---------------------------------------------------------------------------------------


async def keyed(home: Home, key: str = "k1", version: str = "v2") -> Answer:
    return await home.post(ROLLOUTS, {"version": version}, Idempotency_Key=key)


async def test_the_same_key_and_body_get_the_same_answer(home: Home) -> None:
    first = await keyed(home)
    await home.ended(first.json["id"])
    again = await keyed(home)
    assert (again.status, again.json, again.headers["Location"]) == (201, first.json, first.headers["Location"])
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (await keyed(home, version="v3")).status == 422
    assert (await home.post(f"{WEB}/hold", Idempotency_Key="k1")).status == 422
    assert len(await home.journalled("rollout_started")) == 1


async def test_the_same_key_many_times_at_once_is_one_rollout(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    answers = await asyncio.gather(*(keyed(home) for _ in range(8)))
    assert {(answer.status, answer.json["id"]) for answer in answers} == {(201, answers[0].json["id"])}
    assert len(await home.journalled("rollout_started")) == 1


async def test_a_key_survives_a_restart(home: Home) -> None:
    first = await keyed(home)
    await home.ended(first.json["id"])
    await home.restart()
    assert (await keyed(home)).json == first.json
    assert (await keyed(home, version="v3")).status == 422


@pytest.mark.parametrize("path", ["rollouts", "rollback"])
async def test_a_key_survives_a_daemon_that_died_before_it_answered(home: Home, path: str) -> None:
    await home.ended(await home.deploy("v2"))
    body = {"version": "v3"} if path == "rollouts" else {}
    first = await home.post(f"{WEB}/{path}", body, Idempotency_Key="k1")
    await home.ended(first.json["id"])
    await home.ended(await home.deploy("v4"))  # no longer the newest one
    await _forget_answers(home)
    await home.restart()
    again = await home.post(f"{WEB}/{path}", body, Idempotency_Key="k1")
    assert (again.status, again.json["id"]) == (201, first.json["id"])
    assert again.headers["Location"] == first.headers["Location"]
    await _forget_answers(home)
    assert (await keyed(home, version="v9")).status == 422


async def _forget_answers(home: Home) -> None:
    await home.journal._call(lambda: home.journal._db.execute("DELETE FROM answers"))


async def test_a_caller_that_hangs_up_finds_its_rollout_again(home: Home) -> None:
    home.journal.slow = asyncio.Event()
    body = b'{"version":"v2"}'
    _, writer = await asyncio.open_unix_connection(str(home.socket))
    head = f"POST {ROLLOUTS} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k1\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await asyncio.sleep(0.1)
    writer.transport.abort()
    home.journal.slow.set()
    assert (await keyed(home)).status == 201
    assert len(await home.journalled("rollout_started")) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 201, "ä"])
async def test_a_key_that_is_none(home: Home, key: str) -> None:
    assert (await keyed(home, key)).status == 400
    assert home.engine.state.rollout is None


async def test_refusals_are_answers_too_and_faults_of_ours_are_not(home: Home) -> None:
    refused = await home.post(f"{WEB}/upstreams/zz/drain", {}, Idempotency_Key="k1")
    assert (await home.post(f"{WEB}/upstreams/zz/drain", {}, Idempotency_Key="k1")).json == refused.json
    home.journal.full = "disk full"
    assert (await home.post(f"{WEB}/hold", {}, Idempotency_Key="k2")).status == 503
    home.journal.full = ""
    assert (await home.post(f"{WEB}/hold", {}, Idempotency_Key="k2")).status == 200


# -- pause, resume, promote, rollback ----------------------------------------------------------------------


async def test_pause_and_resume(home: Home) -> None:
    rollout = await in_swap(home)
    paused = await home.post(f"/v1/rollouts/{rollout}/pause")
    assert paused.json["paused"]
    await home.post(f"/v1/rollouts/{rollout}/pause")
    assert home.driver.wait is not None
    home.driver.wait.set()
    await home.until(lambda: A in home.pool.shares())
    await asyncio.sleep(0.1)
    view = (await home.get(f"/v1/rollouts/{rollout}")).json
    assert (view["upstreams"]["b"], "resume" in view["waits"][0]["what"]) == ("waiting", True)
    assert not (await home.post(f"/v1/rollouts/{rollout}/resume")).json["paused"]
    await home.post(f"/v1/rollouts/{rollout}/resume")
    assert (await home.ended(rollout))["state"] == "succeeded"
    assert len(await home.journalled("paused")) == len(await home.journalled("resumed")) == 1


@pytest.mark.parametrize("action", ["pause", "resume", "promote", "abort"])
async def test_what_has_ended_cannot_be_acted_upon(home: Home, action: str) -> None:
    first = await home.deploy("v2")
    await home.ended(first)
    assert (await home.post(f"/v1/rollouts/{first}/{action}")).status == 409
    await home.ended(await home.deploy("v3"))
    answer = await home.post(f"/v1/rollouts/{first}/{action}")
    assert (answer.status, "has ended" in answer.detail) == (409, True)


async def test_a_rolling_rollout_has_nothing_to_promote(home: Home) -> None:
    rollout = await in_swap(home)
    answer = await home.post(f"/v1/rollouts/{rollout}/promote")
    assert (answer.status, "goes on by itself" in answer.detail) == (409, True)


async def test_rollback_needs_a_version_before(home: Home) -> None:
    answer = await home.post(f"{WEB}/rollback")
    assert (answer.status, "trafficd deploy web VERSION" in answer.detail) == (409, True)
    await home.ended(await home.deploy("v2"))
    answer = await home.post(f"{WEB}/rollback")
    assert (answer.status, answer.json["version"], answer.json["message"]) == (201, "v1", "rollback")
    await home.ended(answer.json["id"])
    assert (await home.get(WEB)).json["stable"] == "v1"


# -- abort -------------------------------------------------------------------------------------------------


async def test_abort_stops_and_reverts(home: Home) -> None:
    rollout = await in_swap(home)
    answer = await home.post(f"/v1/rollouts/{rollout}/abort", X_Trafficd_Actor="eve")
    assert (answer.status, answer.json["state"], answer.json["warning"]) == (200, "aborting", None)
    assert (await home.post(f"/v1/rollouts/{rollout}/abort")).status in (200, 409)
    assert home.driver.wait is not None
    home.driver.wait.set()
    ended = await home.ended(rollout)
    assert (ended["state"], ended["reason"]) == ("reverted", "aborted by eve")
    assert home.driver.cancelled == 1
    assert [one["version"] for one in (await home.get(WEB)).json["upstreams"]] == ["v1"] * 3
    assert len(await home.journalled("abort_requested")) == 1


async def test_abort_without_revert_leaves_what_was_replaced_out_of_traffic(home: Home) -> None:
    rollout = await in_swap(home)
    await home.post(f"/v1/rollouts/{rollout}/abort", {"revert": False})
    ended = await home.ended(rollout)
    assert (ended["state"], "a was not brought back" in ended["reason"]) == ("failed", True)
    assert set(home.pool.shares()) == {B, C}


async def half_done(home: Home) -> str:
    """A rollout that has replaced a and is replacing b: v2 has traffic."""
    rollout = await in_swap(home)
    assert home.driver.wait is not None
    first, home.driver.wait = home.driver.wait, asyncio.Event()
    first.set()
    await home.until(lambda: len(home.driver.swaps) == 2 and A in home.pool.shares())
    return rollout


@pytest.mark.parametrize("key", [{}, {"Idempotency_Key": "k1"}])
async def test_abort_moves_traffic_with_a_journal_that_cannot_be_written(home: Home, key: dict[str, str]) -> None:
    rollout = await half_done(home)
    home.journal.full = "disk full"
    answer = await home.post(f"/v1/rollouts/{rollout}/abort", {}, **key)
    assert (answer.status, "disk full" in answer.json["warning"]) == (200, True)
    assert home.pool.shares() == {C: 100}
    # And goes on following the probes, and ends what was under way, while the disk is full.
    await home.until(lambda: home.driver.cancelled)
    home.journal.full, home.driver.wait = "", None
    assert (await home.ended(rollout))["state"] == "reverted"
    assert len(await home.journalled("abort_requested")) == 1


@pytest.mark.parametrize("disk", ["slow", "hung"])
async def test_abort_waits_for_nobody(home: Home, disk: str) -> None:
    rollout = await half_done(home)
    back = asyncio.Event()
    setattr(home.journal, disk, back)
    home.pool.stalled = asyncio.Event()
    aborting = asyncio.create_task(home.post(f"/v1/rollouts/{rollout}/abort", {}, Idempotency_Key="k1"))
    await home.until(lambda: home.pool.shares() == {C: 100}, 2.0)
    assert "not in the journal yet" in (await aborting).json["warning"]
    back.set()
    home.pool.stalled.set()
    home.driver.wait = None
    assert (await home.ended(rollout))["state"] == "reverted"
    assert len(await home.journalled("abort_requested")) == 1


async def test_abort_that_moves_no_traffic_is_not_done(home: Home) -> None:
    rollout = await half_done(home)
    home.pool.broken = "read-only file system"
    for _ in range(2):
        answer = await home.post(f"/v1/rollouts/{rollout}/abort")
        assert (answer.status, "goes on trying" in answer.detail) == (503, True)
    home.pool.broken, home.driver.wait = "", None
    await home.until(lambda: home.pool.shares() == {C: 100})
    await home.ended(rollout)


async def test_abort_while_the_end_of_a_step_is_being_journalled(home: Home) -> None:
    rollout = await in_swap(home)
    home.journal.slow, slow = asyncio.Event(), home.journal
    assert home.driver.wait is not None
    home.driver.wait.set()
    await asyncio.sleep(0.1)  # the end of the swap is on disk now, and the engine does not know it yet
    aborting = asyncio.create_task(home.post(f"/v1/rollouts/{rollout}/abort"))
    await home.until(lambda: home.engine.state.live and home.engine.state.live.phase is Phase.ABORTING)
    await asyncio.sleep(0.05)
    assert slow.slow is not None
    slow.slow.set()
    assert (await aborting).status == 200
    assert (await home.ended(rollout))["state"] == "reverted"


async def test_an_abort_a_moment_too_late_does_not_come_back_after_a_restart(home: Home) -> None:
    rollout = await home.deploy("v2")
    await home.ended(rollout)
    await home.journal.append(ev.AbortRequested("web", rollout))
    await home.restart()
    assert home.engine.state.live is None
    assert (await home.get(f"/v1/rollouts/{rollout}")).json["state"] == "succeeded"
    assert home.engine.state.stable == "v2"


async def test_an_engine_that_is_woken_as_it_is_stopped_ends(home: Home) -> None:
    await in_swap(home)
    await asyncio.sleep(0.05)  # it sleeps, with nothing left to decide
    home.engine.wake()
    await asyncio.sleep(0)
    async with asyncio.timeout(2.0):
        await home.engine.stop()


@pytest.mark.parametrize("again", [False, True], ids=["a slow disk", "a restart"])
async def test_what_is_open_when_traffic_leaves_late_is_waited_for_all_the_same(home: Home, again: bool) -> None:
    """The drain was journalled longer ago than its time-out, and nothing was moved yet."""
    home.pool.frozen = asyncio.Event()
    rollout = await home.deploy("v2", drain_timeout="1s")
    await home.until(lambda: (live := home.engine.state.live) and live.running_steps())
    await asyncio.sleep(1.1)
    home.pool.open[A] = InFlight(5, 0)
    frozen, home.pool.frozen = home.pool.frozen, None
    if again:
        await home.restart()
    frozen.set()
    await asyncio.sleep(0.1)
    assert not home.driver.swaps, "requests are open there"
    home.pool.open[A] = InFlight(0, 0)
    assert (await home.ended(rollout))["state"] == "succeeded"
    cut = [event["data"]["cut"] for event in await home.journalled("step_ended") if event["data"]["step"] == "drain"]
    assert cut == [{"requests": 0, "streams": 0}] * 3


# -- the caller replaces -----------------------------------------------------------------------------------


async def test_the_caller_replaces_and_says_ready(begin: Begin) -> None:
    home = await begin(web=section(**EXTERNAL))
    rollout = await home.deploy("v2")
    for name, dial in (("a", A), ("b", B), ("c", C)):
        await asked(home, name)
        assert dial not in home.pool.shares()
        answer = await home.post(f"{WEB}/upstreams/{name}/ready", {"version": "v2"})
        assert (answer.status, answer.json["version"], answer.json["weight"] > 0) == (200, "v2", True)
        assert (await home.post(f"{WEB}/upstreams/{name}/ready", {"version": "v2"})).status == 200
    assert (await home.ended(rollout))["state"] == "succeeded"


async def asked(home: Home, name: str) -> None:
    """Wait until the rollout asks the caller to replace this upstream."""
    path = f"/v1/services/web/upstreams/{name}/ready"
    await home.until(lambda: any(path in wait.what for wait in home.engine.waits))


async def waiting_for_caller(home: Home) -> str:
    rollout = await home.deploy("v2")
    await asked(home, "a")
    return rollout


async def test_what_the_caller_says_is_checked(begin: Begin) -> None:
    home = await begin(web=section(**EXTERNAL))
    await waiting_for_caller(home)
    for body in ({"version": "v3"}, {"dial": B}):
        assert (await home.post(f"{WEB}/upstreams/a/ready", body)).status == 409
    assert (await home.post(f"{WEB}/upstreams/a/drain")).status == 409
    view = (await home.get(WEB)).json
    assert "/v1/services/web/upstreams/a/ready" in view["waits"][0]["what"]


async def test_saying_ready_twice_at_once_is_saying_it_once(begin: Begin) -> None:
    home = await begin(web=section(**EXTERNAL))
    await waiting_for_caller(home)
    answers = await asyncio.gather(*(home.post(f"{WEB}/upstreams/a/ready", {"version": "v2"}) for _ in range(3)))
    assert [answer.status for answer in answers] == [200] * 3
    swaps = [e for e in await home.journalled("step_ended") if e["data"]["step"] == "swap"]
    assert len(swaps) == 1


async def test_the_caller_may_say_ready_right_after_a_restart(begin: Begin) -> None:
    home = await begin(web=section(**EXTERNAL))
    await waiting_for_caller(home)
    home.pool.frozen = asyncio.Event()
    await home.restart()
    asking = asyncio.create_task(home.post(f"{WEB}/upstreams/a/ready"))
    await asyncio.sleep(0.1)  # the engine has not come to ask again yet
    home.pool.frozen.set()
    assert (await asking).status == 200


async def test_what_the_caller_replaced_and_is_never_healthy_is_a_504(begin: Begin) -> None:
    home = await begin(web=section(**EXTERNAL, rollout={"auto_revert": False}))
    await waiting_for_caller(home)
    home.probe.dead[A] = "answered 500"
    answer = await home.post(f"{WEB}/upstreams/a/ready")
    assert (answer.status, "answered 500" in answer.detail) == (504, True)


async def test_beside_the_old_the_new_needs_an_address_of_its_own(begin: Begin) -> None:
    home = await begin(web=section(**EXTERNAL, rollout={"order": "start_first"}))
    await home.deploy("v2")
    await asked(home, "a")
    assert (await home.post(f"{WEB}/upstreams/a/ready")).status == 422
    assert (await home.post(f"{WEB}/upstreams/a/ready", {"dial": A})).status == 409
    answer = await home.post(f"{WEB}/upstreams/a/ready", {"dial": "10.0.0.9:80"})
    assert (answer.status, answer.json["dial"]) == (200, "10.0.0.9:80")


@pytest.mark.parametrize("kind", [StepKind.DRAIN, StepKind.SWAP, StepKind.GATE])
async def test_a_step_that_is_given_up_before_its_first_turn_ends_all_the_same(home: Home, kind: StepKind) -> None:
    """An abort may come in the very moment in which a step begins: its task then never has a turn."""
    works = home.engine.works
    keep_up = works.keep_up
    given_up: list[StepKey] = []

    def perform_and_give_up() -> None:
        keep_up()
        fresh = {key for key, work in works.steps.items() if key.kind is kind and not work.begun}
        if fresh and not given_up:
            given_up.extend(fresh)
            works.cancel(fresh)

    works.keep_up = perform_and_give_up  # type: ignore[method-assign]
    ended = await home.ended(await home.deploy("v2"))
    assert given_up
    assert ended["state"] == ("reverted" if kind is StepKind.GATE else "failed")
    assert "given up" in ended["failure"]
    assert {one["version"] for one in (await home.get(WEB)).json["upstreams"]} == {"v1"}
    await home.until(lambda: set(home.pool.shares()) == {A, B, C})


@pytest.mark.parametrize(
    ("order", "named", "says"),
    [
        ("start_first", A, "where the old one serves"),
        ("start_first", B, "an address of upstream b"),
        ("stop_first", C, "an address of upstream c"),
        ("stop_first", "10.1.0.1:80", "an address of upstream a of service api"),
    ],
)
async def test_a_driver_that_names_an_address_in_use_fails_the_swap(
    begin: Begin, order: str, named: str, says: str
) -> None:
    """Or two upstreams would be one, and the old instance would be stopped where the new one was said to run."""
    other = section(upstreams=[{"id": "a", "dial": "10.1.0.1:80"}])
    home = await begin(web=section(rollout={"order": order}), api=other)
    home.driver.names["a"] = named
    ended = await home.ended(await home.deploy("v2"))
    assert ended["state"] != "succeeded"
    assert says in ended["failure"], ended
    # Nobody has lost traffic but the upstream whose turn it was.
    assert {B, C} <= set(home.pool.shares())


@pytest.mark.parametrize("said", [Said("its last lines: no such table", "no such table\n"), None])
async def test_a_gate_that_fails_tells_what_the_instance_says(home: Home, said: Said | None) -> None:
    home.driver.says = {"a": said} if said is not None else {}
    rollout = await in_swap(home)
    home.probe.dead[A] = "status 503"
    assert home.driver.wait is not None
    home.driver.wait.set()
    await home.until(lambda: len(home.driver.swaps) > 1)  # its revert
    home.probe.dead.clear()
    ended = await home.ended(rollout)
    (gate, *_) = [step for step in ended["steps"] if step["step"] == "gate"]
    assert ("no such table" in ended["failure"]) == (said is not None)
    assert gate["output"] == (said.output if said is not None else "")
