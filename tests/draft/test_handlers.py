"""What of a Caddy's configuration can be deployed behind."""

from __future__ import annotations

from typing import Any

import pytest

from tests.draft.world import A, B, Json, caddy, proxy, site, tutorial
from trafficd.draft.handlers import Asked, handlers, seconds


def only(*routes: Json) -> Any:
    """The one handler that fits."""
    fit, unfit = handlers(caddy(*routes))
    assert (len(fit), unfit) == (1, [])
    return fit[0]


def reason(*routes: Json) -> str:
    """Why the one handler that is there does not fit."""
    fit, unfit = handlers(caddy(*routes))
    assert (fit, len(unfit)) == ([], 1)
    return unfit[0].reason


def test_the_tutorials_site() -> None:
    (one,), unfit = handlers(tutorial())
    assert not unfit
    assert (one.dials, one.hosts, one.asked) == ((A, B), ("example.com",), Asked("/healthz", interval=5.0))
    assert (one.adopt_id, one.ambiguous) == (None, None)


def test_an_empty_configuration_has_none() -> None:
    assert handlers(None) == ([], [])
    assert handlers({"apps": []}) == ([], [])


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (proxy(A, "{http.vars.up}:80"), "{http.vars.up}:80 is a placeholder"),
        (proxy("unix//run/app.sock"), "unix//run/app.sock is a unix socket"),
        (proxy(A, dynamic_upstreams={"source": "srv"}), "looked up at every request (srv)"),
        (proxy("127.0.0.1:9000", transport={"protocol": "fastcgi"}), "fastcgi"),
        (proxy(), "no upstreams"),
        (proxy("10.0.0.1:8080-8090"), "not an address"),
        (proxy("udp/10.0.0.1:80"), "not an address"),
        (proxy(A, **{"@id": "trafficd-web"}), "steers it already"),
        (proxy("tcp/{file./var/lib/trafficd/slots/web/current/000}"), "steers it already"),
        (proxy("10.0.0.9:9091", rewrite={"method": "GET"}, handle_response=[{}]), "forward_auth"),
    ],
)
def test_what_does_not_fit_is_named_with_the_reason(handler: Json, said: str) -> None:
    assert said in reason(site(handler, "example.com"))


def test_who_answers_only_errors_is_no_service() -> None:
    config = caddy(site(proxy(A), "example.com"))
    config["apps"]["http"]["servers"]["srv0"]["errors"] = {"routes": [site(proxy("10.0.0.9:80"), "example.com")]}
    fit, unfit = handlers(config)
    assert [one.dials for one in fit] == [(A,)]
    assert "errors" in unfit[0].reason


@pytest.mark.parametrize(
    "other", [site(proxy(B), "b.example.com"), site(proxy(B, "unix//run/x"), "b.example.com")], ids=["fit", "unfit"]
)
def test_an_address_of_two_handlers_is_left_to_a_person(other: Json) -> None:
    fit, unfit = handlers(caddy(site(proxy(A, B), "a.example.com"), other))
    assert fit == []
    assert "another handler" in next(one.reason for one in unfit if one.candidate.hosts == ("a.example.com",))


def test_addresses_in_caddys_spellings() -> None:
    assert only(site(proxy(":3000", "tcp/LOCALHOST:3001", ":3000"))).dials == ("127.0.0.1:3000", "localhost:3001")


def test_of_several_handlers_for_a_host_one_with_an_id_is_adopted_by_it() -> None:
    first, second = proxy(A, **{"@id": "shop"}), proxy(B)
    fit, _ = handlers(caddy(site(first, "example.com"), site(second, "example.com")))
    assert [(one.adopt_id, one.ambiguous is None) for one in fit] == [("shop", True), (None, False)]


def test_any_host_is_adopted_only_where_it_is_alone() -> None:
    assert only(site(proxy(A))).ambiguous is None
    fit, _ = handlers(caddy(site(proxy(A)), site(proxy(B), "example.com")))
    assert [one.ambiguous is None for one in fit] == [False, True]


def test_names_that_are_no_hosts_are_left_out() -> None:
    one = only(site(proxy(A), "example.com", "{env.NAME}"))
    assert one.hosts == ("example.com",)
    assert "{env.name}" in one.remarks[0]


def test_a_check_with_all_it_can_have() -> None:
    active = {
        "uri": "/up?deep=1",
        "headers": {"Host": ["app.internal"], "X-Probe": ["1", "2"], "X-Env": ["{env.X}"]},
        "expect_status": 2,
        "interval": "1m30s",
        "timeout": 500_000_000,
        "passes": 3,
        "fails": 4,
        "method": "HEAD",
        "expect_body": "ok",
        "port": 9000,
    }
    asked = only(site(proxy(A, health_checks={"active": active}))).asked
    assert (asked.path, asked.host, asked.headers) == ("/up?deep=1", "app.internal", {"X-Probe": "1, 2"})
    assert (asked.status[:2], asked.interval, asked.timeout) == ((200, 201), 90.0, 0.5)
    assert (asked.rise, asked.fall) == (3, 4)
    assert [word for word in ("9000", "HEAD", "health_body", "X-Env") if word in " ".join(asked.remarks)] == [
        *("9000", "HEAD", "health_body", "X-Env")
    ]


def test_our_own_probe_is_no_handler_of_anybody() -> None:
    config = caddy(site(proxy(A), "example.com"))
    config["apps"]["http"]["servers"]["trafficd_probe"] = {"routes": [site(proxy("{file./slots/.probe}"))]}
    fit, unfit = handlers(config)
    assert ([one.dials for one in fit], unfit) == ([(A,)], [])


def test_passive_checks_ask_nothing() -> None:
    assert only(site(proxy(A, health_checks={"passive": {"fail_duration": "30s"}}))).asked is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (5_000_000_000, 5.0),
        ("250ms", 0.25),
        ("1h0m1.5s", 3601.5),
        ("2d", 172800.0),
        (0, None),
        ("soon", None),
        (None, None),
    ],
)
def test_durations_of_caddys(given: object, expected: float | None) -> None:
    assert seconds(given) == expected


@pytest.mark.parametrize(
    ("transport", "keys"),
    [
        ({"protocol": "http"}, {}),
        ({"protocol": "http", "versions": ["h2c", "2"]}, {"h2c": True}),
        ({"protocol": "http", "versions": ["1.1", "2"]}, {}),
        ({"tls": {"insecure_skip_verify": True, "server_name": "app"}}, {
            "tls": True, "tls_insecure": True, "tls_server_name": "app"}),
        ({"tls": {"ca": {"provider": "file", "pem_files": ["/etc/ca.pem"]}}}, {"tls": True, "tls_ca": "/etc/ca.pem"}),
    ],
)  # fmt: skip
def test_probes_speak_as_caddy_does(transport: Json, keys: Json) -> None:
    assert only(site(proxy(A, transport=transport))).transport.keys == keys
