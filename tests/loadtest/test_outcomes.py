"""What became of requests, against servers that count for themselves. No request may arrive twice."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.model import ErrorKind, Outcome, Plan, PlanError, Report, RequestSpec
from loadtest.runner import run
from tests.loadtest import servers
from tests.loadtest.servers import Behaviour, Peer, Received, Server, serving
from tests.tls import server_context

COUNT = 24


def numbered(server: Server, count: int = COUNT, method: str = "GET", connections: int = 5) -> Plan:
    """A plan in which every request is told apart by its target."""
    requests = tuple(RequestSpec(server.url(f"/{number}"), method) for number in range(count))
    return Plan(requests, connections=connections, total=count, timeout=5)


async def send(plan: Plan) -> tuple[Report, list[Outcome]]:
    outcomes: list[Outcome] = []
    report = await run(plan, on_outcome=outcomes.append)
    assert len(outcomes) == report.sent == report.answered + report.lost
    assert sorted(outcome.hit for outcome in outcomes) == list(range(report.sent))
    for outcome in outcomes:
        assert (outcome.status is None) != (outcome.error is None)
        assert outcome.scheduled_ns <= outcome.started_ns <= outcome.finished_ns
    return report, outcomes


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (servers.close_unanswered, ErrorKind.DROPPED),
        (servers.reset_unanswered, ErrorKind.DROPPED),
        (servers.truncate_head, ErrorKind.TRUNCATED),
        (servers.truncate_body, ErrorKind.TRUNCATED),
        (servers.truncate_chunks, ErrorKind.TRUNCATED),
        (servers.reset_in_body, ErrorKind.TRUNCATED),
        (servers.until_reset, ErrorKind.TRUNCATED),
        (servers.hints_only, ErrorKind.TRUNCATED),
        (servers.garbage, ErrorKind.PROTOCOL),
        (servers.garbage_and_close, ErrorKind.PROTOCOL),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_every_loss_is_counted_and_nothing_is_sent_again(behaviour: Behaviour, kind: ErrorKind) -> None:
    async with serving(behaviour) as server:
        report, _ = await send(numbered(server))
    assert report.errors == {kind: COUNT}
    assert report.status == {}
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}
    assert server.connections == COUNT


@pytest.mark.parametrize(
    ("behaviour", "method", "status", "size", "connections"),
    [
        (servers.answer, "GET", 200, 5, 5),
        (servers.answer, "POST", 200, 5, 5),
        (servers.hints_first, "GET", 200, 5, 5),
        (servers.chunked, "GET", 200, 5, 5),
        (servers.head_only, "HEAD", 200, 0, 5),
        (servers.no_content, "GET", 204, 0, 5),
        (servers.not_modified, "GET", 304, 0, 5),
        (servers.until_close, "GET", 200, 5, COUNT),
        (servers.old_version, "GET", 200, 5, COUNT),
        (servers.unasked_surplus, "GET", 200, 5, COUNT),
        (servers.unavailable, "GET", 503, 0, 5),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_every_form_of_answer_is_complete(
    behaviour: Behaviour, method: str, status: int, size: int, connections: int
) -> None:
    async with serving(behaviour) as server:
        report, outcomes = await send(numbered(server, method=method))
    assert (report.status, report.errors) == ({status: COUNT}, {})
    assert {outcome.size for outcome in outcomes} == {size}
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}
    assert server.connections == connections
    assert report.idle_closed == 0


@pytest.mark.parametrize("behaviour", [servers.stall, servers.stall_in_body])
async def test_time_out_is_an_error_and_bounds_the_run(behaviour: Behaviour) -> None:
    async with serving(behaviour) as server:
        plan = replace(numbered(server, count=4, connections=2), timeout=0.1)
        report, outcomes = await send(plan)
    assert report.errors == {ErrorKind.TIMEOUT: 4}
    assert set(server.delivered.values()) == {1}
    assert all(0.09 < (o.finished_ns - o.started_ns) / 1e9 < 1 for o in outcomes)


async def test_a_mixture_is_counted_as_the_server_counts_it() -> None:
    async def mixed(peer: Peer, request: Received) -> None:
        kinds = (servers.answer, servers.close_unanswered, servers.truncate_body, servers.unavailable)
        await kinds[int(request.target[1:]) % 4](peer, request)

    async with serving(mixed) as server:
        report, outcomes = await send(numbered(server, count=100, connections=7))
    assert report.status == {200: 25, 503: 25}
    assert report.errors == {ErrorKind.DROPPED: 25, ErrorKind.TRUNCATED: 25}
    assert server.delivered == {f"/{number}": 1 for number in range(100)}
    assert {o.hit for o in outcomes if o.error is ErrorKind.DROPPED} == set(range(1, 100, 4))


async def test_close_of_an_idle_connection_harms_no_request() -> None:
    async def answer_then_close(peer: Peer, request: Received) -> None:
        await peer.send(servers.RESPONSE)
        await asyncio.sleep(0.01)
        peer.close()

    async with serving(answer_then_close) as server:
        plan = replace(numbered(server, count=5, connections=1), rate=20)  # idle for 50 ms between requests
        report, _ = await send(plan)
    assert (report.status, report.errors) == ({200: 5}, {})
    assert report.idle_closed == 4
    assert server.connections == 5
    assert set(server.delivered.values()) == {1}


async def test_kept_alive_connection_that_dies_with_a_request_on_it_is_a_drop() -> None:
    async def second_is_dropped(peer: Peer, request: Received) -> None:
        await (servers.close_unanswered if peer.served else servers.answer)(peer, request)

    async with serving(second_is_dropped) as server:
        report, _ = await send(numbered(server, count=20, connections=1))
    assert report.status == {200: 10}
    assert report.errors == {ErrorKind.DROPPED: 10}
    assert report.idle_closed == 0
    assert server.delivered == {f"/{number}": 1 for number in range(20)}


async def test_close_that_races_with_the_next_request_loses_none_unseen() -> None:
    """Known in time: idle_closed. Learned after writing: dropped. Never written again."""

    async def answer_and_close(peer: Peer, request: Received) -> None:
        await peer.send(servers.RESPONSE)
        peer.close()

    async with serving(answer_and_close) as server:
        report, outcomes = await send(numbered(server, count=500))
    assert set(server.delivered.values()) == {1}
    assert set(report.errors) <= {ErrorKind.DROPPED}
    assert {f"/{o.hit}" for o in outcomes if o.status == 200} == set(server.delivered)


async def test_words_of_an_idle_server_are_no_answer_to_the_next_request() -> None:
    async def answer_then_babble(peer: Peer, request: Received) -> None:
        await peer.send(servers.RESPONSE)
        await asyncio.sleep(0.01)
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        peer.close()

    async with serving(answer_then_babble) as server:
        report, _ = await send(replace(numbered(server, count=3, connections=1), rate=20))
    assert (report.status, report.errors) == ({200: 3}, {})


async def test_server_that_closes_on_accept_drops() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(slam, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        report, _ = await send(Plan((RequestSpec(f"http://127.0.0.1:{port}/"),), total=10, connections=2))
    assert report.errors == {ErrorKind.DROPPED: 10}


async def test_large_body_arrives_once_and_whole() -> None:
    body = bytes(range(256)) * 8192
    async with serving(servers.answer) as server:
        spec = RequestSpec(server.url(), "PUT", (("X-Empty", ""), ("X.Dotted", "1")), body)
        report, _ = await send(Plan((spec,), total=3, connections=2))
    assert report.status == {200: 3}
    assert [request.body for request in server.received] == [body] * 3
    assert server.received[0].headers["x.dotted"] == "1"


async def test_host_override_and_one_request_a_connection() -> None:
    async def close_if_told(peer: Peer, request: Received) -> None:
        assert request.headers["connection"] == "close"
        await peer.send(servers.RESPONSE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        peer.close()

    async with serving(close_if_told) as server:
        spec = RequestSpec(server.url(), headers=(("Host", "example.com"),))
        report, outcomes = await send(Plan((spec,), total=8, connections=2, keepalive=False))
    assert report.status == {200: 8}
    assert server.connections == len({outcome.connection for outcome in outcomes}) == 8
    assert {request.headers["host"] for request in server.received} == {"example.com"}


async def test_attribution_by_a_response_header() -> None:
    async with serving(servers.answer) as server:
        report, outcomes = await send(replace(numbered(server), attribute="x-version"))
    assert report.by_attribute == {"v1": {200: COUNT}}
    assert {outcome.attribute for outcome in outcomes} == {"v1"}


async def test_nothing_listens() -> None:
    url = f"http://127.0.0.1:{servers.free_port()}/"
    report, outcomes = await send(Plan((RequestSpec(url),), total=10, connections=3))
    assert report.errors == {ErrorKind.REFUSED: 10}
    assert {(outcome.connection, outcome.written_ns) for outcome in outcomes} == {(None, None)}


async def test_name_that_does_not_resolve() -> None:
    report, _ = await send(Plan((RequestSpec("http://nothing.invalid/"),), total=2, connections=1))
    assert report.errors == {ErrorKind.DNS: 2}


async def test_address_of_all_answers_of_a_name_is_tried() -> None:
    async with serving(servers.answer) as server:
        spec = RequestSpec(f"http://localhost:{server.port}/")
        report, _ = await send(Plan((spec,), total=4, connections=2))
    assert report.status == {200: 4}


async def test_dial_replaces_the_address_only() -> None:
    async with serving(servers.answer) as server:
        spec = RequestSpec("http://app.invalid/")
        plan = Plan((spec,), total=4, connections=2, dial=("127.0.0.1", server.port))
        report, _ = await send(plan)
    assert report.status == {200: 4}
    assert server.received[0].headers["host"] == "app.invalid"


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return tmp_path / "authority.pem"


@pytest.fixture
def tls(authority: Path) -> ssl.SSLContext:
    return server_context("127.0.0.1", authority)


async def test_certificates_are_verified_unless_told_otherwise(
    tls: ssl.SSLContext, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(servers.answer, tls) as server:
        plan = numbered(server)
        distrusted, _ = await send(plan)
        insecure, _ = await send(replace(plan, verify_tls=False))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        trusted, _ = await send(plan)
        monkeypatch.delenv("SSL_CERT_FILE")
        named, _ = await send(replace(plan, authorities=str(authority)))
        with pytest.raises(PlanError, match="nowhere"):
            await send(replace(plan, authorities="/nowhere.pem"))
    assert distrusted.errors == {ErrorKind.TLS: COUNT}
    assert insecure.status == trusted.status == named.status == {200: COUNT}
    assert set(server.delivered.values()) == {3}


async def test_losses_under_tls(tls: ssl.SSLContext) -> None:
    async def mixed(peer: Peer, request: Received) -> None:
        kinds = (servers.answer, servers.close_unanswered, servers.truncate_body, servers.reset_unanswered)
        await kinds[int(request.target[1:]) % 4](peer, request)

    async with serving(mixed, tls) as server:
        report, _ = await send(replace(numbered(server), verify_tls=False))
    assert report.status == {200: COUNT // 4}
    assert report.errors == {ErrorKind.DROPPED: COUNT // 2, ErrorKind.TRUNCATED: COUNT // 4}
    assert server.delivered == {f"/{number}": 1 for number in range(COUNT)}


async def test_plain_server_where_tls_is_expected() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read(100)
        writer.close()

    listener = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        report, _ = await send(Plan((RequestSpec(f"https://127.0.0.1:{port}/"),), total=2, connections=1))
    assert report.errors == {ErrorKind.TLS: 2}


async def test_handshake_that_stalls_is_a_connect_time_out() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        spec = RequestSpec(f"https://127.0.0.1:{port}/")
        report, _ = await send(Plan((spec,), total=2, connections=2, timeout=0.2))
        await asyncio.sleep(0.05)
    assert report.errors == {ErrorKind.CONNECT_TIMEOUT: 2}
