"""Rollouts that wait behind the live one or take over from it: examples, a crash at every prefix, and any world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.simulation import Simulation, UnsafeError, fleet_of, planned, queue, start
from tests.core.test_rolling import policy
from trafficd.core import events as ev
from trafficd.core.invariants import InvariantError, check
from trafficd.core.model import (
    Direction,
    Order,
    Phase,
    Service,
    StepKey,
    StepKind,
    World,
)
from trafficd.core.plan import Decision
from trafficd.core.queue import given_up, supersedable, waits

PLAIN: dict[str, Any] = {"hooks": (), "prepares": False}


def versions(sim: Simulation) -> dict[str, str | None]:
    return {name: upstream.version for name, upstream in sim.service.upstreams.items()}


def phases(sim: Simulation) -> dict[str, str]:
    """How each rollout ended, by the journal."""
    return {e.rollout: e.state.value for _, e in sim.journal if isinstance(e, ev.RolloutEnded)}


def reason(sim: Simulation, rollout: str) -> str:
    return next(e.reason for _, e in sim.journal if isinstance(e, ev.RolloutEnded) and e.rollout == rollout)


def until(sim: Simulation, holds: Callable[[], object], limit: int = 400) -> None:
    """Perform steps until it holds."""
    for _ in range(limit):
        decision = sim.settle()
        if holds():
            return
        if decision.cancel:
            sim.cancel(decision.cancel)
        else:
            sim.perform(sim.running()[0].key)
    raise AssertionError("it never came to hold")


def in_step(sim: Simulation, upstream: str, kind: StepKind, rollout: str | None = None) -> Callable[[], bool]:
    """Whether the live rollout (of this id) is in that step."""

    def holds() -> bool:
        key = StepKey(upstream, Direction.FORWARD, kind)
        live = sim.service.live
        return live is not None and rollout in (None, live.id) and any(step.key == key for step in sim.running())

    return holds


def half_done(order: Order = Order.STOP_FIRST, kind: StepKind = StepKind.SWAP, **changes: object) -> Simulation:
    """Four upstreams: a and b run v2 and serve, c is in the midst of it, d runs v1."""
    sim = fleet_of(4, spare=True)
    start(sim, policy(order, **{**PLAIN, **changes}))
    until(sim, in_step(sim, "c", kind))
    return sim


# -- queued --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fate", "first"), [(None, "succeeded"), (StepKind.GATE, "reverted"), (StepKind.PREPARE, "failed")]
)
def test_it_begins_when_the_live_one_has_ended(fate: StepKind | None, first: str) -> None:
    sim = fleet_of(3)
    sim.fate = lambda key: "broken" if sim.service.rollout.id == "r1" and key.kind is fate else "ok"  # type: ignore[union-attr]
    sim.fate = (lambda fated: lambda key: "ok" if key.direction is Direction.REVERT else fated(key))(sim.fate)
    start(sim, policy())
    sim.settle()
    queue(sim)
    assert "r1 to v2 to end" in waits(sim.service, sim.now)[0].what
    assert sim.service.pending is not None
    assert sim.service.pending.phase is Phase.PENDING
    assert sim.run().id == "r2"
    assert phases(sim) == {"r1": first, "r2": "succeeded"}
    assert set(versions(sim).values()) == {"v3"}
    assert sim.service.stable == "v3"
    assert sim.service.queued is None


def test_after_stuck_a_person_decides() -> None:
    sim = fleet_of(3)
    sim.fate = lambda key: "broken" if key.kind is StepKind.GATE and key.upstream == "b" else "ok"
    start(sim, policy())
    sim.settle()
    queue(sim)
    assert sim.run().phase is Phase.STUCK
    (wait,) = waits(sim.service, sim.now)
    assert "r1 is stuck" in wait.what
    assert "trafficd resume r2" in wait.what
    serving = set(sim.fleet.shares)
    sim.record(ev.Resumed("web", "r2"))
    sim.fate = lambda key: "ok"
    sim.settle()
    assert serving <= {*sim.fleet.shares, *(t.old_dial for t in sim.service.live.tasks)}  # type: ignore[union-attr]
    assert sim.run().phase is Phase.SUCCEEDED
    assert set(versions(sim).values()) == {"v3"}


def test_a_freeze_that_came_meanwhile_holds_it_until_its_end() -> None:
    sim = fleet_of(3)
    start(sim, policy())
    sim.settle()
    queue(sim)
    sim.record(ev.Frozen("web", "Friday night", until=sim.now + 600.0, actor="ann"))
    assert sim.run().id == "r1"
    (wait,) = waits(sim.service, sim.now)
    assert "freeze by ann" in wait.what
    assert wait.until == sim.service.freeze.until  # type: ignore[union-attr]
    sim.now += 601.0
    assert sim.run().id == "r2"


def test_the_newest_wish_wins_and_the_older_one_ends_untouched() -> None:
    sim = half_done()
    queue(sim, "v3", "r2")
    queue(sim, "v4", "r3")
    sim.run()
    assert phases(sim) == {"r2": "failed", "r1": "succeeded", "r3": "succeeded"}
    assert reason(sim, "r2") == "superseded by r3, before it began; nothing was touched"
    assert set(versions(sim).values()) == {"v4"}


def test_paused_it_waits_and_aborted_it_ends_while_the_live_one_goes_on() -> None:
    sim = half_done()
    queue(sim)
    sim.record(ev.Paused("web", "r2"))
    assert sim.run().id == "r1"
    assert "trafficd resume r2" in waits(sim.service, sim.now)[0].what
    pending = sim.service.pending
    assert pending is not None
    sim.record(given_up(pending, "eve"))
    sim.settle()
    assert reason(sim, "r2") == "aborted by eve before it began; nothing was touched"
    assert sim.service.pending is None
    assert set(versions(sim).values()) == {"v2"}


def test_policy_upstreams_and_previous_versions_are_those_of_the_beginning() -> None:
    sim = fleet_of(3)
    start(sim, policy())
    sim.settle()
    queue(sim, max_parallel=2)
    while sim.service.rollout.live:  # type: ignore[union-attr]
        sim.settle()
        if sim.service.rollout.id == "r2":  # type: ignore[union-attr]
            break
        sim.perform(sim.running()[0].key)
        if sim.service.live and len(sim.service.upstreams) == 3:
            sim.fleet.running["10.0.0.9:80"] = "v1"
            sim.record(ev.UpstreamAdded("web", "x", "10.0.0.9:80", "v1"))
    rollout = sim.service.rollout
    assert rollout is not None
    assert rollout.upstreams == ("a", "b", "c", "x")
    assert rollout.previous == {"a": "v2", "b": "v2", "c": "v2", "x": "v1"}
    assert rollout.policy.max_parallel == 2
    sim.probe()
    assert sim.run().phase is Phase.SUCCEEDED


@pytest.mark.parametrize("why", ["nonsense is no policy", "min_ready is 3", "no upstreams any more"])
def test_what_has_become_hopeless_ends_as_failed(why: str) -> None:
    sim = fleet_of(3)
    start(sim, policy())
    sim.settle()
    queue(sim, **({"nonsense": True} if "nonsense" in why else {"min_ready": 3}))
    if "upstreams" in why:
        sim.service = replace(sim.service, upstreams={}, rollout=None)
        sim.settle()
    else:
        sim.run()
    assert phases(sim)["r2"] == "failed"
    assert why in reason(sim, "r2")
    assert reason(sim, "r2").endswith("nothing was touched")


# -- superseding ---------------------------------------------------------------------------------------

IN_WORK = [(Order.STOP_FIRST, kind) for kind in (StepKind.DRAIN, StepKind.SWAP, StepKind.GATE, StepKind.ADMIT)] + [
    (Order.START_FIRST, kind)
    for kind in (StepKind.SWAP, StepKind.GATE, StepKind.ADMIT, StepKind.DRAIN, StepKind.RETIRE)
]


@pytest.mark.parametrize(("order", "kind"), IN_WORK)
def test_it_takes_over_from_where_things_stand(order: Order, kind: StepKind) -> None:
    sim = half_done(order, kind)
    before = len(sim.journal)
    sim.floor = len(sim.fleet.shares)
    queue(sim, supersede=True, order=order.value, retires=True)
    assert sim.run().id == "r2"
    assert phases(sim) == {"r1": "failed", "r2": "succeeded"}
    assert reason(sim, "r1") == "superseded by r2"
    assert set(versions(sim).values()) == {"v3"}
    assert sorted(str(v) for v in sim.fleet.running.values()) == ["v3"] * 4, "nothing old left over"
    assert sim.service.history == ("v1",), "v2 was never the stable version"
    swaps = [e for _, e in sim.journal[before:] if isinstance(e, ev.StepStarted) and e.step is StepKind.SWAP]
    assert len(swaps) == 4, "no detour"
    assert sim.floor >= (3 if order is Order.STOP_FIRST else 4)


def test_what_is_out_of_traffic_goes_first() -> None:
    sim = half_done()
    queue(sim, supersede=True)
    sim.run()
    turns = [e.upstream for _, e in sim.journal if isinstance(e, ev.TaskStarted) and e.rollout == "r2"]
    assert turns[0] == "c"


def test_all_three_versions_serve_side_by_side() -> None:
    sim = half_done()
    queue(sim, supersede=True)
    until(sim, in_step(sim, "a", StepKind.SWAP, "r2"))
    serving = {u.id: u.version for u in sim.service.upstreams.values() if sim.fleet.shares.get(u.serving or "")}
    assert serving == {"b": "v2", "c": "v3", "d": "v1"}


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("victim", ["a", "c", "d"])
@pytest.mark.parametrize("kind", [StepKind.SWAP, StepKind.GATE, StepKind.DRAIN])
def test_its_revert_goes_to_the_stable_version_everywhere(order: Order, victim: str, kind: StepKind) -> None:
    sim = half_done(order)
    queue(sim, supersede=True, order=order.value, retires=True)
    sim.fate = lambda key: (
        "broken" if sim.service.rollout.id == "r2" and key == StepKey(victim, Direction.FORWARD, kind) else "ok"  # type: ignore[union-attr]
    )
    rollout = sim.run()
    assert (rollout.id, rollout.phase) == ("r2", Phase.REVERTED)
    assert set(versions(sim).values()) == {"v1"}
    assert sorted(str(v) for v in sim.fleet.running.values()) == ["v1"] * 4
    assert len(sim.fleet.shares) == 4
    assert not sim.service.carried


def test_failed_before_it_touched_anything_it_brings_the_stable_version_back_too() -> None:
    sim = half_done()
    queue(sim, supersede=True, prepares=True)
    sim.fate = lambda key: "no such image" if key.kind is StepKind.PREPARE else "ok"
    assert sim.run().phase is Phase.REVERTED
    assert set(versions(sim).values()) == {"v1"}
    assert len(sim.fleet.shares) == 4


def test_without_a_revert_what_served_goes_on_and_what_was_in_work_stays_out() -> None:
    sim = half_done()
    queue(sim, supersede=True, prepares=True, auto_revert=False)
    sim.fate = lambda key: "no such image" if key.kind is StepKind.PREPARE else "ok"
    rollout = sim.run()
    assert rollout.phase is Phase.FAILED
    assert "c was not brought back: a revert was not wanted" in rollout.reason
    assert set(sim.fleet.shares) == {"10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80"}


def test_what_was_in_the_midst_of_a_swap_is_of_no_version_and_is_not_let_in_as_it_is() -> None:
    sim = half_done()
    queue(sim, supersede=True)
    until(sim, in_step(sim, "c", StepKind.DRAIN, "r2"))
    c = sim.service.upstreams["c"]
    assert (c.version, c.unproven, c.serving) == (None, True, None)
    sim.record(ev.AbortRequested("web", "r2", revert=False))
    assert sim.run().phase is Phase.FAILED
    assert sim.service.upstreams["c"].serving is None
    assert set(sim.fleet.shares) == {"10.0.0.4:80"}, "an abort is for the stable version alone"


def test_what_was_only_drained_is_let_in_again() -> None:
    sim = half_done(kind=StepKind.DRAIN)
    queue(sim, supersede=True)
    until(sim, in_step(sim, "c", StepKind.DRAIN, "r2"))
    sim.record(ev.AbortRequested("web", "r2", revert=False))
    sim.run()
    assert set(sim.fleet.shares) == {"10.0.0.3:80", "10.0.0.4:80"}


def test_beside_a_new_instance_what_a_swap_was_cut_off_in_is_not_let_in_either() -> None:
    """c is in the midst of a swap in place; the one that takes over brings a new instance up beside it, which is
    admitted, and then fails: the old address runs half of one."""
    sim = half_done()
    queue(sim, "v3", supersede=True, order="start_first", retires=True, auto_revert=True)
    broken = StepKey("c", Direction.FORWARD, StepKind.DRAIN)
    sim.fate = lambda key: "the disk is full" if key == broken and sim.service.live.id == "r2" else "ok"  # type: ignore[union-attr]
    rollout = sim.run()
    assert rollout.phase is Phase.REVERTED
    assert rollout.reason == "c: drain: the disk is full"
    assert versions(sim) == dict.fromkeys("abcd", "v1")
    assert StepKind.SWAP in rollout.revert["c"].steps, "it is replaced, and not let in as it is"


def test_beside_a_new_instance_of_the_stable_version_nothing_is_to_be_undone() -> None:
    sim = half_done()
    queue(sim, "v1", supersede=True, order="start_first", retires=True)
    broken = StepKey("c", Direction.FORWARD, StepKind.DRAIN)
    sim.fate = lambda key: "the disk is full" if key == broken and sim.service.live.id == "r2" else "ok"  # type: ignore[union-attr]
    rollout = sim.run()
    assert "c" not in rollout.revert
    assert sim.service.upstreams["c"].serving == "10.0.0.3:81"


def test_where_no_stable_version_is_known_nothing_unknown_is_let_in() -> None:
    sim = fleet_of(4, version=None)
    start(sim, policy(**PLAIN))
    until(sim, in_step(sim, "c", StepKind.SWAP))
    queue(sim, supersede=True, prepares=True)
    sim.fate = lambda key: "no such image" if key.kind is StepKind.PREPARE else "ok"
    rollout = sim.run()
    assert rollout.phase is Phase.FAILED
    assert "c was not brought back: the version before is not known" in rollout.reason
    assert sim.service.upstreams["c"].serving is None
    assert len(sim.fleet.shares) == 3


def test_a_chain_of_them_ends_with_the_newest() -> None:
    sim = half_done()
    queue(sim, "v3", "r2", supersede=True)
    until(sim, in_step(sim, "a", StepKind.GATE, "r2"))
    queue(sim, "v4", "r3", supersede=True)
    until(sim, lambda: sim.service.live.id == "r3")  # type: ignore[union-attr]
    assert set(sim.service.carried) == {"v2", "v3"}
    sim.run()
    assert set(versions(sim).values()) == {"v4"}
    assert (sim.service.stable, sim.service.history, sim.service.carried) == ("v4", ("v1",), ())


def test_a_newer_wish_takes_the_place_of_one_that_is_about_to_take_over() -> None:
    sim = half_done()
    queue(sim, "v3", "r2", supersede=True)
    queue(sim, "v4", "r3")
    sim.run()
    assert reason(sim, "r1") == "superseded by r3"
    assert phases(sim) == {"r1": "failed", "r2": "failed", "r3": "succeeded"}


def stopping(sim: Simulation) -> None:
    """The live one has been told to stop and has not ended yet."""
    while sim.service.live is not None and sim.service.live.superseded_by is None:
        decision = sim.decide(sim.service, sim.world(), sim.now)
        assert decision.event is not None
        sim.record(decision.event)


def test_an_abort_of_the_one_that_takes_over_is_for_the_old_version_at_once() -> None:
    sim = half_done()
    queue(sim, supersede=True)
    stopping(sim)
    sim.record(ev.AbortRequested("web", "r2", actor="eve"))
    assert set(sim.decide(sim.service, sim.world(), sim.now).weights) == {"10.0.0.4:80"}
    rollout = sim.run()
    assert (rollout.id, rollout.phase, rollout.reason) == ("r2", Phase.REVERTED, "aborted by eve")
    assert set(versions(sim).values()) == {"v1"}


def test_an_abort_of_the_one_that_stops_goes_first() -> None:
    sim = half_done()
    queue(sim, supersede=True)
    stopping(sim)
    sim.record(ev.AbortRequested("web", "r1", actor="eve"))
    sim.run()
    assert phases(sim) == {"r1": "reverted", "r2": "succeeded"}
    assert set(versions(sim).values()) == {"v3"}


@pytest.mark.parametrize("fails", [False, True])
def test_an_abort_while_what_is_superseded_clears_up_ends_too(fails: bool) -> None:
    """The new instance beside an old one is being stopped when the abort comes."""
    sim = half_done(Order.START_FIRST)
    queue(sim, supersede=True)
    retires = StepKey("c", Direction.REVERT, StepKind.RETIRE)
    until(sim, lambda: retires in [step.key for step in sim.running()])
    sim.fate = lambda key: "no such container" if fails and key == retires else "ok"
    if fails:
        sim.perform(retires)
    sim.record(ev.AbortRequested("web", "r1"))
    sim.run()
    assert phases(sim) == {"r1": "failed" if fails else "reverted", "r2": "succeeded"}
    if fails:
        assert "its revert failed: no such container" in reason(sim, "r1")


def test_whatever_the_order_an_abort_and_the_word_to_stop_come_to_the_same() -> None:
    sim = half_done()
    queue(sim, supersede=True)
    events: list[ev.Event] = [ev.Superseded("web", "r1", "r2"), ev.AbortRequested("web", "r1", actor="eve")]
    states = []
    for order in (events, events[::-1]):
        other = half_done()
        queue(other, supersede=True)
        for event in order:
            other.record(event)
        states.append(other.service)
    assert states[0] == states[1]


def test_paused_or_frozen_it_still_takes_over_and_then_begins_no_further_upstream() -> None:
    sim = half_done()
    queue(sim, supersede=True)
    stopping(sim)
    sim.record(ev.Frozen("web", "Friday night"))
    sim.record(ev.Paused("web", "r2"))
    sim.settle()
    sim.cancel(sim.decide(sim.service, sim.world(), sim.now).cancel)
    sim.settle()
    live = sim.service.live
    assert live is not None
    assert (live.id, live.paused, live.touched) == ("r2", True, ())
    sim.record(ev.Resumed("web", "r2"))
    assert sim.run().phase is Phase.SUCCEEDED


def test_an_old_instance_that_cannot_be_drained_is_not_replaced_unseen() -> None:
    sim = half_done(Order.START_FIRST, StepKind.DRAIN)
    queue(sim, supersede=True, order="start_first")
    sim.fate = lambda key: "cannot be counted" if key == StepKey("c", Direction.FORWARD, StepKind.DRAIN) else "ok"
    until(sim, lambda: sim.service.live.phase is Phase.REVERTING)  # type: ignore[union-attr]
    sim.fate = lambda key: "ok"
    sim.run()
    assert phases(sim) == {"r1": "reverted", "r2": "succeeded"}


def test_a_revert_once_begun_is_brought_to_its_end() -> None:
    sim = half_done()
    assert supersedable(sim.service.live)  # type: ignore[arg-type]
    sim.record(ev.AbortRequested("web", "r1"))
    assert not supersedable(sim.service.live)  # type: ignore[arg-type]
    queue(sim, supersede=True)
    sim.run()
    assert phases(sim) == {"r1": "reverted", "r2": "succeeded"}


# -- crashes -------------------------------------------------------------------------------------------


def scripted(supersede: bool, order: Order) -> Simulation:
    sim = half_done(order)
    queue(sim, "v3", "r2", supersede=supersede, order=order.value, retires=True, max_parallel=2)
    if not supersede:
        queue(sim, "v3", "r3", order=order.value, retires=True)
    return sim


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("supersede", [False, True], ids=["queue", "supersede"])
def test_a_crash_at_every_journal_prefix_ends_in_the_same_place(supersede: bool, order: Order) -> None:
    reference = scripted(supersede, order)
    begin = len(reference.journal)
    reference.run()
    for prefix in range(begin, len(reference.journal), 1 if supersede else 2):
        for lost_outcome in (False, True):
            sim = scripted(supersede, order)
            while len(sim.journal) < prefix:
                decision = sim.decide(sim.service, sim.world(), sim.now)
                sim.fleet.shares = dict(decision.weights)
                if decision.event is not None:
                    sim.record(decision.event)
                elif decision.cancel:
                    sim.cancel(decision.cancel)
                else:
                    sim.perform(sim.running()[0].key)
            if lost_outcome and sim.running():
                key = sim.running()[0].key
                sim._act(sim.service.rollout, key, sim.fate(key))  # type: ignore[arg-type]
            sim.crash()
            sim.probe()
            sim.run()
            assert phases(sim) == phases(reference), prefix
            assert versions(sim) == versions(reference), prefix
            assert set(sim.fleet.shares) == set(reference.fleet.shares), prefix


# -- any world -----------------------------------------------------------------------------------------

ACTIONS = (
    *("perform",) * 6,
    *("fail", "crash", "pause", "resume", "abort", "abort_no_revert", "die", "tick"),
    *("queue", "supersede", "supersede", "freeze", "thaw", "give up"),
)


def drive(decider, data: st.DataObject) -> Simulation:  # type: ignore[no-untyped-def]
    """Rollouts that follow and take over from each other in any way, then a quiet world: all must end."""
    count = data.draw(st.integers(2, 5))
    sim = fleet_of(count, spare=True)
    sim.decide = decider
    start(sim, policy(data.draw(st.sampled_from(Order)), **{**PLAIN, **_limits(data, count)}))
    for action in data.draw(st.lists(st.sampled_from(ACTIONS), max_size=60)):
        decision = sim.settle()
        if decision.cancel:
            sim.cancel(decision.cancel)
        else:
            _act(sim, action, data, count)
    sim.fate = lambda key: "ok"
    sim.probe()
    sim.record(ev.Thawed("web"))
    _quiet(sim)
    return sim


def _limits(data: st.DataObject, count: int) -> dict[str, object]:
    return {
        "max_parallel": data.draw(st.integers(1, count)),
        "min_ready": data.draw(st.integers(0, count - 1)),
        "auto_revert": data.draw(st.booleans()),
    }


def _act(sim: Simulation, action: str, data: st.DataObject, count: int) -> None:
    live, pending, steps = sim.service.live, sim.service.pending, sim.running()
    current = live or pending
    match action:
        case "perform" | "fail" if steps:
            sim.fate = (lambda key: "ok") if action == "perform" else (lambda key: "broken")
            sim.perform(data.draw(st.sampled_from(steps)).key)
        case "crash":
            sim.crash()
            sim.probe()
        case "pause" | "resume" if current is not None:
            named = data.draw(st.sampled_from([one.id for one in (live, pending) if one]))
            sim.record(ev.Paused("web", named) if action == "pause" else ev.Resumed("web", named))
        case "abort" | "abort_no_revert" if current is not None:
            named = data.draw(st.sampled_from([one.id for one in (live, pending) if one]))
            sim.record(ev.AbortRequested("web", named, revert=action == "abort"))
        case "queue" | "supersede":
            number = sum(isinstance(event, ev.RolloutQueued) for _, event in sim.journal) + 2
            version = data.draw(st.sampled_from(["v1", "v2", f"v{number + 1}"]))
            order = data.draw(st.sampled_from(Order)).value
            supersede = action == "supersede" and live is not None and supersedable(live)
            limits = {**_limits(data, count), "order": order, "retires": True}
            queue(sim, version, f"r{number}", supersede=supersede, **limits)
        case "freeze" | "thaw":
            sim.record(ev.Frozen("web", "Friday night") if action == "freeze" else ev.Thawed("web"))
        case "give up" if pending is not None:
            sim.record(given_up(pending, "eve"))
        case "die":
            victim = data.draw(st.sampled_from(sorted(sim.service.upstreams)))
            sim.fleet.running.pop(sim.service.upstreams[victim].serving or "", None)
            sim.probe()
        case "tick":
            sim.now += 30.0
            sim.probe()
        case _:
            pass


def _quiet(sim: Simulation) -> None:
    """Nobody interferes any more: whatever is live or pending comes to its end."""
    for _ in range(10):
        sim.settle()
        for one in (sim.service.live, sim.service.pending):
            if one is not None and one.paused:
                sim.record(ev.Resumed("web", one.id))
        sim.settle()
        if sim.service.live is not None:
            sim.run()
        if sim.service.live is None and sim.service.pending is None:
            return
    raise AssertionError("what was asked for never ends")


@settings(max_examples=max(200, settings().max_examples))
@given(st.data())
def test_whatever_is_queued_or_superseded_is_safe_and_ends(data: st.DataObject) -> None:
    sim = drive(planned, data)
    rollout = sim.service.rollout
    assert rollout is not None
    assert rollout.phase.ended
    asked = {e.rollout for _, e in sim.journal if isinstance(e, ev.RolloutQueued | ev.RolloutStarted)}
    assert set(phases(sim)) == asked, "every rollout that was asked for has its end in the journal"
    if rollout.phase is Phase.SUCCEEDED:
        assert set(versions(sim).values()) == {rollout.version}
    if rollout.phase is Phase.REVERTED and rollout.back_to is not None:
        assert set(versions(sim).values()) == {rollout.back_to}
    for upstream in sim.service.upstreams.values():
        assert not (upstream.unproven and upstream.serving), "nothing is let in that has not passed a gate"
    lived = sim.service
    sim.crash()
    assert sim.service == lived  # the journal alone gives the same state


# -- guard against vacuity: planners that are wrong must be caught ---------------------------------------


def impatient(service: Service, world: World, now: float) -> Decision:
    """Begins the queued one while the live one still runs."""
    decision = planned(service, world, now)
    if service.pending is None or service.live is None:
        return decision
    alone = planned(replace(service, rollout=None), world, now)
    return replace(decision, event=alone.event if isinstance(alone.event, ev.RolloutStarted) else decision.event)


def forgetful(service: Service, world: World, now: float) -> Decision:
    """Knows of two versions only: at a take-over, what the superseded rollout admitted loses its traffic."""
    return planned(replace(service, carried=()), world, now)


def ruthless(service: Service, world: World, now: float) -> Decision:
    """Ends a superseded rollout with its steps still running."""
    decision, live = planned(service, world, now), service.live
    if live is not None and live.superseded_by and decision.event is None:
        return replace(decision, event=ev.RolloutEnded("web", live.id, Phase.FAILED, "superseded"), cancel=frozenset())
    return decision


def trusting(service: Service, world: World, now: float) -> Decision:
    """Lets what a superseded rollout left in the midst of a swap in again as it is."""
    trusted = {
        name: replace(u, unproven=False, version=u.version or service.stable) for name, u in service.upstreams.items()
    }
    return planned(replace(service, upstreams=trusted), world, now)


def one_after_the_other(sim: Simulation) -> None:
    queue(sim)
    sim.run()


def take_over(sim: Simulation) -> None:
    queue(sim, supersede=True)
    sim.run()


def take_over_and_abort(sim: Simulation) -> None:
    queue(sim, supersede=True)
    until(sim, in_step(sim, "c", StepKind.DRAIN, "r2"))
    sim.record(ev.AbortRequested("web", "r2", revert=False))
    sim.run()


@pytest.mark.parametrize(
    ("wrong", "script", "caught"),
    [
        (impatient, one_after_the_other, "S10"),
        (forgetful, take_over, "lost its traffic"),
        (ruthless, take_over, "S8"),
        (trusting, take_over_and_abort, "half of one"),
    ],
)
def test_a_wrong_planner_is_caught(
    wrong: Callable[[Service, World, float], Decision], script: Callable[[Simulation], None], caught: str
) -> None:
    script(half_done())
    sim = half_done()
    sim.decide = wrong
    with pytest.raises((InvariantError, UnsafeError), match=caught):
        script(sim)


def test_a_take_over_that_takes_something_out_of_traffic_is_caught() -> None:
    sim = half_done()
    queue(sim, supersede=True)
    stopping(sim)
    sim.cancel(sim.decide(sim.service, sim.world(), sim.now).cancel)
    ended = sim.decide(sim.service, sim.world(), sim.now).event
    assert isinstance(ended, ev.RolloutEnded)
    check(sim.service, sim.world(), ended)
    with pytest.raises(InvariantError, match="S11"):  # as if the version were given up, and not its traffic kept
        check(sim.service, sim.world(), replace(ended, state=Phase.REVERTED))
