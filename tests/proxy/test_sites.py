"""Public names on a real Caddy: added, served with their own certificate, listed, removed, nobody else's touched."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as form

from proxy.admin import Admin
from proxy.admin_pool import AdminPool
from proxy.errors import (
    AddressError,
    CaddyRefusedError,
    CertificateError,
    ConfigConflictError,
    ProxyError,
    SiteBookError,
    SiteRefusedError,
)
from proxy.handler import Json, present, remove
from proxy.install import install
from proxy.pools import OpenCounts
from proxy.site_list import Tls
from proxy.sites import Sites
from proxy.ways import ByAdmin, Own
from tests.proxy.caddy import RealCaddy
from tests.proxy.shop import SHOP, Shop
from trafficd.demo.stage import free_ports


@pytest.fixture
async def shop(caddy: RealCaddy, tmp_path: Path) -> Shop:
    shop = Shop(caddy, tmp_path)
    await shop.start()
    return shop


# -- a certificate of its own ------------------------------------------------------------------------------


async def test_a_site_is_served_with_its_certificate_by_the_service_and_moves_with_it(shop: Shop) -> None:
    before = await shop.config()
    pair = shop.pair(SHOP)
    change = await shop.sites.add("Shop.Test", "web", *pair.paths)
    assert (change.name, change.changed, change.warnings) == (SHOP, True, ())
    assert await shop.served(SHOP) == (pair.der, "a GET 0")
    await shop.pool.shift(shop.caddy.weights({"b": 1}))
    assert (await shop.served(SHOP))[1] == "b GET 0"

    assert (await shop.served("web.test"))[1] == "b GET 0", "others keep their TLS"
    assert (await shop.served("theirs.test"))[1] == "theirs"
    key = pair.key.read_text()
    assert key.splitlines()[1] not in str(await shop.config()), "no key in the configuration"

    listed = await shop.listed(SHOP)
    assert (listed.service, listed.answers, listed.managed_by) == ("web", ("service web",), "site")
    assert (listed.tls, listed.note, listed.server) == (Tls.OWN, "", "srv0")
    assert listed.loaded is not None
    assert listed.loaded.place == str(pair.certificate)
    assert listed.loaded.certificate is not None
    assert listed.loaded.certificate.names == (SHOP,)

    assert (await shop.sites.remove(SHOP)).changed
    assert await shop.config() == before, "nothing is left of it"
    with pytest.raises(ssl.SSLError):
        await shop.served(SHOP)


async def test_repeating_changes_nothing(shop: Shop) -> None:
    pairs = {name: shop.pair(name) for name in ("one.test", "two.test", "three.test")}
    for name, pair in pairs.items():
        assert (await shop.sites.add(name, "web", *pair.paths)).changed
    await shop.sites.add("plain.test", "web")
    etag = await shop.etag()
    for name, pair in pairs.items():
        assert not (await shop.sites.add(name, "web", *pair.paths)).changed
    assert not (await shop.sites.add("plain.test", "web")).changed
    assert not (await shop.sites.remove("never.test")).changed
    assert await shop.etag() == etag
    for name, pair in pairs.items():
        assert (await shop.served(name))[0] == pair.der
    assert (await shop.sites.remove("two.test")).changed
    assert not (await shop.sites.remove("two.test")).changed
    assert (await shop.served("three.test"))[0] == pairs["three.test"].der


async def test_a_renewed_file_is_loaded_by_adding_again(shop: Shop) -> None:
    pair = shop.pair(SHOP)
    await shop.sites.add(SHOP, "web", *pair.paths)
    renewed = shop.pair(SHOP)
    for old, new in ((pair.certificate, renewed.certificate), (pair.key, renewed.key)):
        old.write_bytes(new.read_bytes())
    assert (await shop.served(SHOP))[0] == pair.der, "Caddy reads the file when its configuration changes"
    assert "add the site again" in (await shop.listed(SHOP)).note
    assert (await shop.sites.add(SHOP, "web", *pair.paths)).changed
    assert (await shop.served(SHOP))[0] == renewed.der
    assert (await shop.listed(SHOP)).note == ""


async def test_of_two_certificates_with_the_name_the_sites_own_is_served(shop: Shop) -> None:
    both, one = shop.pair("other.test", SHOP), shop.pair(SHOP)
    await shop.sites.add("other.test", "web", *both.paths)
    await shop.sites.add(SHOP, "web", *one.paths)
    for _ in range(3):
        assert (await shop.served(SHOP))[0] == one.der
        assert (await shop.served("other.test"))[0] == both.der
    await shop.sites.remove(SHOP)
    assert (await shop.served("other.test"))[0] == both.der
    await shop.sites.add(SHOP, "web", *both.paths)
    await shop.sites.remove("other.test")
    assert (await shop.served(SHOP))[0] == both.der, "a file that another site uses stays loaded"


async def test_a_wildcard_and_a_name_under_it(shop: Shop) -> None:
    wild, one, two = (shop.pair(name) for name in ("*.shop.test", "a.shop.test", "c.shop.test"))
    await shop.sites.add("a.shop.test", "web", *one.paths)
    await shop.sites.add("*.shop.test", "web", *wild.paths)
    await shop.sites.add("c.shop.test", "web", *two.paths)
    assert await shop.served("c.shop.test") == (two.der, "a GET 0")
    assert await shop.served("a.shop.test") == (one.der, "a GET 0")
    assert await shop.served("b.shop.test") == (wild.der, "a GET 0")
    ids = [route["@id"] for route in (await shop.config())["apps"]["http"]["servers"]["srv0"]["routes"]]
    site = "trafficd-site:web:"
    assert ids == ["trafficd-web", f"{site}a.shop.test", f"{site}c.shop.test", f"{site}*.shop.test", "theirs"]


async def test_a_certificate_that_changes_what_others_are_served_with_is_a_warning(shop: Shop) -> None:
    change = await shop.sites.add(SHOP, "web", *shop.pair(SHOP, "web.test", "elsewhere.test").paths)
    assert [text for text in change.warnings if "covers web.test too" in text]
    soon = shop.pair("soon.test", not_after=datetime.now(UTC) + timedelta(days=3))
    soon.key.chmod(0o644)
    warnings = (await shop.sites.add("soon.test", "web", *soon.paths)).warnings
    assert ["expires at" in warnings[0], "chmod o-r" in warnings[1]] == [True, True]


# -- without one -------------------------------------------------------------------------------------------


async def test_without_a_certificate_caddy_gets_one_itself(shop: Shop) -> None:
    before = (await shop.config())["apps"]["tls"]
    assert (await shop.sites.add(SHOP, "web")).changed
    config = await shop.config()
    assert config["apps"]["tls"] == before, "no e-mail, no on-demand TLS, no policy"
    assert "tls_connection_policies" not in config["apps"]["http"]["servers"]["srv0"]
    async with asyncio.timeout(10):
        while True:
            try:
                assert (await shop.served(SHOP))[1] == "a GET 0"
                break
            except ssl.SSLError:
                await asyncio.sleep(0.05)
    assert (await shop.listed(SHOP)).tls is Tls.INTERNAL
    pair = shop.pair(SHOP)
    assert (await shop.sites.add(SHOP, "web", *pair.paths)).changed
    assert (await shop.served(SHOP))[0] == pair.der
    with pytest.raises(SiteRefusedError, match="DNS challenge"):
        await shop.sites.add("*.shop.test", "web")


@pytest.mark.parametrize("hosts", [(), ("web.test",)])
async def test_where_the_service_has_no_tls_the_name_has_none(
    caddy: RealCaddy, tmp_path: Path, hosts: tuple[str, ...]
) -> None:
    await caddy.serve({"a": 1}, hosts=hosts)
    before, etag = await caddy.admin.config()
    sites = Sites(caddy.admin, tmp_path / "sites.json")
    pair = Shop(caddy, tmp_path).pair(SHOP)
    with pytest.raises(SiteRefusedError, match=r"speaks no TLS.*tls = \"auto\""):
        await sites.add(SHOP, "web", *pair.paths)
    assert (await caddy.admin.config())[1] == etag
    await sites.add(SHOP, "web")
    reader, writer = await asyncio.open_connection("127.0.0.1", caddy.port)
    writer.write(f"GET / HTTP/1.1\r\nHost: {SHOP}\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read()).endswith(b"a GET 0")
    writer.close()
    assert {one.name: one.tls for one in await sites.listing()} == {SHOP: Tls.OFF, (hosts or (None,))[0]: Tls.OFF}
    await sites.remove(SHOP)
    assert (await caddy.admin.config())[0] == before


# -- refused, with nothing written -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", "shop", "shop.test.", "{env.HOME}.test", "shop.test:443", "10.0.0.1", "[::1]", "a b.test", "*", "*.*.test",
     "a.*.test", "-a.test", "bücher.test", "shop.test/x", "shop.test\n", "a" * 64 + ".test", "x." * 130 + "test"],
)  # fmt: skip
async def test_a_name_that_is_none(shop: Shop, name: str) -> None:
    etag = await shop.etag()
    for attempt in (shop.sites.add(name, "web"), shop.sites.remove(name)):
        with pytest.raises(AddressError, match="not a public host name"):
            await attempt
    assert await shop.etag() == etag


async def test_a_certificate_or_key_that_caddy_must_not_get(shop: Shop, tmp_path: Path) -> None:
    good, other = shop.pair(SHOP), shop.pair(SHOP)
    past, ahead = datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1)
    expired = shop.pair(SHOP, not_before=past - timedelta(days=9), not_after=past)
    early = shop.pair(SHOP, not_before=ahead, not_after=ahead + timedelta(days=9))
    wild, stranger = shop.pair("*.b.test"), shop.pair("elsewhere.test")
    nonsense, large, encrypted = (tmp_path / name for name in ("nonsense", "large", "encrypted"))
    nonsense.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    large.write_bytes(b"x" * 1_100_000)
    encrypted.write_text(_encrypted(good.key.read_bytes()))
    os.mkfifo(tmp_path / "pipe")
    etag, book = await shop.etag(), tmp_path / "sites.json"
    for name, certificate, key, says in (
        (SHOP, good.certificate, other.key, "is not the key of the certificate"),
        (SHOP, expired.certificate, expired.key, "expired at"),
        (SHOP, early.certificate, early.key, "valid only from"),
        (SHOP, stranger.certificate, stranger.key, "its names are: elsewhere.test"),
        ("a.a.b.test", wild.certificate, wild.key, "its names are"),
        ("b.test", wild.certificate, wild.key, "its names are"),
        (SHOP, str(tmp_path / "none"), good.key, "No such file"),
        (SHOP, good.certificate, str(tmp_path / "none"), "No such file"),
        (SHOP, str(tmp_path), good.key, "is no file"),
        (SHOP, str(tmp_path / "pipe"), good.key, "is no file"),
        (SHOP, str(nonsense), good.key, "holds no certificate"),
        (SHOP, str(large), good.key, "larger than"),
        (SHOP, good.certificate, str(nonsense), "holds no private key"),
        (SHOP, good.certificate, str(encrypted), "encrypted"),
        (SHOP, good.key, good.key, "holds no certificate"),
        (SHOP, "shop.pem", good.key, "absolute path"),
        (SHOP, "/etc/{env.X}.pem", good.key, "absolute path"),
        (SHOP, "/etc/a\nb", good.key, "absolute path"),
    ):
        with pytest.raises(CertificateError, match=says) as refused:
            await shop.sites.add(name, "web", str(certificate), str(key))
        assert "nonsense\n" not in str(refused.value), "contents are not quoted"
    assert await shop.etag() == etag
    assert not book.exists()


def _encrypted(pem: bytes) -> str:
    key = form.load_pem_private_key(pem, None)
    return key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret")
    ).decode()


async def test_what_others_have_is_refused_and_says_whose_it_is(shop: Shop, tmp_path: Path) -> None:
    await shop.sites.add(SHOP, "web")
    etag, book = await shop.etag(), (tmp_path / "sites.json").read_bytes()
    for name, service, says in (
        ("web.test", "web", "services.web.hosts"),
        ("theirs.test", "web", '"theirs"'),
        (SHOP, "api", f"trafficd site remove {SHOP}"),
        ("new.test", "api", "service api has no route of our own"),
    ):
        with pytest.raises(SiteRefusedError, match=says):
            await shop.sites.add(name, service)
    for name, says in (("web.test", "services.web.hosts"), ("theirs.test", "not a site that trafficd added")):
        with pytest.raises(SiteRefusedError, match=says):
            await shop.sites.remove(name)
    assert await shop.etag() == etag
    assert (tmp_path / "sites.json").read_bytes() == book


async def test_what_caddy_refuses_leaves_all_as_it_was(shop: Shop, tmp_path: Path) -> None:
    pair, (port,) = shop.pair(SHOP), free_ports(1)
    config, etag = await shop.caddy.admin.config()
    assert config is not None
    held = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    config["apps"]["http"]["servers"]["srv0"]["automatic_https"] = {"disable_redirects": True}
    await shop.caddy.admin.write(config, etag)
    before = await shop.etag()

    class Deaf(Admin):
        async def write(self, config: Json, etag: str) -> None:
            config["apps"]["http"]["servers"]["clash"] = {"listen": [f"127.0.0.1:{port}"]}
            await super().write(config, etag)

    admin = Deaf(shop.caddy.server.admin_url)
    with pytest.raises(CaddyRefusedError, match=rf"{port}.*Caddy reads {pair.certificate}"):
        await Sites(admin, tmp_path / "sites.json").add(SHOP, "web", *pair.paths)
    await admin.aclose()
    held.close()
    assert await shop.etag() == before
    assert await shop.sites.restore(["web"]) == {}
    assert await shop.etag() == before, "the book forgot it"


async def test_a_book_that_is_damaged_or_cannot_be_written(shop: Shop, tmp_path: Path) -> None:
    etag, book = await shop.etag(), tmp_path / "sites.json"
    for text in ("{", "[]", '{"version": 9, "sites": []}', '{"version": 1, "sites": [{"nome": 1}]}'):
        book.write_text(text)
        with pytest.raises(SiteBookError, match=str(book)):
            await shop.sites.add(SHOP, "web")
    with pytest.raises(SiteBookError, match="cannot be written"):
        await Sites(shop.caddy.admin, tmp_path / "none" / "sites.json").add(SHOP, "web")
    assert await shop.etag() == etag


# -- others at work ----------------------------------------------------------------------------------------


class Overtaken(Admin):
    """Somebody else writes between each of the first reads and our write."""

    def __init__(self, url: str, times: int) -> None:
        super().__init__(url)
        self.times, self.written = times, Counter[str]()

    async def write(self, config: Json, etag: str) -> None:
        if self.times:
            self.times -= 1
            theirs, their_etag = await self.config()
            assert theirs is not None
            theirs["logging"]["logs"][f"theirs{self.times}"] = {"level": "ERROR"}
            await super().write(theirs, their_etag)
        try:
            await super().write(config, etag)
        except ConfigConflictError:
            self.written["conflict"] += 1
            raise
        self.written["ours"] += 1


async def test_what_another_tool_writes_in_between_is_not_lost(shop: Shop, tmp_path: Path) -> None:
    pair = shop.pair(SHOP)
    admin = Overtaken(shop.caddy.server.admin_url, 2)
    sites = Sites(admin, tmp_path / "sites.json")
    assert (await sites.add(SHOP, "web", *pair.paths)).changed
    assert admin.written == {"conflict": 2, "ours": 1}, "one change of ours, whatever others do"
    admin.times = 2
    assert (await shop.served(SHOP))[0] == pair.der
    assert (await sites.remove(SHOP)).changed
    await admin.aclose()
    config = await shop.config()
    assert {"theirs0", "theirs1"} < set(config["logging"]["logs"])
    assert "load_files" not in str(config)


async def test_additions_at_the_same_moment_are_all_there(shop: Shop) -> None:
    names = [f"s{number}.test" for number in range(5)]
    await asyncio.gather(*(shop.sites.add(name, "web", *shop.pair(name).paths) for name in names))
    assert {one.name for one in await shop.sites.listing() if one.managed_by == "site"} == set(names)
    await asyncio.gather(*(shop.sites.remove(name) for name in names))
    assert not [one for one in await shop.sites.listing() if one.managed_by == "site"]


# -- with the service's own route --------------------------------------------------------------------------


async def test_a_start_of_the_daemon_writes_nothing_and_a_changed_route_takes_its_sites_along(shop: Shop) -> None:
    pair = shop.pair(SHOP)
    await shop.sites.add(SHOP, "web", *pair.paths)
    etag, settings = await shop.etag(), {"hosts": ("web.test",), "tls": "auto"}
    route = shop.caddy.route(**settings)
    assert present(await shop.config(), route)
    assert not (await install(shop.caddy.admin, [Own(route)], shop.caddy.root)).written
    assert await shop.sites.restore(["web"]) == {}
    assert await shop.etag() == etag

    pool = await shop.caddy.serve({"c": 1}, slots=5, **settings)
    assert present(await shop.config(), shop.caddy.route(slots=5, **settings))
    assert not present(await shop.config(), route)
    handle = next(
        r["handle"]
        for r in (await shop.config())["apps"]["http"]["servers"]["srv0"]["routes"]
        if r["@id"] == f"trafficd-site:web:{SHOP}"
    )
    assert "current/004}" in str(handle)
    assert "current/005}" not in str(handle)
    for _ in range(6):
        assert await shop.served(SHOP) == (pair.der, "c GET 0")
    await pool.aclose()


async def test_a_site_whose_handlers_somebody_changed_is_not_as_it_is_to_be(shop: Shop) -> None:
    await shop.sites.add(SHOP, "web")
    config, etag = await shop.caddy.admin.config()
    assert config is not None
    routes = config["apps"]["http"]["servers"]["srv0"]["routes"]
    routes[1]["handle"] = [{"handler": "static_response", "body": "drifted"}]
    await shop.caddy.admin.write(config, etag)
    route = shop.caddy.route(hosts=("web.test",), tls="auto")
    assert not present(await shop.config(), route)
    assert (await install(shop.caddy.admin, [Own(route)], shop.caddy.root)).written
    assert present(await shop.config(), route)


async def test_sites_that_a_reload_forgot_are_put_back_all_but_the_bad_one(shop: Shop) -> None:
    kept, gone = shop.pair(SHOP), shop.pair("gone.test")
    await shop.sites.add(SHOP, "web", *kept.paths)
    await shop.sites.add("gone.test", "web", *gone.paths)
    await shop.sites.add("plain.test", "web")
    config, etag = await shop.caddy.admin.config()
    assert config is not None
    theirs = remove(config, {one["@id"] for one in config["apps"]["http"]["servers"]["srv0"]["routes"]} - {"theirs"})
    del theirs["apps"]["http"]["servers"]["srv0"]["tls_connection_policies"]
    del theirs["apps"]["tls"]["certificates"]
    await shop.caddy.admin.write(theirs, etag)
    assert "no route of our own" in (await shop.sites.restore(["web"]))["web"], "first the service's own"
    await install(shop.caddy.admin, [Own(shop.caddy.route(hosts=("web.test",), tls="auto"))], shop.caddy.root)
    gone.key.unlink()
    again = Sites(shop.caddy.admin, shop.directory / "sites.json")
    assert await again.restore(["api"]) == {}
    faults = await again.restore(["web"])
    assert "gone.test" in faults["web"]
    assert str(gone.key) in faults["web"]
    assert await shop.served(SHOP) == (kept.der, "a GET 0")
    assert {one.name for one in await shop.sites.listing() if one.managed_by == "site"} == {SHOP, "plain.test"}
    etag = await shop.etag()
    assert await again.restore(["web"]) == faults
    assert await shop.etag() == etag
    assert not (await again.remove("gone.test")).changed, "Caddy did not have it"
    assert await again.restore(["web"]) == {}


async def test_of_sites_put_back_at_once_the_one_that_caddy_refuses_is_left_out(shop: Shop, tmp_path: Path) -> None:
    names = ("good.test", "bad.test")
    for name in names:
        await shop.sites.add(name, "web", *shop.pair(name).paths)
    config, etag = await shop.caddy.admin.config()
    assert config is not None
    server = config["apps"]["http"]["servers"]["srv0"]
    server["routes"] = [route for route in server["routes"] if "trafficd-site" not in route["@id"]]
    del server["tls_connection_policies"], config["apps"]["tls"]["certificates"]
    await shop.caddy.admin.write(config, etag)

    class Picky(Admin):
        offered = 0

        async def write(self, config: Json, etag: str) -> None:
            if "bad.test" in str(config):
                self.offered += 1
                raise CaddyRefusedError("permission denied")
            await super().write(config, etag)

    admin = Picky(shop.caddy.server.admin_url)
    sites = Sites(admin, tmp_path / "sites.json")
    faults = await sites.restore(["web"])
    offered = admin.offered
    again = await sites.restore(["web"])
    await admin.aclose()
    assert (again, admin.offered) == (faults, offered), "it is not offered again and again"
    assert faults == {"web": faults["web"]}
    assert "site bad.test is not in Caddy's configuration" in faults["web"]
    assert {one.name for one in await shop.sites.listing() if one.managed_by == "site"} == {"good.test"}


async def test_with_addresses_in_the_configuration_the_site_follows_them(shop: Shop) -> None:
    route = shop.caddy.route(hosts=("web.test",), tls="auto")
    way = ByAdmin(route, lambda: shop.caddy.weights({"a": 1}))
    pool = AdminPool(shop.caddy.admin, way, OpenCounts(shop.caddy.admin))
    await install(shop.caddy.admin, [way], shop.caddy.root)
    pair = shop.pair(SHOP)
    await shop.sites.add(SHOP, "web", *pair.paths)
    assert await shop.served(SHOP) == (pair.der, "a GET 0")
    await pool.shift(shop.caddy.weights({"b": 1}))
    assert await shop.served(SHOP) == (pair.der, "b GET 0")
    etag = await shop.etag()
    assert not (await install(shop.caddy.admin, [way], shop.caddy.root)).written
    assert await shop.etag() == etag


async def test_sites_leave_with_their_service_and_come_back_with_it(shop: Shop) -> None:
    pair = shop.pair(SHOP)
    await shop.sites.add(SHOP, "web", *pair.paths)
    way = Own(shop.caddy.route(hosts=("web.test",), tls="auto"))
    await shop.caddy.admin.edit(lambda config: way.leave(config, shop.caddy.weights({"c": 1})))
    assert await shop.served(SHOP) == (pair.der, "c GET 0")
    assert (await install(shop.caddy.admin, [way], shop.caddy.root)).written
    assert await shop.served(SHOP) == (pair.der, "a GET 0")


async def test_a_caddy_that_is_gone_is_said(tmp_path: Path) -> None:
    admin = Admin("http://127.0.0.1:9", timeout=1.0)
    sites = Sites(admin, tmp_path / "sites.json")
    for attempt in (sites.listing(), sites.add(SHOP, "web"), sites.remove(SHOP)):
        with pytest.raises(ProxyError, match="cannot be reached"):
            await attempt
    await admin.aclose()
