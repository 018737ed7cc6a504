"""The pool of a service that Caddy never sees: weights are remembered, and nothing is in flight.

The engine's decisions about capacity are made from weights, so workers have them as well; nobody is sent anywhere by
them. A new daemon remembers none, so a worker counts as ready after its first good probe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trafficd.core.drain import Open


class NoPool:
    """`trafficd.ports.Pool` without a proxy."""

    def __init__(self) -> None:
        self._weights: dict[str, int] = {}

    async def shift(self, weights: Mapping[str, int], pins: Mapping[str, Mapping[str, int]] | None = None) -> bool:
        """Remember the weights. Always False: there is no traffic that could have moved."""
        self._weights = dict(weights)
        return False

    def shares(self) -> Mapping[str, int]:
        return self._weights

    def pinned(self) -> Mapping[str, Mapping[str, int]]:
        return {}

    async def in_flight(self, dials: Iterable[str]) -> Mapping[str, Open | None]:
        return {dial: Open(0, 0) for dial in dials}

    async def aclose(self) -> None:
        """Nothing is open."""
