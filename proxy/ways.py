"""The ways in which a service over slots stands in Caddy's configuration. Pure.

    Own       a route of our own, which we write
    Adopted   a handler of somebody else's route, whose upstreams we make slots
    Imported  a snippet of ours in somebody's Caddyfile, which we only look for

and of a service whose upstreams stand in Caddy's configuration itself:

    ByAdmin   a route of our own, over addresses in place of slots

Each puts what it wants into a configuration (`put`), says whether it is there (`present`), and how traffic goes on
without us (`leave`). All of them are edits under If-Match: they change nothing that is as wanted already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy import admin_route, adopt, handler, import_log
from proxy.candidates import find
from proxy.errors import CaddyRefusedError
from proxy.handler import Json, Route


class Way(Protocol):
    """How one service stands in Caddy's configuration."""

    @property
    def route(self) -> Route: ...

    @property
    def splits_streams(self) -> bool:
        """Whether streams go by a spelling of their own, and so have a count of their own."""
        ...

    def put(self, config: Json) -> list[str]:
        """Make the configuration, in place, as this service wants it; what a person should know of the change.

        Raises `CaddyRefusedError` when that cannot be; then nothing is changed.
        """
        ...

    def present(self, config: Json | None) -> bool:
        """Whether requests of this service go where we say."""
        ...

    def unlogged(self, config: Json | None) -> str | None:
        """Why its answers are not in the access log though they are to be, in words; None where nothing is wrong."""
        ...

    def leave(self, config: Json | None, weights: Mapping[str, int]) -> Json:
        """The configuration with plain upstreams of these weights, for Caddy to go on without us.

        Raises `CaddyRefusedError` when that is not ours to do, or nobody has a weight.
        """
        ...


@dataclass(frozen=True)
class Own:
    """A route of our own."""

    route: Route

    @property
    def splits_streams(self) -> bool:
        return self.route.splits_streams

    def put(self, config: Json) -> list[str]:
        handler.put_route(config, self.route)
        return []

    def present(self, config: Json | None) -> bool:
        return handler.present(config, self.route)

    def unlogged(self, config: Json | None) -> str | None:
        return None

    def leave(self, config: Json | None, weights: Mapping[str, int]) -> Json:
        return adopt.leave(config, self.route, weights)


@dataclass(frozen=True)
class Adopted:
    """The handler of a running configuration that is called `adopt_id`, or else serves the service's hosts."""

    route: Route
    adopt_id: str | None = None
    splits_streams = False

    def put(self, config: Json) -> list[str]:
        return adopt.take_over(config, self.route, find(config, self.route, self.adopt_id))

    def present(self, config: Json | None) -> bool:
        return adopt.as_wanted(config, self.route)

    def unlogged(self, config: Json | None) -> str | None:
        return adopt.unlogged(config, self.route)

    def leave(self, config: Json | None, weights: Mapping[str, int]) -> Json:
        return adopt.leave(config, self.route, weights)


@dataclass(frozen=True)
class Imported:
    """A snippet of ours that a Caddyfile imports. The Caddyfile is not ours: nothing is ever written for it."""

    route: Route
    splits_streams = False

    def put(self, config: Json) -> list[str]:
        if not self.present(config):
            raise CaddyRefusedError(_not_imported(self.route))
        return []

    def present(self, config: Json | None) -> bool:
        return adopt.adopted(config, self.route)

    def unlogged(self, config: Json | None) -> str | None:
        return import_log.unlogged(config, self.route)

    def leave(self, config: Json | None, weights: Mapping[str, int]) -> Json:
        name = self.route.service
        dials = " ".join(dial for dial, weight in weights.items() if weight) or "HOST:PORT ..."
        raise CaddyRefusedError(
            f"services.{name}: the slots stand in your Caddyfile, which is not ours to change. Put "
            f"`reverse_proxy {dials}` there in place of the import, and run `caddy reload`"
        )


@dataclass(frozen=True)
class ByAdmin:
    """A route of our own over addresses. `initial` gives their weights for a route that is not there yet."""

    route: Route
    initial: Callable[[], Mapping[str, int]] = dict

    @property
    def splits_streams(self) -> bool:
        return self.route.splits_streams

    def put(self, config: Json) -> list[str]:
        turns = admin_route.read(config, self.route) or admin_route.turns(self.initial(), self.route)
        admin_route.put(config, self.route, turns)
        return []

    def present(self, config: Json | None) -> bool:
        return admin_route.present(config, self.route)

    def unlogged(self, config: Json | None) -> str | None:
        return None

    def leave(self, config: Json | None, weights: Mapping[str, int]) -> Json:
        return adopt.leave(config, self.route, weights)


def _not_imported(route: Route) -> str:
    name = route.service
    return (
        f"services.{name}: Caddy's configuration does not have the slots of {name}. Run `trafficd caddyfile {name} > "
        f"/etc/caddy/trafficd-{name}.caddy`, import that file in the site block in place of its reverse_proxy, and run "
        "`caddy reload`; trafficd sees it by itself"
    )
