"""What a source outside answered becomes counts, or a line that says what to do; never a zero that nobody counted."""

from __future__ import annotations

import contextlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.canary.counters import GOOD
from trafficd.canary.readings import MOST, NoReadingError, Question, Reading, Rounding, answered, sample

QUESTION = Question(
    "web", "conversion", 1_700_000_000.0, 1_700_000_010.0, ("10.0.0.2:80",), ("10.0.0.1:80", "[fd00::1]:80"), "v2", "v1"
)


def test_counts() -> None:
    assert answered(orjson.dumps(GOOD)) == (98, 2, 990, 10)
    assert answered(b' {"canary": {"good": 0, "bad": 0.5}, "stable": {"good": 1e3, "bad": 0, "more": 1}} \n')[1:3] == (
        0.5,
        1000,
    )


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (b"", "said nothing; answer with {"),
        (b"OK", "said no JSON"),
        (b"[1, 2]", "canary.good is missing in [1, 2]"),
        (b'{"canary": {"good": 1}, "stable": {"good": 1, "bad": 1}}', "canary.bad is missing"),
        (b'{"canary": 5, "stable": {"good": 1, "bad": 1}}', "canary.good is missing"),
        (b'{"canary": {"good": 1, "bad": -1}, "stable": {"good": 1, "bad": 1}}', "canary.bad is -1, below zero"),
        (b'{"canary": {"good": 1, "bad": 1}, "stable": {"good": true, "bad": 1}}', "stable.good is true, not a number"),
        (b'{"canary": {"good": 1, "bad": 1}, "stable": {"good": null, "bad": 1}}', "stable.good is null"),
        (b'{"canary": {"good": "1", "bad": 1}, "stable": {"good": 1, "bad": 1}}', 'canary.good is "1"'),
        (b'{"canary": {"good": 1e300, "bad": 1}, "stable": {"good": 1, "bad": 1}}', "more than 10000000"),
        (b'{"canary": {"good": NaN, "bad": 1}, "stable": {"good": 1, "bad": 1}}', "said no JSON"),
        (b"\x1b[31m\x00" + b"x" * 1000, "x..."),
        (b"[" * 100_000, "said no JSON"),
    ],
)
def test_what_is_no_count(said: bytes, says: str) -> None:
    with pytest.raises(NoReadingError) as caught:
        answered(said)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@given(st.binary(max_size=200))
def test_no_answer_breaks_the_reader(said: bytes) -> None:
    for read in (answered, lambda text: sample("canary_bad", text)):
        with contextlib.suppress(NoReadingError):
            read(said)


def vector(*values: object) -> bytes:
    result = [{"metric": {}, "value": [1_700_000_010.0, value]} for value in values]
    return orjson.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})


def test_a_sample() -> None:
    assert sample("canary_bad", vector("12.5")) == 12.5
    scalar = {"status": "success", "data": {"resultType": "scalar", "result": [1_700_000_010.0, "3"]}}
    assert sample("canary_bad", orjson.dumps(scalar)) == 3


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (vector(), "gives nothing, which is not known to be zero"),
        (vector("NaN"), "NaN"),
        (vector("+Inf"), f"more than {MOST}"),
        (vector("-3"), "below zero"),
        (vector("1", "2"), "2 series, not one number; put sum(...) around it"),
        (vector("many"), "no answer of Prometheus"),
        (vector(True), "not a number"),
        (b'{"status": "success"}', "no answer of Prometheus"),
        (b'{"status": "success", "data": {"resultType": "matrix", "result": []}}', "gives a matrix, not one number"),
        (b'{"status": "error", "errorType": "bad_data", "error": "parse error"}', "bad_data: parse error"),
        (b"[]", "no answer of Prometheus"),
        (b"<html>", "no answer of Prometheus: <html>"),
    ],
)
def test_what_is_no_sample(said: bytes, says: str) -> None:
    with pytest.raises(NoReadingError) as caught:
        sample("canary_bad", said)
    assert str(caught.value).startswith("canary_bad")
    assert says in str(caught.value)


@given(st.lists(st.tuples(*[st.floats(0, 1000)] * 4), min_size=1, max_size=50))
def test_rounding_loses_nothing(readings: list[tuple[float, float, float, float]]) -> None:
    rounding = Rounding()
    counted = [rounding.whole(Reading(*reading)) for reading in readings]
    for index, arm in ((0, 0), (2, 1)):
        for part, whole in (
            (index + 1, sum(one[arm].bad for one in counted)),
            (index, sum(one[arm].total - one[arm].bad for one in counted)),
        ):
            exact = sum(reading[part] for reading in readings)
            assert exact - 1 <= whole <= exact + 1e-6
    assert all(0 <= arm.bad <= arm.total for one in counted for arm in one)


def test_tenths_come_to_whole_ones() -> None:
    rounding = Rounding()
    counted = [rounding.whole(Reading(0.1, 0, 0, 0))[0].total for _ in range(10)]
    assert counted == [0] * 9 + [1]


def test_a_query_is_filled_in() -> None:
    query = 'sum(increase(ok{service="$service",v="$canary_version",i=~"$stable",m=~"^$"}[$window])) * $1'
    assert QUESTION.filled_in(query) == (
        r'sum(increase(ok{service="web",v="v2",i=~"10\\.0\\.0\\.1:80|\\[fd00::1\\]:80",m=~"^$"}[10s])) * $1'
    )
    assert QUESTION._replace(until=1_700_000_000.5).filled_in("[$window]") == "[500ms]"


def test_a_program_is_told_all_of_it() -> None:
    assert QUESTION.environment == {
        "TRAFFICD_SERVICE": "web",
        "TRAFFICD_METRIC": "conversion",
        "TRAFFICD_SINCE": "1700000000.000",
        "TRAFFICD_UNTIL": "1700000010.000",
        "TRAFFICD_CANARY": "10.0.0.2:80",
        "TRAFFICD_STABLE": "10.0.0.1:80,[fd00::1]:80",
        "TRAFFICD_CANARY_VERSION": "v2",
        "TRAFFICD_STABLE_VERSION": "v1",
    }
