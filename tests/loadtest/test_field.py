"""What other load generators have stumbled over in the field, written anew."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import trustme

from loadtest.model import ErrorKind, Outcome, Plan, Proxy, Report, RequestSpec
from loadtest.runner import run
from tests.loadtest import servers
from tests.loadtest.servers import Behaviour, Peer, Received, serving
from tests.loadtest.test_outcomes import COUNT, numbered, send

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def sends(*pieces: bytes) -> Behaviour:
    """Each piece in a packet of its own; the connection stays open."""

    async def behave(peer: Peer, request: Received) -> None:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(0.001)
            await peer.send(piece)

    return behave


def sends_and_closes(*pieces: bytes) -> Behaviour:
    async def behave(peer: Peer, request: Received) -> None:
        await sends(*pieces)(peer, request)
        peer.close()

    return behave


def sends_and_stalls(*pieces: bytes) -> Behaviour:
    async def behave(peer: Peer, request: Received) -> None:
        await sends(*pieces)(peer, request)
        await asyncio.sleep(30)

    return behave


@pytest.mark.parametrize(
    "status_line",
    [
        b"HTTP/1.1 OK",
        b"HTTP/1.1 abc OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1200 OK",
        b"HTTP/x.1 200 OK",
        b"http/1.1 200 OK",
        b"ICY 200 OK",
        b"",
        b"\0",
    ],
)
async def test_bad_status_line_is_no_http(status_line: bytes) -> None:
    async with serving(sends_and_closes(status_line + b"\r\nContent-Length: 0\r\n\r\n")) as server:
        report, _ = await send(numbered(server))
    assert (report.status, report.errors) == ({}, {ErrorKind.PROTOCOL: COUNT})
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (sends_and_closes(CHUNKED + b"5\r\nhel"), ErrorKind.TRUNCATED),
        (sends_and_closes(CHUNKED + b"5"), ErrorKind.TRUNCATED),
        (sends_and_closes(CHUNKED + b"5\r\nhello\r\n0\r\n"), ErrorKind.TRUNCATED),
        (sends_and_closes(CONTINUE), ErrorKind.TRUNCATED),
        (sends_and_closes(CONTINUE, CONTINUE, servers.RESPONSE[:-1]), ErrorKind.TRUNCATED),
        (sends(CHUNKED + b"five\r\nhello\r\n0\r\n\r\n"), ErrorKind.PROTOCOL),
        (sends(CHUNKED + b"5\r\nhello, world\r\n0\r\n\r\n"), ErrorKind.PROTOCOL),
    ],
    ids=["in chunk", "in size", "before the last line", "after 100", "after two", "no size", "false size"],
)
async def test_answer_that_breaks_off_or_is_malformed(behaviour: Behaviour, kind: ErrorKind) -> None:
    async with serving(behaviour) as server:
        report, _ = await send(numbered(server))
    assert (report.status, report.errors) == ({}, {kind: COUNT})
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}
    assert server.connections == COUNT


@pytest.mark.parametrize(
    "behaviour",
    [
        sends_and_stalls(b"HTTP/1.1 2"),
        sends_and_stalls(CONTINUE),
        sends_and_stalls(CHUNKED + b"5\r\nhel"),
        sends_and_stalls(CHUNKED + b"5\r\nhello\r\n0\r\n"),
        sends_and_stalls(b"HTTP/1.1 200 OK\r\n\r\nuntil close"),
    ],
    ids=["in head", "after 100", "in chunk", "before the last line", "until close"],
)
async def test_answer_that_stalls_times_out(behaviour: Behaviour) -> None:
    async with serving(behaviour) as server:
        report, outcomes = await send(replace(numbered(server, count=4, connections=4), timeout=0.1))
    assert (report.status, report.errors) == ({}, {ErrorKind.TIMEOUT: 4})
    assert all(outcome.first_byte_ns is not None for outcome in outcomes)
    assert set(server.delivered.values()) == {1}


@pytest.mark.parametrize(
    ("behaviour", "connections"),
    [
        (sends(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"), 5),
        (sends(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"), COUNT),  # left open, and not to be used again
        (sends_and_closes(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nhello"), COUNT),
        (sends(CONTINUE + servers.RESPONSE), 5),
        (sends(CONTINUE, CONTINUE, servers.RESPONSE), 5),
        (sends(CHUNKED, b"5", b"\r\nhel", b"lo", b"\r", b"\n", b"0\r\n", b"\r\n"), 5),
        (sends(*(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")), 5),
        (sends(CHUNKED + b"5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"), 5),
    ],
    ids=["1.0 kept", "1.0", "1.0 until close", "100", "100 twice", "late sizes", "byte by byte", "trailer"],
)
async def test_unusual_answer_is_complete(behaviour: Behaviour, connections: int) -> None:
    async with serving(behaviour) as server:
        report, outcomes = await send(numbered(server))
    assert (report.status, report.errors) == ({200: COUNT}, {})
    assert {outcome.size for outcome in outcomes} == {5}
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}
    assert server.connections == connections


async def test_body_that_awaits_leave_gets_it() -> None:
    heads, bodies = [], []

    def serve(listener: socket.socket) -> None:
        end, _ = listener.accept()
        with end:
            for _ in range(3):
                heads.append(end.recv(1_000))
                end.sendall(CONTINUE)
                bodies.append(end.recv(1_000))
                end.sendall(servers.RESPONSE)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        spec = RequestSpec(url, "POST", (("Expect", "100-continue"),), b"a body")
        plan = Plan((spec,), total=3, connections=1, timeout=5)
        (report, _), _ = await asyncio.gather(send(plan), asyncio.to_thread(serve, listener))
    assert report.status == {200: 3}
    assert all(head.endswith(b"\r\n\r\n") for head in heads)
    assert bodies == [b"a body"] * 3


# Redirects


def redirects_to(location: str, status: int = 302) -> Behaviour:
    return sends(f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.mark.parametrize("location", ["http://[::1/", "http://127.0.0.1:99999/", "ftp://127.0.0.1/", "http:///nowhere"])
async def test_bad_location_is_an_error(location: str) -> None:
    async with serving(redirects_to(location)) as server:
        report, _ = await send(numbered(server))
    assert (report.status, report.errors) == ({}, {ErrorKind.REDIRECT: COUNT})
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}


async def test_redirect_loop_ends_after_so_many_redirects() -> None:
    async with serving(redirects_to("/again")) as server:
        plan = replace(numbered(server, count=6, connections=2), redirects=3)
        report, _ = await send(plan)
    assert (report.status, report.errors) == ({}, {ErrorKind.REDIRECT: 6})
    assert report.redirected == 18
    assert server.delivered == {"/again": 18} | {f"/{number}": 1 for number in range(6)}


async def test_redirects_are_not_followed_where_that_is_not_wanted() -> None:
    async with serving(redirects_to("/again")) as server:
        report, _ = await send(replace(numbered(server), redirects=0))
    assert (report.status, report.redirected) == ({302: COUNT}, 0)
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}


@pytest.mark.parametrize(
    ("status", "method", "body"), [(302, "GET", b""), (303, "GET", b""), (307, "POST", b"x"), (308, "POST", b"x")]
)
async def test_redirected_request_is_one_outcome(status: int, method: str, body: bytes) -> None:
    async def behave(peer: Peer, request: Received) -> None:
        await (servers.answer if request.target == "/there" else redirects_to("/there", status))(peer, request)

    async with serving(behave) as server:
        spec = RequestSpec(server.url("/here"), "POST", body=b"x")
        report, outcomes = await send(Plan((spec,), total=6, connections=2, timeout=5))
    assert (report.status, report.errors, report.redirected) == ({200: 6}, {}, 6)
    assert {outcome.size for outcome in outcomes} == {5}
    arrived = [(r.method, r.body) for r in server.received if r.target == "/there"]
    assert arrived == [(method, body)] * 6


async def test_refused_after_a_redirect() -> None:
    async with serving(redirects_to(f"http://127.0.0.1:{servers.free_port()}/")) as server:
        report, _ = await send(numbered(server))
    assert (report.status, report.errors) == ({}, {ErrorKind.REFUSED: COUNT})
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}


async def test_dropped_after_a_redirect() -> None:
    async def behave(peer: Peer, request: Received) -> None:
        await (servers.close_unanswered if request.target == "/there" else redirects_to("/there"))(peer, request)

    async with serving(behave) as server:
        report, _ = await send(numbered(server))
    assert (report.status, report.errors) == ({}, {ErrorKind.DROPPED: COUNT})
    assert server.delivered == {"/there": COUNT} | {f"/{number}": 1 for number in range(COUNT)}


async def test_the_time_out_is_that_of_the_whole_chain() -> None:
    async def behave(peer: Peer, request: Received) -> None:
        await asyncio.sleep(0.06)
        await redirects_to("/again")(peer, request)

    async with serving(behave) as server:
        report, outcomes = await send(replace(numbered(server, count=4, connections=4), timeout=0.2))
    assert report.errors == {ErrorKind.TIMEOUT: 4}
    assert all(0.19 < (o.finished_ns - o.started_ns) / 1e9 < 1 for o in outcomes)


# TLS


@pytest.mark.parametrize(
    ("name", "days", "words"),
    [("127.0.0.2", 30, "mismatch"), ("127.0.0.1", -1, "expired")],
    ids=["name mismatch", "expired"],
)
async def test_certificate_that_does_not_fit(
    name: str, days: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name, not_after=until).configure_cert(context)
    async with serving(servers.answer, context) as server:
        distrusted, _ = await send(numbered(server))
        insecure, _ = await send(replace(numbered(server), verify_tls=False))
    assert (distrusted.status, distrusted.errors) == ({}, {ErrorKind.TLS: COUNT})
    assert words in distrusted.examples[ErrorKind.TLS]
    assert insecure.status == {200: COUNT}
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}


# The schedule


@pytest.mark.parametrize("times", [10, pytest.param(1, marks=pytest.mark.slow)])
async def test_open_loop_sends_what_its_rate_says_when_it_says(times: int) -> None:
    """1.75 a second for 2 s are 4 requests; 40 at 10 a second take 4 s; and the same so many times as fast."""

    async def load(plan: Plan) -> Report:
        outcomes: list[Outcome] = []
        report = await run(plan, on_outcome=outcomes.append)
        assert plan.rate is not None
        starts = [outcome.scheduled_ns - outcome.hit * 1e9 / plan.rate for outcome in outcomes]
        assert max(starts) - min(starts) < 1_000, "each is due at its time"
        return report

    async with serving(servers.answer) as server:
        plan = Plan((RequestSpec(server.url()),), connections=4, total=40, rate=10 * times, timeout=5)
        brief = replace(plan, total=None, duration=2 / times, rate=1.75 * times)
        few, many = await asyncio.gather(load(brief), load(plan))
    assert (few.planned, few.sent + few.skipped, few.errors) == (4, 4, {})
    assert few.sent == 4 or times > 1, "a machine may be too busy for the last one, which is due just before the end"
    assert (many.planned, many.sent, many.status) == (40, 40, {200: 40})
    assert many.elapsed >= 3.9 / times


# Proxies and sockets


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_proxy_that_is_down(scheme: str) -> None:
    spec = RequestSpec(f"{scheme}://app.invalid/")
    report, outcomes = await send(
        Plan((spec,), total=6, connections=2, timeout=5, proxy=Proxy("127.0.0.1", servers.free_port()))
    )
    assert (report.status, report.errors) == ({}, {ErrorKind.PROXY: 6})
    assert {outcome.written_ns for outcome in outcomes} == {None}


async def test_proxy_that_wants_credentials() -> None:
    """Without a tunnel its answer is an answer; with one it is why there is no connection."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    async with serving(sends(refusal)) as server:
        plan = Plan((RequestSpec("http://app.invalid/a"),), total=6, connections=2, timeout=5)
        plan = replace(plan, proxy=Proxy("127.0.0.1", server.port))
        plain, _ = await send(plan)
        tunnelled, outcomes = await send(replace(plan, requests=(RequestSpec("https://app.invalid/a"),)))
    assert (plain.status, plain.errors) == ({407: 6}, {})
    assert (tunnelled.status, tunnelled.errors) == ({}, {ErrorKind.PROXY: 6})
    assert "407" in tunnelled.examples[ErrorKind.PROXY]
    assert {outcome.written_ns for outcome in outcomes} == {None}
    assert server.delivered == {"http://app.invalid/a": 6, "app.invalid:443": 6}


@pytest.mark.parametrize(
    ("scheme", "kind"), [("http", ErrorKind.TIMEOUT), ("https", ErrorKind.CONNECT_TIMEOUT)], ids=["http", "https"]
)
async def test_proxy_that_hangs(scheme: str, kind: ErrorKind) -> None:
    async with serving(servers.stall) as server:
        spec = RequestSpec(f"{scheme}://app.invalid/")
        plan = Plan((spec,), total=4, connections=4, timeout=0.15, proxy=Proxy("127.0.0.1", server.port))
        report, _ = await send(plan)
    assert (report.status, report.errors) == ({}, {kind: 4})
    assert sum(server.delivered.values()) == 4


async def test_socket_that_is_missing(tmp_path: Path) -> None:
    spec = RequestSpec("http://app.invalid/")
    report, outcomes = await send(Plan((spec,), total=6, connections=2, timeout=5, unix=str(tmp_path / "none")))
    assert (report.status, report.errors) == ({}, {ErrorKind.REFUSED: 6})
    assert {outcome.written_ns for outcome in outcomes} == {None}


# What the kernel has no more of


def test_want_of_descriptors_is_our_own_fault() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=500) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        command = [
            sys.executable,
            "-m",
            "loadtest",
            "-n",
            "150",
            "-c",
            "150",
            "-t",
            "0.5s",
            "-cpus",
            "1",
            "--json",
            url,
        ]
        limited = ["sh", "-c", 'ulimit -n 100 && exec "$@"', "sh", *command]
        done = subprocess.run(limited, capture_output=True, check=False, timeout=30)
    told = orjson.loads(done.stdout)
    assert set(told["errors"]) == {"local", "timeout"}
    assert told["errors"]["local"] >= 50
    assert sum(told["errors"].values()) == told["requests"]["sent"] == 150
    assert done.returncode == 1


async def test_connecting_that_takes_too_long() -> None:
    """A listener that accepts nothing has room for a few; the others never get as far as a connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        spec = RequestSpec(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        report, outcomes = await send(Plan((spec,), total=8, connections=8, timeout=0.3))
    assert set(report.errors) == {ErrorKind.TIMEOUT, ErrorKind.CONNECT_TIMEOUT}
    assert report.lost == 8
    for outcome in outcomes:
        assert (outcome.written_ns is None) == (outcome.error is ErrorKind.CONNECT_TIMEOUT)


async def test_answer_before_the_whole_request_was_taken() -> None:
    def refuse(listener: socket.socket) -> None:
        for _ in range(6):
            end, _ = listener.accept()
            with end:
                end.recv(1_000)
                end.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    while end.recv(1 << 20):  # what follows is thrown away, or its loss would overtake the answer
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        spec = RequestSpec(f"http://127.0.0.1:{listener.getsockname()[1]}/", "POST", body=b"x" * 4_000_000)
        plan = Plan((spec,), total=6, connections=2, timeout=5)
        (report, _), _ = await asyncio.gather(send(plan), asyncio.to_thread(refuse, listener))
    assert (report.status, report.errors) == ({413: 6}, {})
