"""What one line says. How Caddy writes each kind is shown in `test_logged_on_caddy`."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.accessline import _WARNINGS_KEPT, Answer, BadLineError, Cut, Decoder
from proxy.model import NOBODY, stream_alias
from tests.proxy.logfile import UPSTREAM, cut_entry, entry, line, warning


def decode(*entries: dict[str, Any]) -> Answer:
    """The answer that the last of these lines tells of."""
    decoder = Decoder()
    *before, last = [decoder.decode(orjson.dumps(each)) for each in entries]
    assert before == [None] * len(before)
    assert last is not None
    return last


def test_an_answer() -> None:
    assert decode(entry(3)) == Answer(
        at=1795613658.99,
        service="web",
        upstream=UPSTREAM,
        status=200,
        duration=0.001971051,
        latency=0.00125,
        cut=Cut.NO,
        retries=0,
        client="192.0.2.7",
        method="GET",
        path="/3",
        stratum="",
        answered=True,
    )


def test_an_answer_that_never_came_is_the_last_ones_that_was_tried() -> None:
    answer = decode(entry(status=502, answered=..., latency=..., retries=4))
    assert (answer.upstream, answer.answered, answer.latency, answer.retries) == (UPSTREAM, False, None, 4)
    assert answer.cut is Cut.NO


def test_a_request_that_nobody_was_tried_for_is_nobodys() -> None:
    for upstream in (None, "", NOBODY, stream_alias(NOBODY)):
        assert decode(entry(status=502, answered=..., latency=..., upstream=upstream)).upstream is None


def test_a_stream_is_charged_to_the_address_as_the_slots_have_it() -> None:
    for dial in ("10.0.0.5:8080", "[fe80::1]:80", "web.internal:80"):
        assert decode(entry(status=101, answered=..., latency=..., upstream=stream_alias(dial))).upstream == dial
    assert decode(entry(upstream="unix//run/a", answered="unix//run/a")).upstream == "unix//run/a"


@pytest.mark.parametrize(
    ("error", "cut", "truncated"),
    [
        ("reading: unexpected EOF", Cut.UPSTREAM, True),
        ("reading: read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer", Cut.UPSTREAM, True),
        ("reading: read tcp 127.0.0.1:1->127.0.0.1:2: i/o timeout", Cut.UPSTREAM, True),
        ("reading: context canceled", Cut.CLIENT, False),
        ("writing: write tcp 127.0.0.1:1->127.0.0.1:2: write: broken pipe", Cut.CLIENT, False),
        ("writing: client disconnected", Cut.CLIENT, False),
    ],
)
def test_the_warning_before_says_who_cut_an_answer_short(error: str, cut: Cut, truncated: bool) -> None:
    answer = decode(warning(1, error), cut_entry(1))
    assert (answer.upstream, answer.status, answer.cut, answer.truncated) == (UPSTREAM, 200, cut, truncated)
    assert answer.retries is None


def test_a_cut_answer_without_its_warning_may_be_the_upstreams() -> None:
    answer = decode(cut_entry())
    assert (answer.cut, answer.truncated) == (Cut.UNKNOWN, True)


@pytest.mark.parametrize("other", [{"client_ip": "192.0.2.8"}, {"remote_port": "1"}])
def test_a_warning_is_for_its_own_connection_only(other: dict[str, str]) -> None:
    assert decode(warning(1, **other), cut_entry(1)).cut is Cut.UNKNOWN


def test_of_one_connection_the_warning_with_the_path_is_taken_or_else_the_last() -> None:
    """Over HTTP/2 several requests share a connection; a route may rewrite the path that the warning has."""
    mine, other = warning(1), warning(2, "reading: context canceled")
    assert decode(mine, other, cut_entry(1)).cut is Cut.UPSTREAM
    assert decode(mine, other, cut_entry(2)).cut is Cut.CLIENT
    assert decode(mine, other, cut_entry(3)).cut is Cut.CLIENT


def test_what_is_made_of_an_answer_does_not_hide_what_it_was() -> None:
    assert decode(entry(status=200, answered_status=503)).status == 503
    assert decode(entry(status=502, answered_status=404)).status == 404


def test_a_warning_is_used_once() -> None:
    assert decode(warning(1), warning(2), cut_entry(2)).cut is Cut.UPSTREAM
    decoder = Decoder()
    lines = [orjson.dumps(each) for each in (warning(1), cut_entry(1), cut_entry(1))]
    answers = [decoder.decode(each) for each in lines]
    assert [answer and answer.cut for answer in answers] == [None, Cut.UPSTREAM, Cut.UNKNOWN]


def test_warnings_whose_answers_never_come_do_not_pile_up() -> None:
    decoder = Decoder()
    for number in range(3 * _WARNINGS_KEPT):
        decoder.decode(orjson.dumps(warning(number)))
    assert len(decoder._warnings) == _WARNINGS_KEPT


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"garbage",
        b"[]",
        b"1",
        b'{"service":"web"}',
        line(ts="noon"),
        line(status="ok"),
        line()[:-20],
        line(service=None, request=None)[5:],
        b"\xff",
    ],
)
def test_what_is_no_line_of_ours_is_bad(text: bytes) -> None:
    with pytest.raises(BadLineError, match="not a line of our access log"):
        Decoder().decode(text)


@pytest.mark.parametrize("other", [{"ts": 1.0}, {"ts": 1.0, "error": "x"}, {"ts": 1.0, "request": {}}])
def test_lines_of_other_things_tell_of_no_request(other: dict[str, Any]) -> None:
    assert Decoder().decode(orjson.dumps(other)) is None
