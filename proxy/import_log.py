"""What makes the answers of an imported handler stand in the access log (`proxy.logged`): a part of the snippet. Pure.

The Caddyfile is its owner's, so it can hold only what a site block may: a `log` of its own, beside those of the site,
whose lines stay as they are. Caddy's warnings, which say who cut an answer short, are no site's; without them it is not
known whether the client left.

A `log` stands in a site block and nowhere else, so the snippet does, too. A site without a host name has one log, the
last, whatever else is written there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxy import logged
from proxy.candidates import with_slots
from proxy.handler import Json, Route
from proxy.logged import NAME

_MATCHER = f"@{NAME}_answered"
_BEFORE = (
    "its answers are not logged to {file}: the snippet that your Caddyfile imports says nothing of it. Write it again "
    "with `trafficd caddyfile {service}`, and run `caddy reload`"
)
_ANOTHER = (
    "its answers are not logged: its site block has no host name, and a `log` after the import, which takes the place "
    "of the one in it. Give the site its names, or take that `log` out, and run `caddy reload`"
)


def name(service: str) -> str:
    """Of the logger: a Caddyfile defines one for each site that has it."""
    return f"{NAME}-{service}"


def site_lines(service: str, path: str) -> Iterator[str]:
    """What goes before the `reverse_proxy`: the logger, which writes to this file, and the fields."""
    built = logged.logger(path)
    writer, encoder = built["writer"], built["encoder"]
    yield f"log {name(service)} {{"
    yield f"\toutput file {_quoted(path)} {{"
    yield f"\t\tmode {writer['mode']}"
    yield f"\t\troll_size {writer['roll_size_mb']}MiB"
    yield f"\t\troll_keep {writer['roll_keep']}"
    yield f"\t\troll_keep_for {24 * writer['roll_keep_days']}h"
    yield "\t\troll_uncompressed"
    yield "\t}"
    yield "\tformat filter {"
    yield "\t\twrap json {"
    yield from (f'\t\t\t{key} ""' for key, value in encoder["wrap"].items() if value == "")
    yield "\t\t}"
    yield "\t\tfields {"
    yield from (f"\t\t\t{field} {_filter(how)}" for field, how in encoder["fields"].items())
    yield "\t\t}"
    yield "\t}"
    yield "}"
    yield from map(_append, logged.fields(service))


def handler_lines() -> Iterator[str]:
    """What goes into the `reverse_proxy`."""
    (entry,) = logged.answered()
    *appended, last = entry["routes"][0]["handle"]
    yield f"{_MATCHER} status {' '.join(f'{digit}xx' for digit in entry['match']['status_code'])}"
    yield f"handle_response {_MATCHER} {{"
    yield from (f"\t{_append(one)}" for one in appended)
    yield f"\t{last['handler']}"
    yield "}"


def unlogged(config: Json | None, route: Route) -> str | None:
    """Why its answers are not logged though they are to be, in words."""
    if route.access_log is None:
        return None
    config = config or {}
    loggers: Json = (config.get("logging") or {}).get("logs") or {}
    writer: Any = loggers.get(name(route.service), {}).get("writer") or {}
    if writer.get("filename") != route.access_log:
        return _BEFORE.format(file=route.access_log, service=route.service)
    servers = [candidate.server for candidate in with_slots(config, route)]
    sites = (config["apps"]["http"]["servers"][server].get("logs") or {} for server in servers)
    named = any(name(route.service) in logged.names_in(logs) for logs in sites)
    return None if named else _ANOTHER


def _append(handler: Json) -> str:
    return f"log_append {'<' if handler.get('early') else ''}{handler['key']} {handler['value']}"


def _filter(how: Json) -> str:
    return "delete" if how["filter"] == "delete" else f"regexp `{how['regexp']}` {how['value']}"


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text
