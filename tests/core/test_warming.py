"""Slow start: how the weight of what is put back grows."""

from __future__ import annotations

from trafficd.core.model import FULL, Health, Service, Upstream, World
from trafficd.core.routing import route
from trafficd.core.warming import Warming

WARM = {"a:1": 1, "b:1": 1}


def test_without_a_duration_everything_is_warm() -> None:
    warming = Warming(0.0)
    warming.seen(100.0, WARM)
    assert warming.warmth(100.0, WARM) == {}
    assert warming.pause(100.0) is None


def test_what_has_traffic_at_the_start_of_the_daemon_is_warm_and_what_comes_back_is_not() -> None:
    warming = Warming(20.0)
    warming.warm(WARM)
    warming.seen(100.0, {"a:1": 1})  # b is taken out
    assert warming.warmth(101.0, WARM) == {"a:1": FULL, "b:1": 1}, "before it has anything"
    warming.seen(110.0, WARM)
    found = [warming.warmth(110.0 + age, WARM).get("b:1", FULL) for age in range(21)]
    assert found == [1, *range(1, FULL), FULL]
    assert warming.pause(129.0) == 1.0
    assert warming.pause(130.0) is None


def test_all_that_are_as_cold_as_each_other_share_equally() -> None:
    warming = Warming(20.0)
    warming.seen(100.0, WARM)
    assert warming.warmth(105.0, WARM) == {}


def test_a_cold_upstream_has_its_part_of_an_equal_share() -> None:
    upstreams = {name: Upstream(name, f"{name}:1", "v1", serving=f"{name}:1") for name in "abc"}
    health = dict.fromkeys("abc", Health.UP)
    weights = route(Service("web", upstreams, "v1"), World(health, warmth={"a:1": FULL, "b:1": FULL, "c:1": 5})).weights
    assert weights == {"a:1": FULL, "b:1": FULL, "c:1": 5}
    shared = Service("web", upstreams, "v1", canary_percent=None)
    assert route(shared, World(health)).weights == {"a:1": 1, "b:1": 1, "c:1": 1}
