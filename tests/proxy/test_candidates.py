"""Finding a service's handler among all of a configuration's, and refusing what is ambiguous."""

from __future__ import annotations

import pytest

from proxy.adopt import adopt, adopted
from proxy.candidates import candidates, find
from proxy.errors import CaddyRefusedError
from proxy.handler import PROBE_ID, Json, ensure, probe_server
from tests.proxy.test_adopt import config, proxy_to, route, site


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {},
        {"apps": None},
        {"apps": {"tls": {}}},
        {"apps": {"http": None}},
        {"apps": {"http": {"servers": None}}},
        {"apps": {"http": {"servers": {"a": None, "b": [], "c": {"listen": None, "routes": [None, {"match": None}]}}}}},
    ],
)
def test_odd_configurations_have_no_candidates(odd: Json | None) -> None:
    assert candidates(odd) == []
    with pytest.raises(CaddyRefusedError, match='set route = "own"'):
        find(odd, route())
    assert not adopted(odd, route())


def test_handlers_are_found_however_deep_with_what_leads_to_them() -> None:
    deep = proxy_to("d:1")
    behind = proxy_to("a:1", handle_response=[{"match": {"status_code": [404]}, "routes": [{"handle": [deep]}]}])
    outer = site("*.example.com", handle=site("A.example.com", "b.test", handle=behind), **{"@id": "outer"})
    error = {"handle": [{"handler": "reverse_proxy"}]}
    found = candidates(config(outer, errors={"routes": [error]}))
    assert [(c.id, c.own_id, c.hosts, c.listen, c.dials) for c in found] == [
        ("outer", None, ("a.example.com",), (":443",), ("a:1",)),
        ("outer", None, ("a.example.com",), (":443",), ("d:1",)),
        (None, None, (), (":443",), ()),
    ]
    assert found[2].path == ("apps", "http", "servers", "srv0", "errors", "routes", 0, "handle", 0)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (["*.example.com"], ["a.example.com", "x.test"], ("a.example.com",)),
        (["a.example.com"], ["*.example.com"], ("a.example.com",)),
        (["A.example.com"], None, ("a.example.com",)),
        (["a.test"], ["b.test"], ("b.test",)),
    ],
)
def test_nested_hosts_narrow(outer: list[str], inner: list[str] | None, expected: tuple[str, ...]) -> None:
    nested: Json = {"handle": [proxy_to("a:1")]} | ({"match": [{"host": inner}]} if inner else {})
    around = {"match": [{"host": outer}], "handle": [{"handler": "subroute", "routes": [nested]}]}
    assert candidates(config(around))[0].hosts == expected


def test_an_alternative_without_hosts_lets_any_host_in() -> None:
    either = {"match": [{"host": ["a.test"]}, {"path": ["/api/*"]}], "handle": [proxy_to("a:1")]}
    assert candidates(config(either))[0].hosts == ()


def test_a_service_is_found_by_exact_host_by_id_or_as_the_only_one() -> None:
    one = site("a.test", "www.a.test", handle=proxy_to("a:1"))
    other = site("*.test", handle=proxy_to("b:1", **{"@id": "other"}), **{"@id": "route"})
    both = config(one, other)
    assert find(both, route(hosts=("A.test",))).dials == ("a:1",)
    assert find(both, route(), "other").dials == ("b:1",)
    assert find(both, route(), "route").dials == ("b:1",)
    assert find(config(one), route()).dials == ("a:1",)


def test_what_is_ambiguous_or_absent_is_refused_with_the_candidates_and_the_remedy() -> None:
    both = config(
        site("a.test", handle=proxy_to("10.0.0.1:80")), site("a.test", handle=proxy_to("10.0.0.2:80")), listen=[":80"]
    )
    for service, adopt_id, said in (
        (route(hosts=("a.test",)), None, "2 reverse_proxy handlers for a.test"),
        (route(), None, "2 reverse_proxy handlers of any host"),
        (route(hosts=("sub.a.test",)), None, "no reverse_proxy handler for sub.a.test"),
        (route(), "typo", 'no reverse_proxy handler with the @id "typo"'),
    ):
        with pytest.raises(CaddyRefusedError) as refused:
            find(both, service, adopt_id)
        for part in (said, "10.0.0.1:80", "10.0.0.2:80"):
            assert part in str(refused.value)
        assert "services.web.adopt_id" in str(refused.value)


def test_handlers_of_ours_are_nobodys_to_adopt() -> None:
    theirs = config(site("a.test", handle=proxy_to("a:1")))
    ours = ensure(theirs, [route("own", listen=(":443",), hosts=("b.test",))], probe_server(5000, "/slots/.probe"))
    assert PROBE_ID in ours["apps"]["http"]["servers"]
    assert find(ours, route()).dials == ("a:1",)
    assert not adopted(ours, route("own", listen=(":443",), hosts=("b.test",))), "a route of our own is not adopted"
    other = route("other", hosts=("a.test",))
    after, _ = adopt(ours, other, find(ours, other))
    with pytest.raises(CaddyRefusedError):
        find(after, route(hosts=("a.test",)))
