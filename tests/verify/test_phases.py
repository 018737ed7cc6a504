"""What went on at a moment of a rollout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trafficd.core.model import Direction, StepKey, StepKind, StepRecord
from trafficd.verify.phases import Begun, Span, Stage, Timeline, spans

STEPS = (
    StepRecord(StepKey(None, Direction.FORWARD, StepKind.BEFORE_ROLLOUT), 10.0, 11.0, True),
    StepRecord(StepKey("a", Direction.FORWARD, StepKind.DRAIN), 11.0, 12.0, True),
    StepRecord(StepKey("b", Direction.FORWARD, StepKind.SWAP), 11.5, 13.0, True),
    StepRecord(StepKey("b", Direction.REVERT, StepKind.SWAP), 14.0, None),
)
TIMELINE = Timeline((Begun(Stage.WARM_UP, 5.0), Begun(Stage.ROLLOUT, 10.0), Begun(Stage.COOL_DOWN, 20.0)), spans(STEPS))


@pytest.mark.parametrize(
    ("at", "text", "upstream", "stage"),
    [
        (4.0, "warm-up", None, Stage.WARM_UP),
        (7.0, "warm-up", None, Stage.WARM_UP),
        (10.5, "before rollout", None, Stage.ROLLOUT),
        (11.2, "drain a", "a", Stage.ROLLOUT),
        (11.7, "drain a, swap b", "a, b", Stage.ROLLOUT),
        (12.0, "swap b", "b", Stage.ROLLOUT),
        (13.5, "rollout", None, Stage.ROLLOUT),
        (19.0, "swap b (bringing the old version back)", "b", Stage.ROLLOUT),
    ],
)
def test_a_moment(at: float, text: str, upstream: str | None, stage: Stage) -> None:
    moment = TIMELINE.at(at)
    assert (moment.text, moment.upstream, moment.stage) == (text, upstream, stage)


times = st.integers(0, 100).map(float)
some_spans = st.lists(st.tuples(times, st.integers(0, 20), st.sampled_from("abc")), max_size=8)


@given(some_spans, times)
def test_every_step_under_way_is_told_and_no_other(found: list[tuple[float, int, str]], at: float) -> None:
    known = tuple(Span("swap", name, begin, begin + length) for begin, length, name in found)
    moment = Timeline((Begun(Stage.ROLLOUT, 0.0),), known).at(at)
    wanted = [(begin, name) for begin, length, name in found if begin <= at < begin + length]
    assert [(span.begin, span.upstream) for span in moment.spans] == wanted
    assert (moment.text == "rollout") == (not wanted)
