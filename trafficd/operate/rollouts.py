"""Requests about rollouts: begin, go back, pause, resume, promote, abort."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from trafficd.config import RolloutOverrides
from trafficd.core import events as ev
from trafficd.core.model import Freeze, Order, Phase, Policy, Rollout, Service, World
from trafficd.core.routing import available
from trafficd.errors import ConflictError, InvalidError, ProxyUnavailableError
from trafficd.operate.requests import Requests

STRATEGIES = ("rolling",)


@dataclass
class RolloutRequests(Requests):
    """Begin rollouts and steer the live one."""

    async def start(
        self,
        version: str,
        strategy: str = "rolling",
        overrides: RolloutOverrides | None = None,
        *,
        actor: str = "",
        message: str = "",
        key: str | None = None,
        back: bool = False,
    ) -> Rollout:
        """Begin a rollout of `version`. `back`: to a version that ran before, which a freeze does not forbid."""
        if strategy not in STRATEGIES:
            raise InvalidError(f"strategy {strategy!r} is not known; there is: {', '.join(STRATEGIES)}")
        names = tuple(self.state.upstreams)
        if not names:
            raise ConflictError(f"service {self.state.name} has no upstreams; add some first")
        policy = self.section.policy(len(names), overrides)
        if policy.order is Order.START_FIRST and not self.section.routed:
            raise InvalidError(f"order: {self.state.name} is a service of workers, which have no second address")
        rollout_id = f"r-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"

        def check(state: Service) -> None:
            self._refuse_left(state)
            if tuple(state.upstreams) != names:
                raise ConflictError(f"the upstreams of {state.name} were changed at the same moment; try again")
            if state.live is not None:
                raise ConflictError(
                    f"rollout {state.live.id} to {state.live.version} is live ({state.live.phase}); "
                    f"one at a time: wait for it, or `trafficd abort {state.name}`"
                )
            if not back:
                _refuse_frozen(state, time.time())
            _refuse_hopeless(state, policy, self.engine.world(), routed=self.section.routed)

        await self.engine.record(
            ev.RolloutStarted(
                service=self.state.name,
                rollout=rollout_id,
                version=version,
                strategy=strategy,
                policy=policy,
                upstreams=names,
                previous={name: upstream.version for name, upstream in self.state.upstreams.items()},
                actor=actor,
                message=message,
                key=key,
            ),
            check,
        )
        return self.rollout(rollout_id)

    async def rollback(self, *, actor: str = "", key: str | None = None) -> Rollout:
        """Begin a rollout back: to the stable version where something else runs, else to the one before."""
        state = self.state
        strays = [u.id for u in state.upstreams.values() if u.version != state.stable]
        if state.stable is not None and strays:
            target = state.stable
        elif state.history:
            target = state.history[-1]
        else:
            raise ConflictError(
                f"service {state.name} has no version before {state.stable or 'this one'} in its journal; "
                f"deploy one by name: trafficd deploy {state.name} VERSION"
            )
        return await self.start(target, actor=actor, message="rollback", key=key, back=True)

    async def freeze(self, reason: str, until: float | None, *, actor: str = "") -> None:
        """Let no rollout begin until then (seconds since the epoch; None: until thawed)."""
        if until is not None and until <= time.time():
            raise InvalidError(f"until: {moment(until)} is over already")
        wanted = Freeze(reason, until, actor)
        event = ev.Frozen(self.state.name, reason, until, actor)
        await self.engine.record(event, lambda state: state.freeze != wanted)

    async def thaw(self, *, actor: str = "") -> None:
        """Let rollouts begin again."""
        await self.engine.record(ev.Thawed(self.state.name, actor), lambda state: state.freeze is not None)

    async def pause(self, rollout_id: str, *, actor: str = "") -> None:
        """Begin no further upstream; what is in work is brought to an end."""
        self._live(rollout_id)
        await self._on_live(ev.Paused(self.state.name, rollout_id, actor), paused=True)

    async def resume(self, rollout_id: str, *, actor: str = "") -> None:
        """Go on."""
        self._live(rollout_id)
        await self._on_live(ev.Resumed(self.state.name, rollout_id, actor), paused=False)

    async def promote(self, rollout_id: str) -> None:
        rollout = self._live(rollout_id)
        raise ConflictError(
            f"rollout {rollout_id} is {rollout.strategy}: it has no share to promote; it goes on by itself"
        )

    async def abort(self, rollout_id: str, *, revert: bool = True, actor: str = "") -> str | None:
        """Stop and send all traffic to the old version, at once. Returns a warning, or None.

        Raises `ProxyUnavailableError` where traffic could not be moved; the engine goes on trying.
        """
        rollout = self._live(rollout_id)
        warning = self.engine.unjournalled()
        if rollout.abort is None or rollout.abort.revert != revert:
            event = ev.AbortRequested(self.state.name, rollout_id, revert, actor)
            warning = await self.engine.record_first_in_line(event)
        if self.engine.trouble.proxy:
            raise ProxyUnavailableError(
                f"rollout {rollout_id} is aborted, but traffic could not be moved: {self.engine.trouble.proxy}. "
                "trafficd goes on trying"
            )
        return warning

    def _live(self, rollout_id: str) -> Rollout:
        rollout = self.rollout(rollout_id)
        if not rollout.live:
            raise ConflictError(f"rollout {rollout_id} has ended: {rollout.phase}")
        return rollout

    async def _on_live(self, event: ev.Paused | ev.Resumed, *, paused: bool) -> None:
        def check(state: Service) -> bool:
            if state.live is None or state.live.id != event.rollout:
                raise ConflictError(f"rollout {event.rollout} has ended")
            if state.live.paused is paused:
                return False
            if state.live.phase is Phase.ABORTING:
                raise ConflictError(f"rollout {event.rollout} is being aborted; an abort goes first")
            return True

        await self.engine.record(event, check)


def _refuse_frozen(state: Service, now: float) -> None:
    freeze = state.freeze
    if freeze is not None and freeze.holds(now):
        until = "until somebody thaws it" if freeze.until is None else f"until {moment(freeze.until)}"
        raise ConflictError(
            f"{state.name} is frozen {until}{f' by {freeze.actor}' if freeze.actor else ''}: {freeze.reason}. "
            f"If it must be: trafficd thaw {state.name}. A rollback is always possible"
        )


def moment(at: float) -> str:
    """A point in time, for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _refuse_hopeless(state: Service, policy: Policy, world: World, *, routed: bool) -> None:
    """Refuse at once what could only end in a time-out: all serve, and not one may be taken out."""
    total = len(state.upstreams)
    all_serve = len(available(state, world)) == total
    if all_serve and policy.order is Order.STOP_FIRST and policy.min_ready >= total:
        start_first = 'Use order = "start_first" with a spare_dial, or set' if routed else "Set"
        raise ConflictError(
            f"{state.name} has {total} upstream(s) and min_ready is {policy.min_ready}: replacing one would "
            f"leave {total - 1}. {start_first} min_ready = {total - 1}"
        )
