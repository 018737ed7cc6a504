"""The route for `control = "admin"`: the upstreams stand in Caddy's configuration itself. Pure.

It is the same route as with slots, over a list of addresses in place of the list of slot files. What is in the
list, and why:
- An address stands in it as often as its weight says, in the order of `proxy.table`, under plain `round_robin`.
  Caddy's `weighted_round_robin` serves each address in one block ([95, 5]: 95 requests there, then 5 here), so a
  canary gets its users in bursts; its weights are positional and unchecked; and while one upstream is dead, the
  attempts that follow meet it again and again. The repeated list is interleaved, and the attempt after a failed
  dial goes to another address. Caddy allows repeats: it counts references to an address.
- Weights are divided by their greatest common divisor, so equal ones are a plain list. A sum above `Route.slots`
  is rounded to that many turns, as with slots: a share below half a turn may then be none.
- An upstream that is not ready is not in the list. Nobody ready: `NOBODY` alone, and requests wait.
- Each address ends in a placeholder that is always empty. By that Caddy counts what is open by the address that
  it resolved, as it does with slots, and not by the entry of the configuration. Written plainly, an address that
  is taken out and put back while requests are open there gets a new counter, and until it leaves again the old
  requests are not shown (2.11.7). By the same means streams have a count of their own.
- Sticky policies hash the text of the entry. So under `cookie` and `client_ip` the repeats of an address are
  numbered (two equal texts would be one place), and there are always `Route.slots` of them in all, whatever the
  weights: a canary that grows keeps the users it has. Their shares are those of the hash: near, not exact.

The same arguments give the same route, in whatever order the weights come.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from proxy import table
from proxy.errors import CaddyRefusedError
from proxy.handler import Json, Route, assemble, follow, put_route
from proxy.model import Table, stream_alias

_EMPTY = "http.vars.trafficd"  # nobody sets it, and Caddy takes a variable that is not set as empty text
_SUFFIX = re.compile(r"\{http\.vars\.trafficd(_\d+)?\}$")


def turns(weights: Mapping[str, int], route: Route) -> Table:
    """The addresses in the order of their turns. Raises `ValueError` for a negative weight."""
    if any(weight < 0 for weight in weights.values()):
        raise ValueError("a weight must not be negative")
    ready = {address: weight for address, weight in weights.items() if weight}
    if not ready:
        return table.build({}, 1)
    divisor = math.gcd(*ready.values())
    least = {address: weight // divisor for address, weight in ready.items()}
    most = max(route.slots, len(least))
    return table.build(least, min(sum(least.values()), most) if route.affinity == "none" else most)


def build_admin_route(route: Route, addresses: Table, logs: Json | None = None) -> Json:
    """The route over these turns, as Caddy's JSON, in a server that says this of its `logs`."""
    streams = tuple(stream_alias(address) for address in addresses)
    numbered = route.affinity != "none"
    return assemble(route, _dials(addresses, numbered), _dials(streams, numbered), logs)


def _dials(addresses: Table, numbered: bool) -> list[str]:
    met: Counter[str] = Counter()
    dials = []
    for address in addresses:
        dials.append(f"{address}{{{_EMPTY}{f'_{met[address]}' if numbered else ''}}}")
        met[address] += 1
    return dials


# -- in a configuration --------------------------------------------------------------------------------


def read(config: Json | None, route: Route) -> Table | None:
    """The turns that the configuration has for this route; None when the route is not there, or not of this kind."""
    found = _find(config, route)
    handler = _requests_handler(found.get("handle")) if found is not None else None
    if handler is None:
        return None
    dials = [upstream.get("dial", "") for upstream in handler.get("upstreams") or []]
    if not dials or not all(_SUFFIX.search(dial) for dial in dials):
        return None
    return tuple(_SUFFIX.sub("", dial) for dial in dials)


def present(config: Json | None, route: Route) -> bool:
    """Whether the configuration has this very route, over whatever addresses, where it is to listen."""
    addresses = read(config, route)
    return addresses is not None and install(config, route, addresses) == config


def install(config: Json | None, route: Route, addresses: Table) -> Json:
    """The configuration with this route in it over these turns, all else untouched.

    Raises `CaddyRefusedError` when the route has no place.
    """
    edited: Json = copy.deepcopy(config) if config else {}
    put(edited, route, addresses)
    return edited


def put(config: Json, route: Route, addresses: Table) -> None:
    """`install`, in place."""
    put_route(config, route)
    _handle(config, route, addresses)


def move(config: Json | None, route: Route, addresses: Table) -> Json:
    """The configuration with these turns in the route that is there, all else untouched.

    Raises `CaddyRefusedError` when the route is not there.
    """
    edited: Json = copy.deepcopy(config) if config else {}
    _handle(edited, route, addresses)
    return edited


def _handle(config: Json, route: Route, addresses: Table) -> None:
    found = _find(config, route)
    if found is None:
        raise CaddyRefusedError(
            f"the route {route.id!r} is not in Caddy's configuration any more: somebody removed it, or Caddy was "
            "reloaded or restarted without it. Nothing was changed, and requests go wherever Caddy now sends them"
        )
    servers = config["apps"]["http"]["servers"]
    server = next(server for server in servers.values() if found in (server.get("routes") or []))
    found["handle"] = build_admin_route(route, addresses, server.get("logs"))["handle"]
    follow(servers, route.service, found["handle"])


def _find(config: Json | None, route: Route) -> Json | None:
    servers = (config or {}).get("apps", {}).get("http", {}).get("servers", {})
    routes: list[Json] = [existing for server in servers.values() for existing in server.get("routes") or []]
    return next((existing for existing in routes if existing.get("@id") == route.id), None)


def _requests_handler(handle: Any) -> Json | None:
    """The handler for requests, which is the last: the one for streams, if there is one, stands before it."""
    while handle:
        last: Json = handle[-1]
        if last.get("handler") == "reverse_proxy":
            return last
        handle = (last.get("routes") or [{}])[-1].get("handle")
    return None
