"""Text, JSON, CSV and the HdrHistogram log: reports made by hand, rendered."""

from __future__ import annotations

import io

import orjson
import pytest

from loadtest import csv, hdrlog
from loadtest.model import Bar, ErrorKind, Outcome, RequestSpec, SelfCheck
from loadtest.report import to_json, to_text
from tests.loadtest import heys
from tests.loadtest.reports import BEGAN_AT, latency, loss, nothing, report

MS = 1_000_000


# text


def test_text_is_laid_out_as_hey_lays_it_out() -> None:
    assert heys.layout(to_text(report(status={200: 98}, errors={}))) == heys.LAYOUT
    more = ["  [#]\t# responses"] * 2 + ["", "Error distribution:", "  [#]\tdropped: gone"]
    assert heys.layout(to_text(report())) == heys.LAYOUT + more


def test_text_has_heys_figures() -> None:
    lines = to_text(report()).splitlines()
    for line in (
        "  Total:\t2.5000 secs",
        "  Slowest:\t0.0160 secs",
        "  Fastest:\t0.0010 secs",
        "  Average:\t0.0020 secs",
        "  Requests/sec:\t39.2000",
        "  Total data:\t9800 bytes",
        "  Size/request:\t100 bytes",
        "  0.007 [50]\t|" + "■" * 40,
        "  0.009 [4]\t|" + "■" * 3,
        "  50% in 0.0016 secs",
        "  DNS+dialup:\t0.0004 secs, 0.0002 secs, 0.0032 secs",
        "  DNS-lookup:\t0.0001 secs, 0.0000 secs, 0.0008 secs",
        "  resp wait:\tNaN secs, NaN secs, NaN secs",
        "  [404]\t5 responses",
        "  [2]\tdropped: gone",
    ):
        assert line in lines


def test_text_says_what_hey_leaves_out() -> None:
    text = to_text(report(redirected=7, resent=1))
    besides = text.partition("\nRequests:\n")[2].splitlines()
    for line in (
        "  100 sent, 98 answered, 2 lost",
        "  20 of 120 planned were not sent in time",
        "  7 redirects followed",
        "  service:\t0.0015 secs, 0.0012 secs, 0.0045 secs, 0.0075 secs, 0.0120 secs",
        "  v2:\t40 x 200, 3 x 503",
        "  +1.200 secs\tdropped, request 70 on connection 7: gone",
    ):
        assert line in besides
    assert any(line.startswith("  4 connections the server had closed while they were idle") for line in besides)
    assert any(line.startswith("  1 sent again") for line in besides)
    assert "INVALID" not in text
    assert "by request" not in text


def test_text_says_when_it_is_not_valid() -> None:
    assert to_text(report(self=SelfCheck(1.0, False, "too busy"))).endswith("\nINVALID: too busy\n")


def test_text_by_request() -> None:
    requests = (RequestSpec("http://h/a"), RequestSpec("http://h/b", "PUT"))
    text = to_text(report(by_request={0: {200: 90, 404: 8}}), requests)
    assert "  GET http://h/a:\t90 x 200, 8 x 404\n  PUT http://h/b:\tnone\n" in text


def test_text_where_nothing_was_answered() -> None:
    text = to_text(nothing())
    assert "  Average:\tNaN secs" in text
    assert "  [3]\trefused: nobody there" in text
    assert "Total data" not in text
    assert [line for line in heys.layout(text) if line.endswith(":")] == [
        line for line in [*heys.LAYOUT, "Error distribution:"] if line.endswith(":")
    ]


@pytest.mark.parametrize(("step", "first"), [(20.0, "0.001"), (0.4, "0.0010"), (0.004, "0.001000"), (0.0, "0.001")])
def test_rows_of_the_histogram_can_be_told_apart(step: float, first: str) -> None:
    rows = to_text(report(histogram=tuple(Bar(1 + step * row, 1) for row in range(11))))
    assert f"\n  {first} [1]\t|" in rows


def test_what_a_server_says_cannot_steer_the_terminal() -> None:
    evil = "\x1b[2Jv1\nSummary:\r"
    text = to_text(
        report(
            by_attribute={evil: {200: 98}}, examples={ErrorKind.DROPPED: evil}, losses=(loss(1, 1, detail=evil),) * 2
        )
    )
    assert text.count("?[2Jv1?Summary:?") == 4
    assert all(char.isprintable() or char in "\t\n" for char in text)


def test_losses_are_not_listed_without_end() -> None:
    text = to_text(report(losses=tuple(loss(hit, 1) for hit in range(50)), errors={ErrorKind.DROPPED: 70}))
    assert text.count("dropped, request") == 20
    assert "  and 50 more" in text


# JSON


def test_json_is_the_contract() -> None:
    document = orjson.loads(to_json(report()))
    times = {"min", "mean", "p50", "p90", "p95", "p99", "p999", "max"}
    contract = {"requests", "status", "errors", "idle_closed", "rps", "latency", "self"}
    assert set(document) == contract | {"resent", "redirected", "by", "phases", "intervals", "lost"}
    assert document["requests"] == {"planned": 120, "sent": 100, "answered": 98, "skipped": 20}
    assert document["status"] == {"200": 90, "404": 5, "503": 3}
    assert document["errors"] == {"dropped": 2}
    assert (document["idle_closed"], document["rps"]) == (4, 39.2)
    assert set(document["latency"]) == {"response", "service", "lag"}
    assert all(set(each) == times for each in document["latency"].values())
    assert document["latency"]["service"]["p99"] == 4.5
    assert document["self"] == {"cpu_us_per_request": 12.5, "valid": True, "why": ""}


def test_json_has_more_than_the_contract() -> None:
    document = orjson.loads(to_json(report(resent=3, redirected=4)))
    assert (document["resent"], document["redirected"]) == (3, 4)
    assert document["by"] == {"v1": {"200": 50}, "v2": {"200": 40, "503": 3}}
    assert document["phases"]["dial"]["mean"] == 0.4
    assert [each["begin"] for each in document["intervals"]] == [0, 1, 2]
    second = document["intervals"][1]
    assert (second["seconds"], second["status"], second["errors"]) == (1, {"200": 20, "503": 3}, {"dropped": 2})
    assert second["response"]["p99"] == 6
    first = document["lost"][0]
    assert (first["hit"], first["at"], first["kind"], first["detail"]) == (70, BEGAN_AT + 1.2, "dropped", "gone")
    assert len(document["lost"]) == 2


def test_json_where_nothing_was_answered() -> None:
    document = orjson.loads(to_json(nothing()))
    assert set(document["latency"]["response"].values()) == {None}
    assert (document["status"], document["errors"], document["rps"]) == ({}, {"refused": 3}, 0)


# CSV


def outcome(status: int | None) -> Outcome:
    """Due 1 s after the start, taken up 1 ms later, connected 5 ms after that, written 0.1 ms after that, first byte
    20 ms and last byte 21 ms after that."""
    written = 1_000 * MS + 6 * MS + MS // 10
    error = None if status else ErrorKind.DROPPED
    times = (1_000 * MS, 1_001 * MS, written, written + 20 * MS, written + 21 * MS)
    return Outcome(0, 0, status, error, *times, 5, None, "", dial_ns=5 * MS, dns_ns=2 * MS)


def test_csv_is_heys() -> None:
    stream = io.StringIO()
    rows = csv.Rows(stream, start_ns=500 * MS)
    rows.add(outcome(404))
    assert stream.getvalue().splitlines() == [
        "response-time,DNS+dialup,DNS,Request-write,Response-delay,Response-read,status-code,offset",
        "0.0271,0.0050,0.0020,0.0001,0.0200,0.0010,404,0.5000",
    ]
    rows.add(outcome(None))
    rows.add(outcome(200))
    assert stream.getvalue().endswith("\n")
    assert [bool(heys.CSV_ROW.fullmatch(line)) for line in stream.getvalue().splitlines()] == [False, True, True]


# HdrHistogram


def test_hdr_log() -> None:
    log = hdrlog.to_log(report(hdr={"response": "HISTFresponse", "lag": "HISTFlag"}))
    assert log.splitlines()[1:] == [
        "#[Histogram log format version 1.3]",
        "#[StartTime: 1700000000.000 (seconds since epoch), Tue Nov 14 22:13:20 UTC 2023]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
        "Tag=response,0.000,2.500,16.000,HISTFresponse",
        f"Tag=lag,0.000,2.500,{latency(0.5).max:.3f},HISTFlag",
    ]
