"""What is judged, and since when: also for a daemon that begins later than the share."""

from __future__ import annotations

from tests.core.simulation import Simulation, fleet_of
from trafficd.core import events as ev
from trafficd.core.judged import judged
from trafficd.core.machine import advance, fold
from trafficd.core.model import Service
from trafficd.retention import snapshot

SHARED: list[tuple[float, ev.Event]] = [
    (1.0, ev.UpstreamAdded("web", "x", "10.0.1.1:80", "v2")),
    (2.0, ev.UpstreamAdded("web", "y", "10.0.1.2:80", "v2")),
    (10.0, ev.CanarySet("web", 5)),
]


def since(service: Service) -> float | None:
    found = judged(service)
    assert found is not None
    return found.since


def stage() -> Simulation:
    sim = fleet_of(3)
    sim.service = fold(sim.service, SHARED)
    return sim


def test_a_share_given_by_hand_is_judged_since_it_was_given() -> None:
    service = stage().service
    assert since(service) == 10.0
    assert since(advance(service, 20.0, ev.CanarySet("web", 5))) == 10.0, "the same again is no beginning"
    assert since(advance(service, 20.0, ev.CanarySet("web", 25))) == 20.0, "another share wants a proof of its own"
    assert judged(advance(service, 20.0, ev.CanarySet("web", 0))) is None


def test_other_instances_begin_anew_whatever_it_was_that_changed_them() -> None:
    service = stage().service
    for event in (
        ev.UpstreamRemoved("web", "x"),
        ev.DrainRequested("web", "x"),
        ev.UpstreamAdded("web", "z", "10.0.1.3:80", "v2"),
        ev.UpstreamAdded("web", "x", "10.0.1.1:80", "v3"),
    ):
        assert since(advance(service, 30.0, event)) == 30.0, event
    stable = advance(service, 30.0, ev.DrainRequested("web", "a"))
    assert since(stable) == 10.0, "what it is compared with may change"


def test_a_journal_that_was_cut_short_knows_it_too() -> None:
    service = stage().service
    assert since(advance(Service("web"), 99.0, snapshot(service))) == 10.0
