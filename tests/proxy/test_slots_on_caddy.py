"""What our slots rely on in a real Caddy. A newer Caddy that behaves otherwise fails here first."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest

from loadtest import runner
from loadtest.model import Plan, RequestSpec
from proxy.handler import Transport
from proxy.model import InFlight, stream_alias
from tests.proxy.caddy import RealCaddy, Stream, answered_by, new_users
from tests.tls import server_context


def url(caddy: RealCaddy, path: str = "/") -> str:
    return f"http://127.0.0.1:{caddy.port}{path}"


async def answers(caddy: RealCaddy, count: int) -> Counter[str]:
    """Who answered so many requests, one after the other."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return Counter([(await client.get(url(caddy))).headers["X-Upstream"] for _ in range(count)])


async def test_shares_are_exact_by_slots(caddy: RealCaddy) -> None:
    await caddy.serve({"a": 2, "b": 1}, slots=12)
    assert await answers(caddy, 120) == {"a": 80, "b": 40}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_flips_under_load_lose_nothing_and_leave_the_configuration_alone(caddy: RealCaddy, method: str) -> None:
    pool = await caddy.serve({"a": 1, "b": 1, "c": 1})
    _, before = await caddy.admin.config()
    stop = asyncio.Event()
    plan = Plan((RequestSpec(url(caddy), method, body=b"x" * 100),), connections=16, total=None, duration=60)
    load = asyncio.create_task(runner.run(plan, stop=stop))
    for number in range(40):
        await pool.shift(caddy.weights([{"a": 1, "b": 1}, {"b": 1, "c": 1}, {"c": 1}][number % 3]))
        await asyncio.sleep(0.03)
    stop.set()
    report = await load
    assert report.sent > 500
    assert (report.lost, set(report.status)) == (0, {200})
    assert report.idle_closed == 0, "a flip closes no kept-alive connection"
    assert (await caddy.admin.config())[1] == before
    await pool.aclose()


async def test_streams_live_through_flips_that_drain_their_upstream(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 1})
    stream = await Stream.open(caddy.port)
    for names in ("b", "c", "b"):
        await pool.shift(caddy.weights({names: 1}))
        assert await stream.echoes()
    assert caddy.upstreams["a"].streams == 1
    stream.close()


async def test_open_requests_and_streams_are_counted_apart_by_address(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 1})
    dial = caddy.dial("a")
    assert await pool.in_flight([dial]) == {dial: InFlight(0, 0)}
    caddy.upstreams["a"].mode = "hang"
    async with httpx.AsyncClient(trust_env=False) as client:
        hanging = [asyncio.create_task(client.post(url(caddy), content=b"x")) for _ in range(3)]
        # Whatever the spelling of the token, an upgrade is a stream.
        streams = [await Stream.open(caddy.port, token) for token in ("Upgrade", "keep-alive, upgrade")]
        while caddy.upstreams["a"].hits < 5:
            await asyncio.sleep(0.01)
        await pool.shift(caddy.weights({"b": 1}))  # what is open stays visible after the slots moved on
        assert await pool.in_flight([dial, caddy.dial("b")]) == {dial: InFlight(3, 2), caddy.dial("b"): InFlight(0, 0)}
        caddy.upstreams["a"].release.set()
        assert {answer.result().status_code for answer in (await asyncio.wait(hanging))[0]} == {200}
    for stream in streams:
        stream.close()
    async with asyncio.timeout(5):
        while await pool.in_flight([dial]) != {dial: InFlight(0, 0)}:
            await asyncio.sleep(0.01)


async def test_the_count_of_an_address_that_is_configured_elsewhere_is_unknown(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 1, "b": 1})

    def add_static(config: dict[str, object] | None) -> dict[str, object]:
        assert config is not None
        handler = {"handler": "reverse_proxy", "upstreams": [{"dial": caddy.dial("a")}]}
        server = {"listen": ["127.0.0.1:0"], "routes": [{"handle": [handler]}]}
        config["apps"]["http"]["servers"]["other"] = server  # type: ignore[index]
        return dict(config)

    config, etag = await caddy.admin.config()
    await caddy.admin.write(add_static(config), etag)
    await asyncio.sleep(1.1)  # longer than the addresses of the configuration are believed
    counts = await pool.in_flight([caddy.dial("a"), caddy.dial("b")])
    assert counts == {caddy.dial("a"): None, caddy.dial("b"): InFlight(0, 0)}


async def test_counts_are_unknown_when_the_admin_api_is_gone(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 1})
    await caddy.server.stop()
    assert await pool.in_flight([caddy.dial("a")]) == {caddy.dial("a"): None}


async def test_held_requests_wait_and_are_answered_when_somebody_is_ready(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 1})
    await pool.shift({})
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        waiting = [asyncio.create_task(client.post(url(caddy), content=b"order")) for _ in range(5)]
        waiting += [asyncio.create_task(client.get(url(caddy))) for _ in range(5)]
        _, pending = await asyncio.wait(waiting, timeout=0.7)
        assert len(pending) == 10
        await pool.shift(caddy.weights({"b": 1}))
        assert [(await answer).status_code for answer in waiting] == [200] * 10
    assert caddy.upstreams["b"].hits == 10, "each of them was delivered once"


@pytest.mark.parametrize("affinity", ["none", "cookie", "client_ip"])
async def test_requests_that_meet_a_dead_address_are_answered_once_it_is_out(caddy: RealCaddy, affinity: str) -> None:
    pool = await caddy.serve({"a": 1, "b": 1}, affinity=affinity)
    await caddy.upstreams["a"].stop()
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        pending = [asyncio.create_task(client.post(url(caddy), content=b"x")) for _ in range(20)]
        await asyncio.sleep(0.5)
        await pool.shift(caddy.weights({"b": 1}))
        assert [(await answer).status_code for answer in pending] == [200] * 20


async def test_a_request_that_reached_an_upstream_is_never_delivered_again(caddy: RealCaddy) -> None:
    await caddy.serve({"a": 1, "b": 1})
    for upstream in caddy.upstreams.values():
        upstream.mode = "reset"
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        statuses = [(await client.get(url(caddy, f"/{number}"))).status_code for number in range(6)]
    assert statuses == [502] * 6
    delivered = caddy.upstreams["a"].seen + caddy.upstreams["b"].seen
    assert delivered == {f"/{number}": 1 for number in range(6)}


async def test_streams_survive_somebody_elses_reload(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 1})
    stream = await Stream.open(caddy.port)
    config, etag = await caddy.admin.config()
    assert config is not None
    config["apps"]["http"]["servers"]["other"] = {"listen": ["127.0.0.1:0"]}
    await caddy.admin.write(config, etag)
    assert await stream.echoes()
    dial = caddy.dial("a")
    assert await pool.in_flight([dial]) == {dial: InFlight(0, 1)}
    stream.close()


async def test_sticky_users_stay_where_they_are_when_a_canary_grows(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 9, "b": 1}, affinity="cookie", slots=20)
    users = await new_users(caddy.port, 200)
    assert Counter(name for name, _ in users)["b"] > 0
    await pool.shift(caddy.weights({"a": 1, "b": 1}))
    for name, cookie in users:
        now = await answered_by(caddy.port, cookie)
        assert now == "b" if name == "b" else now in "ab"


async def test_upstreams_over_tls_are_verified_by_address_and_get_the_clients_host(
    caddy: RealCaddy, tmp_path: Path
) -> None:
    secure, stranger = caddy.upstreams["a"], caddy.upstreams["b"]
    await secure.stop()
    await secure.start(tls=server_context("127.0.0.1", tmp_path / "ca.pem"))
    pool = await caddy.serve({"a": 1}, transport=Transport(tls=True, ca=str(tmp_path / "ca.pem")), try_duration=0.5)
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(url(caddy), headers={"Host": "shop.example"})
        assert (answer.status_code, answer.text) == (200, "a GET 0")
        assert secure.hosts == {"shop.example": 1}
        stream = await Stream.open(caddy.port)  # by the other spelling of the address: the certificate fits too
        assert await stream.echoes()
        assert await pool.in_flight([secure.dial]) == {secure.dial: InFlight(0, 1)}
        stream.close()
        await stranger.stop()
        await stranger.start(tls=server_context("127.0.0.1", tmp_path / "another.pem"))
        await pool.shift({stranger.dial: 1})
        assert (await client.get(url(caddy))).status_code == 502
        assert stranger.hits == 0


def test_an_alias_is_another_spelling() -> None:
    for dial in ("10.0.0.1:80", "[::1]:80", "web.internal:80"):
        assert stream_alias(dial) != dial
