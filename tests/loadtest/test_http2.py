"""What became of requests over HTTP/2, against a server that counts for itself. No request may arrive twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import trustme
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, HeadersFrame, PushPromiseFrame, RstStreamFrame

from loadtest.model import ErrorKind, Plan, PlanError, Proxy, RequestSpec
from proxy.server import find_binary
from tests.loadtest import http2_servers, servers
from tests.loadtest.http2_servers import Behaviour, Peer, Received, Server, serving
from tests.loadtest.test_outcomes import send
from tests.tls import server_context

COUNT = 24


def numbered(server: Server, count: int = COUNT, method: str = "GET", lanes: int = 6, body: bytes = b"") -> Plan:
    """A plan in which every request is told apart by its target; three requests at a time on a connection."""
    requests = tuple(RequestSpec(server.url(f"/{number}"), method, body=body) for number in range(count))
    return Plan(requests, connections=lanes, total=count, timeout=5, http2=True, streams=3)


def number(request: Received) -> int:
    return int(request.target[1:])


# answers


async def no_content(peer: Peer, request: Received) -> None:
    peer.answer(request.stream, b"", 204)


async def not_modified(peer: Peer, request: Received) -> None:
    peer.head(request.stream, 304, content_length="500")
    peer.data(request.stream, b"", end=True)


async def head_only(peer: Peer, request: Received) -> None:
    assert request.headers[":method"] == "HEAD"
    peer.head(request.stream, content_length="500", end=True)


async def hints_first(peer: Peer, request: Received) -> None:
    peer.head(request.stream, 103, link="</a>")
    peer.answer(request.stream)


async def trailers(peer: Peer, request: Received) -> None:
    peer.head(request.stream)
    peer.data(request.stream, b"hello")
    peer.http.send_headers(request.stream, [("x-checksum", "1")], end_stream=True)
    peer.flush()


async def in_pieces(peer: Peer, request: Received) -> None:
    peer.head(request.stream, content_length="5")
    for letter in b"hello":
        peer.data(request.stream, bytes([letter]))
        await asyncio.sleep(0)
    peer.data(request.stream, b"", end=True)


async def padded(peer: Peer, request: Received) -> None:
    peer.head(request.stream, content_length="5")
    peer.http.send_data(request.stream, b"hello", end_stream=True, pad_length=200)
    peer.flush()


async def byte_by_byte(peer: Peer, request: Received) -> None:
    peer.flush()
    peer.http.send_headers(request.stream, [(":status", "200"), ("content-length", "5")])
    peer.http.send_data(request.stream, b"hello", end_stream=True)
    for byte in peer.http.data_to_send():
        peer.raw(bytes([byte]))
        await peer.drained()


async def continued(peer: Peer, request: Received) -> None:
    """A head in two frames."""
    block = peer.http.encoder.encode([(":status", "200"), ("x-long", "a" * 200)])
    peer.frame(HeadersFrame(request.stream, block[:20]))
    peer.raw(len(block[20:]).to_bytes(3, "big") + b"\x09\x04" + request.stream.to_bytes(4, "big") + block[20:])
    peer.frame(DataFrame(request.stream, b"hello", flags=["END_STREAM"]))


async def unavailable(peer: Peer, request: Received) -> None:
    peer.answer(request.stream, b"", 503)


@pytest.mark.parametrize(
    ("behaviour", "method", "status", "size"),
    [
        (http2_servers.answer, "GET", 200, 5),
        (http2_servers.answer, "POST", 200, 5),
        (http2_servers.answer, "DELETE", 200, 5),
        (head_only, "HEAD", 200, 0),
        (no_content, "GET", 204, 0),
        (not_modified, "GET", 304, 0),
        (hints_first, "GET", 200, 5),
        (trailers, "GET", 200, 5),
        (in_pieces, "GET", 200, 5),
        (padded, "GET", 200, 5),
        (continued, "GET", 200, 5),
        (unavailable, "GET", 503, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_every_form_of_answer_is_complete(behaviour: Behaviour, method: str, status: int, size: int) -> None:
    async with serving(behaviour) as server:
        report, outcomes = await send(numbered(server, method=method))
    assert (report.status, report.errors, report.idle_closed) == ({status: COUNT}, {}, 0)
    assert {outcome.size for outcome in outcomes} == {size}
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}
    assert server.connections == 2


async def test_answers_that_come_byte_by_byte() -> None:
    async with serving(byte_by_byte) as server:
        report, _ = await send(numbered(server, count=6, lanes=1))
    assert report.status == {200: 6}


# losses


async def close(peer: Peer, request: Received) -> None:
    peer.close()


async def abort(peer: Peer, request: Received) -> None:
    peer.abort()


async def close_in_body(peer: Peer, request: Received) -> None:
    peer.head(request.stream, content_length="500")
    peer.data(request.stream, b"hello")
    peer.close()


async def close_in_head(peer: Peer, request: Received) -> None:
    peer.raw(b"\0\0\x40\x01\x04" + request.stream.to_bytes(4, "big") + b"\x88")
    peer.close()


async def close_after_hints(peer: Peer, request: Received) -> None:
    peer.head(request.stream, 103, link="</a>")
    peer.close()


async def refuse(peer: Peer, request: Received) -> None:
    peer.reset(request.stream, ErrorCodes.REFUSED_STREAM)


async def reset(peer: Peer, request: Received) -> None:
    peer.reset(request.stream, ErrorCodes.INTERNAL_ERROR)


async def reset_in_body(peer: Peer, request: Received) -> None:
    peer.head(request.stream, content_length="500")
    peer.data(request.stream, b"hello")
    await asyncio.sleep(0.001)
    peer.reset(request.stream, ErrorCodes.CANCEL)


async def reset_politely(peer: Peer, request: Received) -> None:
    peer.head(request.stream)
    peer.reset(request.stream, ErrorCodes.NO_ERROR)


async def too_short(peer: Peer, request: Received) -> None:
    peer.unchecked(request.stream, (":status", "200"), ("content-length", "500"), body=b"hello")


async def too_long(peer: Peer, request: Received) -> None:
    peer.unchecked(request.stream, (":status", "200"), ("content-length", "2"), body=b"hello")


async def no_body_at_all(peer: Peer, request: Received) -> None:
    peer.unchecked(request.stream, (":status", "200"), ("content-length", "500"))


async def no_status(peer: Peer, request: Received) -> None:
    peer.unchecked(request.stream, ("x-version", "v1"))


async def strange_status(peer: Peer, request: Received) -> None:
    peer.unchecked(request.stream, (":status", "2x0"))


async def switch(peer: Peer, request: Received) -> None:
    peer.head(request.stream, 101)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (refuse, ErrorKind.RESET_STREAM),
        (reset, ErrorKind.RESET_STREAM),
        (reset_in_body, ErrorKind.RESET_STREAM),
        (reset_politely, ErrorKind.RESET_STREAM),
        (too_short, ErrorKind.PROTOCOL),
        (too_long, ErrorKind.PROTOCOL),
        (no_body_at_all, ErrorKind.PROTOCOL),
        (no_status, ErrorKind.PROTOCOL),
        (strange_status, ErrorKind.PROTOCOL),
        (switch, ErrorKind.PROTOCOL),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_loss_of_a_stream_leaves_the_others(behaviour: Behaviour, kind: ErrorKind) -> None:
    async def every_third(peer: Peer, request: Received) -> None:
        await (behaviour if number(request) % 3 == 0 else http2_servers.answer)(peer, request)

    async with serving(every_third) as server:
        report, outcomes = await send(numbered(server))
    assert (report.status, report.errors) == ({200: 2 * COUNT // 3}, {kind: COUNT // 3})
    assert {outcome.hit for outcome in outcomes if outcome.error} == set(range(0, COUNT, 3))
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}
    assert server.connections == 2


async def garbage(peer: Peer, request: Received) -> None:
    peer.raw(b"this is not the protocol\r\n\r\n")


async def huge_frame(peer: Peer, request: Received) -> None:
    peer.raw(b"\xff\xff\xff\0\0\0\0\0\x01")


async def body_first(peer: Peer, request: Received) -> None:
    peer.frame(DataFrame(request.stream, b"hello", flags=["END_STREAM"]))


async def nobodys_stream(peer: Peer, request: Received) -> None:
    peer.frame(DataFrame(99_999, b"hello"))


async def push(peer: Peer, request: Received) -> None:
    block = peer.http.encoder.encode([(":method", "GET"), (":path", "/")])
    peer.frame(PushPromiseFrame(request.stream, 2, block, flags=["END_HEADERS"]))


async def bad_compression(peer: Peer, request: Received) -> None:
    peer.frame(HeadersFrame(request.stream, b"\xff\xff\xff", flags=["END_HEADERS"]))


async def reset_of_nobody(peer: Peer, request: Received) -> None:
    peer.frame(RstStreamFrame(request.stream, error_code=1))
    peer.raw(b"\0\0\x04\x03\0\0\0\0\0\0\0\0\1")  # RST_STREAM of stream 0


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (close, ErrorKind.DROPPED),
        (abort, ErrorKind.DROPPED),
        (close_in_head, ErrorKind.TRUNCATED),
        (close_in_body, ErrorKind.TRUNCATED),
        (close_after_hints, ErrorKind.TRUNCATED),
        (garbage, ErrorKind.PROTOCOL),
        (huge_frame, ErrorKind.PROTOCOL),
        (body_first, ErrorKind.PROTOCOL),
        (nobodys_stream, ErrorKind.PROTOCOL),
        (push, ErrorKind.PROTOCOL),
        (bad_compression, ErrorKind.PROTOCOL),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_every_loss_is_counted_and_nothing_is_sent_again(behaviour: Behaviour, kind: ErrorKind) -> None:
    async with serving(behaviour) as server:
        report, _ = await send(numbered(server, lanes=3, count=6))
        alone, _ = await send(replace(numbered(server, lanes=3, count=6), streams=1))
    assert report.status == alone.status == {}
    assert sum(report.errors.values()) == 6
    assert set(report.errors) <= {kind, ErrorKind.DROPPED}  # dropped: others on the connection, that had no byte yet
    assert alone.errors == {kind: 6}
    assert set(server.delivered.values()) <= {1, 2}


async def test_lost_connection_tells_begun_answers_from_others() -> None:
    async def half(peer: Peer, request: Received) -> None:
        if number(request) % 2:
            peer.head(request.stream)
        if number(request) == 5:
            await asyncio.sleep(0.02)
            peer.close()

    async with serving(half) as server:
        report, outcomes = await send(replace(numbered(server, count=6, lanes=6), streams=6))
    assert report.errors == {ErrorKind.TRUNCATED: 3, ErrorKind.DROPPED: 3}
    assert {o.hit for o in outcomes if o.error is ErrorKind.TRUNCATED} == {1, 3, 5}
    assert all((o.first_byte_ns is not None) == (o.error is ErrorKind.TRUNCATED) for o in outcomes)
    assert server.connections == 1


# GOAWAY


async def test_goaway_loses_what_was_not_processed_and_keeps_what_was() -> None:
    """Six requests on one connection, of which the server processes three; then it takes no more."""

    async def go_away(peer: Peer, request: Received) -> None:
        if peer.number:
            await http2_servers.answer(peer, request)
        elif request.stream == 11:
            peer.go_away(last=5)
            await asyncio.sleep(0.02)
            for stream in (1, 3, 5):
                peer.answer(stream)
            await asyncio.sleep(0.02)
            peer.close()

    async with serving(go_away) as server:
        report, outcomes = await send(replace(numbered(server, count=20, lanes=6), streams=6))
    assert (report.status, report.errors) == ({200: 17}, {ErrorKind.RESET_STREAM: 3})
    assert {o.hit for o in outcomes if o.error} == {3, 4, 5}
    assert all("GOAWAY" in o.detail for o in outcomes if o.error)
    assert server.delivered == {f"/{number}": 1 for number in range(20)}
    assert server.connections == 2
    assert report.idle_closed == 0


async def test_graceful_goaway_loses_nothing() -> None:
    """As servers do that are told to stop: nothing new, then the last number, then the end."""

    async def leave_gently(peer: Peer, request: Received) -> None:
        if request.stream == 5 and not peer.number:
            peer.go_away(last=2**31 - 1)
            await asyncio.sleep(0.01)
            peer.go_away(last=request.stream)
        await asyncio.sleep(0.03)
        peer.answer(request.stream)

    async with serving(leave_gently) as server:
        report, _ = await send(numbered(server, lanes=3))
    assert (report.status, report.errors, report.idle_closed) == ({200: COUNT}, {}, 0)
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}
    assert server.connections == 2


@pytest.mark.parametrize("goaway", [True, False])
async def test_close_of_an_idle_connection_is_one_event_and_harms_no_request(goaway: bool) -> None:
    async def answer_then_leave(peer: Peer, request: Received) -> None:
        peer.answer(request.stream)
        if peer.served % 3 == 2:
            await asyncio.sleep(0.005)
            if goaway:
                peer.go_away(last=request.stream)
            peer.close()

    async with serving(answer_then_leave) as server:
        plan = replace(numbered(server, count=6, lanes=3), rate=8)  # idle for 125 ms between requests
        report, _ = await send(plan)
    assert (report.status, report.errors) == ({200: 6}, {})
    assert report.idle_closed == 1
    assert server.connections == 2


# time-outs


async def test_time_out_is_of_one_stream() -> None:
    async def some_stall(peer: Peer, request: Received) -> None:
        if number(request) % 4 == 0:
            peer.head(request.stream)
            await asyncio.sleep(0.3)
            peer.http.send_data(request.stream, b"late", end_stream=True)
            peer.flush()
        else:
            peer.answer(request.stream)

    async with serving(some_stall) as server:
        plan = replace(numbered(server, lanes=3), timeout=0.15)
        report, outcomes = await send(plan)
    assert (report.status, report.errors) == ({200: 3 * COUNT // 4}, {ErrorKind.TIMEOUT: COUNT // 4})
    assert {o.hit for o in outcomes if o.error} == set(range(0, COUNT, 4))
    assert server.connections == 1
    assert server.resets == [ErrorCodes.CANCEL] * (COUNT // 4)


async def test_late_data_of_a_cancelled_stream_leaves_the_connection_open() -> None:
    async def babble(peer: Peer, request: Received) -> None:
        if number(request):
            await asyncio.sleep(0.2)
            peer.answer(request.stream)
            return
        peer.unchecked(request.stream, (":status", "200"), body=b"")
        peer.frame(DataFrame(request.stream + 100, b""))

    async def late(peer: Peer, request: Received) -> None:
        if number(request):
            peer.answer(request.stream)
            return
        block = peer.http.encoder.encode([(":status", "200")])
        peer.frame(HeadersFrame(request.stream, block, flags=["END_HEADERS"]))
        await asyncio.sleep(0.2)  # given up by now
        for _ in range(20):
            peer.frame(DataFrame(request.stream, b"x" * 1000))

    async with serving(late) as server:
        plan = replace(numbered(server, count=5, lanes=1), timeout=0.1, rate=10)
        report, _ = await send(plan)
    assert (report.status, report.errors) == ({200: 4}, {ErrorKind.TIMEOUT: 1})
    assert server.connections == 1
    assert server.resets == [ErrorCodes.CANCEL]


async def test_silence_while_the_connection_is_opened_is_a_connect_time_out() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.transport.abort()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        spec = RequestSpec(f"http://127.0.0.1:{port}/")
        report, outcomes = await send(Plan((spec,), total=4, connections=2, timeout=0.1, http2=True))
    await asyncio.sleep(0.05)  # the server's side has ended too
    assert report.errors == {ErrorKind.CONNECT_TIMEOUT: 4}
    assert {outcome.written_ns for outcome in outcomes} == {None}


# how streams are spread


async def test_streams_are_spread_evenly() -> None:
    asked, all_asked = 0, asyncio.Event()

    async def slow(peer: Peer, request: Received) -> None:
        nonlocal asked
        asked += 1
        if asked == 10:  # every lane has its seat by now
            all_asked.set()
        await all_asked.wait()
        peer.answer(request.stream)

    async with serving(slow) as server:
        report, outcomes = await send(replace(numbered(server, count=100, lanes=10), streams=4))
    assert report.status == {200: 100}
    assert sorted(peer.most_open for peer in server.peers) == [3, 3, 4]
    assert {outcome.connection for outcome in outcomes} == {0, 1, 2}
    assert all(peer.goodbye for peer in server.peers)


async def test_no_more_streams_at_a_time_than_the_server_takes() -> None:
    async def slow(peer: Peer, request: Received) -> None:
        await asyncio.sleep(0.005)
        peer.answer(request.stream)

    async with serving(slow, max_concurrent_streams=2) as server:
        report, _ = await send(replace(numbered(server, count=60, lanes=7), streams=100))
    assert (report.status, report.errors) == ({200: 60}, {})
    assert max(peer.most_open for peer in server.peers) <= 2
    assert server.connections == 4


async def test_limit_that_is_lowered_is_kept() -> None:
    async def lower(peer: Peer, request: Received) -> None:
        if request.target == "/0":
            peer.http.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
            peer.flush()
            await asyncio.sleep(0.02)
            peer.most_open = 0
        await asyncio.sleep(0.002)
        peer.answer(request.stream)

    async with serving(lower) as server:
        report, _ = await send(numbered(server, count=60, lanes=3))
    assert (report.status, report.errors) == ({200: 60}, {})
    assert server.peers[0].most_open <= 1
    assert report.idle_closed == 0


async def test_without_keepalive_each_request_has_a_connection() -> None:
    async with serving(http2_servers.answer) as server:
        report, outcomes = await send(replace(numbered(server, count=8, lanes=2), keepalive=False))
    assert (report.status, report.idle_closed) == ({200: 8}, 0)
    assert server.connections == len({outcome.connection for outcome in outcomes}) == 8


async def test_connections_are_not_used_beyond_their_limit() -> None:
    async with serving(http2_servers.answer) as server:
        report, _ = await send(replace(numbered(server, count=24, lanes=3), per_connection=6))
    assert (report.status, report.idle_closed) == ({200: 24}, 0)
    assert server.connections == 4
    assert {peer.served for peer in server.peers} == {6}


# bodies and flow control


async def test_large_bodies_arrive_once_and_whole() -> None:
    body = bytes(range(256)) * 1200
    async with serving(http2_servers.answer, initial_window_size=10_000) as server:
        report, _ = await send(numbered(server, count=6, method="POST", body=body))
    assert report.status == {200: 6}
    assert [request.body for request in server.received] == [body] * 6
    assert {request.headers["content-length"] for request in server.received} == {str(len(body))}


async def test_large_answers_are_taken_in() -> None:
    async def large(peer: Peer, request: Received) -> None:
        await peer.large(request.stream, 20_000_000 if number(request) == 0 else 300_000)

    async with serving(large) as server:
        report, outcomes = await send(numbered(server, count=4, lanes=2))
    assert report.status == {200: 4}
    assert sorted(outcome.size for outcome in outcomes) == [300_000] * 3 + [20_000_000]


async def test_answer_that_does_not_wait_for_the_body() -> None:
    async def reject(peer: Peer, request: Received) -> None:
        peer.answer(request.stream, b"too large", 413)

    async with serving(reject, at_headers=True, initial_window_size=1000) as server:
        report, _ = await send(numbered(server, count=6, method="POST", body=b"x" * 100_000, lanes=2))
    assert (report.status, report.errors) == ({413: 6}, {})
    assert server.connections == 1
    assert server.resets == [ErrorCodes.CANCEL] * 6


async def test_pings_are_answered() -> None:
    async def ping(peer: Peer, request: Received) -> None:
        peer.http.ping(b"12345678")
        peer.flush()
        await asyncio.sleep(0.02)
        peer.answer(request.stream)

    async with serving(ping) as server:
        report, _ = await send(numbered(server, count=2, lanes=1))
    assert report.status == {200: 2}
    assert server.peers[0].pongs == [b"12345678"] * 2


# what goes out


async def test_request_as_it_arrives() -> None:
    headers = (("Host", "app.test"), ("X-Mixed", " a "), ("Connection", "close"), ("TE", "gzip"), ("Cookie", "a=1"))
    async with serving(http2_servers.answer) as server:
        spec = RequestSpec(server.url("/a b?c=d"), "PUT", headers, b"body")
        report, outcomes = await send(Plan((spec,), total=2, connections=1, http2=True, attribute="X-Version"))
    assert report.by_attribute == {"v1": {200: 2}}
    assert {outcome.attribute for outcome in outcomes} == {"v1"}
    assert server.received[1].headers == {
        ":method": "PUT",
        ":scheme": "http",
        ":authority": "app.test",
        ":path": "/a%20b?c=d",
        "x-mixed": "a",
        "cookie": "a=1",
        "content-length": "4",
    }


async def test_sequence_header_and_templates() -> None:
    async with serving(http2_servers.answer) as server:
        fixed = RequestSpec(server.url("/fixed"))
        filled = RequestSpec(server.url("/{{seq}}"), "POST", (("X-Id", "{{uuid}}"),), b"{{seq}}", template=True)
        plan = Plan((fixed, filled), total=20, connections=4, http2=True, streams=2, sequence_header="X-Seq")
        report, _ = await send(plan)
    assert report.status == {200: 20}
    assert sorted(int(request.headers["x-seq"]) for request in server.received) == list(range(20))
    posts = [request for request in server.received if request.headers[":method"] == "POST"]
    assert len(posts) == len({request.headers["x-id"] for request in posts}) == 10
    assert all(request.target == f"/{request.headers['x-seq']}" for request in posts)
    assert all(request.body.decode() == request.headers["x-seq"] for request in posts)


async def test_redirects_are_followed() -> None:
    async def send_elsewhere(peer: Peer, request: Received) -> None:
        if request.target == "/there":
            peer.answer(request.stream)
        else:
            peer.answer(request.stream, b"", 302, location="/there")

    async with serving(send_elsewhere) as server:
        report, _ = await send(numbered(server, count=6))
        kept, _ = await send(replace(numbered(server, count=6), redirects=0))
    assert (report.status, report.redirected) == ({200: 6}, 6)
    assert (kept.status, kept.redirected) == ({302: 6}, 0)


# who does not speak HTTP/2


async def test_nothing_listens() -> None:
    spec = RequestSpec(f"http://127.0.0.1:{servers.free_port()}/")
    report, _ = await send(Plan((spec,), total=10, connections=4, http2=True, streams=2))
    assert report.errors == {ErrorKind.REFUSED: 10}


async def test_server_of_http1_is_a_protocol_error() -> None:
    async with servers.serving(servers.answer) as server:
        plan = Plan((RequestSpec(server.url()),), total=4, connections=2, http2=True)
        report, outcomes = await send(plan)
    assert report.errors == {ErrorKind.PROTOCOL: 4}
    assert "HTTP/1" in outcomes[0].detail
    assert {outcome.written_ns for outcome in outcomes} == {None}


async def test_server_that_closes_at_once_drops() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(slam, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        report, _ = await send(Plan((RequestSpec(f"http://127.0.0.1:{port}/"),), total=4, connections=2, http2=True))
    assert report.errors == {ErrorKind.DROPPED: 4}


async def test_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = tmp_path / "authority.pem"
    async with serving(http2_servers.answer, server_context("127.0.0.1", authority)) as server:
        plan = numbered(server)
        distrusted, _ = await send(plan)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        trusted, _ = await send(plan)
    assert distrusted.errors == {ErrorKind.TLS: COUNT}
    assert trusted.status == {200: COUNT}
    assert {request.headers[":scheme"] for request in server.received} == {"https"}
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}


async def test_server_that_does_not_agree_to_http2(tmp_path: Path) -> None:
    """hey falls back to HTTP/1.1 here, and shows figures of something that was not asked for."""
    async with servers.serving(servers.answer, server_context("127.0.0.1", tmp_path / "authority.pem")) as server:
        plan = Plan((RequestSpec(server.url()),), total=4, connections=2, http2=True, verify_tls=False)
        report, outcomes = await send(plan)
    assert report.errors == {ErrorKind.PROTOCOL: 4}
    assert "ALPN" in outcomes[0].detail
    assert server.received == []


def test_plain_http2_through_a_proxy_is_refused() -> None:
    with pytest.raises(PlanError, match="proxy"):
        Plan((RequestSpec("http://127.0.0.1/"),), http2=True, proxy=Proxy("127.0.0.1", 1))


# the real thing


@asynccontextmanager
async def caddy(directory: Path) -> AsyncIterator[tuple[int, int]]:
    """A Caddy that answers "hello" by h2c and by TLS; their ports."""
    plain, secure = servers.free_port(), servers.free_port()
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    answer = {"handle": [{"handler": "static_response", "status_code": 200, "body": "hello"}]}
    pair = {"certificate": str(directory / "cert.pem"), "key": str(directory / "key.pem"), "tags": ["own"]}
    common = {"routes": [answer], "automatic_https": {"disable": True}}
    policy = {"certificate_selection": {"any_tag": ["own"]}}
    config = {
        "admin": {"disabled": True, "config": {"persist": False}},
        "logging": {"logs": {"default": {"writer": {"output": "discard"}}}},
        "apps": {
            "http": {
                "servers": {
                    "plain": {"listen": [f"127.0.0.1:{plain}"], "protocols": ["h1", "h2c"], **common},
                    "secure": {
                        "listen": [f"127.0.0.1:{secure}"],
                        "protocols": ["h1", "h2"],
                        "tls_connection_policies": [policy],
                        **common,
                    },
                }
            },
            "tls": {"certificates": {"load_files": [pair]}},
        },
    }
    (directory / "caddy.json").write_bytes(orjson.dumps(config))
    process = await asyncio.create_subprocess_exec(
        find_binary(), "run", "--config", str(directory / "caddy.json"), env={"HOME": str(directory)}
    )
    try:
        async with asyncio.timeout(15):
            while not await _listens(secure) or not await _listens(plain):
                await asyncio.sleep(0.02)
        yield plain, secure
    finally:
        process.terminate()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_against_caddy(tmp_path: Path) -> None:
    async with caddy(tmp_path) as (plain, secure):
        for url in (f"http://127.0.0.1:{plain}/", f"https://127.0.0.1:{secure}/"):
            plan = Plan((RequestSpec(url),), total=500, connections=20, http2=True, streams=5, verify_tls=False)
            report, outcomes = await send(plan)
            assert (report.status, report.errors) == ({200: 500}, {})
            assert report.received == 5 * 500
            assert Counter(outcome.connection for outcome in outcomes).keys() == {0, 1, 2, 3}
