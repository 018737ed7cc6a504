"""Requests about a service's tie to the proxy: leave it and join it again, and maintenance."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.errors import CaddyRefusedError, ProxyError
from trafficd.core import events as ev
from trafficd.core.model import Service
from trafficd.errors import ConflictError, ProxyUnavailableError
from trafficd.operate.requests import Requests


@dataclass
class TieRequests(Requests):
    """Leave, join, and let the proxy answer by itself."""

    async def leave(self, *, actor: str = "") -> None:
        """Let the proxy go on with plain upstreams, as if trafficd had never been there."""

        def check(state: Service) -> bool:
            if state.live is not None:
                raise ConflictError(
                    f"rollout {state.live.id} is live; wait for its end, or `trafficd abort {state.name}`, then leave"
                )
            return not state.left

        self._require_route("leave")
        if self.state.left:
            return
        await self.engine.record(ev.Left(self.state.name, actor), check)
        try:
            await self.ties.leave(self.state.name)
        except ProxyError as error:
            await self.engine.record(ev.Joined(self.state.name, actor))
            raise _told(error) from error

    async def join(self, *, actor: str = "") -> None:
        """Steer the service again, after a leave."""
        self._require_route("join")
        await self.engine.record(ev.Joined(self.state.name, actor), lambda state: state.left)
        await self.engine.routed_or_raise()
        try:
            await self.ties.join(self.state.name)
        except ProxyError as error:
            raise _told(error) from error
        if self.engine.trouble.caddy:
            raise ConflictError(self.engine.trouble.caddy)

    async def begin_maintenance(self, reason: str, *, actor: str = "") -> None:
        """Let the proxy answer everything by itself, statically. Rollouts go on behind that."""
        self._require_route("maintenance")
        self._refuse_left(self.state)
        try:
            dial = await self.ties.maintenance(self.state.name)
        except ProxyError as error:
            raise _told(error) from error

        def check(state: Service) -> bool:
            self._refuse_left(state)
            known = state.maintenance
            return known is None or (known.dial, known.reason) != (dial, reason)

        await self.engine.record(ev.MaintenanceBegun(self.state.name, dial, reason, actor), check)
        await self.engine.routed_or_raise()

    async def end_maintenance(self, *, actor: str = "") -> None:
        """Let requests go to the upstreams again."""
        event = ev.MaintenanceEnded(self.state.name, actor)
        await self.engine.record(event, lambda state: state.maintenance is not None)
        await self.engine.routed_or_raise()


def _told(error: ProxyError) -> ConflictError | ProxyUnavailableError:
    refused = isinstance(error, CaddyRefusedError)
    return ConflictError(str(error)) if refused else ProxyUnavailableError(str(error))
