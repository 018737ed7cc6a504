"""Having the answers of an adopted handler logged, and taking all of it out again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import logged
from proxy.candidates import find
from proxy.handler import Json, Route
from proxy.install import Installed, wanted
from proxy.logged import ALSO, NAME
from proxy.ways import Adopted, Way
from tests.proxy.test_adopt import config, proxies, proxy_to, site, values
from tests.proxy.test_logged import FILE, LOGS

HOST = "a.test"
DIALS = {"a:1": 1}
ERROR = {"match": {"status_code": [5]}, "routes": [{"handle": [{"handler": "static_response", "body": "sorry"}]}]}
CHANGED = {"match": {"status_code": [404]}, "status_code": "410"}
COPIED = {"routes": [{"handle": [{"handler": "copy_response"}]}]}
EMPTY = {"match": {"headers": {"X-Accel-Redirect": ["*"]}}}


def way(service: str = "web", host: str = HOST, **changes: Any) -> Adopted:
    settings: dict[str, Any] = {"slots": 4, "hosts": (host,), "access_log": FILE, **changes}
    return Adopted(Route(service, f"/var/lib/trafficd/slots/{service}/current", **settings))


PLAIN = way(access_log=None)


def placed(before: Json, *ways: Way) -> tuple[Json, Installed]:
    untouched = copy.deepcopy(before)
    edited, told = wanted(before, ways or [way()], None)
    assert before == untouched
    assert not told.refused
    return edited, told


def around(configuration: Json, service: Way) -> Json:
    """What stands in the place of the adopted handler."""
    place: Any = configuration
    for key in find(configuration, service.route).path[:-4]:
        place = place[key]
    assert isinstance(place, dict)
    return place


def with_responses(*entries: Json) -> Json:
    return config(site(HOST, handle=proxy_to("a:1", handle_response=list(entries))))


# -- in and out ----------------------------------------------------------------------------------------

RESPONSES = st.lists(st.sampled_from([ERROR, CHANGED, COPIED, EMPTY]), min_size=1, max_size=3)


@given(proxies, RESPONSES | st.none(), values, LOGS)
def test_what_was_put_in_stays_and_comes_out_without_a_trace(
    handler: Json, responses: list[Json] | None, match: Any, logs: Json | None
) -> None:
    handler = handler if responses is None else {**handler, "handle_response": responses}
    server = {} if logs is None else {"logs": logs}
    before = config(site(HOST, handle=handler), {"handle": [], "match": match}, **server)
    before["logging"] = {"logs": {"theirs": {"include": ["http.log"]}}}
    assert not way().present(before)
    once, told = placed(before)
    assert way().present(once)
    assert not PLAIN.present(once)
    assert told.notes["web"]
    assert placed(once) == (once, Installed(placed=True))
    without, _ = placed(before, PLAIN)
    assert not way().present(without)
    assert placed(without)[0] == once, "one adopted by an earlier trafficd gets it too"
    # `skip_unmapped_hosts` of a server that names no logger at all says as much as no `logs`.
    if logs is None or "skip_unmapped_hosts" not in logs:
        logs_left = (placed(once, PLAIN)[0], way().leave(once, DIALS))
        assert logs_left == (tidied(without), tidied(PLAIN.leave(without, DIALS)))
    left = way().leave(once, DIALS)
    assert not logged._is_logged(left)
    assert way().leave(left, DIALS) == left


def tidied(configuration: Json) -> Json:
    """Hosts that are skipped are a set, and those that have loggers are not skipped."""
    edited = copy.deepcopy(configuration)
    logs = edited["apps"]["http"]["servers"]["srv0"].get("logs") or {}
    if skipped := sorted(host for host in logs.pop("skip_hosts", []) if host not in logs.get("logger_names", {})):
        logs["skip_hosts"] = skipped
    if logs.get("logger_names") == {}:
        del logs["logger_names"]
    return edited


def test_the_notes_say_what_is_put_in() -> None:
    _, told = placed(with_responses(ERROR))
    said = "\n".join(told.notes["web"])
    assert f"access log: a subroute around it has each answer written to {FILE}" in said
    assert "handle_response: a route before those that are there notes who answered" in said
    assert "handle_response" not in "\n".join(placed(config(site(HOST, handle=proxy_to("a:1"))))[1].notes["web"])
    once, _ = placed(with_responses(ERROR))
    assert placed(once, PLAIN)[1].notes == {"web": ["access log: its answers are written there no more"]}


def test_the_handler_keeps_its_neighbours_and_its_id() -> None:
    neighbour = {"handler": "headers"}
    before = config({"handle": [neighbour, proxy_to("a:1", **{"@id": "mine"}), neighbour], "match": [{"host": [HOST]}]})
    once, _ = placed(before)
    handle = once["apps"]["http"]["servers"]["srv0"]["routes"][0]["handle"]
    assert [handle[0], handle[2]] == [neighbour, neighbour]
    *ours, handler = handle[1]["routes"][0]["handle"]
    assert handler["@id"] == "mine"
    assert all(map(logged.writes, ours))
    assert Adopted(way().route, "mine").present(once)


def test_two_services_of_one_server_do_not_disturb_each_other() -> None:
    before = config(site(HOST, handle=proxy_to("a:1")), site("b.test", handle=proxy_to("b:1")))
    ways = [way(), way("two", "b.test")]
    once, told = placed(before, *ways)
    assert not told.unlogged
    assert all(one.present(once) for one in ways)
    assert placed(once, *ways)[0] == once
    left = ways[0].leave(once, DIALS)
    assert ways[1].present(left)
    assert ways[1].leave(left, DIALS) == PLAIN.leave(
        way("two", "b.test", access_log=None).leave(
            placed(before, PLAIN, way("two", "b.test", access_log=None))[0], DIALS
        ),
        DIALS,
    )


@pytest.mark.parametrize("part", ["subroute", "response", "logger", "server", "names"])
def test_what_somebody_took_out_is_missed_and_mended(part: str) -> None:
    once, _ = placed(with_responses(ERROR))
    changed, server = copy.deepcopy(once), copy.deepcopy(once)["apps"]["http"]["servers"]["srv0"]
    server = changed["apps"]["http"]["servers"]["srv0"]
    inside = around(changed, way())
    match part:
        case "subroute":
            handler = inside["routes"][0]["handle"][-1]
            inside.clear()
            inside.update(handler)
        case "response":
            inside["routes"][0]["handle"][-1]["handle_response"].pop()
        case "logger":
            del changed["logging"]["logs"][NAME]
        case "server":
            del server["logs"]
        case "names":
            server["logs"] = {"default_logger_name": "log0"}
    assert not way().present(changed)
    mended, _ = placed(changed)
    assert way().present(mended)
    assert mended == once or part == "names"


def test_what_somebody_put_beside_the_handler_is_kept() -> None:
    once, _ = placed(with_responses(ERROR))
    theirs = {"handler": "headers", "response": {"set": {"X": ["y"]}}}
    around(once, way())["routes"][0]["handle"].insert(-1, theirs)
    assert way().present(once)
    assert placed(once)[0] == once
    left = way().leave(once, DIALS)
    inside = left["apps"]["http"]["servers"]["srv0"]["routes"][0]["handle"][0]["routes"][0]["handle"][0]
    assert inside["routes"][0]["handle"][0] == theirs
    assert "@id" not in inside


# -- handle_response -----------------------------------------------------------------------------------


def responses(*entries: Json) -> list[Json]:
    found: list[Json] = around(placed(with_responses(*entries))[0], way())["routes"][0]["handle"][-1]["handle_response"]
    return found


def test_theirs_come_first_and_only_note_who_answered() -> None:
    first, second, third, last = responses(ERROR, CHANGED, EMPTY)
    note = first["routes"][0]
    assert first == {**ERROR, "routes": [note, *ERROR["routes"]]}
    assert [one["key"] for one in note["handle"]] == ["answered", "latency", "answered_status"]
    assert all(one["early"] for one in note["handle"])
    assert note.keys() == {"handle"}, "it matches everything and ends nothing"
    assert second == CHANGED, "a status is changed only where there are no routes"
    assert third == {**EMPTY, "routes": [note]}
    assert [last] == logged.answered()


def test_fields_of_theirs_are_kept() -> None:
    fields = [{"handler": "log_append", "key": "app", "value": "x"}, {"handler": "copy_response"}]
    entry = {"routes": [{"handle": fields}]}
    once, _ = placed(with_responses(entry))
    left = way().leave(once, DIALS)
    assert left == PLAIN.leave(placed(with_responses(entry), PLAIN)[0], DIALS)


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "names"),
    [((HOST,), ["x", ALSO]), (("*.test",), None), (("{env.HOST}",), None), ((), None), ((HOST.upper(),), ["x", ALSO])],
)
def test_requests_keep_the_names_that_they_had(hosts: Sequence[str], names: list[str] | None) -> None:
    route = site(*hosts, handle=proxy_to("a:1"))
    if not hosts:
        del route["match"]
    before = config(route, logs={"logger_names": {HOST: ["x"]}})
    service = way()
    service = Adopted(Route("web", service.route.slots_path, slots=4, access_log=FILE))
    first = around(placed(before, service)[0], service)["routes"][0]["handle"][0]
    if names is not None:
        assert first == {"handler": "vars", "access_logger_names": names}
    else:
        cases = [(case.get("match"), case["handle"][0]["access_logger_names"]) for case in first["routes"]]
        assert cases == [([{"host": [HOST]}], ["x", ALSO]), (None, ["", ALSO])]


# -- what is in the way --------------------------------------------------------------------------------

CHOICE = {"handler": "vars", "access_logger_names": ["theirs"]}
FIELD = {"handler": "log_append", "key": "service", "value": "shop"}


@pytest.mark.parametrize(("handler", "said"), [(CHOICE, "a choice of loggers"), (FIELD, 'a log field "service"')])
@pytest.mark.parametrize("place", ["beside", "before", "errors", "response"])
def test_what_would_be_written_over_leaves_the_handler_unlogged(handler: Json, said: str, place: str) -> None:
    before = config(site(HOST, handle=proxy_to("a:1", handle_response=[copy.deepcopy(ERROR)])))
    server = before["apps"]["http"]["servers"]["srv0"]
    match place:
        case "beside":
            server["routes"][0]["handle"].insert(0, handler)
        case "before":
            server["routes"].insert(0, {"handle": [handler]})
        case "errors":
            server["errors"] = {"routes": [{"handle": [handler]}]}
        case "response":
            server["routes"][0]["handle"][0]["routes"][0]["handle"][0]["handle_response"][0]["routes"].append(
                {"handle": [handler]}
            )
    edited, told = placed(before)
    assert said in told.unlogged["web"]
    assert edited == placed(before, PLAIN)[0], "it is adopted, and no more than that"
    assert way().present(edited)
    # Where it comes later, ours goes.
    once, _ = placed(config(site(HOST, handle=proxy_to("a:1"))))
    once["apps"]["http"]["servers"]["srv0"]["errors"] = {"routes": [{"handle": [handler]}]}
    assert not way().present(once)
    assert not logged._is_logged(placed(once)[0])


@pytest.mark.parametrize("handler", [CHOICE, FIELD])
def test_what_other_sites_do_is_in_nobodys_way(handler: Json) -> None:
    other = site("b.test", handle={"handler": "static_response"})
    other["handle"].insert(0, handler)
    edited, told = placed(config(other, site(HOST, handle=proxy_to("a:1"))))
    assert not told.unlogged
    assert logged._is_logged(edited)
