"""Requests about a service's traffic as a whole: the canary's share, hold and release, and what is open."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from trafficd.core import events as ev
from trafficd.core.model import Service
from trafficd.core.routing import instances
from trafficd.errors import ConflictError, InvalidError, NotFoundError
from trafficd.operate.requests import Requests

log = logging.getLogger("trafficd.operate")

_COUNT_TIME = 2.0  # s that the state of a service waits for its in-flight counts


@dataclass
class ShareRequests(Requests):
    """Set shares, let requests wait, and count what is open."""

    async def canary(self, percent: float, *, actor: str = "") -> None:
        """Give the upstreams of other versions than the stable one this share of the traffic."""
        self._require_route("canary")
        self._refuse_fine(percent)

        def check(state: Service) -> bool:
            self._refuse_left(state)
            live = state.live
            if live is not None and live.policy.beside:
                if live.stage is None or live.failing:
                    raise ConflictError(
                        f"rollout {live.id} is {live.phase}, and its version has no share to change now"
                    )
                return state.shares.get(live.version) != percent
            if live is not None:
                raise ConflictError(f"rollout {live.id} is live and moves the traffic itself")
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

    async def share(self, version: str, percent: float, *, actor: str = "") -> None:
        """Give a version beside the stable one this share of the traffic, and no other version more or less."""
        self._require_route("share")
        self._refuse_fine(percent)

        def check(state: Service) -> bool:
            self._refuse_left(state)
            self._refuse_stable(state, version)
            others = sum(part for name, part in state.parts().items() if name != version)
            if others + percent > 100:
                raise ConflictError(f"the other versions have {others:g} %, so {percent:g} % more cannot be had")
            return state.shares.get(version) != percent

        await self.engine.record(ev.ShareSet(self.state.name, version, percent, actor), check)
        await self.engine.routed_or_raise()

    async def retire(self, version: str, *, actor: str = "") -> None:
        """Take a version beside the stable one out of traffic, drain its instances, and stop them."""
        self._require_route("retire")
        self._refuse_left(self.state)
        found = [(u.id, one) for u, one in self.state.besides() if one.version == version]
        self._refuse_retire(self.state, version, beside=bool(found))
        gone = [(name, one.dial) for name, one in found if not one.retiring]
        await self.engine.record(ev.ShareSet(self.state.name, version, None, actor))
        for pin in [pin for pin, pinned in self.state.pins.items() if pinned == version]:
            await self.engine.record(ev.PinSet(self.state.name, pin, None, actor))
        for upstream, dial in gone:
            await self.engine.record(ev.RetireStarted(self.state.name, upstream, dial, actor and f"asked by {actor}"))
        await self.engine.routed_or_raise()

    async def pin(self, pin: str, version: str | None, *, actor: str = "") -> None:
        """Lead requests with this pin to a version; None: to where all others go."""
        self._require_route("pin")
        if pin not in self.section.all_pins:
            configured = ", ".join(self.section.all_pins) or "none"
            raise NotFoundError(
                f"service {self.state.name} has no pin {pin!r} ({configured} in its configuration): add "
                f"[services.{self.state.name}.pins.{pin}] with a header or cookie and its values"
            )

        def check(state: Service) -> bool:
            self._refuse_left(state)
            if version is not None and version != state.stable:
                self._refuse_absent(state, version)
            return state.pins.get(pin) != version

        await self.engine.record(ev.PinSet(self.state.name, pin, version, actor), check)
        await self.engine.routed_or_raise()

    def _refuse_fine(self, percent: float) -> None:
        least = 100 / self.section.slots
        if 0 < percent < least:
            raise InvalidError(
                f"percent: {percent:g} % is less than one of {self.section.slots} slots ({least:g} %); raise `slots`"
            )

    def _refuse_stable(self, state: Service, version: str) -> None:
        if state.live is not None:
            raise ConflictError(f"rollout {state.live.id} is live and moves the traffic itself")
        if version == state.stable:
            raise ConflictError(f"{version} is the stable version of {state.name}: it has what the others leave")
        self._refuse_absent(state, version)

    def _refuse_retire(self, state: Service, version: str, *, beside: bool) -> None:
        if state.live is not None or not beside:
            self._refuse_stable(state, version)
        itself = [u.id for u in state.upstreams.values() if u.version == version]
        if not beside:
            raise ConflictError(
                f"{version} does not run beside another version, but is what {', '.join(itself)} itself runs: "
                f"`trafficd drain {state.name} {itself[0] if itself else 'UPSTREAM'}` takes it out of traffic"
            )

    def _refuse_absent(self, state: Service, version: str) -> None:
        if any(True for _ in instances(state, version)):
            return
        known = sorted(
            {one.version for _, one in state.besides()} | {u.version for u in state.upstreams.values() if u.version}
        )
        raise ConflictError(
            f"{version} does not run beside the stable version of {state.name} (there: {', '.join(known)}); bring "
            f"it up with `trafficd deploy {state.name} {version} --strategy rainbow --percent ...`"
        )

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
                dials = [u.dial for u in upstreams] + [one.dial for _, one in self.state.besides()]
                counts = await self.engine.parts.pool.in_flight(dials)
        except Exception as error:  # whatever the adapter met: the state is to be seen all the same
            log.debug("%s: in-flight counts not readable: %s", self.state.name, error)
            counts = {}
        totals = {dial: c.requests + c.streams for dial, c in counts.items() if c is not None}
        found = {u.id: totals.get(u.dial) for u in upstreams}
        return found | {one.key(u.id): totals.get(one.dial) for u, one in self.state.besides()}
