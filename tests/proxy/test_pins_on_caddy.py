"""Pins on a real Caddy: who reaches what is pinned, and that nobody else does."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest

from loadtest import runner
from loadtest.model import Plan, RequestSpec
from proxy import site_config
from proxy.accessline import Answer
from proxy.accesslog import Follower
from proxy.install import install
from proxy.model import InFlight
from proxy.pins import Pin
from proxy.pools import SlotPool
from proxy.site_config import Site
from proxy.site_list import listed
from proxy.ways import Own
from tests.proxy.caddy import RealCaddy, Stream

HEADER = Pin("preview", "header", "X-Preview", ("yes", "a.b"))
COOKIE = Pin("old", "cookie", "version", ("v1", "v1.0", "a|b/c?"))
ODD = Pin("odd", "cookie", "x.y", ("(1)*",))
PINS = (HEADER, COOKIE, ODD)
PREVIEW = {"X-Preview": "yes"}


async def pinned(caddy: RealCaddy, **changes: object) -> SlotPool:
    """Everybody goes to a, the preview to b, and the cookies to c."""
    pool = await caddy.serve({"a": 1}, pins=PINS, **changes)
    await pool.shift(caddy.weights({"a": 1}), {name: caddy.weights(to) for name, to in GOES.items()})
    return pool


GOES = {"preview": {"b": 1}, "old": {"c": 1}, "odd": {"c": 1}}


def url(caddy: RealCaddy) -> str:
    return f"http://127.0.0.1:{caddy.port}/"


async def answered(caddy: RealCaddy, *headers: tuple[str, str]) -> str:
    """Who answers a request with these headers, which may come more than once."""
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=10) as client:
        answer = await client.get(url(caddy), headers=list(headers))
        assert answer.status_code == 200
        return str(answer.headers["X-Upstream"])


async def test_who_has_the_header_or_the_cookie_reaches_what_is_pinned_and_nobody_else(caddy: RealCaddy) -> None:
    await pinned(caddy)
    wanted = {
        "": "a",
        "X-Preview: yes": "b",
        "x-preview: a.b": "b",
        "X-Preview: no": "a",
        "X-Preview: YES": "a",
        "X-Preview: yes, no": "a",
        "X-Preview: yesno": "a",
        "X-Preview: aXb": "a",
        "X-Preview: *": "a",
        "X-Preview: {env.HOME}": "a",
        "X-Previews: yes": "a",
        "Cookie: X-Preview=yes": "a",
        "Cookie: version=v1": "c",
        "Cookie: version=v1; other=2": "c",
        "Cookie: other=1; version=v1.0": "c",
        "Cookie: other=1;version=v1;b=2": "c",
        'Cookie: a=1; version="v1"': "c",
        "Cookie: version=a|b/c?": "c",
        "Cookie: x.y=(1)*": "c",
        "Cookie: version=v0; version=v1": "c",
        "Cookie: version=v1x": "a",
        "Cookie: version=v1.0.1": "a",
        "Cookie: version=v1X0": "a",
        "Cookie: version=v": "a",
        "Cookie: version=": "a",
        "Cookie: version": "a",
        "Cookie: version=xv1": "a",
        "Cookie: version=a": "a",
        "Cookie: version=b/c?": "a",
        'Cookie: version="v1': "a",
        'Cookie: version=v1"': "a",
        "Cookie: Version=v1": "a",
        "Cookie: xversion=v1": "a",
        "Cookie: my-version=v1": "a",
        "Cookie: other=version=v1": "a",
        "Cookie: other=x version=v1": "a",
        "Cookie: other=x, version=v1": "a",
        "Cookie: version=v1 v2": "a",
        "Cookie: version=v1, x": "a",
        "Cookie: xXy=(1)*": "a",
        "Cookie: x.y=1": "a",
        "version: v1": "a",
        "X-Version: version=v1": "a",
    }
    found = {}
    for line in wanted:
        name, _, value = line.partition(": ")
        found[line] = await answered(caddy, *([(name, value)] if name else []))
    assert found == wanted


async def test_headers_that_come_twice_and_who_has_the_signs_of_two_pins(caddy: RealCaddy) -> None:
    await pinned(caddy)
    assert await answered(caddy, ("X-Preview", "no"), ("X-Preview", "yes")) == "b"
    assert await answered(caddy, ("Cookie", "a=b"), ("Cookie", "version=v1")) == "c"
    assert await answered(caddy, ("Cookie", "version=v1"), ("X-Preview", "yes")) == "b", "the first pin is asked first"


async def test_while_nothing_is_pinned_a_pin_is_served_as_everybody(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 1, "b": 1}, pins=PINS)
    async with httpx.AsyncClient(trust_env=False, headers=PREVIEW) as client:
        answers = Counter([(await client.get(url(caddy))).headers["X-Upstream"] for _ in range(24)])
        assert answers == {"a": 12, "b": 12}
        await pool.shift(caddy.weights({"a": 1, "b": 1}), {"preview": caddy.weights({"c": 1})})
        assert (await client.get(url(caddy))).headers["X-Upstream"] == "c"
        await pool.shift(caddy.weights({"b": 1}))
        assert (await client.get(url(caddy))).headers["X-Upstream"] == "b"


async def test_shifts_of_pins_under_load_lose_nothing_touch_nobody_else_and_no_configuration(caddy: RealCaddy) -> None:
    pool = await pinned(caddy)
    _, before = await caddy.admin.config()
    stop = asyncio.Event()
    specs = {
        "everybody": RequestSpec(url(caddy), "POST", body=b"x" * 100),
        "preview": RequestSpec(url(caddy), "POST", (("X-Preview", "yes"),), b"x" * 100),
    }
    loads = [
        asyncio.create_task(runner.run(Plan((spec,), connections=8, total=None, duration=60), stop=stop))
        for spec in specs.values()
    ]
    for number in range(30):
        to = [{"b": 1}, {"b": 1, "c": 1}, {"c": 1}][number % 3]
        await pool.shift(caddy.weights({"a": 1}), {"preview": caddy.weights(to)})
        await asyncio.sleep(0.03)
    stop.set()
    everybody, preview = await asyncio.gather(*loads)
    for report in (everybody, preview):
        assert report.sent > 200
        assert (report.lost, set(report.status), report.idle_closed) == (0, {200}, 0)
    hits = {name: upstream.hits for name, upstream in caddy.upstreams.items()}
    assert (hits["a"], hits["b"] + hits["c"]) == (everybody.sent, preview.sent)
    assert min(hits["b"], hits["c"]) > 0
    assert (await caddy.admin.config())[1] == before
    await pool.aclose()


async def test_pinned_requests_wait_while_nobody_serves_and_for_what_is_dead(caddy: RealCaddy) -> None:
    pool = await pinned(caddy)
    await caddy.upstreams["b"].stop()
    waiting = [asyncio.create_task(answered(caddy, ("X-Preview", "yes"))) for _ in range(5)]
    _, pending = await asyncio.wait(waiting, timeout=0.5)
    assert len(pending) == 5
    await pool.shift({})
    waiting += [asyncio.create_task(answered(caddy, *PREVIEW.items())) for _ in range(5)]
    _, pending = await asyncio.wait(waiting, timeout=0.5)
    assert len(pending) == 10
    await pool.shift(caddy.weights({"a": 1}))
    assert [await one for one in waiting] == ["a"] * 10


@pytest.mark.parametrize("affinity", ["none", "cookie"])
async def test_pinned_requests_and_streams_are_counted(caddy: RealCaddy, affinity: str) -> None:
    pool = await pinned(caddy, affinity=affinity)
    stream = await Stream.open(caddy.port, more="X-Preview: yes\r\n")
    assert await stream.echoes()
    assert (caddy.upstreams["a"].streams, caddy.upstreams["b"].streams) == (0, 1)
    caddy.upstreams["b"].mode = "hang"
    hanging = asyncio.create_task(answered(caddy, *PREVIEW.items()))
    while caddy.upstreams["b"].hits < 2:
        await asyncio.sleep(0.01)
    await pool.shift(caddy.weights({"a": 1}))
    assert await stream.echoes(), "it lives on where it was"
    counts = await pool.in_flight([caddy.dial("a"), caddy.dial("b")])
    # With an affinity streams are counted as requests, those of pins too.
    assert counts[caddy.dial("b")] == (InFlight(1, 1) if affinity == "none" else InFlight(2, 0))
    caddy.upstreams["b"].release.set()
    assert await hanging == "b"
    stream.close()


@pytest.mark.parametrize("hosts", [(), ("127.0.0.1", "x")])
async def test_the_log_tells_pinned_requests_by_the_name_of_their_pin(
    caddy: RealCaddy, tmp_path: Path, hosts: tuple[str, ...]
) -> None:
    path = tmp_path / "log" / "access.log"
    path.parent.mkdir()
    follower = Follower(path)
    await pinned(caddy, access_log=str(path), hosts=hosts)
    caddy.upstreams["c"].mode = "truncate"
    load = ("X-Trafficd-Stratum", "load")
    assert await answered(caddy) == "a"
    assert await answered(caddy, load) == "a"
    assert await answered(caddy, ("X-Preview", "yes")) == "b"
    assert await answered(caddy, ("X-Preview", "yes"), load) == "b"
    with pytest.raises(httpx.RemoteProtocolError):  # where all that is logged on the way back is lost
        await answered(caddy, ("Cookie", "version=v1"))
    stream = await Stream.open(caddy.port, more="X-Preview: yes\r\n")
    stream.close()
    found: list[Answer] = []
    async with asyncio.timeout(5):
        while len(found) < 6:
            found += follower.read()
            await asyncio.sleep(0.01)
    follower.close()
    dial = caddy.dial
    assert Counter((one.stratum, one.upstream, one.truncated) for one in found) == {
        ("", dial("a"), False): 1,
        ("load", dial("a"), False): 1,
        ("preview", dial("b"), False): 3,
        ("old", dial("c"), True): 1,
    }
    assert {(one.service, one.answered) for one in found if one.status == 200} == {("web", True)}
    assert path.read_text().count('"stratum"') == len(found), "each says it once"


async def test_who_leaves_has_no_pins_and_who_comes_back_has_them(caddy: RealCaddy) -> None:
    pool = await pinned(caddy)
    way = Own(caddy.route(pins=PINS))
    weights = caddy.weights({"a": 1})
    assert await caddy.admin.edit(lambda config: way.leave(config, weights))
    assert not await caddy.admin.edit(lambda config: way.leave(config, weights))
    config, _ = await caddy.admin.config()
    assert not way.present(config)
    assert "/slots/web/" not in str(config)
    assert "X-Preview" not in str(config)
    assert await answered(caddy, *PREVIEW.items()) == "a"
    assert (await install(caddy.admin, [way], caddy.root)).written
    assert await answered(caddy, *PREVIEW.items()) == "b"
    await pool.aclose()


async def test_a_site_of_the_service_has_its_pins_and_the_list_names_it_once(caddy: RealCaddy) -> None:
    await pinned(caddy, hosts=("web.test",))
    await caddy.admin.edit(lambda config: site_config.put(config, Site("shop.test", "web")))
    assert await answered(caddy, ("Host", "shop.test"), *PREVIEW.items()) == "b"
    assert await answered(caddy, ("Host", "shop.test")) == "a"
    found = [one for one in listed((await caddy.admin.config())[0], []) if one.name == "shop.test"]
    assert [one.answers for one in found] == [("service web",)]
