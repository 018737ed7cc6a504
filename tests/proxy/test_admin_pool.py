"""Traffic by the admin API alone: the list of turns, and what it relies on in a real Caddy."""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import runner
from loadtest.model import Plan, RequestSpec
from proxy import admin_route
from proxy.admin import Admin
from proxy.admin_pool import AdminPool
from proxy.errors import CaddyRefusedError, CaddyUnreachableError
from proxy.handler import Json, Route, ensure
from proxy.install import install
from proxy.model import NOBODY, InFlight
from proxy.pools import OpenCounts
from proxy.ways import ByAdmin
from tests.proxy.caddy import RealCaddy, Stream, answered_by, new_users

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "web.internal:80"
WEIGHTS = st.dictionaries(st.sampled_from([f"10.0.0.{n}:80" for n in range(1, 13)]), st.integers(0, 100_000))


def route(**changes: Any) -> Route:
    settings: dict[str, Any] = {"slots": 100, "listen": (":80",)}
    return Route("web", "/unused", **(settings | changes))


def handlers(built: Json) -> list[Json]:
    """The handler for streams, if there is one of its own, and the one for requests."""
    found = []
    for handler in built["handle"]:
        nested = itertools.chain.from_iterable(handlers(inner) for inner in handler.get("routes", []))
        found += [handler] if handler["handler"] == "reverse_proxy" else list(nested)
    return found


def dials(handler: Json) -> list[str]:
    return [upstream["dial"] for upstream in handler["upstreams"]]


# -- the list --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ({A: 7, B: 7}, (A, B)),
        ({A: 950, B: 50}, (*[A] * 19, B)),
        ({A: 4, B: 2, C: 0}, (A, A, B)),
        ({A: 5}, (A,)),
        ({}, (NOBODY,)),
        ({A: 0}, (NOBODY,)),
    ],
)
def test_weights_become_the_fewest_turns(weights: dict[str, int], turns: tuple[str, ...]) -> None:
    assert Counter(admin_route.turns(weights, route())) == Counter(turns)


def test_turns_are_interleaved() -> None:
    turns = admin_route.turns({A: 30, B: 20}, route())
    assert all(mine != following or mine == A for mine, following in itertools.pairwise([*turns, turns[0]]))
    many = admin_route.turns({A: 40_000, B: 30_001, C: 29_999}, route())
    assert len(many) == 100
    assert all(mine != following for mine, following in itertools.pairwise([*many, many[0]]))


@given(WEIGHTS, st.integers(1, 120), st.sampled_from(["none", "cookie", "client_ip"]))
def test_turns_keep_the_shares_to_one_turn(weights: dict[str, int], slots: int, affinity: str) -> None:
    turns = Counter(admin_route.turns(weights, route(slots=slots, affinity=affinity)))
    ready = {address: weight for address, weight in weights.items() if weight}
    assert set(turns) <= (set(ready) or {NOBODY}), "who is not ready is not listed"
    assert sum(turns.values()) <= max(slots, len(ready))
    total = sum(ready.values())
    for address, weight in ready.items():
        assert abs(Fraction(weight * sum(turns.values()), total) - turns[address]) < 1
    if ready and affinity == "none" and total // math.gcd(*ready.values()) <= slots:
        assert all(Fraction(turns[a], sum(turns.values())) == Fraction(w, total) for a, w in ready.items())


@given(WEIGHTS, st.randoms(use_true_random=False), st.integers(1, 9))
def test_the_same_proportions_give_the_same_route(weights: dict[str, int], random: Any, factor: int) -> None:
    shuffled = [(address, weight * factor) for address, weight in weights.items()]
    random.shuffle(shuffled)
    assert admin_route.turns(dict(shuffled), route()) == admin_route.turns(weights, route())


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        admin_route.turns({A: 1, B: -1}, route())


@given(WEIGHTS, st.sampled_from(["none", "cookie", "client_ip"]), st.booleans())
def test_what_is_written_is_read_back(weights: dict[str, int], affinity: str, others: bool) -> None:
    service = route(affinity=affinity, slots=20)
    turns = admin_route.turns(weights, service)
    before = {"apps": {"http": {"servers": {"x": {"listen": [":80"], "routes": [{"@id": "theirs"}]}}}}}
    config = before if others else None
    kept = copy.deepcopy(config)
    written = admin_route.install(config, service, turns)
    assert config == kept, "the argument is not changed"
    assert admin_route.read(written, service) == turns
    assert admin_route.present(written, service)
    assert admin_route.install(written, service, turns) == written
    moved = admin_route.move(written, service, (A, B))
    assert admin_route.read(moved, service) == (A, B)
    assert admin_route.move(moved, service, turns) == written


def test_a_route_that_is_gone_or_of_the_other_kind_is_not_ours() -> None:
    assert admin_route.read(None, route()) is None
    assert not admin_route.present({}, route())
    with pytest.raises(CaddyRefusedError, match="not in Caddy's configuration any more"):
        admin_route.move({}, route(), (A,))
    slots = ensure(None, [route()])
    assert admin_route.read(slots, route()) is None
    assert admin_route.read(admin_route.install(slots, route(), (A,)), route()) == (A,)


def test_requests_and_streams_have_a_handler_each_and_nothing_is_weighted() -> None:
    streams, requests = handlers(admin_route.build_admin_route(route(), (A, B, A)))
    assert requests["load_balancing"]["selection_policy"] == {"policy": "round_robin"}
    assert dials(requests) == [f"{a}{{http.vars.trafficd}}" for a in (A, B, A)]
    assert not set(dials(requests)) & set(dials(streams))
    for handler in (streams, requests):
        assert "health_checks" not in handler
        assert handler["load_balancing"]["try_duration"] == "30s"
        assert "retries" not in handler["load_balancing"]
        assert handler["stream_close_delay"] == "86400s"


@pytest.mark.parametrize("affinity", ["cookie", "client_ip"])
def test_sticky_turns_differ_and_those_of_who_grows_stay(affinity: str) -> None:
    service = route(affinity=affinity)

    def places(weights: dict[str, int]) -> set[str]:
        (handler,) = handlers(admin_route.build_admin_route(service, admin_route.turns(weights, service)))
        return set(dials(handler))

    few, more = places({A: 95, B: 5}), places({A: 1, B: 1})
    assert len(few) == len(more) == 100, "equal texts would be one place"
    assert {place for place in few if place.startswith(B)} < more


# -- a real Caddy ----------------------------------------------------------------------------------------


def url(caddy: RealCaddy, path: str = "/") -> str:
    return f"http://127.0.0.1:{caddy.port}{path}"


async def serve(caddy: RealCaddy, weights: dict[str, int], **changes: Any) -> AdminPool:
    service = caddy.route(**({"slots": 100} | changes))
    pool = AdminPool(caddy.admin, ByAdmin(service), OpenCounts(caddy.admin))
    assert await put(caddy, service, weights)
    await pool.open()
    return pool


async def put(caddy: RealCaddy, service: Route, weights: dict[str, int]) -> bool:
    """Make Caddy serve the route, over these weights where it is not there; whether that was written."""
    return (await install(caddy.admin, [ByAdmin(service, lambda: caddy.weights(weights))], caddy.root)).written


async def answers(caddy: RealCaddy, count: int) -> list[str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        return [(await client.get(url(caddy))).headers["X-Upstream"] for _ in range(count)]


async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str) -> bytes:
    """The answer on a raw connection; empty when it is closed instead."""
    reader, writer = connection
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    try:
        return await asyncio.wait_for(reader.read(4096), 5)
    except ConnectionError:
        return b""


async def test_shares_are_exact_and_mixed(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 95_000, "b": 95_000, "c": 10_000})
    order = await answers(caddy, 320)
    assert Counter(order) == {"a": 152, "b": 152, "c": 16}
    gaps = [
        following - mine for mine, following in itertools.pairwise(i for i, name in enumerate(order) if name == "c")
    ]
    assert set(gaps) <= {19, 20, 21}, "no blocks: a canary's requests are spread evenly"
    assert pool.shares() == caddy.weights({"a": 19, "b": 19, "c": 2})


async def test_the_shares_of_the_rest_are_right_with_one_upstream_down(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 47, "b": 48, "c": 5})
    await caddy.upstreams["a"].stop()
    assert await pool.shift(caddy.weights({"b": 95, "c": 5}))
    assert Counter(await answers(caddy, 300)) == {"b": 285, "c": 15}


async def test_nothing_is_written_where_nothing_changes(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 1, "b": 3})
    _, before = await caddy.admin.config()
    assert not await pool.shift(caddy.weights({"b": 30, "a": 10}))
    assert not await pool.shift(caddy.weights({"b": 3, "a": 1, "c": 0}))
    assert not await put(caddy, caddy.route(slots=100), {"c": 1}), "what is there is kept"
    again = AdminPool(caddy.admin, ByAdmin(caddy.route(slots=100)), OpenCounts(caddy.admin))
    assert again.shares() == {}
    await again.open()
    assert again.shares() == pool.shares() == caddy.weights({"a": 1, "b": 3})
    assert not await again.shift(caddy.weights({"a": 1, "b": 3}))
    assert (await caddy.admin.config())[1] == before
    assert await again.shift(caddy.weights({"a": 1, "b": 2}))
    assert (await caddy.admin.config())[1] != before


async def test_a_drained_upstream_gets_no_request_that_began_after_the_shift(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 1})
    silent = [await asyncio.open_connection("127.0.0.1", caddy.port) for _ in range(4)]
    used = await asyncio.open_connection("127.0.0.1", caddy.port)
    assert b"200 OK" in await ask(used, "/before")
    await asyncio.sleep(0.1)
    await pool.shift(caddy.weights({"b": 1}))
    await asyncio.sleep(0.05)  # stragglers, which a drain's quiet window sees
    assert await ask(used, "/after") == b"", "an idle connection is closed"
    for wait, connection in zip((0, 0.5, 1, 2), silent, strict=True):
        await asyncio.sleep(wait)
        await ask(connection, "/after")
    assert set(await answers(caddy, 20)) == {"b"}
    assert caddy.upstreams["a"].seen == {"/before": 1}
    for _, writer in (used, *silent):
        writer.close()


async def test_drains_under_load_send_nothing_to_the_drained(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 1, "b": 1})
    stop = asyncio.Event()
    plan = Plan((RequestSpec(url(caddy), "POST", body=b"x" * 100),), connections=8, total=None, duration=60)
    load = asyncio.create_task(runner.run(plan, stop=stop))
    try:
        for number in range(8):
            drained, other = "ab" if number % 2 else "ba"
            await pool.shift(caddy.weights({other: 1}))
            async with asyncio.timeout(5):
                zeros = 0
                while zeros < 10:  # in every sample over a quiet window
                    counted = (await pool.in_flight([caddy.dial(drained)]))[caddy.dial(drained)]
                    zeros = zeros + 1 if counted == InFlight(0, 0) else 0
                    await asyncio.sleep(0.02)
            hits = caddy.upstreams[drained].hits
            await asyncio.sleep(0.1)
            assert caddy.upstreams[drained].hits == hits
    finally:
        stop.set()
        report = await load
    assert report.sent > 200
    assert set(report.status) == {200}, "what a change costs is connections, not answers"


async def test_open_requests_and_streams_stay_counted_when_their_address_leaves_and_returns(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 1})
    a, b = caddy.dial("a"), caddy.dial("b")
    caddy.upstreams["a"].mode = "hang"
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        hanging = [asyncio.create_task(client.post(url(caddy), content=b"x")) for _ in range(3)]
        stream = await Stream.open(caddy.port)
        while caddy.upstreams["a"].hits < 4:
            await asyncio.sleep(0.01)
        for weights in ({"a": 1}, {"b": 1}, {"a": 1, "b": 1}, {"a": 1}, {"b": 1}):
            await pool.shift(caddy.weights(weights))
            assert await pool.in_flight([a, b]) == {a: InFlight(3, 1), b: InFlight(0, 0)}
        assert await stream.echoes(), "stream_close_delay keeps it through changes"
        caddy.upstreams["a"].release.set()
        assert {answer.result().status_code for answer in (await asyncio.wait(hanging))[0]} == {200}
    stream.close()
    async with asyncio.timeout(5):
        while await pool.in_flight([a]) != {a: InFlight(0, 0)}:
            await asyncio.sleep(0.01)


async def test_the_count_of_an_address_that_is_configured_elsewhere_is_unknown(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 1, "b": 1})

    def add(config: Json | None) -> Json:
        edited = copy.deepcopy(config or {})
        handler = {"handler": "reverse_proxy", "upstreams": [{"dial": caddy.dial("a")}]}
        edited["apps"]["http"]["servers"]["other"] = {"listen": ["127.0.0.1:0"], "routes": [{"handle": [handler]}]}
        return edited

    await caddy.admin.edit(add)
    counts = await pool.in_flight([caddy.dial("a"), caddy.dial("b")])
    assert counts == {caddy.dial("a"): None, caddy.dial("b"): InFlight(0, 0)}


async def test_held_requests_wait_but_the_release_breaks_them_off(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 1})
    await pool.shift({})
    assert pool.shares() == {}
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        waiting = [asyncio.create_task(client.post(url(caddy), content=b"order")) for _ in range(5)]
        _, pending = await asyncio.wait(waiting, timeout=0.7)
        assert len(pending) == 5
        await pool.shift(caddy.weights({"b": 1}))
        assert [(await answer).status_code for answer in waiting] == [502] * 5
        assert caddy.upstreams["b"].hits == 0
        assert (await client.post(url(caddy))).status_code == 200


async def test_requests_wait_with_success_for_an_address_that_stays_listed(caddy: RealCaddy) -> None:
    await serve(caddy, {"a": 1})
    port = int(caddy.dial("a").rpartition(":")[2])
    await caddy.upstreams["a"].stop()
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        waiting = [asyncio.create_task(client.post(url(caddy), content=b"order")) for _ in range(5)]
        _, pending = await asyncio.wait(waiting, timeout=0.5)
        assert len(pending) == 5
        await caddy.upstreams["a"].start(port)
        assert [(await answer).status_code for answer in waiting] == [200] * 5


class Meddled(Admin):
    """An admin API where somebody else writes between our read and our write, the first few times."""

    left = 3

    async def write(self, config: Json, etag: str) -> None:
        if self.left:
            self.left -= 1
            theirs, now = await self.config()
            edited = copy.deepcopy(theirs or {})
            edited["apps"]["http"]["servers"][f"theirs{self.left}"] = {"listen": [f"127.0.0.{2 + self.left}:0"]}
            await super().write(edited, now)
        await super().write(config, etag)


async def test_somebody_elses_write_in_between_is_not_lost(caddy: RealCaddy) -> None:
    await serve(caddy, {"a": 1})
    admin = Meddled(caddy.server.admin_url)
    pool = AdminPool(admin, ByAdmin(caddy.route(slots=100)), OpenCounts(admin))
    assert await pool.shift(caddy.weights({"b": 1}))
    config, _ = await caddy.admin.config()
    assert config is not None
    assert {"theirs0", "theirs1", "theirs2"} <= set(config["apps"]["http"]["servers"])
    assert admin_route.read(config, caddy.route()) == (caddy.dial("b"),)
    await admin.aclose()


async def test_a_route_that_somebody_removed_is_said_and_not_put_back(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 1})
    config, etag = await caddy.admin.config()
    assert config is not None
    config["apps"]["http"]["servers"] = {}
    await caddy.admin.write(config, etag)
    with pytest.raises(CaddyRefusedError, match="trafficd-web"):
        await pool.shift(caddy.weights({"b": 1}))
    assert pool.shares() == caddy.weights({"a": 1})
    assert await put(caddy, caddy.route(slots=100), {"b": 1})
    assert await answers(caddy, 3) == ["b"] * 3


async def test_without_an_admin_api_nothing_is_known_and_nothing_moves(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 1})
    await caddy.server.stop()
    assert await pool.in_flight([caddy.dial("a")]) == {caddy.dial("a"): None}
    with pytest.raises(CaddyUnreachableError):
        await pool.shift(caddy.weights({"b": 1}))
    assert pool.shares() == caddy.weights({"a": 1})


async def test_sticky_users_stay_where_they_are_when_a_canary_grows(caddy: RealCaddy) -> None:
    pool = await serve(caddy, {"a": 9, "b": 1}, affinity="cookie", slots=20)
    users = await new_users(caddy.port, 200)
    before = Counter(name for name, _ in users)
    assert before["a"] > before["b"], "new users come by weight"
    await pool.shift(caddy.weights({"a": 1, "b": 1}))
    for name, cookie in users:
        now = await answered_by(caddy.port, cookie)
        assert now == "b" if name == "b" else now in "ab"


async def test_shares_of_client_addresses_follow_the_weights(caddy: RealCaddy) -> None:
    await serve(caddy, {"a": 80, "b": 20}, affinity="client_ip", slots=100)

    def trust(config: Json | None) -> Json:
        edited = copy.deepcopy(config or {})
        for server in edited["apps"]["http"]["servers"].values():
            server["trusted_proxies"] = {"source": "static", "ranges": ["127.0.0.1/32"]}
        return edited

    await caddy.admin.edit(trust)
    seen: Counter[str] = Counter()
    async with httpx.AsyncClient(trust_env=False) as client:
        for number in range(400):
            user = {"X-Forwarded-For": f"198.51.{number // 200}.{number % 200}"}
            first, second = [(await client.get(url(caddy), headers=user)).headers["X-Upstream"] for _ in range(2)]
            assert first == second
            seen[first] += 1
    assert 40 <= seen["b"] <= 130, "20 % of 400, as near as the hash is"
