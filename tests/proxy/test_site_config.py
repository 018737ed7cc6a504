"""What a site is in Caddy's JSON, what the library may do to it, and what is listed: no Caddy needed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.caddy_client import MemoryClient
from proxy.errors import CaddyRefusedError, SiteRefusedError
from proxy.handler import Json, Route, ensure
from proxy.site_config import OwnCertificate, Site, find, put, sites, take_out
from proxy.site_list import Tls, listed

SHOP = "shop.test"


def route(service: str = "web", **changes: Any) -> Route:
    given: Json = {"slots": 2, "hosts": ("web.test",), "tls": "auto"} | changes
    return Route(service, f"/var/lib/trafficd/slots/{service}/current", **given)


def config(service: Route | None = None, **server: Any) -> Json:
    """A configuration with a service of ours and a few things of others."""
    theirs = {"match": [{"host": ["theirs.test"]}], "handle": [{"handler": "file_server"}]}
    wide = {"handle": [{"handler": "static_response"}]}
    base: Json = {
        "admin": {"listen": "localhost:2019"},
        "apps": {
            "http": {"servers": {"srv0": {"listen": [":443"], "routes": [theirs, wide], **server}}},
            "tls": {
                "automation": {"policies": [{"subjects": [SHOP], "issuers": [{"module": "acme"}]}]},
                "certificates": {"load_pem": [{"certificate": "-", "key": "-", "tags": [f"{SHOP}-1"]}]},
            },
        },
    }
    return ensure(base, [service or route()])


def own(name: str = SHOP, service: str = "web", fingerprint: str = "ab" * 32) -> Site:
    return Site(name, service, OwnCertificate(f"/certs/{name}.pem", f"/certs/{name}.key", fingerprint))


def server(configuration: Json) -> Json:
    found: Json = configuration["apps"]["http"]["servers"]["srv0"]
    return found


SITES = st.builds(
    lambda name, mine: own(name, "web", mine) if mine else Site(name, "web"),
    st.sampled_from([SHOP, "a.test", "b.a.test", "localhost", "theirs2.test"]),
    st.sampled_from(["", "11" * 32, "22" * 32]),
)


@given(st.lists(SITES, max_size=8), st.booleans())
def test_put_and_taken_out_in_any_order_nothing_else_is_touched(wanted: list[Site], explicit: bool) -> None:
    before = config(tls_connection_policies=[{"match": {"sni": ["x.test"]}}, {}]) if explicit else config()
    pristine = copy.deepcopy(before)
    now = before
    for site in wanted:
        once = put(now, site)
        assert put(once, site) == once
        found = find(once, site.name)
        assert found is not None
        assert (found[1].id, found[1].own is None) == (site.id, site.own is None)
        now = once
    assert before == pristine, "nothing is changed in place"
    last = {site.name: site for site in wanted}
    assert {site.name for _, site in sites(now)} == set(last)
    entries = now["apps"]["tls"]["certificates"].get("load_files", [])
    assert len(entries) == sum(site.own is not None for site in last.values())
    for name in last:
        once = take_out(now, name)
        assert take_out(once, name) == once
        now = once
    assert now == pristine


def test_the_service_s_route_stays_what_the_daemon_compares_it_with() -> None:
    service = route()
    assert ensure(put(config(service), own()), [service]) == put(config(service), own())


def test_a_service_that_listens_elsewhere_takes_its_site_along() -> None:
    placed = put(config(), own())
    moved = ensure(placed, [route(listen=("127.0.0.1:443",))])
    again = put(moved, own())
    assert find(again, SHOP) == ("trafficd", own(fingerprint="ab" * 8))
    assert "tls_connection_policies" not in server(again)
    assert len(again["apps"]["tls"]["certificates"]["load_files"]) == 1


def test_a_service_s_name_cannot_be_mistaken_for_a_site() -> None:
    named = route("site-shop.test", hosts=("other.test",))
    placed = put(config(named), own(service="site-shop.test"))
    assert [site.service for _, site in sites(placed)] == ["site-shop.test"]
    assert take_out(placed, SHOP) == config(named)


# -- what a server demands ---------------------------------------------------------------------------------

MUTUAL = {"client_authentication": {"mode": "require_and_verify"}, "protocol_min": "tls1.3"}


def test_the_new_name_is_no_way_round_what_clients_must_show() -> None:
    placed = put(config(tls_connection_policies=[{"match": {"sni": ["x.test"]}}, MUTUAL]), own())
    policies = server(placed)["tls_connection_policies"]
    tag = f"trafficd-site:web:{SHOP}:{'ab' * 8}"
    ours = {**MUTUAL, "match": {"sni": [SHOP]}, "certificate_selection": {"all_tags": [tag]}}
    assert policies == [{"match": {"sni": ["x.test"]}}, ours, MUTUAL]


@pytest.mark.parametrize(
    "policies",
    [
        [{"match": {"sni": ["x.test"]}}],
        [{"match": {"remote_ip": {"ranges": ["10.0.0.0/8"]}}}, {}],
        [{"match": {"sni": ["*.other.test"]}}, {"drop": True}],
    ],
)
@pytest.mark.parametrize("site", [own(), Site(SHOP, "web")])
def test_where_it_is_not_clear_what_to_demand_nothing_is_done(policies: list[Json], site: Site) -> None:
    with pytest.raises(SiteRefusedError, match="tls_connection_policies of its own"):
        put(config(tls_connection_policies=policies), site)


@pytest.mark.parametrize(
    ("automatic", "says"),
    [
        ({"skip": [SHOP]}, "automatic_https.skip of"),
        ({"skip_certificates": [SHOP]}, "automatic_https.skip_certificates"),
        ({"disable_certificates": True}, "automatic_https.disable_certificates"),
    ],
)
def test_a_name_that_caddy_would_get_no_certificate_for(automatic: Json, says: str) -> None:
    before = config(automatic_https=automatic)
    with pytest.raises(SiteRefusedError, match=f"{says}.*--certificate"):
        put(before, Site(SHOP, "web"))
    assert take_out(put(before, own()), SHOP) == before


def test_a_wildcard_that_an_automation_policy_names() -> None:
    before = config()
    before["apps"]["tls"]["automation"]["policies"][0]["subjects"].append("*.shop.test")
    assert find(put(before, Site("*.shop.test", "web")), "*.shop.test")


# -- the library -------------------------------------------------------------------------------------------


def test_the_library_s_automatic_tls_and_all_other_requests_are_refused() -> None:
    client = MemoryClient({"apps": {}})
    with pytest.raises(CaddyRefusedError, match="automatic TLS"):
        client.add_domain_with_auto_tls(SHOP, "10.0.0.1", 80)
    for attempt in (client.reload, lambda: client._update_tls_config({})):
        with pytest.raises(Exception, match="no request that trafficd lets"):
            attempt()
    assert client.written is None


def test_its_errors_are_ours_and_it_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert MemoryClient({"apps": {}}).look_up("nobody") == (None, None)
    with pytest.raises(CaddyRefusedError, match="does not understand"):
        MemoryClient({"apps": {}}).without(SHOP)
    assert capsys.readouterr().out == ""


def test_alone_it_would_take_what_is_not_the_site_s() -> None:
    """Why it is shown a part only: were this to change, the window could grow."""
    theirs = {"match": [{"host": [SHOP], "path": ["/api"]}], "handle": []}
    whole: Json = {
        "apps": {
            "http": {"servers": {"srv0": {"routes": [theirs]}}},
            "tls": {"automation": {"policies": [{"subjects": [SHOP]}]}},
        }
    }
    left = MemoryClient(whole).without(SHOP)
    assert left["apps"]["http"]["servers"]["srv0"]["routes"] == []
    assert left["apps"]["tls"]["automation"]["policies"] == [{"subjects": []}]


# -- listing -----------------------------------------------------------------------------------------------


def test_what_answers_and_by_which_certificate() -> None:
    proxy = {"handler": "reverse_proxy", "upstreams": [{"dial": f"10.0.0.{n}:80"} for n in range(6)]}
    adopted = {"handler": "reverse_proxy", "upstreams": [{"dial": "tcp/{file./x/slots/api/current/000}"}]}
    nested = {
        "match": [{"host": ["*.deep.test"]}],
        "handle": [
            {"handler": "headers"},
            {
                "handler": "subroute",
                "routes": [
                    {"match": [{"host": ["one.deep.test"], "path": ["/x"]}], "handle": [proxy]},
                    {"handle": [{"handler": "encode"}, {"handler": "file_server"}]},
                ],
            },
        ],
    }
    before = config()
    routes = server(before)["routes"]
    routes[1:1] = [nested, {"match": [{"host": ["api.test"]}], "handle": [adopted]}]
    before["apps"]["http"]["servers"]["plain"] = {"listen": [":80"], "routes": [{"handle": [proxy]}]}
    found = {(one.name, one.server): one for one in listed(before, [])}
    said = {key: (one.answers, one.service, one.managed_by, one.tls) for key, one in found.items()}
    ten = ("10.0.0.0:80, 10.0.0.1:80, 10.0.0.2:80, 10.0.0.3:80 and 2 more",)
    assert said == {
        ("web.test", "srv0"): (("service web",), "web", "service", Tls.AUTOMATIC),
        ("one.deep.test", "srv0"): (ten, None, "other", Tls.AUTOMATIC),
        ("*.deep.test", "srv0"): (("file_server",), None, "other", Tls.AUTOMATIC),
        ("api.test", "srv0"): (("service api",), "api", "other", Tls.AUTOMATIC),
        ("theirs.test", "srv0"): (("file_server",), None, "other", Tls.AUTOMATIC),
        (None, "srv0"): (("static_response",), None, "other", Tls.UNMANAGED),
        (None, "plain"): (ten, None, "other", Tls.OFF),
    }


@pytest.mark.parametrize(
    ("name", "policies", "automatic", "tls"),
    [
        ("a.test", [], {}, Tls.AUTOMATIC),
        ("a.localhost", [], {}, Tls.INTERNAL),
        ("a.test", [{"issuers": [{"module": "internal"}]}], {}, Tls.INTERNAL),
        ("a.test", [{"subjects": ["b.test"], "issuers": [{"module": "internal"}]}], {}, Tls.AUTOMATIC),
        ("a.test", [{"subjects": ["*.test"], "issuers": [{"module": "internal"}]}], {}, Tls.INTERNAL),
        ("a.test", [], {"skip": ["a.test"]}, Tls.UNMANAGED),
        ("a.test", [], {"disable_certificates": True}, Tls.UNMANAGED),
        ("a.test", [], {"disable": True}, Tls.OFF),
    ],
)
def test_which_tls_a_name_has(name: str, policies: list[Json], automatic: Json, tls: Tls) -> None:
    routes = [{"match": [{"host": [name]}], "handle": [{"handler": "file_server"}]}]
    one = {"listen": [":443"], "routes": routes, "automatic_https": automatic}
    found = {"apps": {"http": {"servers": {"s": one}}, "tls": {"automation": {"policies": policies}}}}
    assert [entry.tls for entry in listed(found, [])] == [tls]


@pytest.mark.parametrize("nothing", [None, {}, {"apps": {}}, {"apps": {"http": {}}}])
def test_a_caddy_that_serves_nothing_lists_nothing(nothing: Json | None) -> None:
    assert listed(nothing, []) == []
    assert take_out(nothing, SHOP) == (nothing or {})
