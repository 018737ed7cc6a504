"""Rolling rollouts in the simulated fleet: examples, a crash at every prefix, and any world at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.simulation import NOT_BEGUN, Simulation, UnsafeError, fleet_of, start
from trafficd.core import events as ev
from trafficd.core.invariants import InvariantError, check
from trafficd.core.model import Direction, Health, Order, Phase, Policy, Service, StepKey, StepKind, World
from trafficd.core.plan import Decision, decide

HOOKS = (
    StepKind.BEFORE_ROLLOUT,
    StepKind.BEFORE_SWAP,
    StepKind.AFTER_SWAP,
    StepKind.AFTER_ROLLOUT,
    StepKind.ON_FAILURE,
)


def policy(order: Order = Order.STOP_FIRST, **changes: object) -> Policy:
    base = {"order": order, "hooks": HOOKS, "prepares": True, "retires": True, "min_ready": 1}
    return Policy(**{**base, **changes})  # type: ignore[arg-type]


def failing(kind: StepKind, upstream: str | None, direction: Direction = Direction.FORWARD):  # type: ignore[no-untyped-def]
    return lambda key: "broken" if key == StepKey(upstream, direction, kind) else "ok"


@pytest.mark.parametrize("order", Order)
def test_all_upstreams_run_the_new_version_and_serve(order: Order) -> None:
    sim = fleet_of(3, spare=True)
    start(sim, policy(order))
    rollout = sim.run()
    assert rollout.phase is Phase.SUCCEEDED
    assert {u.version for u in sim.service.upstreams.values()} == {"v2"}
    assert sim.service.stable == "v2"
    assert sim.service.history == ("v1",)
    assert sorted(str(v) for v in sim.fleet.running.values()) == ["v2"] * 3  # nothing old left over
    assert set(sim.fleet.shares) == set(sim.fleet.running)
    assert sim.floor == (2 if order is Order.STOP_FIRST else 3)


def test_start_first_swaps_the_roles_of_the_two_addresses() -> None:
    sim = fleet_of(2, spare=True)
    start(sim, policy(Order.START_FIRST))
    sim.run()
    a = sim.service.upstreams["a"]
    assert (a.dial, a.spare_dial) == ("10.0.0.1:81", "10.0.0.1:80")


def test_start_first_takes_the_address_the_driver_returns() -> None:
    sim = fleet_of(2)
    start(sim, policy(Order.START_FIRST))
    assert sim.run().phase is Phase.SUCCEEDED
    assert sim.service.upstreams["a"].dial.startswith("allocated-a")


def test_a_new_instance_of_no_known_address_is_not_stopped_in_the_place_of_the_old_one() -> None:
    sim = fleet_of(2)
    sim.fate = failing(StepKind.SWAP, "a")
    start(sim, policy(Order.START_FIRST))
    assert sim.run().phase is Phase.REVERTED
    assert set(sim.fleet.shares) == {"10.0.0.1:80", "10.0.0.2:80"}


def test_everything_is_prepared_before_anything_is_touched() -> None:
    sim = fleet_of(3)
    sim.fate = failing(StepKind.PREPARE, "c")
    start(sim, policy())
    rollout = sim.run()
    assert rollout.phase is Phase.FAILED
    assert "nothing was replaced" in rollout.reason
    assert rollout.touched == ()


def test_on_one_host_one_is_prepared_after_the_other_and_hosts_side_by_side() -> None:
    sim = fleet_of(7)
    hosts = {"b": "ssh://web1", "c": "ssh://web1", "d": "ssh://web2", "e": "ssh://web3", "f": "ssh://web4"}
    start(sim, policy(hooks=(), hosts=hosts))
    sim.settle()
    assert [step.key.upstream for step in sim.running()] == ["a", "b", "d", "e"], "four at once, of four hosts"
    sim.perform(sim.running()[1].key)
    sim.settle()
    assert [step.key.upstream for step in sim.running()] == ["a", "d", "e", "c"]
    sim.perform(sim.running()[0].key)
    sim.settle()
    assert [step.key.upstream for step in sim.running()] == ["d", "e", "c", "f"], "g waits its turn, as f came first"
    assert sim.run().phase is Phase.SUCCEEDED


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("kind", [StepKind.BEFORE_SWAP, StepKind.SWAP, StepKind.AFTER_SWAP, StepKind.GATE])
@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_a_failure_anywhere_brings_the_old_version_back(order: Order, kind: StepKind, victim: str) -> None:
    sim = fleet_of(3, spare=True)
    sim.fate = failing(kind, victim)
    start(sim, policy(order))
    rollout = sim.run()
    assert rollout.phase in (Phase.REVERTED, Phase.FAILED)
    if rollout.phase is Phase.FAILED:
        assert "nothing was replaced" in rollout.reason
    assert {u.version for u in sim.service.upstreams.values()} == {"v1"}
    assert sorted(str(v) for v in sim.fleet.running.values()) == ["v1"] * 3
    assert len(sim.fleet.shares) == 3
    assert sim.service.stable == "v1"


def test_reverts_go_newest_first() -> None:
    sim = fleet_of(3)
    sim.fate = failing(StepKind.GATE, "c")
    start(sim, policy())
    sim.run()
    turns = [e.upstream for _, e in sim.journal if isinstance(e, ev.TaskStarted) and e.direction is Direction.REVERT]
    assert turns == ["c", "b", "a"]


def test_a_failed_revert_is_stuck_and_keeps_what_works() -> None:
    sim = fleet_of(3)
    sim.fate = lambda key: "broken" if key.kind is StepKind.GATE and key.upstream == "b" else "ok"
    start(sim, policy())
    rollout = sim.run()
    assert rollout.phase is Phase.STUCK
    assert "trafficd ready" in rollout.reason
    assert set(sim.fleet.shares) == {"10.0.0.1:80", "10.0.0.3:80"}  # v2 on a, v1 on c


def test_what_could_not_even_be_started_leaves_the_old_instance_serving() -> None:
    sim = fleet_of(3)
    start(sim, policy())
    sim.fate = lambda key: NOT_BEGUN if key.kind is StepKind.SWAP else "ok"
    rollout = sim.run()
    assert rollout.phase is Phase.FAILED
    assert "nothing was replaced" in rollout.reason
    assert {u.version for u in sim.service.upstreams.values()} == {"v1"}
    assert len(sim.fleet.shares) == 3
    assert StepKind.SWAP not in {step for task in rollout.revert.values() for step in task.steps}


def test_a_revert_that_cannot_drain_leaves_the_new_instance_its_traffic() -> None:
    sim = fleet_of(2)
    start(sim, policy(drain_timeout=1.0))
    bad = {(Direction.FORWARD, "b", StepKind.GATE), (Direction.REVERT, "a", StepKind.DRAIN)}
    sim.fate = lambda key: "not counted" if (key.direction, key.upstream, key.kind) in bad else "ok"
    rollout = sim.run()
    assert rollout.phase is Phase.STUCK
    a = sim.service.upstreams["a"]
    assert (a.version, a.serving) == ("v2", a.dial)
    sim.settle()
    assert sim.fleet.shares.get(a.dial), "traffic stays on what works"


def test_a_hold_does_not_switch_min_ready_off() -> None:
    sim = fleet_of(3)
    sim.record(ev.Held("web"))
    sim.settle()
    start(sim, policy(max_parallel=3, min_ready=2, hooks=(), prepares=False))
    for _ in range(20):
        sim.settle()
        assert sum(1 for u in sim.service.upstreams.values() if u.serving) >= 2
        for step in sim.running():
            sim.perform(step.key)
    assert sim.service.rollout is not None
    assert sim.service.rollout.phase is Phase.SUCCEEDED


def test_success_with_an_upstream_out_of_traffic_would_be_caught() -> None:
    sim = fleet_of(2)
    start(sim, policy())
    while sim.service.live is not None:
        decision = sim.decide(sim.service, sim.world(), sim.now)
        if isinstance(decision.event, ev.RolloutEnded):
            break
        sim.settle(1) if decision.event is None else sim.record(decision.event)
        for step in sim.running():
            sim.perform(step.key)
        sim.fleet.shares = dict(sim.decide(sim.service, sim.world(), sim.now).weights)
    a = sim.service.upstreams["a"]
    out = replace(sim.service, upstreams={**sim.service.upstreams, "a": replace(a, serving=None)})
    ended = ev.RolloutEnded("web", "r1", Phase.SUCCEEDED)
    check(sim.service, sim.world(), ended)
    with pytest.raises(InvariantError, match="S9: a is out of traffic"):
        check(out, sim.world(), ended)


def test_a_revert_to_what_already_ran_is_refused() -> None:
    sim = fleet_of(3)
    sim.fate = failing(StepKind.GATE, "b")
    start(sim, policy(), version="v1")
    rollout = sim.run()
    assert rollout.phase is Phase.FAILED
    assert "nothing to go back to" in rollout.reason
    assert sim.service.upstreams["b"].serving is None


def test_without_auto_revert_the_old_ones_serve_and_the_new_stay() -> None:
    sim = fleet_of(3)
    sim.fate = failing(StepKind.GATE, "b")
    start(sim, policy(auto_revert=False))
    assert sim.run().phase is Phase.FAILED
    assert set(sim.fleet.shares) == {"10.0.0.3:80"}
    assert sim.fleet.running["10.0.0.1:80"] == "v2"


def test_min_ready_holds_the_rollout_until_its_time_is_up() -> None:
    sim = fleet_of(2)
    start(sim, policy(min_ready=2))
    rollout = sim.run()
    assert rollout.phase is Phase.FAILED
    assert "min_ready is 2" in rollout.reason


def test_a_dead_upstream_goes_first_because_it_costs_nothing() -> None:
    sim = fleet_of(3)
    del sim.fleet.running["10.0.0.3:80"]
    sim.health["c"] = Health.DOWN
    start(sim, policy(min_ready=2))
    assert sim.run().phase is Phase.SUCCEEDED
    turns = [e.upstream for _, e in sim.journal if isinstance(e, ev.TaskStarted)]
    assert turns[0] == "c"


def test_abort_sends_traffic_to_the_old_version_at_once() -> None:
    sim = fleet_of(4)
    start(sim, policy())
    while "a" not in (r := sim.service.rollout).forward or not r.forward["a"].done:  # type: ignore[union-attr]
        sim.settle()
        sim.perform(sim.running()[0].key)
    sim.record(ev.AbortRequested("web", "r1", revert=True, actor="me"))
    sim.settle()
    old = {u.dial for u in sim.service.upstreams.values() if u.version == "v1" and u.serving}
    assert set(sim.fleet.shares) == old
    assert sim.run().phase is Phase.REVERTED


def test_abort_without_revert_leaves_the_new_instances_out_of_traffic() -> None:
    sim = fleet_of(3)
    start(sim, policy())
    for _ in range(12):
        sim.settle()
        sim.perform(sim.running()[0].key)
    sim.record(ev.AbortRequested("web", "r1", revert=False))
    rollout = sim.run()
    assert rollout.phase is Phase.FAILED
    assert all(sim.fleet.running[dial] == "v1" for dial in sim.fleet.shares)


def test_pause_begins_no_further_upstream_and_resume_goes_on() -> None:
    sim = fleet_of(3)
    start(sim, policy())
    sim.settle()
    sim.record(ev.Paused("web", "r1"))
    while sim.running():
        sim.perform(sim.running()[0].key)
        sim.settle()
    assert sim.service.rollout is not None
    begun = len(sim.service.rollout.forward)
    decision = sim.settle()
    assert decision.event is None
    assert "paused" in decision.waits[0].what
    sim.record(ev.Resumed("web", "r1"))
    assert sim.run().phase is Phase.SUCCEEDED
    assert begun < 3


def test_max_parallel_uses_its_room() -> None:
    sim = fleet_of(6)
    start(sim, policy(max_parallel=3, min_ready=3, hooks=(), prepares=False))
    sim.settle()
    assert len(sim.running()) == 3
    assert sim.run().phase is Phase.SUCCEEDED
    assert sim.floor == 3


def test_every_wait_says_what_and_until_when() -> None:
    sim = fleet_of(2)
    start(sim, policy(hooks=(), prepares=False))
    decision = sim.settle()
    (wait,) = decision.waits
    assert wait.upstream == "a"
    assert wait.until == sim.now + 30.25


# -- crashes -----------------------------------------------------------------------------------------


def finished(order: Order, fate_of: StepKind | None) -> Simulation:
    sim = fleet_of(3, spare=True)
    if fate_of is not None:
        sim.fate = failing(fate_of, "b")
    start(sim, policy(order))
    sim.run()
    return sim


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("fate_of", [None, StepKind.GATE, StepKind.SWAP, StepKind.PREPARE])
def test_a_crash_at_every_journal_prefix_ends_in_the_same_place(order: Order, fate_of: StepKind | None) -> None:
    """Both kinds of crash: after an intent and before its action, and after an action, before its outcome."""
    reference = finished(order, fate_of)
    for prefix in range(1, len(reference.journal)):
        for lost_outcome in (False, True):
            sim = fleet_of(3, spare=True)
            if fate_of is not None:
                sim.fate = failing(fate_of, "b")
            start(sim, policy(order))
            while sim.service.live and len(sim.journal) < prefix:
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
            rollout = sim.run()
            assert reference.service.rollout is not None
            assert rollout.phase is reference.service.rollout.phase, prefix
            assert {u.id: u.version for u in sim.service.upstreams.values()} == {
                u.id: u.version for u in reference.service.upstreams.values()
            }
            assert set(sim.fleet.shares) == set(reference.fleet.shares), prefix


# -- any world ---------------------------------------------------------------------------------------

ACTIONS = ("perform", "fail", "crash", "pause", "resume", "abort", "abort_no_revert", "die", "heal", "tick")


def drive(decider, data: st.DataObject) -> Simulation:  # type: ignore[no-untyped-def]
    """Any policy, any order of step outcomes, crashes and operators, then a quiet world: it must end."""
    count = data.draw(st.integers(2, 5))
    order = data.draw(st.sampled_from(Order))
    sim = fleet_of(count, spare=True)
    sim.decide = decider
    wanted = policy(
        order,
        max_parallel=data.draw(st.integers(1, count)),
        min_ready=data.draw(st.integers(0, count - 1)),
        hooks=tuple(data.draw(st.sets(st.sampled_from(HOOKS)))),
        prepares=data.draw(st.booleans()),
        hosts=data.draw(st.dictionaries(st.sampled_from("abc"), st.sampled_from(["ssh://x", "ssh://y"]))),
        auto_revert=data.draw(st.booleans()),
    )
    start(sim, wanted)
    for action in data.draw(st.lists(st.sampled_from(ACTIONS), max_size=60)):
        decision = sim.settle()
        if sim.service.live is None:
            break
        if decision.cancel:
            sim.cancel(decision.cancel)
            continue
        act(sim, action, data)
    sim.fate = lambda key: "ok"
    sim.probe()
    if sim.service.live and sim.service.live.paused:
        sim.record(ev.Resumed("web", "r1"))
    if sim.service.live:
        sim.run()
    return sim


def act(sim: Simulation, action: str, data: st.DataObject) -> None:
    steps = sim.running()
    match action:
        case "perform" | "fail" if steps:
            sim.fate = (lambda key: "ok") if action == "perform" else (lambda key: "broken")
            sim.perform(data.draw(st.sampled_from(steps)).key)
        case "crash":
            sim.crash()
            sim.probe()
        case "pause":
            sim.record(ev.Paused("web", "r1"))
        case "resume":
            sim.record(ev.Resumed("web", "r1"))
        case "abort" | "abort_no_revert":
            sim.record(ev.AbortRequested("web", "r1", revert=action == "abort"))
        case "die":
            victim = data.draw(st.sampled_from(sorted(sim.service.upstreams)))
            sim.fleet.running.pop(sim.service.upstreams[victim].serving or "", None)
            sim.probe()
        case "heal" | "tick":
            sim.now += 30.0
            sim.probe()
        case _:
            pass


@settings(max_examples=max(300, settings().max_examples))
@given(st.data())
def test_any_rollout_in_any_world_is_safe_and_ends(data: st.DataObject) -> None:
    sim = drive(decide, data)
    rollout = sim.service.rollout
    assert rollout is not None
    assert rollout.phase.ended
    if rollout.phase is Phase.SUCCEEDED:
        assert {u.version for u in sim.service.upstreams.values()} == {"v2"}
    if rollout.phase is Phase.REVERTED:
        assert {u.version for u in sim.service.upstreams.values()} == {"v1"}
    lived = sim.service
    sim.crash()
    assert sim.service == lived  # the journal alone gives the same state


# -- guard against vacuity: planners that are wrong must be caught -------------------------------------


def skips(kind: StepKind):  # type: ignore[no-untyped-def]
    """A planner that leaves one kind of step out of every turn."""

    def wrong(service: Service, world: World, now: float) -> Decision:
        decision = decide(service, world, now)
        if isinstance(decision.event, ev.TaskStarted):
            steps = tuple(step for step in decision.event.steps if step is not kind)
            event = ev.TaskStarted(**{**decision.event.__dict__, "steps": steps})
            return Decision(decision.weights, event=event)
        return decision

    return wrong


def ignores_min_ready(service: Service, world: World, now: float) -> Decision:
    """A planner that believes every upstream is up."""
    blind = World({name: Health.UP for name in service.upstreams}, world.shares)
    return decide(service, blind, now)


def test_a_planner_blind_to_health_is_caught() -> None:
    sim = fleet_of(3)
    sim.decide = ignores_min_ready
    sim.health["c"] = Health.DOWN
    start(sim, policy(min_ready=2, prepares=False, hooks=()))
    with pytest.raises(InvariantError, match="S4"):
        sim.run()


def greedy(service: Service, world: World, now: float) -> Decision:
    """A planner that takes everything out at once."""
    rollout = service.live
    if rollout is None:
        return decide(service, world, now)
    wide = Policy(**{**rollout.policy.__dict__, "max_parallel": 99, "min_ready": 0})
    changed = Service(**{**service.__dict__, "rollout": type(rollout)(**{**rollout.__dict__, "policy": wide})})
    return decide(changed, world, now)


def hasty(service: Service, world: World, now: float) -> Decision:
    """A planner that ends a rollout while steps still run."""
    decision = decide(service, world, now)
    rollout = service.live
    if rollout and rollout.running_steps() and decision.event is None:
        return Decision(decision.weights, event=ev.RolloutEnded("web", rollout.id, Phase.SUCCEEDED))
    return decision


@pytest.mark.parametrize(
    "wrong",
    [skips(StepKind.DRAIN), skips(StepKind.GATE), greedy, hasty],
    ids=["no drain", "no gate", "greedy", "hasty"],
)
def test_a_wrong_planner_is_caught(wrong) -> None:  # type: ignore[no-untyped-def]
    @settings(max_examples=300, database=None)
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        drive(wrong, data)

    with pytest.raises((InvariantError, UnsafeError)):
        attempt()
