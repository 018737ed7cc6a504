"""Sites by the HTTP API and the command line, over a real Caddy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.admin import Admin
from proxy.sites import COST, Sites
from tests.proxy.caddy import RealCaddy
from tests.proxy.shop import SHOP, Shop
from tests.trafficd.conftest import Begin
from tests.trafficd.home import Home, section
from tests.trafficd.test_cli import only_json, trafficd


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    directory = tmp_path / "proxy"
    directory.mkdir()
    caddy = RealCaddy(directory)
    await caddy.start()
    shop = Shop(caddy, directory)
    await shop.start()
    yield shop
    await caddy.aclose()


@pytest.fixture
async def manned(tmp_path: Path, shop: Shop) -> AsyncIterator[Home]:
    """A daemon's inside over this Caddy."""
    home = Home(tmp_path, {"web": section()})
    home.sites = shop.sites
    await home.start()
    yield home
    await home.stop()


# -- the API -----------------------------------------------------------------------------------------------


async def test_a_site_is_added_listed_and_removed(manned: Home, shop: Shop) -> None:
    pair = shop.pair(SHOP)
    body = {"name": SHOP.upper(), "service": "web", "certificate": str(pair.certificate), "key": str(pair.key)}
    added = await manned.post("/v1/sites", body)
    told: dict[str, Any] = {"name": SHOP, "warnings": []}
    assert (added.status, added.json) == (200, {**told, "changed": True, "changes": 1, "cost": COST})
    again = await manned.post("/v1/sites", body)
    unchanged = {**told, "changed": False, "changes": 0, "cost": None}
    assert (again.status, again.json) == (200, unchanged)

    listed = {one["name"]: one for one in (await manned.get("/v1/sites")).json["sites"]}
    assert set(listed) == {SHOP, "web.test", "theirs.test"}
    certificate = listed[SHOP].pop("certificate")
    assert listed[SHOP] == {
        "name": SHOP,
        "server": "srv0",
        "listen": [f"127.0.0.1:{shop.caddy.port}"],
        "service": "web",
        "answers": ["service web"],
        "managed_by": "site",
        "tls": "own",
        "note": "",
    }
    assert (certificate["place"], certificate["names"]) == (str(pair.certificate), [SHOP])
    assert certificate["not_after"] > 1.7e9
    assert [listed[name]["managed_by"] for name in ("web.test", "theirs.test")] == ["service", "other"]
    assert await shop.served(SHOP) == (pair.der, "a GET 0")

    removed = await manned.ask("DELETE", f"/v1/sites/{SHOP}")
    assert (removed.status, removed.json["changes"]) == (200, 1)
    assert (await manned.ask("DELETE", f"/v1/sites/{SHOP}")).json == unchanged


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"name": SHOP}, 422, "service"),
        ({"name": "{env.HOME}.test", "service": "web"}, 422, "name"),
        ({"name": "shop.test:443", "service": "web"}, 422, "not a public host name"),
        ({"name": 1, "service": "web"}, 422, "name"),
        ({"name": SHOP, "service": "nope"}, 404, "the configuration has: web"),
        ({"name": SHOP, "service": "../web"}, 422, "service"),
        ({"name": SHOP, "service": "web", "certificate": "/a.pem"}, 422, "give certificate and key"),
        ({"name": SHOP, "service": "web", "certificate": "a.pem", "key": "/a.key"}, 422, "absolute path"),
        ({"name": SHOP, "service": "web", "certificate": "/{env.X}", "key": "/a.key"}, 422, "absolute path"),
        ({"name": SHOP, "service": "web", "certificate": "/no.pem", "key": "/no.key"}, 422, "/no.pem"),
        ({"name": SHOP, "service": "web", "email": "x@y.test"}, 422, "no such field"),
        ({"name": "theirs.test", "service": "web"}, 409, "theirs"),
        ({"name": "web.test", "service": "web"}, 409, "services.web.hosts"),
    ],
)
async def test_what_cannot_be_added_writes_nothing(
    manned: Home, shop: Shop, body: dict[str, Any], status: int, says: str
) -> None:
    etag = await shop.etag()
    answer = await manned.post("/v1/sites", body)
    assert (answer.status, answer.kind) == (status, "application/problem+json")
    assert says in answer.detail
    assert await shop.etag() == etag


async def test_what_cannot_be_removed_writes_nothing(manned: Home, shop: Shop) -> None:
    etag = await shop.etag()
    for name, status, says in (
        ("web.test", 409, "services.web.hosts"),
        ("theirs.test", 409, "not a site that trafficd added"),
        ("%7Benv.HOME%7D.test", 404, "there is nothing at"),
        ("a%2Fb.test", 404, "not a public host name"),
    ):
        answer = await manned.ask("DELETE", f"/v1/sites/{name}")
        assert (answer.status, says in answer.detail) == (status, True), answer
    assert await shop.etag() == etag


async def test_without_a_caddy_that_answers(begin: Begin, tmp_path: Path) -> None:
    home = await begin()
    assert (await home.get("/v1/sites")).status == 503
    admin = Admin("http://127.0.0.1:9", timeout=1.0)
    home.sites = Sites(admin, tmp_path / "sites.json")
    await home.restart()
    for answer in (await home.get("/v1/sites"), await home.post("/v1/sites", {"name": SHOP, "service": "web"})):
        assert (answer.status, "cannot be reached" in answer.detail) == (503, True)
    (tmp_path / "sites.json").write_text("damaged")
    damaged = await home.post("/v1/sites", {"name": SHOP, "service": "web"})
    assert (damaged.status, "sites.json" in damaged.detail) == (503, True)
    await admin.aclose()


# -- the command line --------------------------------------------------------------------------------------


async def test_the_command_line(manned: Home, shop: Shop) -> None:
    pair = shop.pair(SHOP)
    files = ("--certificate", str(pair.certificate), "--key", str(pair.key))
    added = await trafficd(manned, "site", "add", SHOP, "--service", "web", *files)
    assert (added.exit_code, added.stderr) == (0, "")
    assert added.stdout == f"{SHOP} is added\n  cost: {COST}\n"
    again = await trafficd(manned, "site", "add", SHOP, "--service", "web", *files)
    assert again.stdout == f"{SHOP} is there already, just so\n  nothing was written\n"
    listed = await trafficd(manned, "site", "list")
    assert listed.exit_code == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in listed.stdout.splitlines()}
    assert "service web own:" in lines[SHOP]
    assert "trafficd site" in lines[SHOP]
    assert "internal services.web" in lines["web.test"]
    assert "static_response internal others" in lines["theirs.test"]
    as_json = only_json(await trafficd(manned, "site", "list", "--json"))
    assert {one["name"] for one in as_json["sites"]} == {SHOP, "web.test", "theirs.test"}
    assert only_json(await trafficd(manned, "site", "remove", SHOP, "--json"))["changes"] == 1
    gone = await trafficd(manned, "site", "remove", SHOP)
    assert (gone.exit_code, "nothing was written" in gone.stdout) == (0, True)


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("site add shop.test", 2, "--service"),
        ("site add shop.test --service nope", 2, "the configuration has: web"),
        ("site add {env.X} --service web", 2, "not a public host name"),
        ("site add shop.test --service web --certificate /no.pem --key /no.key", 2, "/no.pem"),
        ("site add theirs.test --service web", 1, "theirs"),
        ("site remove web.test", 1, "services.web.hosts"),
        ("site remove ../../x", 2, "not a public host name"),
    ],
)
async def test_what_the_command_line_is_refused(manned: Home, shop: Shop, command: str, status: int, says: str) -> None:
    etag = await shop.etag()
    result = await trafficd(manned, *command.split())
    assert (result.exit_code, result.stdout) == (status, "")
    assert says in result.stderr
    assert await shop.etag() == etag


async def test_the_help_says_what_a_change_costs(home: Home) -> None:
    for command in ("add", "remove"):
        text = " ".join((await trafficd(home, "site", command, "--help")).stdout.split())
        assert COST in text
