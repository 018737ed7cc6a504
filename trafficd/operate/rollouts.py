"""Requests about rollouts: begin, queue, take over, go back, pause, resume, promote, abort.

One rollout of a service is live, and at most one is pending behind it (`core.queue` says when it begins). What can
be refused at once is refused when it is asked for, also for one that is only queued.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from trafficd.config import RolloutOverrides
from trafficd.config.canary import BESIDE, STRATEGIES
from trafficd.core import events as ev
from trafficd.core import queue, stages
from trafficd.core.model import Freeze, Order, Phase, Policy, Rollout, Service
from trafficd.errors import ConflictError, InvalidError, ProxyUnavailableError
from trafficd.operate.requests import Requests


class IfLive(StrEnum):
    """What becomes of a rollout that is asked for while another one is live or pending."""

    REFUSE = "refuse"
    QUEUE = "queue"  # it begins when the live one has ended
    SUPERSEDE = "supersede"  # the live one stops where it stands, and it takes over


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
        if_live: IfLive = IfLive.REFUSE,
    ) -> Rollout:
        """Begin a rollout of `version`. `back`: to a version that ran before, which a freeze does not forbid."""
        policy = self._policy(strategy, overrides)
        names = tuple(self.state.upstreams)
        rollout_id = f"r-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        wish = _Wish(rollout_id, version, strategy, actor, message, key)
        if if_live is not IfLive.REFUSE and (self.state.live or self.state.pending):
            return await self._queue(wish, overrides or RolloutOverrides(), policy, if_live)
        # Made of the state that it is checked against: whatever changes in between is refused by the check.
        event, before = queue.started(self.state, policy, **wish._asdict()), self.state

        def check(state: Service) -> None:
            self._refuse_left(state)
            if tuple(state.upstreams) != names or (state.stable, state.carried) != (before.stable, before.carried):
                raise ConflictError(f"the upstreams of {state.name} were changed at the same moment; try again")
            self._refuse_now(state, version, policy, back=back)

        await self.engine.record(event, check)
        return self.rollout(rollout_id)

    def refuse_start(self, version: str, strategy: str = "rolling", overrides: RolloutOverrides | None = None) -> None:
        """Refuse at once what `start` would refuse if it were asked now. Raises `ConflictError`, `InvalidError`."""
        policy = self._policy(strategy, overrides)
        self._refuse_left(self.state)
        self._refuse_now(self.state, version, policy, back=False)

    def refuse_busy(self) -> None:
        """Refuse what must not be done beside a rollout. Raises `ConflictError`."""
        self._refuse_left(self.state)
        self._refuse_uncountable()
        _refuse_second(self.state, back=False)

    def _policy(self, strategy: str, overrides: RolloutOverrides | None) -> Policy:
        if strategy not in STRATEGIES:
            raise InvalidError(f"strategy {strategy!r} is not known; there is: {', '.join(STRATEGIES)}")
        if not self.state.upstreams:
            raise ConflictError(f"service {self.state.name} has no upstreams; add some first")
        if not self.section.routed and strategy != "rolling":
            raise InvalidError(
                f"strategy: {self.state.name} is a service of workers, which have no traffic to hold or to share: "
                "use rolling"
            )
        try:
            policy = self.section.policy(len(self.state.upstreams), overrides, strategy)
        except ValueError as error:
            raise InvalidError(str(error)) from error
        if policy.order is Order.START_FIRST and not self.section.routed:
            raise InvalidError(f"order: {self.state.name} is a service of workers, which have no second address")
        return policy

    def _refuse_now(self, state: Service, version: str, policy: Policy, *, back: bool) -> None:
        """What the state forbids, apart from the queue."""
        self._refuse_uncountable()
        _refuse_second(state, back=back)
        _refuse(queue.unfit(state, version, policy))
        if not back:
            _refuse_frozen(state, time.time())
        _refuse(queue.hopeless(state, policy, self.engine.world()))

    def _refuse_uncountable(self) -> None:
        if self.engine.trouble.counts:
            raise ConflictError(self.engine.trouble.counts)

    async def _queue(self, wish: _Wish, overrides: RolloutOverrides, policy: Policy, if_live: IfLive) -> Rollout:
        """Let a rollout wait behind the live one, or take over from it; it takes the place of a pending one."""
        live = self.state.live if if_live is IfLive.SUPERSEDE else None
        if live is not None and wish.strategy in BESIDE:
            raise InvalidError(
                f"strategy: {wish.strategy} puts a version beside one stable version, and a take-over begins between "
                "two: supersede with rolling, or wait with --queue"
            )

        def check(state: Service) -> None:
            self._refuse_left(state)
            _refuse_frozen(state, time.time())
            _refuse(queue.cramped(state, policy))
            older = state.pending
            if policy.beside and older is not None and older.supersedes is not None:
                raise ConflictError(
                    f"rollout {older.id} is pending and takes over from {older.supersedes}; {wish.strategy} begins "
                    f"beside one stable version and cannot take its place: wait until {older.id} has begun"
                )
            if live is None or state.live is None:
                return
            if state.live.id != live.id:
                raise ConflictError(f"rollout {state.live.id} began at the same moment; try again")
            if not queue.supersedable(state.live):
                if state.live.policy.beside:
                    raise ConflictError(
                        f"rollout {live.id} is {live.strategy}, and its version only runs beside the old one: "
                        f"`trafficd abort {live.id}` takes it away, and `--queue` lets {wish.version} begin after it"
                    )
                raise ConflictError(
                    f"rollout {live.id} is {state.live.phase}, which is brought to its end first: repeat with "
                    f'--queue ("if_live": "queue"), so that {wish.version} begins after it'
                )

        await self.engine.record(
            ev.RolloutQueued(
                service=self.state.name,
                overrides=overrides.plain(),
                supersedes=live.id if live is not None else None,
                **wish._asdict(),
            ),
            check,
        )
        return self.rollout(wish.rollout)

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
        await self._hold_back(actor)
        if all(u.other(target) is not None for u in state.upstreams.values()):
            # It is warm, beside what serves: one good probe of each, and one rename.
            at_once = RolloutOverrides(watch_time=0.0)
            return await self.start(target, "blue_green", at_once, actor=actor, message="rollback", key=key, back=True)
        return await self.start(target, actor=actor, message="rollback", key=key, back=True)

    async def _hold_back(self, actor: str) -> None:
        """Whoever goes back does not want the next version to begin right after by itself."""
        pending = self.state.pending
        if pending is not None and self.state.live is None:
            event = ev.Paused(self.state.name, pending.id, actor, "a rollback goes first")
            await self.engine.record(event, lambda state: state.pending is not None and not state.pending.paused)

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

    async def promote(
        self, rollout_id: str, *, gate: int | None = None, everything: bool = False, actor: str = ""
    ) -> None:
        """Let the rollout go on where it waits for somebody; else give its version all traffic at once.

        `gate`: the number of the stage that is meant, so that a second promote does not go further than the first.
        `everything`: all traffic is meant, also where the rollout has gates.
        """
        rollout = self._live(rollout_id)
        if rollout.phase is Phase.PENDING:
            raise ConflictError(f"rollout {rollout_id} has not begun; look at `trafficd status {self.state.name}`")
        if not rollout.policy.beside:
            raise ConflictError(
                f"rollout {rollout_id} is {rollout.strategy}: it has no share to promote; it goes on by itself"
            )

        def check(state: Service) -> bool:
            current = state.live
            if current is None or current.id != rollout_id:
                raise ConflictError(f"rollout {rollout_id} has ended")
            if current.failing:
                raise ConflictError(f"rollout {rollout_id} is given up ({current.failure}); an abort goes first")
            if gate is not None and current.stage != gate:
                if current.stage is not None and current.stage > gate:
                    return False  # it has gone on already
                raise ConflictError(f"rollout {rollout_id} does not wait at its step {gate + 1}")
            return not (current.promoted or (gate is not None and current.passed >= gate))

        now = time.time()
        event: ev.Event = ev.Promoted(self.state.name, rollout_id, actor)
        if rollout.stage is not None and (gate is not None or stages.waits_for_person(rollout, now)):
            event = ev.GatePassed(self.state.name, rollout_id, rollout.stage if gate is None else gate, actor)
        elif not everything and any(stage.gate for stage in rollout.policy.stages) and not rollout.promoted:
            # Whoever knows that there are gates may mean one that somebody else has just passed.
            raise ConflictError(
                f"no gate of rollout {rollout_id} waits now; to give {rollout.version} all traffic at once: "
                f'trafficd promote {rollout_id} --all ("all": true)'
            )
        await self.engine.record(event, check)

    async def abort(self, rollout_id: str, *, revert: bool = True, actor: str = "", reason: str = "") -> str | None:
        """Stop and send all traffic to the old version, at once. Returns a warning, or None.

        Raises `ProxyUnavailableError` where traffic could not be moved; the engine goes on trying.
        """
        rollout = self._live(rollout_id)
        if rollout.phase is Phase.PENDING and await self._given_up(rollout_id, actor):
            return None
        warning = self.engine.ledger.unwritten()
        if rollout.abort is None or rollout.abort.revert != revert:
            event = ev.AbortRequested(self.state.name, rollout_id, revert, actor, reason)
            warning = await self.engine.record_first_in_line(event)
        if self.engine.trouble.proxy:
            raise ProxyUnavailableError(
                f"rollout {rollout_id} is aborted, but traffic could not be moved: {self.engine.trouble.proxy}. "
                "trafficd goes on trying"
            )
        return warning or self._next_wish(rollout_id)

    async def _given_up(self, rollout_id: str, actor: str) -> bool:
        """Give up a pending rollout; False where it has begun, or has stopped another one and must go through."""
        gone = False

        def check(state: Service) -> bool:
            nonlocal gone
            waits = state.pending is not None and state.pending.id == rollout_id
            gone = waits and not queue.takes_over(state)
            return gone

        pending = self.rollout(rollout_id)
        await self.engine.record(queue.given_up(pending, actor), check)
        return gone or not self.rollout(rollout_id).live

    def _next_wish(self, rollout_id: str) -> str | None:
        """What begins after the rollout that was aborted, in words for whoever aborted it."""
        pending = self.state.pending
        if pending is None or pending.id == rollout_id:
            return None
        return (
            f"rollout {pending.id} to {pending.version} is queued and begins after; to give it up as well: "
            f"trafficd abort {pending.id}"
        )

    def _live(self, rollout_id: str) -> Rollout:
        rollout = self.rollout(rollout_id)
        if not rollout.live:
            raise ConflictError(f"rollout {rollout_id} has ended: {rollout.phase}")
        return rollout

    async def _on_live(self, event: ev.Paused | ev.Resumed, *, paused: bool) -> None:
        def check(state: Service) -> bool:
            rollout = state.named(event.rollout)
            if rollout is None or not rollout.live:
                raise ConflictError(f"rollout {event.rollout} has ended")
            if rollout.paused is paused:
                return False
            if rollout.phase is Phase.ABORTING or (rollout.abort is not None and rollout.phase is Phase.PENDING):
                raise ConflictError(f"rollout {event.rollout} is being aborted; an abort goes first")
            return True

        await self.engine.record(event, check)


class _Wish(NamedTuple):
    """What is journalled of a rollout whether it begins or waits."""

    rollout: str
    version: str
    strategy: str
    actor: str
    message: str
    key: str | None


def _refuse_second(state: Service, *, back: bool) -> None:
    """One rollout at a time: a second one says that it may wait, or take over. A rollback does not wait for one
    that has not begun."""
    live, pending = state.live, state.pending
    if live is not None:
        raise ConflictError(
            f"rollout {live.id} to {live.version} is live ({live.phase}); one at a time: wait for it, "
            f"`trafficd abort {state.name}`, or repeat with --queue or --supersede"
        )
    if pending is not None and not back:
        raise ConflictError(
            f"rollout {pending.id} to {pending.version} is pending; one at a time: `trafficd resume {pending.id}`, "
            f"`trafficd abort {pending.id}`, or repeat with --queue to take its place"
        )


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise ConflictError(problem)


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
