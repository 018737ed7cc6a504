"""The `external` driver: the caller replaces the instance, between drained and `POST .../ready`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from trafficd.ports import Outcome, Swap


class ExternalDriver:
    """`trafficd.ports.Driver` that waits to be told."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._waiting: dict[tuple[str, str], asyncio.Future[str | None]] = {}
        self._now = now

    async def __call__(self, swap: Swap) -> Outcome:
        if swap.action != "swap":
            return Outcome(ok=True)
        key = (swap.service, swap.upstream)
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        left = max(0.0, swap.timeout - (self._now() - swap.since))
        try:
            dial = await asyncio.wait_for(future, left)
        except TimeoutError:
            return Outcome(
                False,
                f"nobody said that {swap.upstream} was replaced within {swap.timeout:g} s (swap.timeout)",
            )
        finally:
            if self._waiting.get(key) is future:
                del self._waiting[key]
        return Outcome(ok=True, dial=dial)

    def replaced(self, service: str, upstream: str, dial: str | None) -> bool:
        """The caller says that the instance is replaced; False when nobody waits for it."""
        future = self._waiting.get((service, upstream))
        if future is None or future.done():
            return False
        future.set_result(dial)
        return True
