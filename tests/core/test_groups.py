"""Groups: what a rollout takes out of traffic is all of one zone; fleets; and one slow host among many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.simulation import Decide, Simulation, UnsafeError, fleet_of, planned, queue, start
from tests.core.test_rolling import ACTIONS, HOOKS, act, policy
from trafficd.core import events as ev
from trafficd.core.groups import parted
from trafficd.core.invariants import InvariantError
from trafficd.core.model import Direction, Health, Order, Phase, Policy, Service, Stage, StepKind, Upstream, World
from trafficd.core.plan import Decision, decide
from trafficd.core.reconcile import Configured, reconcile

TURN = 4  # steps of a turn without hooks: drain, swap, gate, admit


@dataclass
class Zoned(Simulation):
    """Knows itself what must never happen: traffic is taken from one group while another lacks some."""

    def record(self, event: ev.Event) -> None:
        if isinstance(event, ev.StepStarted) and event.step is StepKind.DRAIN and event.upstream is not None:
            self._require_one_group(self.service.upstreams[event.upstream])
        super().record(event)

    def _require_one_group(self, taken: Upstream) -> None:
        live = self.service.live
        assert live is not None
        if live.policy.order is Order.START_FIRST or not self.fleet.shares.get(taken.serving or ""):
            return
        for other in self.service.upstreams.values():
            apart = None not in (taken.group, other.group) and taken.group != other.group
            if apart and not self.fleet.shares.get(other.serving or "" if not other.drained else ""):
                raise UnsafeError(f"{taken.id} of {taken.group} was taken while {other.id} of {other.group} was out")


def zones(groups: Sequence[str | None], *, decider: Decide = planned) -> Zoned:
    """Upstreams a, b, c, ... of these groups."""
    plain = fleet_of(len(groups), spare=True)
    sim = Zoned(plain.service, plain.fleet, health=plain.health, decide=decider)
    for name, group in zip(plain.service.upstreams, groups, strict=True):
        sim.record(ev.GroupSet("web", name, group))
    return sim


def bare(**changes: object) -> Policy:
    return policy(**{"hooks": (), "prepares": False, "min_ready": 0, **changes})  # type: ignore[arg-type]


def turns(sim: Simulation, direction: Direction = Direction.FORWARD) -> str:
    return "".join(e.upstream for _, e in sim.journal if isinstance(e, ev.TaskStarted) and e.direction is direction)


def in_work(sim: Simulation) -> set[str]:
    return {step.key.upstream or "" for step in sim.running()}


def tick(sim: Simulation, *, but: str = "") -> int:
    """Every step that runs now ends, but those of one slow host; how many ended."""
    sim.settle()
    steps = [step for step in sim.running() if step.key.upstream != but]
    for step in steps:
        sim.perform(step.key)
    return len(steps)


def ticks(sim: Simulation, *, but: str = "") -> int:
    """How many rounds there are until nothing but the slow host's step runs."""
    rounds = 0
    while tick(sim, but=but):
        rounds += 1
    return rounds


# -- fleets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3, 5])
def test_fifty_upstreams_take_the_fewest_waves_that_can_be(at_once: int) -> None:
    sim = fleet_of(50)
    start(sim, bare(max_parallel=at_once, min_ready=50 - at_once))
    assert ticks(sim) == math.ceil(50 / at_once) * TURN
    assert sim.service.rollout is not None
    assert sim.service.rollout.phase is Phase.SUCCEEDED
    assert sim.floor == 50 - at_once


@pytest.mark.parametrize("mixed", [False, True])
def test_fifty_upstreams_in_three_zones_take_the_fewest_waves_of_each(mixed: bool) -> None:
    count = {"x": 17, "y": 17, "z": 16}
    listed = ["xyz"[i % 3] for i in range(50)] if mixed else [zone for zone in "xyz" for _ in range(count[zone])]
    sim = zones(listed)
    start(sim, bare(max_parallel=5))
    assert ticks(sim) == sum(math.ceil(n / 5) for n in count.values()) * TURN
    assert sim.service.stable == "v2"


def test_one_slow_host_holds_up_nobody_else_of_its_batch() -> None:
    sim = fleet_of(50)
    start(sim, bare(max_parallel=3))
    assert ticks(sim, but="b") == math.ceil(49 / 2) * TURN
    assert in_work(sim) == {"b"}
    done = [name for name, task in sim.service.rollout.forward.items() if task.done]  # type: ignore[union-attr]
    assert len(done) == 49
    assert sim.run().phase is Phase.SUCCEEDED


def test_a_slow_host_holds_up_the_next_zone_and_not_its_own() -> None:
    sim = zones(["x", "x", "x", "x", "y", "y"])
    start(sim, bare(max_parallel=2))
    ticks(sim, but="a")
    assert turns(sim) == "abcd"
    assert in_work(sim) == {"a"}
    assert sim.run().phase is Phase.SUCCEEDED


# -- group by group ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("at_once", [1, 2, 6])
def test_a_group_is_done_before_the_next_begins(order: Order, at_once: int) -> None:
    sim = zones(["x", "y", "x", "y", "x", "y"])
    start(sim, bare(order=order, max_parallel=at_once, retires=True))
    assert sim.run().phase is Phase.SUCCEEDED
    assert turns(sim) == "acebdf"


@pytest.mark.parametrize("order", Order)
def test_nothing_of_the_next_group_is_in_work_with_the_last_of_this_one(order: Order) -> None:
    sim = zones(["x", "x", "x", "y"])
    start(sim, bare(order=order, max_parallel=2, retires=True, watch_time=5.0))
    seen = set()
    while sim.service.live is not None:
        sim.settle()
        seen.add(frozenset(in_work(sim)))
        if sim.running():
            sim.perform(sim.running()[0].key)
    assert {"a", "b"} in seen
    assert not [both for both in seen if "d" in both and len(both) > 1]


def test_an_upstream_of_no_group_is_held_to_nothing() -> None:
    sim = zones(["x", None, "y", None])
    start(sim, bare(max_parallel=3))
    sim.settle()
    assert in_work(sim) == {"a", "b", "d"}
    assert sim.run().phase is Phase.SUCCEEDED


def test_one_group_is_no_restriction() -> None:
    sim = zones(["x", "x", None])
    start(sim, bare(max_parallel=3))
    sim.settle()
    assert in_work(sim) == {"a", "b", "c"}


def test_a_canary_takes_nothing_out_and_begins_everywhere() -> None:
    sim = zones(["x", "y", "x", "y"])
    start(sim, bare(order=Order.START_FIRST, max_parallel=4, beside=True, stages=(Stage(100),)), strategy="canary")
    sim.settle()
    assert in_work(sim) == {"a", "b", "c", "d"}
    assert sim.run().phase is Phase.SUCCEEDED


def test_a_canary_is_taken_back_whatever_is_down() -> None:
    sim = zones(["x", "y", "x", "y"])
    begun = bare(order=Order.START_FIRST, max_parallel=4, beside=True, stages=(Stage(50, gate=True),), retires=True)
    start(sim, begun, strategy="canary")
    ticks(sim)
    sim.fleet.running.pop("10.0.0.4:80")
    sim.probe()
    sim.settle()
    sim.record(ev.AbortRequested("web", "r1"))
    sim.settle()
    assert in_work(sim) == {"a", "b", "c", "d"}, "instances beside are drained in all zones at once"
    assert sim.run().phase is Phase.REVERTED


def test_a_revert_goes_group_by_group_too() -> None:
    sim = zones(["x", "y", "x", "y", "z"])
    bad = {("e", StepKind.GATE)}
    sim.fate = lambda key: "broken" if (key.upstream, key.kind) in bad and key.direction is Direction.FORWARD else "ok"
    start(sim, bare(max_parallel=2))
    assert sim.run().phase is Phase.REVERTED
    assert (turns(sim), turns(sim, Direction.REVERT)) == ("acbde", "edbca")
    assert {u.version for u in sim.service.upstreams.values()} == {"v1"}


def test_a_takeover_waits_for_what_the_one_before_left_out() -> None:
    sim = zones(["x", "y", "x", "y"])
    start(sim, bare(max_parallel=1))
    tick(sim)
    sim.settle()  # a is being replaced
    queue(sim, supersede=True, max_parallel=2, min_ready=0)
    sim.settle()
    sim.perform(sim.running()[0].key)
    sim.settle()
    live = sim.service.live
    assert live is not None
    assert live.version == "v3"
    assert in_work(sim) == {"a", "c"}, "b and d are of the other zone"
    assert sim.run().phase is Phase.SUCCEEDED


def test_a_dead_upstream_goes_first_whatever_its_group() -> None:
    sim = zones(["x", "x", "y"])
    del sim.fleet.running["10.0.0.3:80"]
    sim.health["c"] = Health.DOWN
    start(sim, bare())
    assert sim.run().phase is Phase.SUCCEEDED
    assert turns(sim) == "cab"


def test_when_all_look_dead_a_rollout_still_goes_group_by_group() -> None:
    sim = zones(["x", "x", "y"])
    sim.health = dict.fromkeys("abc", Health.DOWN)
    start(sim, bare(max_parallel=3))
    sim.settle()
    assert in_work(sim) == {"a", "b"}


def test_the_next_group_waits_for_what_died_and_says_so() -> None:
    sim = zones(["x", "y"])
    start(sim, bare(healthy_deadline=100.0))
    while "b" not in turns(sim) and sim.service.upstreams["a"].version != "v2":
        tick(sim)
    while sim.service.rollout.forward["a"].cursor < TURN:  # type: ignore[union-attr]
        tick(sim)
    sim.fleet.running.pop("10.0.0.1:80")
    sim.probe()
    (wait,) = sim.settle().waits
    assert wait.what.startswith("a to have traffic again: a of group x has no traffic")
    sim.now += 99.0
    assert sim.settle().event is None
    sim.now += 1.0
    rollout = sim.run()
    assert rollout.failure == (
        "a of group x has no traffic or is being replaced, and nothing of group y is taken out of traffic beside it; "
        "it did not come back within 100 s"
    )
    assert rollout.phase is Phase.REVERTED


def test_a_group_drained_by_hand_is_told_at_the_start() -> None:
    sim = zones(["x", "y", "y"])
    sim.record(ev.DrainRequested("web", "a", force=True))
    why = parted(sim.service, bare())
    assert why is not None
    assert why.startswith("a of group x is drained, and nothing of y is taken out of traffic")
    assert "trafficd ready web a" in why
    assert parted(sim.service, bare(order=Order.START_FIRST)) is None
    for name in "bc":
        sim.record(ev.DrainRequested("web", name, force=True))
    assert parted(sim.service, bare()) is None, "nothing is left that could be taken out"


# -- the configuration ---------------------------------------------------------------------------------


def test_a_group_that_is_configured_later_changes_nothing_else() -> None:
    past: list[ev.Event] = [ev.UpstreamAdded("web", "a", "10.0.0.1:80", "v1", configured=True)]
    sim = fleet_of(1)
    before = replace(sim.service.upstreams["a"], drained=True, unproven=True, version="v7")
    service = replace(sim.service, upstreams={"a": before})
    wanted = [Configured("a", "10.0.0.1:80", "v1", group="x")]
    changes = reconcile(service, past, wanted)
    assert changes.events == (ev.GroupSet("web", "a", "x"),)
    assert reconcile(service, [*past, *changes.events], wanted).events == ()
    sim.service = service
    for event in changes.events:
        sim.record(event)
    assert sim.service.upstreams["a"] == replace(before, group="x")


def test_an_upstream_that_is_moved_keeps_its_group() -> None:
    past: list[ev.Event] = [ev.UpstreamAdded("web", "a", "10.0.0.1:80", "v1", "10.0.0.1:81", True, "x")]
    sim = fleet_of(1, spare=True)
    at_spare = replace(sim.service.upstreams["a"], dial="10.0.0.1:81", spare_dial="10.0.0.1:80", serving="10.0.0.1:81")
    service = replace(sim.service, upstreams={"a": at_spare})
    wanted = [Configured("a", "10.0.0.1:82", "v1", "10.0.0.1:81", "y")]
    changes = reconcile(service, past, wanted)
    assert [event.group for event in changes.events if isinstance(event, ev.UpstreamAdded)] == ["y", "y"]


# -- any world -----------------------------------------------------------------------------------------


def drain_by_hand(sim: Simulation, data: st.DataObject) -> None:
    """With force, whatever else is out."""
    sim.record(ev.DrainRequested("web", data.draw(st.sampled_from(sorted(sim.service.upstreams))), force=True))
    sim.fleet.shares = dict(sim.decide(sim.service, sim.world(), sim.now).weights)


def ready_by_hand(sim: Simulation) -> None:
    for upstream in list(sim.service.upstreams.values()):
        if upstream.drained and upstream.serving is not None:
            sim.record(ev.ReadyRequested("web", upstream.id, upstream.serving, upstream.version, swapped=False))
            sim.record(ev.ReadyEnded("web", upstream.id, ok=True))


def drive(decider: Decide, data: st.DataObject) -> Simulation:
    """Any groups, policy, outcomes, crashes and operators, then a quiet world: it must end."""
    groups = data.draw(st.lists(st.sampled_from(["x", "y", "z", None]), min_size=2, max_size=6))
    sim = zones(groups, decider=decider)
    wanted = policy(
        data.draw(st.sampled_from(Order)),
        max_parallel=data.draw(st.integers(1, len(groups))),
        min_ready=data.draw(st.integers(0, len(groups) - 1)),
        hooks=tuple(data.draw(st.sets(st.sampled_from(HOOKS)))),
        prepares=data.draw(st.booleans()),
        auto_revert=data.draw(st.booleans()),
    )
    start(sim, wanted)
    for action in data.draw(st.lists(st.sampled_from((*ACTIONS, "drain", "ready")), max_size=60)):
        decision = sim.settle()
        if sim.service.live is None:
            break
        if decision.cancel:
            sim.cancel(decision.cancel)
        elif action == "drain":
            drain_by_hand(sim, data)
        elif action == "ready":
            ready_by_hand(sim)
        else:
            act(sim, action, data)
    sim.fate = lambda key: "ok"
    sim.probe()
    if data.draw(st.booleans()):
        ready_by_hand(sim)
    if sim.service.live and sim.service.live.paused:
        sim.record(ev.Resumed("web", "r1"))
    if sim.service.live:
        sim.run()
    return sim


@given(st.data())
def test_groups_are_never_out_together_in_any_world_and_it_ends(data: st.DataObject) -> None:
    sim = drive(decide, data)
    rollout = sim.service.rollout
    assert rollout is not None
    assert rollout.phase.ended
    if rollout.phase is Phase.SUCCEEDED:
        assert {u.version for u in sim.service.upstreams.values()} == {"v2"}
    lived = sim.service
    sim.crash()
    assert sim.service == lived


# -- guard against vacuity -----------------------------------------------------------------------------


def groupless(service: Service, world: World, now: float) -> Decision:
    """A planner that knows no groups."""
    plain = {name: replace(upstream, group=None) for name, upstream in service.upstreams.items()}
    return decide(replace(service, upstreams=plain), world, now)


def forgetful(service: Service, world: World, now: float) -> Decision:
    """A planner that minds the turns of other groups, and not what is out of traffic otherwise."""
    believed = {name: replace(upstream, drained=False) for name, upstream in service.upstreams.items()}
    return decide(replace(service, upstreams=believed), world, now)


@pytest.mark.parametrize("order", Order)
def test_a_planner_without_groups_is_caught(order: Order) -> None:
    sim = zones(["x", "y"], decider=groupless)
    start(sim, bare(order=order, max_parallel=2))
    with pytest.raises(InvariantError, match=r"S14: b of y would begin beside \['a'\]"):
        sim.run()


def test_a_planner_that_forgets_what_is_drained_is_caught() -> None:
    sim = zones(["x", "y"], decider=forgetful)
    sim.record(ev.DrainRequested("web", "a", force=True))
    sim.fleet.shares = dict(decide(sim.service, sim.world(), sim.now).weights)
    start(sim, bare())
    with pytest.raises((InvariantError, UnsafeError), match=r"S14: b of y would be taken out beside \['a'\]"):
        sim.run()


def test_the_property_catches_a_planner_without_groups() -> None:
    @settings(max_examples=300, database=None, phases=[hypothesis.Phase.generate])  # the first one will do
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        drive(groupless, data)

    with pytest.raises(InvariantError, match="S14"):
        attempt()
