"""The snippet for a Caddyfile: what Caddy makes of it, and that it keeps the routing over a reload."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.adopt import adopt, adopted
from proxy.candidates import candidates, find
from proxy.errors import AddressError
from proxy.handler import Json, Route, Transport, build_route
from proxy.model import InFlight
from proxy.snippet import snippet
from tests.proxy.caddy import RealCaddy, Stream
from tests.proxy.test_adopt import caddy_adapt, slots_of


def route(path: str = "/var/lib/trafficd/slots/web/current", **changes: Any) -> Route:
    return Route("web", path, **{"slots": 3, "hosts": ("example.com",), **changes})


async def imported(service: Route, directory: Path, site: str = "http://example.com", extra: str = "") -> Json:
    """A Caddyfile with the snippet, as Caddy's JSON."""
    (directory / "trafficd-web.caddy").write_text(snippet(service))
    return await caddy_adapt(f"{site} {{\n\tencode gzip\n{extra}\n\timport trafficd-web.caddy\n}}\n", directory)


def the_handler(config: Json) -> Json:
    place: Any = config
    for key in candidates(config)[0].path:
        place = place[key]
    handler: Json = place
    return handler


def requests_handler(service: Route) -> Json:
    """The handler for requests in a route of our own."""
    handler: Json = build_route(service)["handle"][0]
    if handler["handler"] == "subroute":
        handler = handler["routes"][1]["handle"][0]
    return handler


def normal(value: Any) -> Any:
    """The same meaning in one spelling: times as nanoseconds, addresses without the network."""
    match value:
        case dict():
            return {key: normal(inner) for key, inner in value.items()}
        case list():
            return [normal(inner) for inner in value]
        case str() if re.fullmatch(r"[\d.]+s", value):
            return round(float(value[:-1]) * 1e9)
        case str():
            return value.removeprefix("tcp/")
        case _:
            return value


@pytest.mark.parametrize(
    "service",
    [
        route(),
        route(slots=100, affinity="cookie"),
        route(affinity="client_ip", stream_close_delay=0.0, try_duration=2.5),
        route("/srv/my slots/web/current"),
        route(transport=Transport(h2c=True, read_timeout=5.0, write_timeout=6.0, response_header_timeout=0.25)),
        route(transport=Transport(tls=True)),
        route(transport=Transport(tls=True, server_name="in.example", insecure=True, ca="/etc/my ca/ca.pem")),
    ],
)
async def test_caddy_makes_our_handler_for_requests_of_it(service: Route, tmp_path: Path) -> None:
    config = await imported(service, tmp_path)
    handler, expected = normal(the_handler(config)), normal(requests_handler(service))
    nothing = handler["load_balancing"].pop("retry_match")
    assert nothing == [{"not": [{"path": ["*"]}]}], "another spelling of what matches nothing"
    assert expected["load_balancing"].pop("retry_match") == [{"not": [{}]}]
    assert handler == expected
    assert adopted(config, service)
    assert find(config, service).hosts == ("example.com",)


async def test_an_imported_handler_needs_no_translation(tmp_path: Path) -> None:
    config = await imported(route(), tmp_path)
    _, notes = adopt(config, route(), find(config, route()))
    assert [note.partition(":")[0] for note in notes] == ["@id"], "only what a Caddyfile cannot say"


def test_the_file_says_what_it_is_and_how_to_import_it() -> None:
    header = [line for line in snippet(route()).splitlines() if line.startswith("#")]
    assert "trafficd caddyfile web" in "\n".join(header)
    assert "#\t\timport /etc/caddy/trafficd-web.caddy" in header


@pytest.mark.parametrize("path", ["/var/lib:old/web", "/var/`/web"])
def test_paths_that_a_caddyfile_takes_for_something_else_are_refused(path: str) -> None:
    with pytest.raises(AddressError, match=r"services\.web.*state_dir"):
        snippet(route(path))


@pytest.mark.parametrize("name", ['a"b', "a{b}", "a\nb"])
def test_names_that_a_caddyfile_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(AddressError):
        snippet(route(transport=Transport(tls=True, server_name=name)))


async def reload(caddy: RealCaddy, config: Json) -> None:
    """What `caddy reload` does."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.post(f"{caddy.server.admin_url}/load", json=config)
        assert answer.status_code == 200, answer.text


async def test_an_imported_service_stays_drained_and_counted_over_a_reload(caddy: RealCaddy, tmp_path: Path) -> None:
    service = caddy.route(hosts=())
    pool = await slots_of(caddy, service, {"a": 1})
    site = f"http://:{caddy.port}"
    await reload(caddy, await imported(service, tmp_path, site))
    drained = caddy.upstreams["a"]
    drained.mode = "hang"
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        url = f"http://127.0.0.1:{caddy.port}/"
        hanging = asyncio.create_task(client.post(url, content=b"x"))
        stream = await Stream.open(caddy.port)
        while drained.hits < 2:
            await asyncio.sleep(0.01)
        both = {drained.dial: InFlight(2, 0), caddy.dial("b"): InFlight(0, 0)}
        await pool.shift(caddy.weights({"b": 1}))
        assert await pool.in_flight(both) == both, "by the address alone, without the network of the Caddyfile"

        await reload(caddy, await imported(service, tmp_path, site, extra="\theader X-New yes"))
        config, _ = await caddy.admin.config()
        assert adopted(config, service)
        async with httpx.AsyncClient(trust_env=False) as fresh:
            answers = [await fresh.get(url) for _ in range(20)]
        assert {(a.headers["X-Upstream"], a.headers["X-New"]) for a in answers} == {("b", "yes")}
        assert drained.hits == 2, "the drained upstream stays drained"
        assert await pool.in_flight(both) == both
        assert await stream.echoes()
        drained.release.set()
        assert (await hanging).status_code == 200
    stream.close()
    await pool.aclose()


async def test_a_request_that_reached_an_upstream_is_not_delivered_again(caddy: RealCaddy, tmp_path: Path) -> None:
    service = caddy.route(hosts=())
    pool = await slots_of(caddy, service, {"a": 1, "b": 1})
    await reload(caddy, await imported(service, tmp_path, f"http://:{caddy.port}"))
    for upstream in caddy.upstreams.values():
        upstream.mode = "reset"
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answers = [await client.get(f"http://127.0.0.1:{caddy.port}/{number}") for number in range(6)]
    assert [answer.status_code for answer in answers] == [502] * 6
    delivered = caddy.upstreams["a"].seen + caddy.upstreams["b"].seen
    assert delivered == {f"/{number}": 1 for number in range(6)}
    await pool.aclose()


async def test_requests_wait_while_nobody_is_ready(caddy: RealCaddy, tmp_path: Path) -> None:
    service = caddy.route(hosts=())
    pool = await slots_of(caddy, service, {})
    await reload(caddy, await imported(service, tmp_path, f"http://:{caddy.port}"))
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        waiting = [
            asyncio.create_task(client.post(f"http://127.0.0.1:{caddy.port}/", content=b"order")) for _ in range(5)
        ]
        _, pending = await asyncio.wait(waiting, timeout=0.5)
        assert len(pending) == 5
        await pool.shift(caddy.weights({"b": 1}))
        assert [(await answer).status_code for answer in waiting] == [200] * 5
    assert caddy.upstreams["b"].hits == 5
    await pool.aclose()
