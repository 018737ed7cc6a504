"""How a service stands in Caddy's configuration, and what is written for it, in one write or none."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import httpx
import pytest

from proxy import maintenance
from proxy.errors import CaddyRefusedError, SlotsNotResolvedError
from proxy.handler import PROBE_ID, Json, Route, route_ids
from proxy.install import install, prepare_root, wanted
from proxy.maintenance import StaticAnswer
from proxy.model import InFlight
from proxy.pools import OpenCounts, SlotPool
from proxy.slots import SlotDirectory
from proxy.ways import Adopted, ByAdmin, Imported, Own, Way
from tests.proxy.caddy import RealCaddy
from tests.proxy.test_adopt import config, proxy_to, site


def route(service: str = "web", **changes: Any) -> Route:
    return Route(service, f"/var/lib/trafficd/slots/{service}/current", **{"slots": 4, **changes})


def placed(way: Way, before: Json | None) -> Json:
    edited: Json = copy.deepcopy(before) if before else {}
    way.put(edited)
    return edited


# -- pure ----------------------------------------------------------------------------------------------


def test_one_that_cannot_be_placed_keeps_nobody_else_out() -> None:
    before = config(site("a.test", handle=proxy_to("a:1")), site("b.test", handle=proxy_to("b:1")))
    ways: list[Way] = [
        Adopted(route("one", hosts=("a.test",))),
        Adopted(route("two", hosts=("c.test",))),
        Own(route("three")),
    ]
    edited, told = wanted(before, ways, None)
    assert set(told.refused) == {"two"}
    assert set(told.notes) == {"one"}
    assert ways[0].present(edited)
    assert ways[2].present(edited)
    assert not told.proving


def test_a_refused_route_leaves_no_trace() -> None:
    before = config({"handle": []}, automatic_https={"disable": True})
    edited, told = wanted(before, [Own(route(hosts=("a.test",), tls="auto", listen=(":443",)))], None)
    assert set(told.refused) == {"web"}
    assert edited == before


def test_an_import_is_looked_for_and_never_written() -> None:
    way = Imported(route(hosts=("a.test",)))
    before = config(site("a.test", handle=proxy_to("a:1")))
    edited, told = wanted(before, [way], None)
    assert edited == before
    assert "trafficd caddyfile web" in told.refused["web"]
    dials = [f"tcp/{{file./var/lib/trafficd/slots/web/current/{n:03d}}}" for n in range(4)]
    there = config(site("a.test", handle=proxy_to(*dials)))
    assert way.present(there)
    assert wanted(there, [way], None)[1].refused == {}
    with pytest.raises(CaddyRefusedError, match="reverse_proxy a:1"):
        way.leave(there, {"a:1": 1})


@pytest.mark.parametrize("way", [Own(route()), ByAdmin(route(), lambda: {"a:1": 1})], ids=["own", "admin"])
def test_a_route_of_our_own_is_left_with_plain_upstreams_and_taken_up_again(way: Way) -> None:
    before = placed(way, None)
    assert way.present(before)
    left = way.leave(before, {"a:1": 2, "b:1": 2})
    assert not way.present(left)
    assert '"{' not in str(left["apps"]).replace("'", '"'), "not one placeholder is left"
    assert way.leave(left, {"a:1": 2, "b:1": 2}) == left
    assert placed(way, left) == before
    with pytest.raises(CaddyRefusedError, match="nobody"):
        way.leave(before, {"a:1": 0})


def test_the_answer_for_any_host_comes_after_those_for_some() -> None:
    edited: Json = {}
    answers = [(route("any"), StaticAnswer(body="any")), (route("web", hosts=("a.test",)), StaticAnswer(body="web"))]
    assert maintenance.put(edited, 20_001, answers) == "127.0.0.1:20001"
    assert maintenance.put(edited, 20_002, answers) == "127.0.0.1:20001", "it stays where it is"
    bodies = [r["handle"][0]["body"] for r in edited["apps"]["http"]["servers"][maintenance.SERVER_ID]["routes"]]
    assert bodies == ["web", "any"]


# -- on a real Caddy -----------------------------------------------------------------------------------


async def test_a_failed_proof_gives_back_the_very_configuration(caddy: RealCaddy) -> None:
    prepare_root(caddy.root, [SlotDirectory(caddy.root, "web", 12)])
    theirs = {
        "listen": [f"127.0.0.1:{caddy.port}"],
        "routes": [{"handle": [proxy_to(caddy.dial("a"), health_checks={"passive": {"max_fails": 3}})]}],
    }
    before, etag = await caddy.admin.config()
    assert before is not None
    await caddy.admin.write({**before, "apps": {"http": {"servers": {"theirs": theirs}}}}, etag)
    _, etag = await caddy.admin.config()
    with pytest.raises(SlotsNotResolvedError, match="mount"):
        await install(caddy.admin, [Adopted(caddy.route())], caddy.root, "/elsewhere")
    assert (await caddy.admin.config())[1] == etag


async def test_what_was_proved_of_this_caddy_is_not_proved_again_after_a_reload(caddy: RealCaddy) -> None:
    prepare_root(caddy.root, [SlotDirectory(caddy.root, "web", 12)])
    await install(caddy.admin, [Own(caddy.route())], caddy.root)
    config, etag = await caddy.admin.config()
    assert config is not None
    config["apps"]["http"]["servers"] = {}
    await caddy.admin.write(config, etag)
    assert (await install(caddy.admin, [Own(caddy.route())], caddy.root)).written
    assert route_ids((await caddy.admin.config())[0]) == {"trafficd-web"}
    # Another process is another matter.
    await caddy.server.stop()
    await caddy.server.start()
    await install(caddy.admin, [Own(caddy.route())], caddy.root)
    assert route_ids((await caddy.admin.config())[0]) == {"trafficd-web", PROBE_ID}


async def test_what_goes_elsewhere_is_not_counted(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 1})
    assert await pool.in_flight([caddy.dial("a")]) == {caddy.dial("a"): InFlight(0, 0)}
    config, etag = await caddy.admin.config()
    assert config is not None
    config["apps"]["http"]["servers"].pop("trafficd")
    await caddy.admin.write(config, etag)
    fresh = SlotPool(SlotDirectory(caddy.root, "web", 12), OpenCounts(caddy.admin), Own(caddy.route()))
    assert await fresh.in_flight([caddy.dial("a")]) == {caddy.dial("a"): None}


async def test_maintenance_by_slots_changes_nothing_in_caddy(caddy: RealCaddy) -> None:
    pool = await caddy.serve({"a": 1, "b": 1})
    address = ""

    def change(config: Json | None) -> Json:
        nonlocal address
        edited: Json = copy.deepcopy(config) if config else {}
        address = maintenance.put(edited, 20_003, [(caddy.route(), StaticAnswer(503, "closed {x}", retry_after=60))])
        return edited

    assert await caddy.admin.edit(change)
    assert not await caddy.admin.edit(change)
    _, etag = await caddy.admin.config()
    url = f"http://127.0.0.1:{caddy.port}/"
    async with httpx.AsyncClient(trust_env=False) as client:
        await pool.shift({address: 1})
        answer = await client.post(url, content=b"x" * 300_000)
        assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (503, "closed {x}", "60")
        await pool.shift(caddy.weights({"a": 1, "b": 1}))
        answers = Counter([(await client.get(url)).headers["X-Upstream"] for _ in range(12)])
    assert answers == {"a": 6, "b": 6}
    assert (await caddy.admin.config())[1] == etag
