"""Taking over a handler of somebody's configuration, giving it back, and the difference in words."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import runner
from loadtest.model import Plan, RequestSpec
from proxy.adopt import adopt, adopted, leave
from proxy.candidates import find, slot_dials, with_slots
from proxy.difference import difference
from proxy.errors import CaddyRefusedError
from proxy.handler import Json, Route, ensure
from proxy.install import prepare_root
from proxy.model import InFlight
from proxy.pools import OpenCounts, SlotPool
from proxy.server import find_binary
from proxy.slots import SlotDirectory
from proxy.ways import Adopted
from tests.proxy.caddy import RealCaddy


def route(service: str = "web", **changes: Any) -> Route:
    return Route(service, f"/var/lib/trafficd/slots/{service}/current", **{"slots": 4, **changes})


def proxy_to(*dials: str, **more: Any) -> Json:
    return {"handler": "reverse_proxy", "upstreams": [{"dial": dial} for dial in dials], **more}


def site(*hosts: str, handle: Json, **more: Any) -> Json:
    inner = {"handler": "subroute", "routes": [{"handle": [handle]}]}
    return {"match": [{"host": list(hosts)}], "handle": [inner], "terminal": True, **more}


def config(*routes: Json, **more: Any) -> Json:
    server = {"listen": [":443"], "routes": list(routes), **more}
    return {"apps": {"http": {"servers": {"srv0": server}}, "tls": {"keep": "me"}}}


def handler_of(configuration: Json, service: Route) -> Any:
    place: Any = configuration
    for key in find(configuration, service).path:
        place = place[key]
    return place


def take(handler: Json, **changes: Any) -> tuple[Json, list[str]]:
    """One handler adopted: itself, and the notes."""
    before = config(site("example.com", handle=handler))
    service = route(**changes)
    after, notes = adopt(before, service, find(before, service))
    return handler_of(after, service), notes


async def caddy_adapt(text: str, directory: Path) -> Json:
    """What Caddy makes of a Caddyfile."""
    (directory / "Caddyfile").write_text(text)
    process = await asyncio.create_subprocess_exec(
        *(str(find_binary()), "adapt", "--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    adapted: Json = json.loads(out)
    return adapted


# -- adopting ------------------------------------------------------------------------------------------


def test_the_handler_gets_slots_and_keeps_the_rest() -> None:
    headers = {"request": {"set": {"X-A": ["b"]}}}
    handler, notes = take(proxy_to("a:1", "b:1", headers=headers, transport={"protocol": "http"}, flush_interval=-1))
    assert handler == {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": dial} for dial in slot_dials(route())],
        "headers": headers,
        "transport": {"protocol": "http"},
        "flush_interval": -1,
        "load_balancing": {
            "retry_match": [{"not": [{"path": ["*"]}]}],
            "try_duration": "30s",
            "try_interval": "0.05s",
        },
        "stream_close_delay": "86400s",
        "@id": "trafficd-web",
    }
    assert any("a:1, b:1 become 4 slots" in note for note in notes)


def test_what_means_something_else_over_slots_is_taken_out_and_said() -> None:
    handler, notes = take(
        {
            "handler": "reverse_proxy",
            "upstreams": [{"dial": "a:1", "max_requests": 7}],
            "dynamic_upstreams": {"source": "srv", "name": "web.test"},
            "health_checks": {
                "active": {"uri": "/up", "interval": 10_000_000_000, "passes": 2, "expect_status": 2},
                "passive": {"fail_duration": "30s", "max_fails": 3},
            },
            "load_balancing": {"retries": 3, "retry_match": [{"method": ["PUT"]}], "try_duration": 5_000_000_000},
            "stream_close_delay": 0,
        }
    )
    assert {"health_checks", "dynamic_upstreams"}.isdisjoint(handler)
    assert handler["load_balancing"] == {
        "retry_match": [{"not": [{"path": ["*"]}]}],
        "try_duration": 5_000_000_000,
        "try_interval": "0.05s",
    }
    said = "\n".join(notes)
    for part in (
        "max_requests = 7",
        '[services.web.health]: path = "/up", interval = "10s", rise = 2; it also had {"expect_status": 2}',
        '"max_fails": 3',
        "retries = 3",
        '[{"method": ["PUT"]}]',
        "web.test",
        "try_interval: set to 0.05s",
        "stream_close_delay: set to 86400s",
    ):
        assert part in said
    assert "try_duration" not in said, "what was kept needs no note"


@pytest.mark.parametrize("policy", ["weighted_round_robin", "least_conn", "first"])
def test_policies_that_judge_upstreams_become_even(policy: str) -> None:
    handler, notes = take(proxy_to("a:1", load_balancing={"selection_policy": {"policy": policy, "weights": [3]}}))
    assert handler["load_balancing"]["selection_policy"] == {"policy": "round_robin"}
    assert any(f"{policy} (weights [3]) becomes round_robin" in note for note in notes)


@pytest.mark.parametrize(
    "policy", ["ip_hash", "client_ip_hash", "uri_hash", "query", "header", "cookie", "random", "random_choose"]
)
def test_other_policies_stay(policy: str) -> None:
    kept = {"policy": policy, "of": "theirs", "fallback": {"policy": "random"}}
    assert (
        take(proxy_to("a:1", load_balancing={"selection_policy": kept}))[0]["load_balancing"]["selection_policy"]
        == kept
    )


def test_a_policy_to_fall_back_on_is_translated_too() -> None:
    policy = {"policy": "cookie", "name": "c", "fallback": {"policy": "least_conn"}}
    handler, notes = take(proxy_to("a:1", load_balancing={"selection_policy": policy}))
    assert handler["load_balancing"]["selection_policy"] == {**policy, "fallback": {"policy": "round_robin"}}
    assert any(note.startswith("load_balancing.selection_policy.fallback: least_conn") for note in notes)


@pytest.mark.parametrize("own_id", [None, "mine"])
def test_adopting_twice_is_adopting_once_and_leaving_gives_the_handler_back(own_id: str | None) -> None:
    before = config(site("a.test", handle=proxy_to("a:1", "b:1", **({"@id": own_id} if own_id else {}))))
    pristine, service = copy.deepcopy(before), route(hosts=("a.test",))
    once, _ = adopt(before, service, find(before, service))
    assert before == pristine
    assert adopted(once, service)
    assert not adopted(before, service)
    assert not adopted(once, route(slots=5))
    assert adopt(once, service, find(once, service)) == (once, [])
    left = leave(once, service, {"a:1": 50, "b:1": 50, "c:1": 0})
    handler = handler_of(left, service)
    assert handler["upstreams"] == [{"dial": "a:1"}, {"dial": "b:1"}]
    assert "selection_policy" not in handler["load_balancing"]
    assert handler.get("@id") == own_id
    assert leave(left, service, {"a:1": 1}) == left, "leaving twice changes nothing"


def test_leaving_keeps_weights_where_they_differ_and_users_where_they_stick() -> None:
    for policy, expected in (
        ("round_robin", {"policy": "weighted_round_robin", "weights": [19, 1]}),
        ("cookie", {"policy": "cookie"}),
    ):
        before = config(site("a.test", handle=proxy_to("a:1", load_balancing={"selection_policy": {"policy": policy}})))
        once, _ = adopt(before, route(), find(before, route()))
        left = leave(once, route(), {"a:1": 95, "b:1": 5})
        assert handler_of(left, route())["load_balancing"]["selection_policy"] == expected
    with pytest.raises(CaddyRefusedError, match="no upstream has traffic"):
        leave(once, route(), {"a:1": 0})


def test_a_handler_that_went_away_in_between_is_refused() -> None:
    before = config(site("a.test", handle=proxy_to("a:1")))
    with pytest.raises(CaddyRefusedError, match=r"apps\.http\.servers\.srv0\.routes\.0"):
        adopt(config({"handle": []}), route(), find(before, route()))


def test_slots_that_something_overrides_are_not_adopted() -> None:
    handler = proxy_to(*slot_dials(route()))
    assert adopted(config(site("a.test", handle=handler)), route())
    assert not adopted(config(site("a.test", handle={**handler, "dynamic_upstreams": {"source": "a"}})), route())


names = st.text("ab.*", max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
proxies = st.builds(
    lambda dials, more, policy: proxy_to(*dials, **more, load_balancing={"selection_policy": {"policy": policy}}),
    st.lists(st.sampled_from(["a:1", "b:1"]), max_size=3),
    st.dictionaries(
        st.sampled_from(["headers", "transport", "rewrite", "@id"]), st.sampled_from(["x", "y"]), max_size=3
    ),
    st.sampled_from(["first", "least_conn", "cookie", "random"]),
)


@given(proxies, values, values)
def test_adopting_touches_nothing_outside_of_the_handler(handler: Json, rest: Any, match: Any) -> None:
    before = config(site("a.test", handle=handler), {"handle": [], "match": match}, logs=rest)
    candidate = find(before, route(hosts=("a.test",)))
    after, _ = adopt(before, route(), candidate)
    inside = "apps.http.servers.srv0.routes.0.handle.0.routes.0.handle.0."
    lines = difference(before, after)
    assert lines
    assert all(line.removeprefix("+ ").removeprefix("- ").startswith(inside) for line in lines)
    assert adopt(after, route(), candidate) == (after, [])
    kept = handler_of(after, route(hosts=("a.test",)))
    assert all(kept[key] == handler[key] for key in handler.keys() - {"upstreams", "load_balancing"})


# -- the difference ------------------------------------------------------------------------------------


@given(values, values)
def test_there_is_no_difference_exactly_between_equals(one: Any, other: Any) -> None:
    assert difference(one, copy.deepcopy(one)) == []
    assert (difference(one, other) == []) is (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


def test_the_difference_of_an_adoption_is_short_and_exact() -> None:
    before = config(site("a.test", handle=proxy_to("a:1", "b:1", health_checks={"active": {"uri": "/up"}})))
    after, _ = adopt(before, route(slots=100), find(before, route()))
    place = "apps.http.servers.srv0.routes.0.handle.0.routes.0.handle.0"
    slots = "/var/lib/trafficd/slots/web/current"
    assert difference(before, after) == [
        f"{place}.upstreams: 2 entries (a:1, b:1) -> 100 slots ({{file.{slots}/000}} to {{file.{slots}/099}})",
        f'- {place}.health_checks: {{"active": {{"uri": "/up"}}}}',
        f'+ {place}.load_balancing: {{"retry_match": [{{"not": [{{"path": ["*"]}}]}}], "try_duration": "30s", '
        '"try_interval": "0.05s"}',
        f'+ {place}.stream_close_delay: "86400s"',
        f'+ {place}.@id: "trafficd-web"',
    ]


def test_a_route_put_in_front_is_one_added_line() -> None:
    before = config({"handle": ["theirs"]}, {"handle": ["last"]})
    after = ensure(before, [route(hosts=("a.test",), listen=(":443",), slots=50)])
    lines = [line for line in difference(before, after) if ".routes." in line]
    assert len(lines) == 1
    assert lines[0].startswith("+ apps.http.servers.srv0.routes.0: ")
    assert len(lines[0]) < 2_000


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (None, {}, "(the whole configuration): null -> {}"),
        ({"a": 1}, {"a": True}, "a: 1 -> true"),
        ({"a.b": 1}, {}, '- "a.b": 1'),
        ([1, 2, 3], [1, 3], "- 1: 2"),
        ([1, 3], [1, 2, 3], "+ 1: 2"),
    ],
)
def test_lines_name_the_place(before: Any, after: Any, line: str) -> None:
    assert difference(before, after) == [line]


# -- a real Caddy --------------------------------------------------------------------------------------


def tutorial(caddy: RealCaddy) -> str:
    return f"""
    http://127.0.0.1:{caddy.port} {{
        encode gzip
        header X-Site tutorial
        reverse_proxy {caddy.dial("a")} {caddy.dial("b")} {{
            health_uri /healthz
            health_interval 10s
            lb_policy least_conn
            header_up X-Tutorial yes
        }}
    }}
    """


async def slots_of(caddy: RealCaddy, service: Route, weights: dict[str, int]) -> SlotPool:
    directory = SlotDirectory(caddy.root, "web", service.slots)
    prepare_root(caddy.root, [directory])
    pool = SlotPool(directory, OpenCounts(caddy.admin), Adopted(service))
    await pool.open()
    await pool.shift(caddy.weights(weights))
    return pool


async def load_while(caddy: RealCaddy, done: asyncio.Event) -> Any:
    url = f"http://127.0.0.1:{caddy.port}/"
    plan = Plan((RequestSpec(url, "POST", body=b"x" * 100),), connections=16, total=None, duration=60)
    return await runner.run(plan, stop=done)


async def test_a_tutorials_site_is_adopted_in_one_write_under_load_and_left_again(
    caddy: RealCaddy, tmp_path: Path
) -> None:
    config, etag = await caddy.admin.config()
    await caddy.admin.write({**(config or {}), **await caddy_adapt(tutorial(caddy), tmp_path)}, etag)
    service = caddy.route(hosts=("127.0.0.1",))
    pool = await slots_of(caddy, service, {"a": 1, "b": 1})

    stop = asyncio.Event()
    load = asyncio.create_task(load_while(caddy, stop))
    await asyncio.sleep(0.3)
    config, etag = await caddy.admin.config()
    assert config is not None
    taken, _ = adopt(config, service, find(config, service))
    await caddy.admin.write(taken, etag)
    await asyncio.sleep(0.3)
    stop.set()
    report = await load
    assert report.lost <= 2 * 16, "one change of the configuration costs about a request a connection"
    assert set(report.status) == {200}

    _, written = await caddy.admin.config()
    stop = asyncio.Event()
    load = asyncio.create_task(load_while(caddy, stop))
    for number in range(30):
        await pool.shift(caddy.weights([{"a": 1, "b": 1}, {"b": 1, "c": 1}, {"c": 1}][number % 3]))
        await asyncio.sleep(0.03)
    stop.set()
    report = await load
    assert report.sent > 300
    assert (report.lost, report.idle_closed, set(report.status)) == (0, 0, {200})
    assert caddy.upstreams["c"].hits > 0
    config, etag = await caddy.admin.config()
    assert etag == written
    assert adopted(config, service)

    await assert_open_requests_are_counted(caddy, pool)
    left = leave(config, service, caddy.weights({"a": 3, "b": 1}))
    await caddy.admin.write(left, etag)
    assert not adopted(left, service)
    async with httpx.AsyncClient(trust_env=False) as client:
        answers = [await client.get(f"http://127.0.0.1:{caddy.port}/") for _ in range(40)]
    assert Counter(answer.headers["X-Upstream"] for answer in answers) == {"a": 30, "b": 10}
    assert answers[0].headers["X-Site"] == "tutorial"
    await pool.aclose()


async def assert_open_requests_are_counted(caddy: RealCaddy, pool: SlotPool) -> None:
    """What is open on an upstream stays visible while its slots move on."""
    await pool.shift(caddy.weights({"c": 1}))
    upstream = caddy.upstreams["c"]
    upstream.mode, before = "hang", upstream.hits
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        hanging = asyncio.create_task(client.post(f"http://127.0.0.1:{caddy.port}/", content=b"x"))
        while upstream.hits == before:
            await asyncio.sleep(0.01)
        await pool.shift(caddy.weights({"a": 1}))
        assert await pool.in_flight([upstream.dial]) == {upstream.dial: InFlight(1, 0)}
        upstream.release.set()
        assert (await hanging).status_code == 200


async def test_a_site_with_certificates_of_its_own_keeps_them(tmp_path: Path) -> None:
    text = "shop.test:8443 {\n tls internal\n handle /api/* {\n reverse_proxy 10.0.0.1:80\n }\n file_server\n}\n"
    before = await caddy_adapt(text, tmp_path)
    service = route(hosts=("shop.test",))
    after, _ = adopt(before, service, find(before, service))
    assert after["apps"]["tls"] == before["apps"]["tls"]
    assert len(with_slots(after, service)) == 1
