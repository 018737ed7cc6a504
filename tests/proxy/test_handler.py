"""The route's JSON and its place in a configuration."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from proxy.errors import AddressError, CaddyRefusedError
from proxy.handler import (
    Route,
    Transport,
    build_route,
    duration,
    ensure,
    listen_key,
    probe_server,
    remove,
    static_dials,
)


def route(service: str = "web", **changes: Any) -> Route:
    return Route(service, f"/var/lib/trafficd/slots/{service}/current", **{"slots": 2, "listen": (":80",), **changes})


def servers(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["apps"]["http"]["servers"]
    return found


def ids(server: dict[str, Any]) -> list[str]:
    return [r.get("@id", "theirs") for r in server["routes"]]


THEIRS: dict[str, Any] = {
    "apps": {
        "http": {
            "servers": {
                "srv0": {
                    "listen": ["0.0.0.0:80", ":443"],
                    "routes": [{"handle": [{"handler": "file_server"}]}],
                }
            }
        },
        "tls": {"keep": "me"},
    }
}


def test_an_empty_configuration_gets_a_server_of_ours() -> None:
    config = ensure(None, [route()])
    assert servers(config)["trafficd"]["listen"] == [":80"]
    assert servers(config)["trafficd"]["automatic_https"] == {"disable": True}


def test_ensuring_twice_changes_nothing_and_does_not_touch_its_argument() -> None:
    before = copy.deepcopy(THEIRS)
    once = ensure(THEIRS, [route(hosts=("a.example",))], probe_server(5000, "/slots/.probe"))
    assert before == THEIRS
    assert ensure(once, [route(hosts=("a.example",))], probe_server(5000, "/slots/.probe")) == once
    assert once["apps"]["tls"] == {"keep": "me"}


def test_a_route_joins_the_server_that_listens_there_before_a_catch_all() -> None:
    config = ensure(THEIRS, [route(hosts=("a.example",))])
    assert list(servers(config)) == ["srv0"]
    assert ids(servers(config)["srv0"]) == ["trafficd-web", "theirs"]


def test_exact_hosts_come_before_wildcards_and_those_before_any_host() -> None:
    routes = [route("any"), route("wild", hosts=("*.example",)), route("one", hosts=("a.example",))]
    config = ensure(None, routes)
    assert ids(servers(config)["trafficd"]) == ["trafficd-one", "trafficd-wild", "trafficd-any"]


def test_addresses_of_a_server_that_has_more_or_of_two_servers_are_refused() -> None:
    two = ensure(ensure(None, [route("one", listen=(":80",))]), [route("two", listen=(":81",))])
    with pytest.raises(CaddyRefusedError, match="several"):
        ensure(two, [route(listen=(":80", ":81"))])
    with pytest.raises(CaddyRefusedError, match="srv0 has :80"):
        ensure(THEIRS, [route(listen=(":80", ":8080"))])


def test_a_route_that_moves_leaves_its_old_place_and_an_empty_server_of_ours_goes() -> None:
    before = ensure(None, [route(listen=(":80",))])
    after = ensure(before, [route(listen=(":81",))])
    assert [server["listen"] for server in servers(after).values()] == [[":81"]]


def test_hosts_without_tls_are_skipped_by_automatic_https_and_taken_up_again() -> None:
    off = ensure(THEIRS, [route(hosts=("a.example",), tls="off")])
    assert servers(off)["srv0"]["automatic_https"] == {"skip": ["a.example"]}
    on = ensure(off, [route(hosts=("a.example",), tls="auto")])
    assert servers(on)["srv0"]["automatic_https"] == {"skip": []}


def test_automatic_tls_on_a_server_that_has_none_is_refused() -> None:
    with pytest.raises(CaddyRefusedError, match="automatic HTTPS disabled"):
        ensure(ensure(None, [route("one")]), [route("two", tls="auto", hosts=("a.example",))])


def test_removing_restores_what_was_there() -> None:
    config = ensure(THEIRS, [route(hosts=("a.example",), tls="auto")])
    assert remove(config, {"trafficd-web"}) == THEIRS


def test_the_handler_tries_only_what_did_not_reach_an_upstream() -> None:
    subroute = build_route(route())["handle"][0]
    streams, requests = (r["handle"][0] for r in subroute["routes"])
    for handler, first in ((requests, "000"), (streams, "s000")):
        assert handler["upstreams"][0] == {"dial": f"{{file./var/lib/trafficd/slots/web/current/{first}}}"}
        assert set(handler["load_balancing"]) == {"selection_policy", "try_duration", "try_interval", "retry_match"}
        assert "health_checks" not in handler
        assert handler["stream_close_delay"] == "86400s"


@pytest.mark.parametrize("affinity", ["cookie", "client_ip"])
def test_sticky_requests_and_streams_share_a_handler(affinity: str) -> None:
    handler = build_route(route(affinity=affinity))["handle"][0]
    assert handler["handler"] == "reverse_proxy"


def test_the_transport_can_be_configured() -> None:
    transport = Transport(
        tls=True, server_name="app", ca="/ca.pem", h2c=True, read_timeout=5, response_header_timeout=9
    )
    subroute = build_route(route(transport=transport))["handle"][0]
    streams, requests = (r["handle"][0] for r in subroute["routes"])
    assert requests["transport"]["tls"] == {"server_name": "app", "ca": {"provider": "file", "pem_files": ["/ca.pem"]}}
    assert requests["headers"]["request"]["set"]["Host"] == ["{http.request.hostport}"]
    assert requests["transport"]["versions"] == ["h2c", "2"]
    assert requests["transport"]["read_timeout"] == "5s"
    assert "read_timeout" not in streams["transport"], "a stream may be silent for hours"
    assert "versions" not in streams["transport"], "an upgrade needs HTTP/1.1"


@pytest.mark.parametrize("path", ["relative", "/with{brace}", "/with\nnewline", "/with\\backslash"])
def test_a_path_that_would_mean_something_else_is_refused(path: str) -> None:
    with pytest.raises(AddressError):
        Route("web", path, 2)


def test_static_addresses_are_found_wherever_they_are() -> None:
    nested = {"a": [{"routes": [{"handle": [{"upstreams": [{"dial": "10.0.0.1:80"}, {"dial": "{file./x}"}]}]}]}]}
    assert static_dials(nested) == {"10.0.0.1:80"}
    assert static_dials(None) == frozenset()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (":80", "0.0.0.0:80", True),
        (":80", "[::]:80", True),
        (":80", "tcp/:80", True),
        (":80", "127.0.0.1:80", False),
        (":80", "udp/:80", False),
    ],
)
def test_listen_addresses_that_mean_the_same_socket(one: str, other: str, same: bool) -> None:
    assert (listen_key(one) == listen_key(other)) is same


@pytest.mark.parametrize(("seconds", "text"), [(30, "30s"), (0.05, "0.05s"), (86400, "86400s"), (1e-6, "0.000001s")])
def test_durations_are_written_as_go_reads_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
