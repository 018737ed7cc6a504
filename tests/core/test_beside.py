"""New versions beside the old one in the simulated fleet: stages, warm instances, shares of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.simulation import Simulation, fleet_of, start
from trafficd.core import events as ev
from trafficd.core.invariants import InvariantError
from trafficd.core.judge import Verdict
from trafficd.core.model import (
    Beside,
    Direction,
    Health,
    Inconclusive,
    Order,
    Phase,
    Policy,
    Rollout,
    Service,
    Stage,
    StepKey,
    StepKind,
    Upstream,
    World,
)
from trafficd.core.plan import Decision, decide
from trafficd.core.reconcile import Configured, reconcile
from trafficd.core.routing import PREVIEW, route
from trafficd.core.strategy import forward_steps

STAGES = (Stage(5, 10, 100, judged=True), Stage(50, 10, 100, judged=True), Stage(100, 10))


def canary(stages: tuple[Stage, ...] = STAGES, **changes: object) -> Policy:
    base = {
        "order": Order.START_FIRST,
        "beside": True,
        "stages": stages,
        "retires": True,
        "prepares": True,
        "keep_old": 600.0,
        "max_parallel": 2,
    }
    return Policy(**{**base, **changes})  # type: ignore[arg-type]


def rainbow(percent: float) -> Policy:
    return canary((Stage(percent),), keeps=True)


def advance_to(sim: Simulation, stage: int) -> None:
    """Perform steps and let time pass until the rollout is in this stage."""
    for _ in range(500):
        sim.settle()
        live = sim.service.live
        assert live is not None, sim.service.rollout
        if live.stage == stage:
            return
        if sim.running():
            sim.perform(sim.running()[0].key)
        else:
            sim.now += 10.0
    raise AssertionError(f"stage {stage} never began")


def share(sim: Simulation, version: str = "v2") -> Fraction:
    """The part of all slots that goes to a version, by what really runs where."""
    total = sum(sim.fleet.shares.values())
    return Fraction(sum(w for dial, w in sim.fleet.shares.items() if sim.fleet.running[dial] == version), total)


def kinds(sim: Simulation, kind: type[ev.Event]) -> list[ev.Event]:
    return [event for _, event in sim.journal if isinstance(event, kind)]


def test_the_new_version_gets_its_share_stage_by_stage_and_then_serves() -> None:
    sim = fleet_of(3, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(), strategy="canary")
    for stage, percent in enumerate((5, 50, 100)):
        advance_to(sim, stage)
        assert share(sim) == Fraction(percent, 100)
    assert sim.service.live is not None
    assert sim.service.live.phase is Phase.PROMOTING
    assert sim.run().phase is Phase.SUCCEEDED
    assert sim.service.stable == "v2"
    assert {(u.version, u.dial[-2:]) for u in sim.service.upstreams.values()} == {("v2", "81")}
    assert {(one.version, one.dial[-2:]) for _, one in sim.service.besides()} == {("v1", "80")}
    assert share(sim) == 1
    assert sorted(str(v) for v in sim.fleet.running.values()) == ["v1"] * 3 + ["v2"] * 3, "the old ones are warm"


def test_no_stage_before_every_instance_is_there() -> None:
    sim = fleet_of(3, spare=True)
    start(sim, canary(), strategy="canary")
    while sim.service.live and sim.service.live.stage is None:
        sim.settle()
        assert share(sim) == 0 or sim.service.live.stage is not None
        if sim.running():
            sim.perform(sim.running()[0].key)
    assert len([d for d in sim.fleet.running if d.endswith("81")]) == 3


@pytest.mark.parametrize(
    ("wish", "phase"),
    [(Inconclusive.ABORT, Phase.REVERTED), (Inconclusive.PROMOTE, Phase.SUCCEEDED), (Inconclusive.HOLD, None)],
)
def test_without_a_verdict_the_deadline_decides(wish: Inconclusive, phase: Phase | None) -> None:
    sim = fleet_of(2, spare=True)
    start(sim, canary(on_inconclusive=wish), strategy="canary")
    advance_to(sim, 0)
    sim.now += 99
    assert sim.settle().event is None
    assert sim.service.live is not None
    assert sim.service.live.stage == 0
    sim.now += 1
    sim.settle()
    if phase is not None:
        assert sim.run().phase is phase
        return
    assert sim.service.live.stage == 0
    assert "trafficd promote" in sim.settle().waits[0].what
    sim.record(ev.GatePassed("web", "r1", 0))
    sim.settle()
    assert sim.service.live.stage == 1


def test_a_stage_lasts_its_minimum_even_with_a_pass() -> None:
    sim = fleet_of(2, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(), strategy="canary")
    advance_to(sim, 0)
    sim.now += 9.9
    sim.settle()
    assert sim.service.live is not None
    assert sim.service.live.stage == 0
    sim.now += 0.1
    sim.settle()
    assert sim.service.live.stage == 1


def test_a_pause_takes_nothing_of_the_time_of_a_stage() -> None:
    sim = fleet_of(2, spare=True)
    start(sim, canary(), strategy="canary")
    advance_to(sim, 0)
    sim.now += 50
    sim.record(ev.Paused("web", "r1", ""))
    sim.now += 500
    sim.record(ev.Resumed("web", "r1", ""))
    assert sim.settle().waits[0].until == sim.now + 50, "of its 100 s"
    sim.now += 49
    assert sim.settle().event is None
    assert sim.service.live is not None
    assert not sim.service.live.failing
    sim.now += 1
    sim.settle()
    assert sim.service.live.failing, "no verdict in time"


def test_a_share_set_by_hand_is_not_lowered_by_the_next_stage() -> None:
    sim = fleet_of(2, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary((Stage(5, 10, 100, judged=True), Stage(10, 10, 100, judged=True), *STAGES[1:])))
    advance_to(sim, 0)
    sim.record(ev.CanarySet("web", 20.0))
    for stage, percent in ((1, 20), (2, 50), (3, 100)):
        advance_to(sim, stage)
        assert share(sim) == Fraction(percent, 100)
    assert sim.run().phase is Phase.SUCCEEDED


@pytest.mark.parametrize("wish", [Inconclusive.ABORT, Inconclusive.PROMOTE])
def test_what_was_set_to_nothing_by_hand_gets_nothing_by_itself(wish: Inconclusive) -> None:
    """A PASS from before it, and a deadline, are no reason."""
    sim = fleet_of(2, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(on_inconclusive=wish), strategy="canary")
    advance_to(sim, 0)
    sim.record(ev.CanarySet("web", 0.0))
    sim.now += 99
    (wait,) = sim.settle().waits
    assert "trafficd canary web PERCENT" in wait.what
    assert share(sim) == 0
    assert wait.until == (sim.now + 1 if wish is Inconclusive.ABORT else None)
    if wish is Inconclusive.ABORT:
        sim.now += 1
        assert "set to 0 by hand" in str(sim.run().failure)
        return
    sim.now += 100
    sim.settle()
    assert share(sim) == 0
    sim.record(ev.CanarySet("web", 20.0))
    advance_to(sim, 1)
    assert sim.run().phase is Phase.SUCCEEDED


def test_all_traffic_that_was_taken_away_by_hand_stays_away() -> None:
    sim = fleet_of(2, spare=True)
    start(sim, canary((Stage(100, 10),)), strategy="blue_green")
    advance_to(sim, 0)
    sim.record(ev.Promoted("web", "r1"))
    sim.record(ev.CanarySet("web", 0.0))
    sim.now += 1000
    sim.settle()
    assert share(sim) == 0
    sim.record(ev.Promoted("web", "r1"))
    assert sim.run().phase is Phase.SUCCEEDED


def test_an_abort_takes_all_traffic_at_once_and_retires_the_new_instances() -> None:
    sim = fleet_of(3, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(), strategy="canary")
    advance_to(sim, 1)
    sim.record(ev.AbortRequested("web", "r1", actor="judge", reason="worse"))
    assert not {dial for dial in sim.decide(sim.service, sim.world(), sim.now).weights if dial.endswith("81")}
    rollout = sim.run()
    assert rollout.phase is Phase.REVERTED
    assert rollout.reason == "aborted by judge: worse"
    assert list(sim.service.besides()) == []
    assert sorted(str(v) for v in sim.fleet.running.values()) == ["v1"] * 3
    assert sim.service.shares == {}


def test_nothing_goes_on_over_a_fail_whoever_promotes() -> None:
    sim = fleet_of(2, spare=True)
    sim.verdict = Verdict.FAIL
    start(sim, canary((Stage(5, gate=True), Stage(100))), strategy="canary")
    advance_to(sim, 0)
    sim.record(ev.GatePassed("web", "r1", 0))
    sim.record(ev.Promoted("web", "r1"))
    sim.now += 1000
    assert sim.settle().event is None
    assert share(sim) == Fraction(1, 20)


def test_a_gate_waits_for_somebody_and_a_promote_elsewhere_gives_everything() -> None:
    sim = fleet_of(2, spare=True)
    start(sim, canary((Stage(0, gate=True), Stage(5, 10, 100, judged=True), Stage(100))), strategy="canary")
    advance_to(sim, 0)
    sim.now += 10_000
    decision = sim.settle()
    assert decision.event is None
    assert share(sim) == 0
    assert set(decision.pins[PREVIEW]) == {"10.0.0.1:81", "10.0.0.2:81"}, "who has the header sees it"
    sim.record(ev.GatePassed("web", "r1", 0))
    sim.settle()
    assert share(sim) == Fraction(1, 20)
    sim.record(ev.Promoted("web", "r1"))
    assert sim.run().phase is Phase.SUCCEEDED
    assert decide(sim.service, sim.world(), sim.now).pins == {}


def test_the_preview_ends_where_the_rollout_fails() -> None:
    sim = fleet_of(2, spare=True)
    start(sim, canary((Stage(0, gate=True), Stage(100))), strategy="canary")
    advance_to(sim, 0)
    sim.record(ev.AbortRequested("web", "r1"))
    assert sim.decide(sim.service, sim.world(), sim.now).pins == {}


@pytest.mark.parametrize("kind", [StepKind.SWAP, StepKind.GATE, StepKind.CHECK])
def test_a_new_instance_that_does_not_come_up_costs_nothing(kind: StepKind) -> None:
    sim = fleet_of(3, spare=True)
    sim.fate = lambda key: "broken" if (key.upstream, key.kind) == ("b", kind) else "ok"
    start(sim, canary(checks=True), strategy="canary")
    assert sim.run().phase is Phase.REVERTED
    assert sim.floor == 3, "the old ones had their traffic all the time"
    assert sorted(str(v) for v in sim.fleet.running.values()) == ["v1"] * 3


def test_going_back_to_a_warm_version_needs_no_swap() -> None:
    sim = fleet_of(3, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(), strategy="canary")
    sim.run()
    before = len(sim.journal)
    start(sim, canary((Stage(100),)), version="v1", rollout="r2", strategy="blue_green")
    assert sim.run().phase is Phase.SUCCEEDED
    steps = {event.step for _, event in sim.journal[before:] if isinstance(event, ev.StepStarted)}
    assert steps == {StepKind.PREPARE, StepKind.GATE, StepKind.ADMIT}
    assert share(sim, "v1") == 1
    assert {(u.version, u.dial[-2:]) for u in sim.service.upstreams.values()} == {("v1", "80")}
    assert {one.version for _, one in sim.service.besides()} == {"v2"}


def test_what_is_warm_and_wanted_again_wakes_nobody() -> None:
    """A time that is over and calls for nothing would have the daemon ask without a pause."""
    sim = fleet_of(2, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(keep_old=300.0), strategy="canary")
    sim.run()
    sim.verdict = None
    start(sim, canary((Stage(0, gate=True), Stage(100))), version="v1", rollout="r2", strategy="canary")
    advance_to(sim, 0)
    sim.now += 1000
    decision = sim.settle()
    assert (decision.event, decision.wake_at) == (None, None)


def test_a_way_back_that_fails_leaves_the_warm_instances_warm() -> None:
    sim = fleet_of(2, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(), strategy="canary")
    sim.run()
    sim.fate = lambda key: "broken" if key == StepKey("b", key.direction, StepKind.GATE) else "ok"
    start(sim, canary((Stage(100),)), version="v1", rollout="r2", strategy="blue_green")
    assert sim.run().phase is Phase.FAILED
    assert share(sim) == 1
    assert {one.version for _, one in sim.service.besides()} == {"v1"}


def test_what_is_warm_is_retired_when_its_time_is_over_and_not_before() -> None:
    sim = fleet_of(2, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(keep_old=300.0), strategy="canary")
    sim.run()
    sim.now += 299
    decision = sim.settle()
    assert kinds(sim, ev.RetireStarted) == []
    assert decision.wake_at == sim.now + 1
    sim.now += 1
    sim.settle()
    assert len(kinds(sim, ev.RetireStarted)) == 2
    sim.retire()
    assert sorted(str(v) for v in sim.fleet.running.values()) == ["v2"] * 2
    assert list(sim.service.besides()) == []


def test_the_next_version_first_retires_what_is_warm_in_its_place() -> None:
    sim = fleet_of(2, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(keep_old=10_000.0), strategy="canary")
    sim.run()
    start(sim, canary(keep_old=10_000.0), version="v3", rollout="r2", strategy="canary")
    assert sim.run().phase is Phase.SUCCEEDED
    assert share(sim, "v3") == 1
    assert sorted(str(v) for v in sim.fleet.running.values()) == ["v2"] * 2 + ["v3"] * 2


# -- rainbow -------------------------------------------------------------------------------------------


def test_versions_are_added_beside_each_other_and_retired_one_by_one() -> None:
    sim = fleet_of(3)  # without second addresses: the driver names one for each
    for number, version in enumerate(("v2", "v3")):
        start(sim, rainbow(10 * (number + 1)), version=version, rollout=f"r{number}", strategy="rainbow")
        assert sim.run().phase is Phase.SUCCEEDED
    assert sim.service.stable == "v1"
    assert [share(sim, v) for v in ("v1", "v2", "v3")] == [Fraction(7, 10), Fraction(1, 10), Fraction(1, 5)]
    sim.record(ev.PinSet("web", "blue", "v3"))
    pinned = decide(sim.service, sim.world(), sim.now).pins["blue"]
    assert {sim.fleet.running[dial] for dial in pinned} == {"v3"}
    sim.record(ev.ShareSet("web", "v2", None))
    for upstream, one in list(sim.service.besides()):
        if one.version == "v2":
            sim.record(ev.RetireStarted("web", upstream.id, one.dial))
    sim.settle()
    sim.retire()
    assert sorted(set(map(str, sim.fleet.running.values()))) == ["v1", "v3"]
    assert share(sim, "v3") == Fraction(1, 5)


def test_a_rainbow_version_can_be_promoted_without_a_swap() -> None:
    sim = fleet_of(2)
    start(sim, rainbow(10), version="v2", rollout="r1", strategy="rainbow")
    sim.run()
    start(sim, canary((Stage(100),)), version="v2", rollout="r2", strategy="blue_green")
    before = len(sim.journal)
    assert sim.run().phase is Phase.SUCCEEDED
    assert StepKind.SWAP not in {e.step for _, e in sim.journal[before:] if isinstance(e, ev.StepStarted)}
    assert sim.service.stable == "v2"
    assert sim.service.shares == {}


# -- hold and watch ------------------------------------------------------------------------------------


def test_hold_takes_the_only_instance_out_and_lets_requests_wait() -> None:
    sim = fleet_of(1)
    start(sim, Policy(min_ready=0, hold_for=30.0, watch_time=5.0), strategy="hold")
    waited = False
    while sim.service.live is not None:
        decision = sim.settle()
        waited = waited or decision.weights == {}
        if sim.running():
            sim.perform(sim.running()[0].key)
    assert waited
    assert sim.service.rollout is not None
    assert sim.service.rollout.phase is Phase.SUCCEEDED
    assert share(sim) == 1


def test_a_hold_that_lasted_longer_than_requests_may_wait_is_said() -> None:
    for seconds, told in ((29.0, False), (31.0, True)):
        sim = fleet_of(1)
        start(sim, Policy(min_ready=0, hold_for=30.0), strategy="hold")
        while sim.service.live is not None:
            sim.settle()
            for step in sim.running():
                sim.now += seconds if step.key.kind is StepKind.SWAP else 0
                sim.perform(step.key)
        assert sim.service.rollout is not None
        assert ("try_duration" in sim.service.rollout.reason) is told


def test_a_hold_whose_old_instance_came_back_too_late_is_said_as_well() -> None:
    sim = fleet_of(1)
    sim.fate = lambda key: "broken" if (key.kind, key.direction) == (StepKind.GATE, Direction.FORWARD) else "ok"
    start(sim, Policy(min_ready=0, hold_for=30.0), strategy="hold")
    while sim.service.live is not None:
        sim.settle()
        for step in sim.running():
            sim.now += 20 if step.key.kind is StepKind.SWAP else 0
            sim.perform(step.key)
    assert sim.service.rollout is not None
    assert sim.service.rollout.phase is Phase.REVERTED
    assert any("40.0 s" in warning and "try_duration" in warning for warning in sim.service.rollout.warnings)


def test_watching_comes_right_after_an_instance_has_traffic() -> None:
    for order in Order:
        steps = forward_steps(Policy(order=order, watch_time=5.0, retires=True))
        assert steps[steps.index(StepKind.ADMIT) + 1] is StepKind.WATCH
        assert StepKind.WATCH not in forward_steps(Policy(order=order, retires=True))


def test_an_instance_that_dies_while_it_is_watched_brings_the_old_version_back() -> None:
    sim = fleet_of(3)
    sim.fate = lambda key: "down" if key.kind is StepKind.WATCH else "ok"
    start(sim, Policy(watch_time=5.0))
    assert sim.run().phase is Phase.REVERTED
    assert len(kinds(sim, ev.TaskStarted)) == 2, "one there, one back, and no other was touched"


# -- down ----------------------------------------------------------------------------------------------


def test_nobody_flips_to_new_instances_that_died() -> None:
    sim = fleet_of(2, spare=True)
    start(sim, canary((Stage(100, 60),)), strategy="blue_green")
    advance_to(sim, 0)
    for dial in ("10.0.0.1:81", "10.0.0.2:81"):
        del sim.fleet.running[dial]
    sim.probe()
    assert sim.run().phase is Phase.REVERTED
    assert share(sim, "v1") == 1


def test_where_nobody_can_be_seen_the_new_version_is_not_blamed_at_once() -> None:
    sim = fleet_of(2, spare=True)
    start(sim, canary((Stage(50, 60, gate=True), Stage(100))), strategy="canary")
    advance_to(sim, 0)
    sim.health = dict.fromkeys(sim.health, Health.DOWN)
    assert sim.settle().event is None
    assert sim.service.live is not None
    assert not sim.service.live.failing


# -- configuration -------------------------------------------------------------------------------------


def test_what_runs_beside_an_upstream_is_kept_where_its_description_changes() -> None:
    sim = fleet_of(2, spare=True)
    past: list[ev.Event] = [
        ev.UpstreamAdded("web", u.id, u.dial, u.version, u.spare_dial, configured=True)
        for u in sim.service.upstreams.values()
    ]
    start(sim, canary((Stage(100),)), strategy="blue_green")
    sim.run()
    before = {(u.id, one) for u, one in sim.service.besides()}
    # As it runs now is how it is described from now on; and b goes.
    changes = reconcile(sim.service, past, [Configured("a", "10.0.0.1:81", "v2", "10.0.0.1:80")])
    assert any("v1 at 10.0.0.2:80" in note for note in changes.notes)
    for event in changes.events:
        sim.record(event)
    a = sim.service.upstreams["a"]
    assert (a.serving, a.version, a.spare_dial) == ("10.0.0.1:81", "v2", "10.0.0.1:80")
    assert {(u.id, one) for u, one in sim.service.besides()} == {one for one in before if one[0] == "a"}
    # Described with its addresses in the old order, what runs stays where it is.
    changes = reconcile(sim.service, past + list(changes.events), [Configured("a", "10.0.0.1:80", "v1", "10.0.0.1:81")])
    for event in changes.events:
        sim.record(event)
    assert sim.service.upstreams["a"].serving == "10.0.0.1:81"
    assert {(u.id, one) for u, one in sim.service.besides()} == {one for one in before if one[0] == "a"}


# -- shares --------------------------------------------------------------------------------------------


def world_of(
    service: Service, down: set[str], slots: int, shares: dict[str, int], unreachable: frozenset[str] = frozenset()
) -> World:
    keys = [u.id for u in service.upstreams.values()] + [one.key(u.id) for u, one in service.besides()]
    health = {key: Health.DOWN if key in down else Health.UP for key in keys}
    return World(health=health, shares=shares, slots=slots, unreachable=unreachable)


@settings(max_examples=150)
@given(st.data())
def test_a_share_is_never_more_than_its_percentage(data: st.DataObject) -> None:
    """Whatever is down, however many instances there are, and whoever had traffic before."""
    count, slots = data.draw(st.integers(1, 6)), data.draw(st.integers(6, 200))
    versions = data.draw(st.sampled_from([("v2",), ("v2", "v3")]))
    percents = {v: data.draw(st.floats(100 / slots, 50)) for v in versions}
    names = [chr(97 + i) for i in range(count)]
    upstreams = {
        n: Upstream(n, f"{n}:1", "v1", serving=f"{n}:1", beside=tuple(Beside(f"{n}:{v}", v, "r") for v in versions))
        for n in names
    }
    service = Service("web", upstreams, "v1", shares=percents)
    keys = [*names, *(one.key(u.id) for u, one in service.besides())]
    before: dict[str, int] = {}
    for _ in range(3):
        down = data.draw(st.sets(st.sampled_from(keys), max_size=len(keys)))
        gone = frozenset(data.draw(st.sets(st.sampled_from(sorted(down))))) if down else frozenset()
        weights = route(service, world_of(service, down, slots, before, gone)).weights
        total = sum(weights.values())
        stable_left = any(weights.get(f"{n}:1") for n in names)
        for version, percent in percents.items():
            got = sum(weights.get(f"{n}:{version}", 0) for n in names)
            alive = any(f"{n}/{n}:{version}" not in down for n in names)
            assert total == slots or not got
            if gone.issuperset(names):
                assert not got, "or it would get what is tried again elsewhere"
            if got and any(f"{n}:1" in weights for n in names):
                assert not any(f"{n}:1" in weights for n in gone), "nor does any slot lead to nobody"
            assert got <= percent * slots / 100 + 1e-6
            if stable_left:
                assert got == (int(percent * slots / 100 + 1e-6) if alive else 0), "and no slot less than that"
        before = dict(weights)


def test_a_dead_stable_instance_does_not_raise_the_canarys_share() -> None:
    sim = fleet_of(3, spare=True)
    sim.verdict = Verdict.PASS
    start(sim, canary(), strategy="canary")
    advance_to(sim, 0)
    del sim.fleet.running["10.0.0.1:80"]
    sim.probe()
    sim.settle()
    assert sim.fleet.shares.get("10.0.0.1:80", 0) == 0
    assert share(sim) == Fraction(1, 20)


# -- crashes, and any world ----------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [None, StepKind.SWAP, StepKind.GATE], ids=str)
def test_a_crash_at_every_journal_prefix_ends_in_the_same_place(fails: StepKind | None) -> None:
    def fresh() -> Simulation:
        sim = fleet_of(2, spare=True)
        sim.verdict = Verdict.PASS
        sim.fate = lambda key: "broken" if (key.upstream, key.kind) == ("b", fails) else "ok"
        start(sim, canary(), strategy="canary")
        return sim

    reference = fresh()
    ended = reference.run().phase
    for prefix in range(1, len(reference.journal)):
        sim = fresh()
        while sim.service.live and len(sim.journal) < prefix:
            decision = sim.decide(sim.service, sim.world(), sim.now)
            sim.fleet.shares = dict(decision.weights)
            if decision.event is not None:
                sim.record(decision.event)
            elif decision.cancel:
                sim.cancel(decision.cancel)
            elif sim.running():
                sim.perform(sim.running()[0].key)
            else:
                sim.now += 10
        sim.crash()
        sim.probe()
        assert sim.run().phase is ended, prefix
        assert {u.id: (u.version, u.dial) for u in sim.service.upstreams.values()} == {
            u.id: (u.version, u.dial) for u in reference.service.upstreams.values()
        }
        assert sim.fleet.running == reference.fleet.running, prefix


STEERING = ("pause", "resume", "abort", "promote", "gate", "share", "pass", "hold", "judge fails")
ACTIONS = ("perform", "perform", "fail", "crash", "die", "tick", "tick", "retire", *STEERING)


def act(sim: Simulation, action: str, data: st.DataObject) -> None:
    steps, live = sim.running(), sim.service.live
    assert live is not None
    if action in STEERING:
        steer(sim, action, live, data)
        return
    match action:
        case "perform" | "fail" if steps:
            sim.fate = (lambda key: "ok") if action == "perform" else (lambda key: "broken")
            sim.perform(data.draw(st.sampled_from(steps)).key)
        case "crash":
            sim.crash()
            sim.probe()
        case "die" if sim.fleet.running:
            victim = data.draw(st.sampled_from(sorted(sim.fleet.running)))
            del sim.fleet.running[victim]
            sim.probe()
        case "tick":
            sim.now += data.draw(st.sampled_from([5.0, 30.0, 120.0]))
            sim.probe()
        case "retire":
            sim.retire(ok=data.draw(st.booleans()))
        case _:
            pass


def steer(sim: Simulation, action: str, live: Rollout, data: st.DataObject) -> None:
    """What people and the judge say."""
    staged = live.stage is not None and not live.failing
    match action:
        case "pause" | "resume":
            sim.record((ev.Paused if action == "pause" else ev.Resumed)("web", live.id))
        case "abort":
            sim.record(ev.AbortRequested("web", live.id, revert=data.draw(st.booleans())))
        case "promote" if not live.failing:
            sim.record(ev.Promoted("web", live.id))
        case "gate" if staged:
            sim.record(ev.GatePassed("web", live.id, live.stage or 0))
        case "share" if staged:
            sim.record(ev.CanarySet("web", data.draw(st.sampled_from([0.0, 10.0]))))
        case "pass" | "hold":
            sim.verdict = Verdict.PASS if action == "pass" else Verdict.HOLD
        case "judge fails" if live.stage is not None:
            sim.verdict = Verdict.FAIL
            sim.record(ev.AbortRequested("web", live.id, actor="judge", reason="worse"))
        case _:
            pass


def any_policy(data: st.DataObject, version: str) -> Policy:
    return canary(
        data.draw(st.sampled_from([STAGES, (Stage(100),), (Stage(0, gate=True), Stage(100, 10))])),
        on_inconclusive=data.draw(st.sampled_from(Inconclusive)),
        retires=data.draw(st.booleans()),
        prepares=data.draw(st.booleans()),
        keep_old=data.draw(st.sampled_from([0.0, 300.0])),
        keeps=data.draw(st.booleans()) and version == "v3",
        max_parallel=data.draw(st.integers(1, 3)),
        auto_revert=data.draw(st.booleans()),
    )


def trouble(sim: Simulation, data: st.DataObject) -> None:
    """Anything may happen."""
    for action in data.draw(st.lists(st.sampled_from(ACTIONS), max_size=60)):
        decision = sim.settle()
        if sim.service.live is None:
            break
        if decision.cancel:
            sim.cancel(decision.cancel)
        else:
            act(sim, action, data)


def calm(sim: Simulation) -> None:
    """Nothing goes wrong any more, and the rollout comes to its end."""
    live = sim.service.live
    failed = sim.verdict is Verdict.FAIL
    sim.fate = lambda key: "ok"
    sim.probe()
    if live is None:
        return
    sim.record(ev.Resumed("web", live.id))
    if failed:  # the judge says it until it is heard
        sim.record(ev.AbortRequested("web", live.id, actor="judge"))
    elif not live.failing:
        sim.verdict = Verdict.PASS
        sim.record(ev.Promoted("web", live.id))
    sim.run()


def drive(data: st.DataObject) -> Simulation:
    """A canary, and then another one, among anything that may happen; then a quiet world."""
    sim = fleet_of(data.draw(st.integers(1, 4)), spare=True)
    for number, version in enumerate(("v2", data.draw(st.sampled_from(["v1", "v3"])))):
        if sim.service.carried or sim.service.mixing not in (None, sim.service.stable):
            break
        sim.verdict = None
        start(sim, any_policy(data, version), version=version, rollout=f"r{number}", strategy="canary")
        trouble(sim, data)
        calm(sim)
    return sim


@settings(max_examples=max(150, settings().max_examples))
@given(st.data())
def test_any_canary_in_any_world_is_safe_and_ends(data: st.DataObject) -> None:
    sim = drive(data)
    rollout = sim.service.rollout
    assert rollout is not None
    assert rollout.phase.ended
    assert sim.service.parts().keys() <= {one.version for _, one in sim.service.besides()}, "no share without anybody"
    if rollout.phase is Phase.SUCCEEDED and not rollout.policy.keeps:
        assert {u.version for u in sim.service.upstreams.values()} == {rollout.version}
    lived = sim.service
    sim.crash()
    assert sim.service == lived


# -- guard against vacuity -----------------------------------------------------------------------------


def hasty(service: Service, world: World, now: float) -> Decision:
    """Gives a share before the instances are there."""
    decision, live = decide(service, world, now), service.live
    if live is not None and live.stage is None and decision.event is None:
        return replace(decision, event=ev.StageStarted("web", live.id, 0, 5.0))
    return decision


def deaf(service: Service, world: World, now: float) -> Decision:
    """Goes on over a FAIL."""
    passed = world.finding and world.finding._replace(verdict=Verdict.PASS)
    return decide(service, replace(world, finding=passed), now)


def keen(service: Service, world: World, now: float) -> Decision:
    """Retires what serves."""
    decision = decide(service, world, now)
    used = [(u.id, one.dial) for u, one in service.besides() if world.shares.get(one.dial) and not one.retiring]
    serving = [(u.id, u.serving) for u in service.upstreams.values() if u.serving]
    if decision.event is None and used:
        upstream, dial = serving[0]
        return replace(decision, event=ev.RetireStarted("web", upstream, dial))
    return decision


def undrained(service: Service, world: World, now: float) -> Decision:
    """Stops new instances at once, with requests still open on them."""
    decision = decide(service, world, now)
    if isinstance(decision.event, ev.TaskStarted):
        steps = tuple(step for step in decision.event.steps if step is not StepKind.DRAIN)
        return replace(decision, event=replace(decision.event, steps=steps))
    return decision


@pytest.mark.parametrize(
    ("wrong", "broken"),
    [(hasty, "S13"), (deaf, "S13"), (keen, "S12"), (undrained, "S1")],
    ids=lambda one: str(one)[:16],
)
def test_a_wrong_planner_is_caught(wrong: Callable[[Service, World, float], Decision], broken: str) -> None:
    sim = fleet_of(2, spare=True)
    sim.decide = wrong
    sim.verdict = Verdict.FAIL if wrong is deaf else Verdict.PASS
    start(sim, canary(), strategy="canary")

    def run() -> None:
        advance_to(sim, 1)
        sim.record(ev.AbortRequested("web", "r1"))
        sim.run()

    with pytest.raises(InvariantError, match=broken):
        run()
