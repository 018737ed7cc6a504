"""Rollouts that are queued behind the live one or take over from it, over the API and on the command line."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.trafficd.conftest import Begin
from tests.trafficd.home import A, Answer, B, C, Home, Json, section
from tests.trafficd.test_cli import only_json, trafficd
from tests.trafficd.test_rollouts import half_done, in_swap
from tests.trafficd.test_stream import events, stream
from trafficd.config import RolloutOverrides
from trafficd.config.values import Amount
from trafficd.core.events import RolloutQueued
from trafficd.core.machine import fold
from trafficd.core.model import Order, Phase, Service
from trafficd.retention import forget, snapshot
from trafficd.store.codec import decode, encode

WEB = "/v1/services/web"
ROLLOUTS = f"{WEB}/rollouts"


async def ask(home: Home, version: str = "v3", how: str = "queue", **more: Any) -> Answer:
    headers = {name: more.pop(name) for name in ("Idempotency_Key", "X_Trafficd_Actor") if name in more}
    return await home.post(ROLLOUTS, {"version": version, "if_live": how, **more}, **headers)


async def queued(home: Home, version: str = "v3", **more: Any) -> str:
    answer = await ask(home, version, **more)
    assert (answer.status, answer.json["state"]) == (201, "pending"), answer
    return str(answer.json["id"])


def go(home: Home) -> None:
    """Let every swap end at once from now on."""
    waiting, home.driver.wait = home.driver.wait, None
    assert waiting is not None
    waiting.set()


async def over(home: Home) -> None:
    await home.until(lambda: home.engine.state.live is None and home.engine.state.pending is None)


async def state(home: Home, rollout: str) -> tuple[str, str]:
    view = (await home.get(f"/v1/rollouts/{rollout}")).json
    return view["state"], view["reason"]


async def versions(home: Home) -> list[str]:
    return [one["version"] for one in (await home.get(WEB)).json["upstreams"]]


# -- queue -------------------------------------------------------------------------------------------------


async def test_a_queued_rollout_waits_and_says_for_what_and_then_begins_by_itself(home: Home) -> None:
    live = await in_swap(home)
    answer = await ask(home, message="fix", X_Trafficd_Actor="eve")
    rollout = answer.json["id"]
    assert (answer.status, answer.json["state"], answer.headers["Location"]) == (
        201,
        "pending",
        f"/v1/rollouts/{rollout}",
    )
    assert answer.json["waits"][0]["what"] == f"rollout {live} to v2 to end"
    view = (await home.get(WEB)).json
    assert (view["rollout"]["id"], view["queued"]["id"]) == (live, rollout)
    assert [one["id"] for one in (await home.get("/v1/rollouts")).json["rollouts"]] == [rollout, live]
    go(home)
    await over(home)
    assert await state(home, live) == ("succeeded", "")
    ended = (await home.get(f"/v1/rollouts/{rollout}")).json
    assert (ended["state"], ended["message"], ended["actor"]) == ("succeeded", "fix", "eve")
    assert ended["previous"] == dict.fromkeys("abc", "v2")
    assert ended["queued_at"] <= ended["started_at"] <= ended["ended_at"]
    view = (await home.get(WEB)).json
    assert (view["stable"], view["queued"], await versions(home)) == ("v3", None, ["v3"] * 3)


@pytest.mark.parametrize("how", ["queue", "supersede"])
async def test_where_nothing_is_live_it_begins_at_once(home: Home, how: str) -> None:
    answer = await ask(home, how=how)
    assert (answer.status, answer.json["state"]) == (201, "running")
    assert (await home.ended(answer.json["id"]))["state"] == "succeeded"


async def test_to_refuse_is_what_happens_when_nothing_else_is_asked_for(home: Home) -> None:
    live = await in_swap(home)
    for body in ({"version": "v3"}, {"version": "v3", "if_live": "refuse"}):
        answer = await home.post(ROLLOUTS, body)
        assert (answer.status, live in answer.detail, "--queue or --supersede" in answer.detail) == (409, True, True)
    await queued(home)
    assert (await home.post(ROLLOUTS, {"version": "v4"})).status == 409
    assert (await home.post(ROLLOUTS, {"version": "v4", "if_live": "perhaps"})).status == 422


async def test_it_begins_after_a_revert_too(home: Home) -> None:
    live = await in_swap(home)
    home.driver.fails["v2"] = "no such image"
    rollout = await queued(home)
    go(home)
    await over(home)
    assert (await state(home, live))[0] == "reverted"
    assert (await state(home, rollout))[0] == "succeeded"


async def test_what_can_be_refused_at_once_is(begin: Begin) -> None:
    home = await begin(web=section())
    await in_swap(home)
    for how in ("queue", "supersede"):
        cramped = await ask(home, how=how, min_ready=3)
        assert (cramped.status, "min_ready is 3" in cramped.detail) == (409, True)
        assert (await ask(home, "v2;reboot", how=how)).status == 422
        assert (await ask(home, how=how, strategy="rainbow")).status == 422
        await home.post(f"{WEB}/freeze", {"reason": "Friday night"})
        frozen = await ask(home, how=how)
        assert (frozen.status, "Friday night" in frozen.detail) == (409, True)
        await home.post(f"{WEB}/thaw")
    assert await home.journalled("rollout_queued") == []


async def test_a_freeze_that_came_meanwhile_holds_it(home: Home) -> None:
    await in_swap(home)
    rollout = await queued(home)
    await home.post(f"{WEB}/freeze", {"reason": "Friday night"}, X_Trafficd_Actor="ann")
    go(home)
    await home.until(lambda: home.engine.state.live is None)
    (wait,) = (await home.get(f"/v1/rollouts/{rollout}")).json["waits"]
    assert "the freeze by ann to end (Friday night)" in wait["what"]
    await home.post(f"{WEB}/thaw")
    await over(home)
    assert (await state(home, rollout))[0] == "succeeded"


async def test_a_freeze_ends_by_itself_and_it_begins(home: Home) -> None:
    await in_swap(home)
    rollout = await queued(home)
    await home.post(f"{WEB}/freeze", {"reason": "lunch", "for": "700ms"})
    go(home)
    await over(home)
    assert (await state(home, rollout))[0] == "succeeded"


async def test_after_stuck_it_waits_for_a_person(home: Home) -> None:
    live = await in_swap(home)
    rollout = await queued(home)
    home.driver.fails |= {"v1": "disk full", "v2": "disk full"}
    go(home)
    await home.until(lambda: home.engine.state.live is None)
    assert (await state(home, live))[0] == "stuck"
    view = (await home.get(f"/v1/rollouts/{rollout}")).json
    assert (view["state"], view["paused"], f"rollout {live} is stuck" in view["waits"][0]["what"]) == (
        "pending",
        True,
        True,
    )
    refused = await home.post(ROLLOUTS, {"version": "v4"})
    assert (refused.status, f"trafficd resume {rollout}" in refused.detail) == (409, True)
    home.driver.fails.clear()
    assert (await home.post(f"/v1/rollouts/{rollout}/resume")).status == 200
    await over(home)
    assert await versions(home) == ["v3"] * 3


async def test_the_newest_wish_wins(home: Home) -> None:
    await in_swap(home)
    older = await queued(home, "v3")
    newer = await queued(home, "v4")
    await home.until(lambda: not home.engine.state.displaced)
    ended = f"superseded by {newer}, before it began; nothing was touched"
    assert await state(home, older) == ("failed", ended)
    async with stream(home, older) as answer:
        assert [event["type"] async for event in events(answer)] == ["rollout_queued", "rollout_ended"]
    go(home)
    await over(home)
    assert await versions(home) == ["v4"] * 3


async def test_what_was_asked_for_is_resolved_when_it_begins(home: Home) -> None:
    await in_swap(home)
    rollout = await queued(home, max_parallel="50%", drain_timeout="1s", order="stop_first", auto_revert=False)
    home.probe.dead["10.0.0.4:80"] = ""
    for number in (4, 5):
        added = {"id": f"x{number}", "dial": f"10.0.0.{number}:80", "version": "v1"}
        assert (await home.post(f"{WEB}/upstreams", added)).status == 201
    home.probe.dead.clear()
    go(home)
    await over(home)
    begun = next(e["data"] for e in await home.journalled("rollout_started") if e["rollout"] == rollout)
    policy = begun["policy"]
    assert (policy["max_parallel"], policy["drain_timeout"], policy["auto_revert"]) == (2, 1.0, False)
    assert begun["upstreams"] == ["a", "b", "c", "x4", "x5"]


async def test_a_live_one_may_be_removed_from_but_what_became_hopeless_ends_as_failed(home: Home) -> None:
    await in_swap(home)
    rollout = await queued(home, min_ready=2)
    await home.post(f"/v1/rollouts/{rollout}/pause")
    go(home)
    await home.until(lambda: home.engine.state.live is None)
    assert (await home.ask("DELETE", f"{WEB}/upstreams/c")).status == 200
    await home.post(f"/v1/rollouts/{rollout}/resume")
    await over(home)
    kind, reason = await state(home, rollout)
    assert (kind, "min_ready is 2" in reason, reason.endswith("nothing was touched")) == ("failed", True, True)


# -- steering a pending one --------------------------------------------------------------------------------


async def test_pause_and_resume_of_a_pending_one(home: Home) -> None:
    await in_swap(home)
    rollout = await queued(home)
    assert (await home.post(f"/v1/rollouts/{rollout}/pause")).json["paused"]
    assert (await home.post(f"/v1/rollouts/{rollout}/promote")).status == 409
    go(home)
    await home.until(lambda: home.engine.state.live is None)
    await asyncio.sleep(0.1)
    assert (await state(home, rollout))[0] == "pending"
    assert not (await home.post(f"/v1/rollouts/{rollout}/resume")).json["paused"]
    await over(home)
    assert await versions(home) == ["v3"] * 3


async def test_abort_of_a_pending_one_ends_it_at_once_and_the_live_one_goes_on(home: Home) -> None:
    live = await in_swap(home)
    rollout = await queued(home)
    answer = await home.post(f"/v1/rollouts/{rollout}/abort", X_Trafficd_Actor="eve")
    assert (answer.status, answer.json["state"], answer.json["reason"]) == (
        200,
        "failed",
        "aborted by eve before it began; nothing was touched",
    )
    assert (await home.post(f"/v1/rollouts/{rollout}/abort")).status == 409
    go(home)
    await over(home)
    assert (await state(home, live))[0] == "succeeded"
    assert await versions(home) == ["v2"] * 3
    await home.restart()
    assert (await state(home, rollout))[0] == "failed"


async def test_abort_of_the_live_one_says_what_begins_after(home: Home) -> None:
    live = await in_swap(home)
    rollout = await queued(home)
    answer = await home.post(f"/v1/rollouts/{live}/abort")
    assert f"trafficd abort {rollout}" in answer.json["warning"]
    go(home)
    await over(home)
    assert (await state(home, live))[0] == "reverted"
    assert (await state(home, rollout))[0] == "succeeded"


async def test_a_rollback_goes_first_and_the_pending_one_waits_for_a_person(home: Home) -> None:
    await home.ended(await home.deploy("v2"))
    await in_swap(home, "v3")
    rollout = await queued(home, "v4")
    await home.post(f"{WEB}/freeze", {"reason": "Friday night"})
    go(home)
    await home.until(lambda: home.engine.state.live is None)
    back = await home.post(f"{WEB}/rollback")
    assert (back.status, back.json["version"]) == (201, "v2")
    await home.post(f"{WEB}/thaw")
    await home.until(lambda: home.engine.state.live is None)
    assert (await state(home, rollout))[0] == "pending"
    assert await versions(home) == ["v2"] * 3


# -- streams, keys, restarts, retention --------------------------------------------------------------------


async def test_the_stream_of_a_pending_one_stays_open_until_its_end(home: Home) -> None:
    await in_swap(home)
    rollout = await queued(home)
    async with asyncio.timeout(10.0), stream(home, rollout) as answer:
        seen = []
        async for event in events(answer):
            seen.append(event["type"])
            if len(seen) == 1:
                go(home)
    assert (seen[:2], seen[-1]) == (["rollout_queued", "rollout_started"], "rollout_ended")


async def test_a_key_gives_the_same_pending_rollout_after_a_restart_too(home: Home) -> None:
    await in_swap(home)
    first = await ask(home, Idempotency_Key="k1")
    assert (await ask(home, Idempotency_Key="k1")).json == first.json
    assert (await ask(home, "v4", Idempotency_Key="k1")).status == 422
    await home.journal._call(lambda: home.journal._db.execute("DELETE FROM answers"))
    await home.restart()
    again = await ask(home, Idempotency_Key="k1")
    assert (again.status, again.json["id"], again.json["state"]) == (201, first.json["id"], "pending")
    assert len(await home.journalled("rollout_queued")) == 1
    go(home)
    await over(home)
    await home.journal._call(lambda: home.journal._db.execute("DELETE FROM answers"))
    assert (await ask(home, Idempotency_Key="k1")).json["id"] == first.json["id"]


async def test_a_restart_keeps_it_and_it_begins_at_the_right_time(home: Home) -> None:
    live = await in_swap(home)
    rollout = await queued(home)
    before = home.engine.state.pending
    await home.restart()
    assert home.engine.state.pending == before
    assert home.engine.state.live is not None
    assert home.engine.state.live.id == live
    go(home)
    await over(home)
    assert await versions(home) == ["v3"] * 3
    assert (await state(home, rollout))[0] == "succeeded"


async def test_retention_forgets_no_pending_one(home: Home) -> None:
    for version in ("v2", "v3"):
        await home.ended(await home.deploy(version))
    await in_swap(home, "v4")
    rollout = await queued(home, "v5")
    await home.post(f"/v1/rollouts/{rollout}/pause")
    go(home)
    await home.until(lambda: home.engine.state.live is None)
    before = home.engine.state
    assert await forget(home.engine, home.journal, older_than=-1.0) > 0
    await home.restart()
    assert home.engine.state == before
    assert home.engine.state.pending is not None


def test_a_snapshot_knows_which_versions_serve_beside_the_stable_one() -> None:
    service = Service("web", stable="v1", mixing="v3", carried=("v2",))
    event = decode(encode(snapshot(service)))
    assert fold(Service("web"), [(0.0, event)]) == replace(service, upstreams={})


def test_overrides_are_journalled_as_asked() -> None:
    asked = RolloutOverrides(
        max_parallel=Amount(percent=0.00001), min_ready=Amount(number=2), order=Order.START_FIRST,
        drain_timeout=1.5, healthy_deadline=60, auto_revert=False,
    )  # fmt: skip
    event = RolloutQueued("web", "r1", "v2", "rolling", asked.plain())
    read = decode(encode(event))
    assert read == event
    assert isinstance(read, RolloutQueued)
    assert RolloutOverrides.model_validate(read.overrides) == asked
    assert "max_parallel" in str(section().terms("rolling", {"max_parallel": "many"}, 3))


# -- supersede ---------------------------------------------------------------------------------------------


async def test_it_takes_over_from_where_things_stand(home: Home) -> None:
    live = await half_done(home)
    home.pool.shifts.clear()
    answer = await ask(home, how="supersede")
    rollout = answer.json["id"]
    assert (answer.status, answer.json["state"], answer.json["supersedes"]) == (201, "pending", live)
    await home.until(lambda: home.driver.cancelled)
    go(home)
    await over(home)
    assert await state(home, live) == ("failed", f"superseded by {rollout}")
    assert (await state(home, rollout))[0] == "succeeded"
    assert await versions(home) == ["v3"] * 3
    least = [len(shift) for shift in home.pool.shifts]
    assert min(least) >= 2, "what v2 had brought in served until its turn"
    assert [(swap.upstream, swap.version) for swap in home.driver.swaps[2:]] == [("b", "v3"), ("a", "v3"), ("c", "v3")]


async def test_while_it_takes_over_three_versions_may_serve(home: Home) -> None:
    await half_done(home)
    await ask(home, how="supersede")
    await home.until(lambda: len(home.driver.swaps) == 3)
    assert set(home.pool.shares()) == {A, C}
    b = await home.upstream("b")
    assert (b["version"], b["weight"]) == (None, 0)
    await home.restart()
    assert set(home.pool.shares()) == {A, C}
    go(home)
    await over(home)
    assert await versions(home) == ["v3"] * 3


async def test_reverted_it_leaves_the_stable_version_everywhere(home: Home) -> None:
    await half_done(home)
    home.driver.fails["v3"] = "no such image"
    await ask(home, how="supersede")
    go(home)
    await over(home)
    assert await versions(home) == ["v1"] * 3
    assert set(home.pool.shares()) == {A, B, C}
    assert (await home.get(WEB)).json["stable"] == "v1"


async def test_aborted_it_leaves_the_stable_version_everywhere_and_at_once(home: Home) -> None:
    await half_done(home)
    rollout = (await ask(home, how="supersede")).json["id"]
    await home.until(lambda: len(home.driver.swaps) == 3)
    await home.post(f"/v1/rollouts/{rollout}/abort")
    assert home.pool.shares() == {C: 100}
    go(home)
    await over(home)
    assert (await state(home, rollout))[0] == "reverted"
    assert await versions(home) == ["v1"] * 3


@pytest.mark.parametrize("key", ["aborting", "reverting"])
async def test_a_revert_is_not_superseded_and_the_refusal_says_what_to_do(home: Home, key: str) -> None:
    live = await in_swap(home)
    await home.post(f"/v1/rollouts/{live}/abort")
    if key == "reverting":
        await home.until(lambda: home.engine.state.live and home.engine.state.live.phase is Phase.REVERTING)
    answer = await ask(home, how="supersede")
    assert (answer.status, '"if_live": "queue"' in answer.detail) == (409, True)
    rollout = await queued(home)
    go(home)
    await over(home)
    assert (await state(home, live))[0] == "reverted"
    assert (await state(home, rollout))[0] == "succeeded"


async def test_a_paused_one_can_be_superseded(home: Home) -> None:
    live = await half_done(home)
    await home.post(f"/v1/rollouts/{live}/pause")
    await ask(home, how="supersede")
    go(home)
    await over(home)
    assert await versions(home) == ["v3"] * 3


async def test_the_caller_who_replaces_is_told_that_another_version_is_wanted(begin: Begin) -> None:
    home = await begin(web=section(swap={"driver": "external"}))
    await home.deploy("v2")

    def turn() -> bool:
        return any("POST /v1/services/web/upstreams/a/ready" in wait.what for wait in home.engine.waits)

    await home.until(turn)
    rollout = (await ask(home, how="supersede")).json["id"]
    await home.until(lambda: home.engine.state.live and home.engine.state.live.id == rollout)
    await home.until(turn)
    assert (await home.post(f"{WEB}/upstreams/a/ready", {"version": "v2"})).status == 409
    assert (await home.post(f"{WEB}/upstreams/a/ready", {"version": "v3"})).status == 200


# -- the command line --------------------------------------------------------------------------------------


async def test_deploy_queue_follows_both_phases(home: Home) -> None:
    live = await in_swap(home)
    asking = asyncio.create_task(trafficd(home, "deploy", "web", "v3", "--queue"))
    await home.until(lambda: home.engine.state.pending)
    await asyncio.sleep(0.1)
    go(home)
    ended = await asking
    assert ended.exit_code == 0, ended.output
    lines = [line.partition(" ")[2] for line in ended.stdout.splitlines()]
    assert re.fullmatch(r"r-\S+ is pending: web to v3, rolling", lines[0])
    assert re.fullmatch(r"r-\S+ begins: web to v3, rolling", lines[1])
    assert "succeeded after" in ended.stdout
    assert live not in ended.stdout


async def test_deploy_supersede(home: Home) -> None:
    await half_done(home)
    asking = asyncio.create_task(trafficd(home, "deploy", "web", "v3", "--supersede", "--json"))
    await home.until(lambda: home.driver.cancelled)
    go(home)
    result = await asking
    assert (result.exit_code, only_json(result)["state"]) == (0, "succeeded")


async def test_to_queue_and_to_supersede_exclude_each_other(home: Home) -> None:
    result = await trafficd(home, "deploy", "web", "v3", "--queue", "--supersede")
    assert (result.exit_code, "give one of them" in result.stderr) == (2, True)


async def test_the_service_names_the_live_one_and_the_id_the_pending_one(home: Home) -> None:
    live = await in_swap(home)
    rollout = await queued(home)
    status = await trafficd(home, "status", "web")
    assert f"{rollout}: web to v3 is pending" in status.stdout
    assert f"waits for rollout {live} to v2 to end" in status.stdout
    assert "pending" in (await trafficd(home, "history")).stdout
    assert "rollout_queued" in (await trafficd(home, "events")).stdout
    assert only_json(await trafficd(home, "pause", rollout, "--json"))["id"] == rollout
    aborted: Json = only_json(await trafficd(home, "abort", "web", "--json"))
    assert (aborted["id"], rollout in aborted["warning"]) == (live, True)
    go(home)
    await home.until(lambda: home.engine.state.live is None)
    none_live = await trafficd(home, "abort", "web")
    assert (none_live.exit_code, f"{rollout} is pending: name it by its id" in none_live.stderr) == (1, True)
    given_up = await trafficd(home, "abort", rollout)
    assert (given_up.exit_code, "before it began; nothing was touched" in given_up.stdout) == (0, True)
