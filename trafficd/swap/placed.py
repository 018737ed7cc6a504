"""Which driver an upstream is replaced by, where its host is not that of the others."""

from __future__ import annotations

from collections.abc import Mapping

from trafficd.ports import Driver, Outcome, Swap


class PlacedDriver:
    """`trafficd.ports.Driver` that hands over to the upstream's own driver, or to `others`."""

    def __init__(self, own: Mapping[str, Driver], others: Driver) -> None:
        self._own = own
        self._others = others

    async def __call__(self, swap: Swap) -> Outcome:
        return await self._own.get(swap.upstream, self._others)(swap)
