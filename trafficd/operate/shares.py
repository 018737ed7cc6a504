"""Requests about a service's traffic as a whole: the canary's share, hold and release, and what is open."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from trafficd.core import events as ev
from trafficd.core.model import Service
from trafficd.errors import ConflictError, InvalidError
from trafficd.operate.requests import Requests

log = logging.getLogger("trafficd.operate")

_COUNT_TIME = 2.0  # s that the state of a service waits for its in-flight counts


@dataclass
class ShareRequests(Requests):
    """Set shares, let requests wait, and count what is open."""

    async def canary(self, percent: float, *, actor: str = "") -> None:
        """Give the upstreams of other versions than the stable one this share of the traffic."""
        self._require_route("canary")
        least = 100 / self.section.slots
        if 0 < percent < least:
            raise InvalidError(
                f"percent: {percent:g} % is less than one of {self.section.slots} slots ({least:g} %); raise `slots`"
            )

        def check(state: Service) -> bool:
            self._refuse_left(state)
            if state.live is not None:
                raise ConflictError(f"rollout {state.live.id} is live and moves the shares itself")
            others = [u for u in state.upstreams.values() if not state.regular(u) and u.serving and not u.drained]
            if not others:
                raise ConflictError(
                    f"service {state.name} has no canary: every ready upstream runs {state.stable or 'one version'}"
                )
            return state.canary_percent != percent

        await self.engine.record(ev.CanarySet(self.state.name, percent, actor), check)
        await self.engine.routed_or_raise()

    async def end_canary(self, reason: str, *, actor: str) -> str | None:
        """All traffic to the stable version, at once; what is wrong with the journal, if anything."""
        if not self.state.canary_percent:
            return None
        return await self.engine.record_first_in_line(ev.CanarySet(self.state.name, 0.0, actor, reason))

    async def hold(self, *, actor: str = "") -> None:
        """Let requests wait at the proxy, with nobody behind it."""
        self._require_route("hold")
        self._refuse_left(self.state)
        await self.engine.record(ev.Held(self.state.name, actor), lambda state: not state.held)
        await self.engine.routed_or_raise()

    async def release(self, *, actor: str = "") -> None:
        """Let waiting requests go."""
        if not self.state.held:  # held while it still had a route, it must not stay so for ever
            self._require_route("release")
        await self.engine.record(ev.Released(self.state.name, actor), lambda state: state.held)
        await self.engine.routed_or_raise()

    async def in_flight(self) -> dict[str, int | None]:
        """What is open on each upstream now, by id; None where that cannot be known."""
        upstreams = self.state.upstreams.values()
        try:
            async with asyncio.timeout(_COUNT_TIME):
                counts = await self.engine.parts.pool.in_flight([u.dial for u in upstreams])
        except Exception as error:  # whatever the adapter met: the state is to be seen all the same
            log.debug("%s: in-flight counts not readable: %s", self.state.name, error)
            counts = {}
        totals = {dial: c.requests + c.streams for dial, c in counts.items() if c is not None}
        return {u.id: totals.get(u.dial) for u in upstreams}
