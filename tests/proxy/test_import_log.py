"""The log that comes with an imported snippet: Caddy makes ours of it, and the site's own stays as it is."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy import import_log, logged
from proxy.accessline import Answer, Cut
from proxy.accesslog import Follower
from proxy.errors import AddressError
from proxy.handler import Json, Route
from proxy.install import wanted
from proxy.snippet import snippet
from proxy.ways import Imported
from tests.proxy.caddy import RealCaddy
from tests.proxy.test_adopt import caddy_adapt, slots_of
from tests.proxy.test_snippet import imported, reload, route, the_handler

WAIT = 5.0  # s within which Caddy has written a line


async def test_caddy_makes_our_logger_and_fields_of_it(tmp_path: Path) -> None:
    service = route(access_log="/var/log/my caddy/trafficd.log")
    config = await imported(service, tmp_path)
    made, ours = config["logging"]["logs"]["trafficd-web"], logged.logger("/var/log/my caddy/trafficd.log")
    assert made["encoder"] == ours["encoder"]
    assert made["writer"].pop("roll_gzip") is False, "another spelling of no compression"
    assert made["writer"] | {"roll_compression": "none"} == ours["writer"]
    assert the_handler(config)["handle_response"] == logged.answered()
    assert _log_appends(config) == logged.fields("web")
    assert import_log.unlogged(config, service) is None
    assert not wanted(config, [Imported(service)], None)[1].unlogged


def _log_appends(part: Any) -> list[Json]:
    """Those outside of the handler, in their order."""
    if isinstance(part, list):
        return [one for inner in part for one in _log_appends(inner)]
    if not isinstance(part, dict) or part.get("handler") == "reverse_proxy":
        return []
    return [part] if part.get("handler") == "log_append" else _log_appends(list(part.values()))


async def test_a_snippet_from_before_is_said_to_log_nothing(tmp_path: Path) -> None:
    config = await imported(route(), tmp_path)
    assert import_log.unlogged(config, route()) is None, "none is asked for"
    for service in (route(access_log="/var/log/trafficd.log"), route(access_log="/var/log/other.log")):
        told = wanted(config, [Imported(service)], None)[1].unlogged["web"]
        assert "trafficd caddyfile web" in told
        config = await imported(route(access_log="/var/log/trafficd.log"), tmp_path)


async def test_sites_have_their_logs_and_services_theirs(tmp_path: Path) -> None:
    """Two services write into one file, and a site's own log goes on."""
    for name in ("web", "shop"):
        service = Route(name, f"/srv/{name}/current", slots=2, access_log="/var/log/trafficd.log")
        (tmp_path / f"{name}.caddy").write_text(snippet(service))
    text = "http://a.test {\n\tlog\n\timport web.caddy\n}\nhttp://b.test {\n\timport shop.caddy\n}\n"
    config = await caddy_adapt(text + "http://c.test {\n\trespond hi\n}\n", tmp_path)
    (server,) = config["apps"]["http"]["servers"].values()
    names = server["logs"]["logger_names"]
    assert (names["a.test"], names["b.test"]) == (["", "trafficd-web"], ["trafficd-shop"])
    loggers = config["logging"]["logs"]
    assert {loggers[f"trafficd-{name}"]["writer"]["filename"] for name in ("web", "shop")} == {"/var/log/trafficd.log"}


async def test_a_log_that_takes_the_place_of_ours_is_said(tmp_path: Path) -> None:
    service = route(access_log="/var/log/trafficd.log", hosts=())
    (tmp_path / "trafficd-web.caddy").write_text(snippet(service))
    config = await caddy_adapt("http://:8080 {\n\timport trafficd-web.caddy\n\tlog\n}\n", tmp_path)
    assert "a `log` after the import" in (import_log.unlogged(config, service) or "")
    config = await caddy_adapt("http://:8080 {\n\timport trafficd-web.caddy\n}\n", tmp_path)
    assert import_log.unlogged(config, service) is None


@pytest.mark.parametrize("path", ["/var/log/`x.log", "/var/log/{x}.log", '/var/log/"x.log'])
def test_a_file_that_a_caddyfile_cannot_name_is_refused(path: str) -> None:
    with pytest.raises((AddressError, ValueError), match=re.escape(path)):
        snippet(route(access_log=path))


async def test_answers_of_an_imported_handler_are_their_upstreams(caddy: RealCaddy, tmp_path: Path) -> None:
    path, theirs = tmp_path / "access.log", tmp_path / "theirs.log"
    follower = Follower(path)
    service = caddy.route(hosts=(), access_log=str(path))
    pool = await slots_of(caddy, service, {"a": 1})
    extra = f"\tlog {{\n\t\toutput file {theirs}\n\t}}\n\trespond /hello hi"
    await reload(caddy, await imported(service, tmp_path, f"http://127.0.0.1:{caddy.port}", extra))
    caddy.upstreams["b"].mode = "truncate"
    async with httpx.AsyncClient(trust_env=False, base_url=f"http://127.0.0.1:{caddy.port}", timeout=10) as client:
        for text in ("/one?secret=1", "/hello"):
            assert (await client.get(text, headers={"X-Trafficd-Stratum": "load"})).status_code == 200
        await pool.shift(caddy.weights({"b": 1}))
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/two")
    one, hello, two = await _answers(follower, 3)
    assert (one.service, one.upstream, one.path, one.status) == ("web", caddy.dial("a"), "/one", 200)
    assert (one.stratum, one.retries, one.cut, one.answered) == ("load", 0, Cut.NO, True)
    assert one.latency is not None
    assert hello.upstream is None, "answered by the site itself"
    assert (two.upstream, two.truncated, two.answered) == (caddy.dial("b"), True, True)
    assert "secret" not in path.read_text()
    assert theirs.read_text().count("handled request") == 3


async def _answers(follower: Follower, count: int) -> list[Answer]:
    found: list[Answer] = []
    try:
        async with asyncio.timeout(WAIT):
            while len(found) < count:
                found += follower.read()
                await asyncio.sleep(0.01)
    finally:
        follower.close()
    return found
