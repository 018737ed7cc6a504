"""What is put into a configuration so that requests are logged, and taken out again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import logged
from proxy.errors import AddressError
from proxy.handler import Json, Route, remove
from proxy.install import wanted
from proxy.logged import ALSO, NAME, OTHER
from proxy.ways import ByAdmin, Own, Way

FILE = "/var/log/trafficd/access.log"
HOST = "a.test"


def route(service: str = "web", **changes: Any) -> Route:
    settings: dict[str, Any] = {"slots": 2, "listen": (":80",), "access_log": FILE, **changes}
    return Route(service, f"/var/lib/trafficd/slots/{service}/current", **settings)


def placed(config: Json | None, *ways: Way) -> Json:
    edited, told = wanted(config, ways or [Own(route(hosts=(HOST,)))], None)
    assert not told.refused
    return edited


def with_logs(logs: Json | None, **loggers: Json) -> Json:
    """Somebody's configuration."""
    server: Json = {"listen": [":80"], "routes": [{"handle": [{"handler": "file_server"}]}]}
    if logs is not None:
        server["logs"] = logs
    return {"apps": {"http": {"servers": {"theirs": server}}}, "logging": {"logs": loggers}}


def server_logs(config: Json, server: str = "theirs") -> Json:
    found: Json = config["apps"]["http"]["servers"][server]["logs"]
    return found


def names(config: Json, host: str, service: str = "web") -> list[str]:
    """The loggers of a request for this host in the service's route, as Caddy would find them."""
    for server in config["apps"]["http"]["servers"].values():
        for existing in server["routes"]:
            if existing.get("@id") == f"trafficd-{service}":
                return _named(existing["handle"][0], host)
    raise AssertionError(f"no route of {service}")


def _named(handler: Json, host: str) -> list[str]:
    if handler["handler"] == "vars":
        found: list[str] = handler["access_logger_names"]
        return found
    for case in handler["routes"]:
        if "match" not in case or _matches(case["match"][0]["host"][0], host):
            return _named(case["handle"][0], host)
    raise AssertionError("no case is taken")


def _matches(pattern: str, host: str) -> bool:
    labels = host.split(".")
    return len(labels) == pattern.count(".") + 1 and all(
        p in ("*", label) for p, label in zip(pattern.split("."), labels, strict=True)
    )


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        (None, [NAME]),
        ({}, ["", ALSO]),
        ({"default_logger_name": "log0"}, ["log0", ALSO]),
        ({"logger_names": {HOST: ["x", "y"]}}, ["x", "y", ALSO]),
        ({"logger_names": {HOST: "x"}, "default_logger_name": "log0"}, ["x", ALSO]),
        ({"logger_names": {"*.test": ["x"], "*.*": ["y"]}}, ["x", ALSO]),
        ({"logger_names": {"*.*": ["y"], "b.test": ["z"]}}, ["y", ALSO]),
        ({"skip_hosts": [HOST]}, [NAME]),
        ({"skip_hosts": ["b.test"]}, ["", ALSO]),
        ({"skip_unmapped_hosts": True}, [NAME]),
        ({"skip_unmapped_hosts": True, "logger_names": {HOST: ["x"]}}, ["x", ALSO]),
    ],
)
@pytest.mark.parametrize("hosts", [(HOST,), ("*.test",), (HOST, "c.test"), ()])
def test_requests_keep_the_names_that_they_had(logs: Json | None, expected: list[str], hosts: tuple[str, ...]) -> None:
    config = placed(with_logs(logs), Own(route(hosts=hosts)))
    assert names(config, HOST) == expected


def test_hosts_of_one_route_keep_each_their_own_names() -> None:
    config = placed(with_logs({"logger_names": {HOST: ["x"], "b.test": ["y"]}}), Own(route()))
    assert [names(config, host) for host in (HOST, "b.test", "c.test")] == [["x", ALSO], ["y", ALSO], ["", ALSO]]


def test_a_skipped_host_with_a_port_is_no_name_of_a_logger() -> None:
    """A Caddyfile has them so for other ports than 443, and Caddy refuses a logger's name with one."""
    before = with_logs({"skip_hosts": ["b.test:8443", "c.test", "[::1]:80", "::1"]})
    assert server_logs(placed(before)) == {
        "skip_hosts": ["b.test:8443", "[::1]:80"],
        "logger_names": {"c.test": [OTHER], "::1": [OTHER]},
    }
    assert server_logs(remove(placed(before), {"trafficd-web"})) == {
        "skip_hosts": ["::1", "[::1]:80", "b.test:8443", "c.test"]
    }


def test_hosts_that_were_skipped_get_a_name_that_nobody_writes() -> None:
    logs = {"skip_hosts": ["b.test", "c.test"], "skip_unmapped_hosts": True, "logger_names": {"c.test": ["x"]}}
    assert server_logs(placed(with_logs(logs))) == {
        "logger_names": {"b.test": [OTHER], "c.test": ["x"]},
        "default_logger_name": OTHER,
    }


# -- loggers -------------------------------------------------------------------------------------------

OURS = "http.log.access.trafficd"
ERRORS = "http.log.error.trafficd.also"


@pytest.mark.parametrize(
    ("theirs", "excluded"),
    [
        ({}, [OURS, ERRORS]),
        ({"exclude": ["admin"]}, ["admin", OURS, ERRORS]),
        ({"include": ["admin"]}, None),
        ({"include": ["http.log.access.log0"]}, None),
        ({"include": ["http.log.access"]}, [OURS]),
        ({"include": ["http"]}, [OURS, ERRORS]),
        ({"include": ["http.log", "admin"]}, [OURS, ERRORS, "admin.trafficd"]),
        ({"include": [OURS]}, None),
        ({"include": ["http.log.acc"]}, None),
    ],
)
def test_other_loggers_get_no_lines_of_ours(theirs: Json, excluded: list[str] | None) -> None:
    config = placed(with_logs(None, theirs=theirs))
    assert config["logging"]["logs"]["theirs"].get("exclude") == excluded
    assert config["logging"]["logs"]["default"] == {"exclude": [OURS, ERRORS]}


def test_no_header_of_a_request_is_kept() -> None:
    fields = logged.logger(FILE)["encoder"]["fields"]
    assert {"request>headers", "resp_headers"} <= {name for name, how in fields.items() if how["filter"] == "delete"}


# -- in and out ----------------------------------------------------------------------------------------

NAMED = st.dictionaries(
    st.sampled_from([HOST, "b.test", "*.test", "*.*"]), st.lists(st.sampled_from(["", "x", "y"]), min_size=1)
)
LOGS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "default_logger_name": st.sampled_from(["x", "log0"]),
        "logger_names": NAMED,
        "skip_hosts": st.lists(st.sampled_from([HOST, "b.test", "c.test"]), unique=True),
        "skip_unmapped_hosts": st.booleans(),
    },
)
HOSTS = st.sampled_from([(), (HOST,), ("*.test",), (HOST, "c.test")])
LOGGERS = st.sampled_from([{}, {"include": ["http.log", "admin"]}, {"exclude": ["http.log.access.log0"]}])


@given(logs=LOGS, hosts=HOSTS, theirs=LOGGERS, admin=st.booleans())
def test_putting_it_in_again_changes_nothing_and_it_is_seen_to_be_there(
    logs: Json | None, hosts: tuple[str, ...], theirs: Json, admin: bool
) -> None:
    before = with_logs(logs, theirs=theirs)
    untouched = copy.deepcopy(before)
    way: Way = ByAdmin(route(hosts=hosts), lambda: {"10.0.0.5:80": 1}) if admin else Own(route(hosts=hosts))
    assert not way.present(before)
    once = placed(before, way)
    assert before == untouched
    assert placed(once, way) == once
    assert way.present(once)


@given(hosts=HOSTS, theirs=LOGGERS)
def test_without_a_logged_route_the_loggers_are_as_they_were(hosts: tuple[str, ...], theirs: Json) -> None:
    before = with_logs(None, theirs=theirs)
    once = placed(before, Own(route(hosts=hosts)))
    plain = Own(route(hosts=hosts, access_log=None))
    assert placed(once, plain) == placed(before, plain)
    assert remove(once, {"trafficd-web"}) == remove(placed(before, plain), {"trafficd-web"})


def test_the_logger_stays_as_long_as_one_route_needs_it() -> None:
    both = placed(with_logs(None), Own(route("one")), Own(route("two", hosts=("b.test",))))
    assert NAME in remove(both, {"trafficd-one"})["logging"]["logs"]
    assert "logging" not in remove(both, {"trafficd-one", "trafficd-two"})


@pytest.mark.parametrize("part", ["logger", "exclusion", "server"])
def test_what_somebody_took_out_is_missed(part: str) -> None:
    way = Own(route(hosts=(HOST,)))
    config = placed(with_logs(None), way)
    match part:
        case "logger":
            del config["logging"]["logs"][NAME]
        case "exclusion":
            del config["logging"]["logs"]["default"]["exclude"]
        case "server":
            del config["apps"]["http"]["servers"]["theirs"]["logs"]
    assert not way.present(config)
    assert way.present(placed(config, way))


def test_there_is_one_file_for_all_services() -> None:
    ways = [Own(route("one")), Own(route("two", access_log="/elsewhere"))]
    with pytest.raises(ValueError, match="one access log for all services"):
        wanted(None, ways, None)


def test_a_path_that_is_a_placeholder_is_refused() -> None:
    with pytest.raises(AddressError, match="logs"):
        route(access_log="/var/log/{env.HOME}")
