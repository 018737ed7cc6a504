"""What makes the answers of an adopted handler stand in the access log (`proxy.logged`). Pure.

In the handler's place stands a `subroute` whose one route has our handlers and then the handler itself. So its
neighbours keep their places, and it can be undone: the subroute has an `@id` by which it is found again.

`handle_response` keeps its meaning. Of its owner's entries Caddy takes the first that matches, and runs its routes;
these get one more, the first, which matches everything, ends nothing and only puts down who answered. Ours comes last,
for what none of theirs matches, and answers as Caddy would. An entry that only changes the status has no routes and
takes none: it stays untouched, and such an answer is charged to its upstream unless it is cut short.

Where the owner has handlers that would write over ours, or ours over theirs (`logged.disturbed`), nothing is put in,
and the reason is said (`unlogged`).

Invariants: putting it in twice changes nothing more; taking it out leaves nothing behind. All else in the
configuration means what it meant before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from proxy import logged
from proxy.candidates import Candidate, Path, at, candidates, with_slots
from proxy.handler import Json, Route

_ID = "trafficd.logged:"  # then the service's name; not "trafficd-", by which whole routes are ours
_SERVER = 4  # keys to a server: apps, http, servers, and its name
_INSIDE = 4  # keys from the subroute to a handler in it: routes, 0, handle, and its number
_PLAIN = re.compile(r"[a-z0-9.-]+")

_GONE = "access log: its answers are written there no more"
_AROUND = (
    "access log: a subroute around it has each answer written to {file}, with who gave it; your own logs have the same "
    "lines as before, with our fields added (service, stratum, answered, latency, upstream, retries)"
)
_INTO_THEIRS = (
    "handle_response: a route before those that are there notes who answered, and with which status: by that it is "
    "judged, whatever is made of the answer"
)
_UNLOGGED = "its answers are not logged: Caddy's server {server!r} has {what}. Take that out there to have them logged"


def put(config: Json, route: Route, candidate: Candidate) -> list[str]:
    """Have the handler logged, in place, or no longer so where the route has no access log or `unlogged` says why it
    cannot be; what is different now, in words."""
    if route.access_log is None or unlogged(config, route, candidate) is not None:
        return [_GONE] if take_out(config, route) else []
    server = at(config, candidate.path[:_SERVER])
    logged.put_server(server)
    logged.put_logger(config, route.access_log)
    handler, place = at(config, candidate.path), _subroute_around(config, route, candidate)
    into_theirs = _theirs(handler) != [] and not _has_ours(handler)
    wanted = _around(config, route, candidate)
    there = candidate.path if place is None else place
    at(config, there[:-1])[there[-1]] = wanted
    return [
        *([_AROUND.format(file=route.access_log)] if place is None else []),
        *([_INTO_THEIRS] if into_theirs else []),
    ]


def take_out(config: Json, route: Route) -> bool:
    """Take it out again, in place, and the logger where nobody else needs it; whether there was any of it."""
    found, over_slots = False, with_slots(config, route)
    for candidate in reversed(candidates(config)):  # the inner ones first: the places of the outer ones stay
        place = _subroute_around(config, route, candidate)
        handler = at(config, candidate.path)
        if place is None and not (candidate in over_slots and _has_ours(handler)):
            continue
        found = True
        _set_responses(handler, _theirs(handler))
        if place is not None:
            at(config, place[:-1])[place[-1]] = _without(at(config, place))
    if found:
        logged.tidy(config)
    return found


def present(config: Json, route: Route, candidate: Candidate) -> bool:
    """Whether it is as `put` would make it."""
    place = _subroute_around(config, route, candidate)
    if route.access_log is None or unlogged(config, route, candidate) is not None:
        return place is None and not _has_ours(at(config, candidate.path))
    server = at(config, candidate.path[:_SERVER])
    return (
        place is not None
        and logged.present(config, server, route.access_log)
        and _around(config, route, candidate) == at(config, place)
    )


def unlogged(config: Json, route: Route, candidate: Candidate) -> str | None:
    """Why its answers cannot be logged though they are to be, in words; None where they can, or are not to be."""
    if route.access_log is None:
        return None
    what = next(filter(None, map(logged.disturbed, _on_the_way(config, candidate))), None)
    return None if what is None else _UNLOGGED.format(server=candidate.server, what=what)


# -- the subroute around it ----------------------------------------------------------------------------


def _subroute_around(config: Json, route: Route, candidate: Candidate) -> Path | None:
    """The place of our subroute around a handler, where there is one."""
    place = candidate.path[:-_INSIDE]
    around = at(config, place)
    inside = candidate.path[-_INSIDE:-1] == ("routes", 0, "handle")
    return place if inside and isinstance(around, dict) and around.get("@id") == _ID + route.service else None


def _around(config: Json, route: Route, candidate: Candidate) -> Json:
    """Our subroute around a handler as it is to be, beside all that somebody else put into it meanwhile."""
    handler, place = at(config, candidate.path), _subroute_around(config, route, candidate)
    present: Json = {"routes": [{"handle": [handler]}]} if place is None else at(config, place)
    first, *more = present["routes"]
    beside = [_logged(one) if one is handler else one for one in first["handle"] if not logged.writes(one)]
    logs = at(config, candidate.path[:_SERVER]).get("logs")
    handle = [*logged.handlers(route.service, _hosts(candidate), logs), *beside]
    ours = {"@id": _ID + route.service, "handler": "subroute"}
    return {**present, **ours, "routes": [{**first, "handle": handle}, *more]}


def _without(around: Json) -> Json:
    """What stands in our subroute without ours: the handler, or still a subroute where somebody added to it."""
    first, *more = around["routes"]
    beside: list[Json] = [one for one in first["handle"] if not logged.writes(one)]
    if len(beside) == 1 and not more and first.keys() == {"handle"}:
        return beside[0]
    kept = {key: value for key, value in around.items() if key != "@id"}
    return {**kept, "routes": [{**first, "handle": beside}, *more]}


def _hosts(candidate: Candidate) -> tuple[str, ...]:
    """The hosts whose loggers matter: where they are not all plain names, none, which means whatever the server has."""
    return candidate.hosts if all(map(_PLAIN.fullmatch, candidate.hosts)) else ()


# -- in the handler ------------------------------------------------------------------------------------


def _logged(handler: Json) -> Json:
    """The handler with ours in its `handle_response`."""
    entries = [
        {**entry, "routes": [logged.answered_first(), *(entry.get("routes") or [])]} if _has_routes(entry) else entry
        for entry in _theirs(handler)
    ]
    return {**handler, "handle_response": [*entries, *logged.answered()]}


def _theirs(handler: Json) -> list[Json]:
    """What its owner has in `handle_response`."""
    entries = []
    for entry in handler.get("handle_response") or []:
        routes = entry.get("routes") or []
        left = [route for route in routes if not _notes(route)]
        if left and all(map(_is_our_answer, left)):
            continue
        if len(left) < len(routes):
            entry = {key: value for key, value in entry.items() if key != "routes"} | ({"routes": left} if left else {})
        entries.append(entry)
    return entries


def _has_ours(handler: Json) -> bool:
    return _theirs(handler) != (handler.get("handle_response") or [])


def _set_responses(handler: Json, entries: list[Json]) -> None:
    handler.pop("handle_response", None)
    if entries:
        handler["handle_response"] = entries


def _has_routes(entry: Json) -> bool:
    """Whether an entry runs routes, or only changes the status."""
    return entry.get("status_code") in (None, "")


def _notes(route: Json) -> bool:
    """Whether a route only puts down who answered."""
    handle = route.get("handle") or [{}]
    return handle[0].get("key") == "answered" and all(map(logged.writes, handle))


def _is_our_answer(route: Json) -> bool:
    """Whether a route is that of our own entry, which answers as Caddy would."""
    *notes, last = route.get("handle") or [{}]
    return last == {"handler": "copy_response"} and _notes({"handle": notes})


# -- around the handler --------------------------------------------------------------------------------


def _on_the_way(config: Json, candidate: Candidate) -> Iterator[Any]:
    """What a request of this handler may go through: all of the server but for other routes that end there."""
    server: Json = at(config, candidate.path[:_SERVER])
    yield from (value for key, value in server.items() if key != "routes")
    for index, route in enumerate(server.get("routes") or []):
        if candidate.path[_SERVER : _SERVER + 2] == ("routes", index) or not route.get("terminal"):
            yield route
