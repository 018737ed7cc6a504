"""Who is ejected when: what is known of the answers, what may be done about it, and how it is remembered."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trafficd.core import events as ev
from trafficd.core.analysis import Counts
from trafficd.core.machine import advance, fold
from trafficd.core.model import (
    Direction,
    Freeze,
    Health,
    Maintenance,
    Policy,
    Service,
    StepKind,
    Upstream,
    World,
)
from trafficd.core.outliers import (
    RENEWED,
    ROW,
    Outliers,
    Rules,
    Suspect,
    ejection,
    judged,
    returned,
)
from trafficd.core.plan import decide
from trafficd.core.routing import available, route

NOW = 1_700_000_000.0


def dial(name: str) -> str:
    return f"10.0.0.{ord(name) - 96}:80"


def service(names: str = "abc", **changes: object) -> Service:
    upstreams = {name: Upstream(name, dial(name), "v1", serving=dial(name)) for name in names}
    return replace(Service("web", upstreams=upstreams, stable="v1"), **changes)  # type: ignore[arg-type]


def world(state: Service, *down: str) -> World:
    health = {name: Health.DOWN if name in down else Health.UP for name in state.upstreams}
    return World(health, {dial(name): 1 for name in state.upstreams})


def suspect(name: str, evidence: float = 1e9) -> Suspect:
    return Suspect(name, evidence, Counts(20, 20), Counts(40, 0))


def ejected(state: Service, name: str, *, at: float = NOW, seconds: float = 30.0, row: int = 1) -> Service:
    return advance(state, at, ev.UpstreamEjected("web", name, at + seconds, "bad answers", row))


# -- who answers worse -------------------------------------------------------------------------------------


def simulate(outliers: Outliers, rates: Mapping[str, float], seconds: int, seed: int, pace: int = 10) -> list[str]:
    """So many answers a second and upstream, of which so many are bad; the first suspect of each second."""
    chance = random.Random(seed)
    found = []
    for second in range(seconds):
        now = NOW + second
        outliers.judge(list(rates), now)
        for name, rate in rates.items():
            for number in range(pace):
                client = f"{second} {name} {number}"
                outliers.take(now + 0.5, name, client, bad=chance.random() < rate)
        outliers.close(now + 1)
        if suspects := outliers.suspects():
            found.append(suspects[0].upstream)
    return found


@pytest.mark.parametrize("names", ["ab", "abc", "abcdefghij"])
def test_one_that_fails_is_found_within_seconds(names: str) -> None:
    rates = {name: float(name == "b") for name in names}
    found = simulate(Outliers(Rules()), rates, 5, seed=1)
    assert len(found) >= 3
    assert set(found) == {"b"}


def test_one_that_fails_after_a_long_good_past_is_found_as_fast() -> None:
    outliers = Outliers(Rules())
    assert simulate(outliers, {"a": 0.01, "b": 0.01, "c": 0.01}, 250, seed=2) == []
    found = []
    for second in range(250, 260):
        now = NOW + second
        outliers.judge("abc", now)
        for name in "abc":
            for number in range(10):
                outliers.take(now, name, f"{second} {name} {number}", bad=name == "b")
        outliers.close(now + 1)
        found += [one.upstream for one in outliers.suspects()]
    assert len(found) >= 6
    assert set(found) == {"b"}


@pytest.mark.parametrize("rate", [0.02, pytest.param(0.5, marks=pytest.mark.slow)])
def test_upstreams_that_are_equally_good_are_left_alone_for_hours(rate: float) -> None:
    assert simulate(Outliers(Rules()), dict.fromkeys("abc", rate), 3600, seed=1, pace=1) == []


@pytest.mark.slow
def test_alpha_bounds_the_false_ejections_in_an_hour() -> None:
    rules = Rules(alpha=0.5, tolerance=1.0)  # so that there is something to be seen
    runs = [simulate(Outliers(rules), dict.fromkeys("abc", 0.02), 3600, seed, pace=1) for seed in range(30)]
    assert 0 < sum(map(bool, runs)) <= 15


def test_the_bound_is_what_keeps_them_from_being_ejected() -> None:
    loose = Outliers(Rules(alpha=0.999, tolerance=1.0))
    assert simulate(loose, {"a": 0.1, "b": 0.3}, 600, seed=1, pace=4), "or the test above could not fail"


def test_a_fault_that_all_have_is_nobodys() -> None:
    assert simulate(Outliers(Rules()), dict.fromkeys("abc", 1.0), 60, seed=3) == []


def test_a_little_worse_is_tolerated() -> None:
    rates = {"a": 0.01, "b": 0.015, "c": 0.01}
    assert simulate(Outliers(Rules()), rates, 1200, seed=4) == []


def test_a_client_in_a_retry_loop_is_one_witness() -> None:
    outliers = Outliers(Rules(), sticky=True)
    for second in range(60):
        outliers.judge("ab", NOW + second)
        for number in range(10):
            outliers.take(NOW + second, "a", f"good {number}", bad=False)
            outliers.take(NOW + second, "b", "loop", bad=True)
        outliers.close(NOW + second + 1)
    assert outliers.suspects() == []


def test_thin_traffic_is_seen_too() -> None:
    outliers = Outliers(Rules())
    for second in range(0, 240, 3):
        name = "ab"[second % 2]
        outliers.judge("ab", NOW + second)
        outliers.take(NOW + second, name, f"{second}", bad=name == "b")
        outliers.close(NOW + second + 1)
    assert [one.upstream for one in outliers.suspects()] == ["b"]


def test_who_comes_back_has_a_judge_that_begins_then() -> None:
    outliers = Outliers(Rules())
    simulate(outliers, {"a": 0.0, "b": 1.0, "c": 0.0}, 5, seed=5)
    assert [one.upstream for one in outliers.suspects()] == ["b"]
    outliers.judge("ac", NOW + 6)
    outliers.take(NOW + 6, "b", "x", bad=True)
    outliers.judge("abc", NOW + 36)
    for number in range(100):
        outliers.take(NOW + 35, "b", f"late {number}", bad=True)  # read late, of the time before it was ejected
        outliers.take(NOW + 36.5, "a", f"{number}", bad=False)
    outliers.close(NOW + 38)
    assert outliers.suspects() == []


def test_judges_are_renewed() -> None:
    outliers = Outliers(Rules())
    simulate(outliers, {"a": 0.0, "b": 1.0}, 5, seed=6)
    outliers.judge("ab", NOW + RENEWED - 1)
    assert outliers.suspects()
    outliers.judge("ab", NOW + RENEWED)
    assert not outliers.suspects()


# -- who is ejected ----------------------------------------------------------------------------------------


def decided(state: Service, *suspects: Suspect, rules: Rules | None = None, down: str = "") -> object:
    return ejection(state, world(state, *down), list(suspects), rules or Rules(), NOW)


def test_the_worst_goes_first() -> None:
    found = decided(service(), suspect("b"), suspect("a", 1e5))
    assert found == ev.UpstreamEjected("web", "b", NOW + 30, suspect("b").reason)
    assert suspect("b").reason == "20 of 20 answers were bad, of the others' 0 of 40 (E = 1e+09)"
    assert decided(service()) is None


@pytest.mark.parametrize(
    ("state", "rules", "down", "says"),
    [
        (service("a"), Rules(), "", "only 0 others carry traffic"),
        (service("ab"), Rules(), "b", "only 0 others carry traffic"),
        (service("abc"), Rules(least=3), "", "only 2 others carry traffic (min_ready is 3)"),
        (ejected(service("abc"), "b"), Rules(), "", "out already: b (max_ejected)"),
        (ejected(service("abc"), "b"), Rules(most=2, least=2), "", "only 1 others carry traffic"),
    ],
)
def test_enough_stay(state: Service, rules: Rules, down: str, says: str) -> None:
    found = decided(state, suspect("a"), rules=rules, down=down)
    assert isinstance(found, str)
    assert found.startswith("a answers badly and is not ejected: 20 of 20 ")
    assert says in found


@pytest.mark.parametrize(
    "state",
    [
        service(canary_percent=5.0),
        service(held=True),
        service(left=True),
        service(maintenance=Maintenance("127.0.0.1:1", "", NOW)),
        advance(service(), NOW, ev.RolloutStarted("web", "r1", "v2", "rolling", Policy(), ("a", "b", "c"))),
    ],
)
def test_nobody_is_judged_while_the_traffic_is_not_the_ordinary(state: Service) -> None:
    assert judged(state) == frozenset()
    assert decided(state, suspect("a")) is None


def test_judged_are_those_that_share_the_traffic() -> None:
    state = ejected(service("abcdef", canary_percent=0.0, freeze=Freeze("x", None, "")), "b")
    upstreams = dict(state.upstreams)
    upstreams["c"] = replace(upstreams["c"], drained=True)
    upstreams["d"] = replace(upstreams["d"], serving=None)
    upstreams["e"] = replace(upstreams["e"], version="v2")
    state = replace(state, upstreams=upstreams)
    assert judged(state) == {"a", "f"}
    assert decided(state, suspect("b")) is None, "it is out already"


@given(
    names=st.integers(1, 6),
    out=st.sets(st.integers(0, 5)),
    down=st.sets(st.integers(0, 5)),
    most=st.integers(1, 4),
    least=st.integers(0, 5),
    bad=st.permutations(range(6)),
)
def test_no_ejection_takes_away_the_last_or_too_many(
    names: int, out: set[int], down: set[int], most: int, least: int, bad: list[int]
) -> None:
    state = service("abcdef"[:names])
    for number in out:
        state = ejected(state, "abcdef"[number])
    seen = world(state, *("abcdef"[number] for number in down))
    before = available(state, seen)
    found = ejection(state, seen, [suspect("abcdef"[n]) for n in bad], Rules(most=most, least=least), NOW)
    if isinstance(found, ev.UpstreamEjected):
        after = advance(state, NOW, found)
        left = available(after, seen)
        assert left == before - {found.upstream}
        assert len(left) >= max(1, least)
        assert sum(one.ejected for one in after.upstreams.values()) <= most
        assert route(after, seen).panic is None


# -- what becomes of it ------------------------------------------------------------------------------------


def test_an_ejected_one_gets_nothing_unless_no_other_is_up() -> None:
    state = ejected(service(), "b")
    assert route(state, world(state)).weights == {dial("a"): 1, dial("c"): 1}
    alone = route(state, world(state, "a", "c"))
    assert alone.weights == {dial("b"): 1}
    assert alone.panic == "only upstreams that were ejected are up (b), so they serve"
    assert "b" not in available(state, world(state))


def test_it_returns_when_its_time_is_over() -> None:
    state = ejected(service(), "b")
    assert returned(state, NOW + 29.9) is None
    assert decide(state, world(state), NOW + 29.9).event is None
    event = decide(state, world(state), NOW + 30).event
    assert event == ev.UpstreamReturned("web", "b")
    state = advance(state, NOW + 31, event)
    assert len(route(state, world(state)).weights) == 3
    assert returned(state, NOW + 100) is None
    assert judged(state) == {"a", "b", "c"}


def test_each_ejection_in_a_row_is_longer() -> None:
    state, now, lengths = service(), NOW, []
    for _ in range(ROW + 2):
        event = ejection(state, world(state), [suspect("b")], Rules(), now)
        assert isinstance(event, ev.UpstreamEjected)
        lengths.append(event.until - now)
        state = advance(state, now, event)
        state = advance(state, event.until + 1, ev.UpstreamReturned("web", "b"))
        now = event.until + 10
    assert lengths == pytest.approx([30.0 * min(row, ROW) for row in range(1, ROW + 3)])
    event = ejection(state, world(state), [suspect("b")], Rules(), now + RENEWED + 10)
    assert isinstance(event, ev.UpstreamEjected)
    assert event.row == 1, "it was good for long enough"


def test_somebody_who_lets_it_in_ends_the_row() -> None:
    state = ejected(service(), "b", row=4)
    state = advance(state, NOW + 5, ev.UpstreamReturned("web", "b", actor="ops"))
    assert state.upstreams["b"].ejection is None
    state = ejected(service(), "b", row=4)
    ready: list[tuple[float, ev.Event]] = [
        (NOW + 1, ev.ReadyRequested("web", "b", dial("b"), "v1", swapped=True)),
        (NOW + 2, ev.ReadyEnded("web", "b", ok=True)),
    ]
    assert fold(state, ready).upstreams["b"].ejection is None
    ready[-1] = (NOW + 2, ev.ReadyEnded("web", "b", ok=False))
    assert fold(state, ready).upstreams["b"].ejected


def test_a_rollouts_turn_ends_it_once_the_new_version_is_let_in() -> None:
    state = ejected(service(), "b")
    steps = (StepKind.DRAIN, StepKind.SWAP, StepKind.GATE, StepKind.ADMIT)
    state = advance(state, NOW, ev.RolloutStarted("web", "r1", "v2", "rolling", Policy(), ("a", "b", "c")))
    started = ev.TaskStarted("web", "r1", "b", Direction.FORWARD, steps, dial("b"), "v1", dial("b"), "v2")
    state = advance(state, NOW, started)
    for step in steps:
        assert state.upstreams["b"].ejected
        state = advance(state, NOW, ev.StepStarted("web", "r1", "b", Direction.FORWARD, step))
        if step is not StepKind.ADMIT:
            state = advance(state, NOW, ev.StepEnded("web", "r1", "b", Direction.FORWARD, step, ok=True))
    assert not state.upstreams["b"].ejected


def test_a_rollout_takes_the_ejected_one_first_as_it_carries_nothing() -> None:
    state = ejected(service(), "b")
    policy = Policy(min_ready=2)
    state = advance(state, NOW, ev.RolloutStarted("web", "r1", "v2", "rolling", policy, ("a", "b", "c")))
    event = decide(state, world(state), NOW + 1).event
    assert isinstance(event, ev.TaskStarted)
    assert event.upstream == "b"


def test_what_happens_to_one_that_is_gone_changes_nothing() -> None:
    assert ejected(service("a"), "z") == service("a")
    assert advance(service("a"), NOW, ev.UpstreamReturned("web", "z")) == service("a")
