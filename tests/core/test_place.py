"""Places: what should be running where, and what becomes of them when a service gets or loses its route."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.errors import AddressError
from proxy.model import parse_dial
from trafficd.core import events as ev
from trafficd.core.machine import fold
from trafficd.core.model import Direction, Health, Order, Policy, Service, StepKind, World
from trafficd.core.place import Expected, address, expected, worker
from trafficd.core.reconcile import Configured, reconcile, strangers
from trafficd.core.routing import available, route
from trafficd.core.strategy import forward_steps

X, Y = "10.0.0.1:80", "10.0.0.1:81"


def service(*events: ev.Event) -> Service:
    return fold(Service("s"), ((float(number), event) for number, event in enumerate(events)))


def rollout(policy: Policy, old: str, new: str | None) -> list[ev.Event]:
    return [
        ev.RolloutStarted("s", "r", "v2", "rolling", policy, ("a",), {"a": "v1"}),
        ev.TaskStarted("s", "r", "a", Direction.FORWARD, forward_steps(policy), old, "v1", new, "v2"),
    ]


def step(kind: StepKind, *, dial: str | None = None) -> list[ev.Event]:
    return [
        ev.StepStarted("s", "r", "a", Direction.FORWARD, kind),
        ev.StepEnded("s", "r", "a", Direction.FORWARD, kind, True, dial=dial),
    ]


def test_the_place_of_a_worker_is_no_address() -> None:
    assert address(worker("a")) is None
    assert address(None) is None
    assert address(X) == X
    with pytest.raises(AddressError):
        parse_dial(worker("a") + ":80")


def test_what_should_run_changes_with_the_swap() -> None:
    place, policy = worker("a"), Policy()
    before = [ev.UpstreamAdded("s", "a", place, "v1"), *rollout(policy, place, place), *step(StepKind.DRAIN)]
    assert expected(service(*before), place) == Expected("a", "v1")
    assert expected(service(*before, *step(StepKind.SWAP)), place) == Expected("a", "v2")
    assert expected(service(*before), worker("b")) is None


def test_side_by_side_each_is_asked_for_its_own_version() -> None:
    policy = Policy(order=Order.START_FIRST)
    before = [ev.UpstreamAdded("s", "a", X, "v1"), *rollout(policy, X, None), *step(StepKind.SWAP, dial=Y)]
    begun = service(*before)
    assert (expected(begun, X), expected(begun, Y)) == (Expected("a", "v1"), Expected("a", "v2"))
    admitted = service(*before, *step(StepKind.GATE), *step(StepKind.ADMIT))
    assert expected(admitted, Y) == Expected("a", "v2")


def test_at_a_gate_by_hand_the_version_that_was_named_is_expected() -> None:
    place = worker("a")
    state = service(ev.UpstreamAdded("s", "a", place, "v1"), ev.ReadyRequested("s", "a", place, "v2", True))
    assert expected(state, place) == Expected("a", "v2")


def test_a_second_address_that_nothing_runs_at_has_no_version() -> None:
    assert expected(service(ev.UpstreamAdded("s", "a", X, "v1", Y)), Y) == Expected("a", None)


def test_workers_that_all_look_dead_are_not_available_and_no_routing_is_spoken_of() -> None:
    state = service(*(ev.UpstreamAdded("s", name, worker(name), "v1") for name in "ab"))
    world = World(health=dict.fromkeys("ab", Health.DOWN), shares={worker("a"): 1, worker("b"): 1})
    assert route(state, world).panic == "all 2 workers look dead"
    assert available(state, world) == frozenset()
    assert available(state, replace(world, health={"a": Health.UP})) == {"a"}


def test_a_service_that_loses_its_route_keeps_nobody_with_an_address() -> None:
    past: list[ev.Event] = [ev.UpstreamAdded("s", "a", X, "v1", configured=True), ev.UpstreamAdded("s", "b", Y, "v1")]
    state = service(*past)
    assert strangers(state, routed=False) == ["a", "b"]
    changes = reconcile(state, past, [Configured("a", worker("a"), "v1")], routed=False)
    after = fold(state, ((9.0, event) for event in changes.events))
    assert {one.id: one.dial for one in after.upstreams.values()} == {"a": worker("a")}
    assert changes.notes == ("b was removed: it was added with an address",)
    # And back again: a proxy is never given the place of a worker.
    past = [*past, *changes.events, ev.UpstreamAdded("s", "c", worker("c"), "v1")]
    state = service(*past)
    changes = reconcile(state, past, [Configured("a", X, "v1")])
    after = fold(state, ((9.0, event) for event in changes.events))
    assert {one.id: one.dial for one in after.upstreams.values()} == {"a": X}
    assert changes.notes == ("c was removed: it was added without an address",)
