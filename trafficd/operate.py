"""What people and scripts ask of a service: each request checked against the state, then journalled.

Repeating a request that is already fulfilled changes nothing and succeeds. What is refused says why and
what to do instead.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from trafficd.config import RolloutOverrides, ServiceSection
from trafficd.core import events as ev
from trafficd.core.drain import DrainVerdict, Open
from trafficd.core.model import Cut, Health, Order, Phase, Policy, Rollout, Service, StepKind, Task, Upstream, World
from trafficd.core.routing import available, route
from trafficd.engine import Engine
from trafficd.errors import ConflictError, GateError, InvalidError, NotFoundError, ProxyUnavailableError
from trafficd.observe import drain, gate, open_on
from trafficd.perform import cut_of, unknown_reason

log = logging.getLogger("trafficd.operate")

STRATEGIES = ("rolling",)

_ASK_AGAIN = 0.02  # s until an external driver that does not wait yet is told again
_COUNT_TIME = 2.0  # s that the state of a service waits for its in-flight counts


@dataclass(frozen=True)
class DrainReport:
    """`in_flight` is None where it is not known. `cut`: what was still open when the time was up."""

    drained: bool
    in_flight: int | None
    cut: Cut


@dataclass
class Operator:
    """Requests about one service.

    `replaced` tells the external driver that an instance was replaced; it answers whether one waited.
    """

    engine: Engine
    section: ServiceSection
    replaced: Callable[[str, str, str | None], bool]
    _named: dict[tuple[str, str], str] = field(default_factory=dict)  # (rollout, upstream): the dial a caller named

    @property
    def state(self) -> Service:
        return self.engine.state

    def _upstream(self, name: str) -> Upstream:
        upstream = self.state.upstreams.get(name)
        if upstream is None:
            known = ", ".join(sorted(self.state.upstreams)) or "none"
            raise NotFoundError(f"service {self.state.name} has no upstream {name!r}; it has: {known}")
        return upstream

    def rollout(self, rollout_id: str) -> Rollout:
        """The newest rollout, if it has this id."""
        rollout = self.state.rollout
        if rollout is None or rollout.id != rollout_id:
            raise NotFoundError(f"service {self.state.name} has no live rollout {rollout_id!r}")
        return rollout

    # -- upstreams -------------------------------------------------------------------------------------

    async def add_upstream(self, name: str, dial: str, version: str | None, spare_dial: str | None) -> None:
        """Add an upstream; it receives traffic after one good probe. Adding it again is no change."""
        if dial == spare_dial:
            raise InvalidError(f"dial and spare_dial are both {dial}: old and new could not run side by side")

        def check(state: Service) -> bool:
            known = state.upstreams.get(name)
            if known is not None and (known.dial, known.version, known.spare_dial) == (dial, version, spare_dial):
                return False
            if known is not None:
                raise ConflictError(f"upstream {name!r} exists already; DELETE it first, or use another id")
            if len(state.upstreams) >= self.section.slots:
                raise ConflictError(
                    f"service {state.name} has {self.section.slots} slots and as many upstreams; "
                    "raise `slots` in the configuration"
                )
            for address in filter(None, (dial, spare_dial)):
                self._require_free(state, address)
            return True

        await self.engine.record(ev.UpstreamAdded(self.state.name, name, dial, version, spare_dial), check)

    async def remove_upstream(self, name: str, *, force: bool = False) -> None:
        """Remove an upstream from traffic and from the service. Drain it first to lose nothing."""
        self._upstream(name)

        def check(state: Service) -> None:
            if state.live is not None:
                raise ConflictError(
                    f"rollout {state.live.id} is live; wait for it, or abort it, before removing an upstream"
                )
            self._refuse_last(state, name, force=force)

        await self.engine.record(ev.UpstreamRemoved(self.state.name, name), check)
        await self.engine.routed_or_raise()

    async def drain(self, name: str, *, timeout: float | None, wait: bool, force: bool, actor: str = "") -> DrainReport:
        """Take an upstream out of traffic and wait for what is open on it."""
        self._upstream(name)
        fresh = False

        def check(state: Service) -> bool:
            nonlocal fresh
            fresh = not self._upstream(name).drained
            if fresh:
                self._refuse_in_work(state, name)
                self._refuse_last(state, name, force=force)
            return fresh

        await self.engine.record(ev.DrainRequested(self.state.name, name, force, actor), check)
        await self.engine.routed_or_raise()
        report = await self._emptied(self._upstream(name).dial, timeout, wait=wait)
        if not self._upstream(name).drained:
            raise ConflictError(
                f"{name} was made ready again meanwhile, so it is not drained; look at `trafficd status`"
            )
        if wait and fresh:
            event = ev.DrainEnded(self.state.name, name, report.drained, report.in_flight, report.cut)
            await self.engine.record(event)
        return report

    async def _emptied(self, dial: str, timeout: float | None, *, wait: bool) -> DrainReport:
        pool, rollout = self.engine.parts.pool, self.section.rollout
        limit = rollout.drain_timeout if timeout is None else timeout
        try:
            if not wait:
                count = await open_on(pool, dial)
                return DrainReport(False, None if count is None else count.total, Cut())
            verdict, count = await drain(pool, dial, since=time.time(), quiet=rollout.drain_quiet, timeout=limit)
        except Exception as error:  # whatever the adapter met: not counted is not zero
            raise ProxyUnavailableError(f"{unknown_reason(dial)} ({error})") from error
        return _report(verdict, count, dial)

    async def ready(self, name: str, *, version: str | None, dial: str | None, wait: bool, actor: str = "") -> Upstream:
        """Put an upstream into traffic after its gate: the whole one when something new runs there."""
        upstream = self._upstream(name)
        if self._callers_turn(name) is not None:
            return await self._ready_in_rollout(name, version, dial, wait=wait)
        swapped = version not in (None, upstream.version) or dial not in (None, upstream.dial)
        if not swapped and upstream.serving is not None and not upstream.drained:
            return await self._ready_already(upstream, wait=wait)
        target, runs = dial or upstream.dial, version or upstream.version
        # Named again, an instance may have been replaced by the same version: let it prove itself.
        whole = version is not None or dial is not None

        def check(state: Service) -> bool:
            current = self._upstream(name)
            self._refuse_in_work(state, name)
            if target not in (current.dial, current.spare_dial):
                self._require_free(state, target, but=name)
            known = current.gating
            if known is not None and (known.dial, known.version, known.swapped) == (target, runs, whole):
                return False
            self.engine.gate_failures.pop(name, None)
            return True

        await self.engine.record(ev.ReadyRequested(self.state.name, name, target, runs, whole, actor), check)
        return await self._gated(name, target, runs) if wait else self._upstream(name)

    async def _gated(self, name: str, target: str, version: str | None) -> Upstream:
        """Wait for the end of this gate; another one, or a drain, may take its place."""

        def over() -> bool:
            upstream = self.state.upstreams.get(name)
            gating = None if upstream is None else upstream.gating
            return gating is None or (gating.dial, gating.version) != (target, version)

        async with self.engine.changed:
            await self.engine.changed.wait_for(over)
        upstream = self._upstream(name)
        if not upstream.drained and (upstream.serving, upstream.version) == (target, version):
            self.engine.monitor.assume_up(name, target)
            await self.engine.routed_or_raise()
            return upstream
        failure = self.engine.gate_failures.get(name)
        if failure is None or upstream.gating is not None:
            raise ConflictError(
                f"something else was asked of {name} before it had passed its gate; look at `trafficd status`"
            )
        out = upstream.drained or upstream.serving is None
        stays = "stays out of traffic" if out else f"goes on with {upstream.version or 'what ran before'}"
        raise GateError(f"{name} ({target}) did not pass its gate and {stays}: {failure}")

    async def _ready_already(self, upstream: Upstream, *, wait: bool) -> Upstream:
        """Nothing to change; where the probes hold it for down, wait for a good one."""
        name, dial = upstream.id, upstream.dial
        if wait and self.engine.world().health.get(name) is not Health.UP:
            deadline = self.section.rollout.healthy_deadline
            probe = self.engine.parts.probe
            failure = await gate(probe, dial, since=time.time(), min_healthy_time=0.0, deadline=deadline)
            if failure is not None:
                raise GateError(f"{name} ({dial}): {failure}")
            current = self._upstream(name)
            if current.drained or current.serving != dial:
                raise ConflictError(f"{name} was taken out of traffic meanwhile; look at `trafficd status`")
            self.engine.monitor.assume_up(name, dial)
        await self.engine.routed_or_raise()
        return self._upstream(name)

    # -- the caller's part, where the driver is external -------------------------------------------------

    async def _ready_in_rollout(self, name: str, version: str | None, dial: str | None, *, wait: bool) -> Upstream:
        task = self._callers_turn(name)
        assert task is not None
        if version is not None and version != task.new_version:
            raise ConflictError(
                f"the live rollout wants {task.new_version} on {name}, not {version}; "
                "replace the instance by that version, or abort the rollout"
            )
        rollout = self.state.rollout
        await self._tell(name, dial)
        current = self._task(self.state, name)
        if dial is not None and (current is None or dial != current.new_dial) and dial != self._told(name):
            raise ConflictError(f"the rollout goes on with {name} at another address already")
        if not wait:
            return self._upstream(name)
        async with self.engine.changed:
            await self.engine.changed.wait_for(lambda: self._left_task(name, task, rollout))
        ended = self._task(self.state, name)
        if ended is None or StepKind.ADMIT not in ended.steps[: ended.cursor]:
            failure = self.state.rollout.failure if self.state.rollout else None
            raise GateError(f"{name} was not admitted: {failure or 'the rollout ended'}")
        await self.engine.routed_or_raise()
        return self._upstream(name)

    async def _tell(self, name: str, dial: str | None) -> None:
        """Tell the rollout that the instance is replaced, once it asks: at once, or just after a restart. Where
        it was told already, there is nothing to do."""
        while (task := self._callers_turn(name)) is not None and task.running and task.step.kind is StepKind.SWAP:
            rollout = self.state.live
            address = dial or task.new_dial
            if address is None:
                raise InvalidError(f"say where the new instance of {name} runs: give its dial")
            if rollout and rollout.policy.order is Order.START_FIRST and address == task.old_dial:
                raise ConflictError(f"the old instance of {name} still serves at {address}: give the new one's dial")
            if address != task.new_dial:
                self._require_free(self.state, address, but=name)
            if self.replaced(self.state.name, name, dial):
                if rollout is not None:
                    self._named = {key: told for key, told in self._named.items() if key[0] == rollout.id}
                    self._named[rollout.id, name] = address
                return
            await asyncio.sleep(_ASK_AGAIN)

    def _told(self, name: str) -> str | None:
        rollout = self.state.rollout
        return None if rollout is None else self._named.get((rollout.id, name))

    def _left_task(self, name: str, before: Task, rollout: Rollout | None) -> bool:
        """Whether the turn is over: admitted, failed, or another one's."""
        task = self._task(self.state, name)
        if self.state.live is None or rollout is None or self.state.live.id != rollout.id:
            return True
        if task is None or task.failed is not None or task.done or task.direction is not before.direction:
            return True
        return StepKind.ADMIT in task.steps[: task.cursor]

    def _callers_turn(self, name: str) -> Task | None:
        """The task in which the caller replaces the instance, from then on until it is admitted."""
        rollout, task = self.state.live, self._task(self.state, name)
        if rollout is None or not rollout.policy.external or task is None or task.failed is not None:
            return None
        begun = StepKind.SWAP in task.steps[: task.cursor] or (task.running and task.step.kind is StepKind.SWAP)
        return task if begun and StepKind.ADMIT not in task.steps[: task.cursor] else None

    def _task(self, state: Service, name: str) -> Task | None:
        """The task of the newest rollout about an upstream; the revert, where there is one."""
        rollout = state.rollout
        if rollout is None:
            return None
        return rollout.revert.get(name) or rollout.forward.get(name)

    def _refuse_in_work(self, state: Service, name: str) -> None:
        rollout, task = state.live, self._task(state, name)
        if rollout is not None and task is not None and not task.done:
            raise ConflictError(
                f"rollout {rollout.id} is working on {name}; wait for it, or `trafficd abort {state.name}`"
            )

    def _refuse_last(self, state: Service, name: str, *, force: bool) -> None:
        world = self.engine.world()
        state = replace(state, held=False)  # who would answer, once released
        ready = available(state, world)
        if not ready:
            # Where probes see nobody alive, the last that traffic still goes to is as good as ready.
            weights = route(state, world).weights
            ready = frozenset(u.id for u in state.upstreams.values() if u.serving and weights.get(u.serving))
        if ready == {name} and not force:
            raise ConflictError(
                f"{name} is the last ready upstream of {state.name}; without it nobody answers. "
                "Make another one ready first, or repeat with force: requests then wait at the proxy "
                f"for up to {self.section.try_duration:g} s"
            )

    # -- rollouts --------------------------------------------------------------------------------------

    async def start(
        self,
        version: str,
        strategy: str = "rolling",
        overrides: RolloutOverrides | None = None,
        *,
        actor: str = "",
        message: str = "",
        key: str | None = None,
    ) -> Rollout:
        """Begin a rollout of `version`."""
        if strategy not in STRATEGIES:
            raise InvalidError(f"strategy {strategy!r} is not known; there is: {', '.join(STRATEGIES)}")
        names = tuple(self.state.upstreams)
        if not names:
            raise ConflictError(f"service {self.state.name} has no upstreams; add some first")
        policy = self.section.policy(len(names), overrides)
        rollout_id = f"r-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"

        def check(state: Service) -> None:
            if tuple(state.upstreams) != names:
                raise ConflictError(f"the upstreams of {state.name} were changed at the same moment; try again")
            if state.live is not None:
                raise ConflictError(
                    f"rollout {state.live.id} to {state.live.version} is live ({state.live.phase}); "
                    f"one at a time: wait for it, or `trafficd abort {state.name}`"
                )
            _refuse_hopeless(state, policy, self.engine.world())

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
        return await self.start(target, actor=actor, message="rollback", key=key)

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
        warning = None
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

    # -- shares ----------------------------------------------------------------------------------------

    async def canary(self, percent: float, *, actor: str = "") -> None:
        """Give the upstreams of other versions than the stable one this share of the traffic."""
        least = 100 / self.section.slots
        if 0 < percent < least:
            raise InvalidError(
                f"percent: {percent:g} % is less than one of {self.section.slots} slots ({least:g} %); raise `slots`"
            )

        def check(state: Service) -> bool:
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

    async def hold(self, *, actor: str = "") -> None:
        """Let requests wait at the proxy, with nobody behind it."""
        await self.engine.record(ev.Held(self.state.name, actor), lambda state: not state.held)
        await self.engine.routed_or_raise()

    async def release(self, *, actor: str = "") -> None:
        """Let waiting requests go."""
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

    # -- addresses -------------------------------------------------------------------------------------

    def taken(self, state: Service, name: str) -> set[str]:
        """The addresses that an upstream has, will have, or is just being moved to or from."""
        upstream, rollout = state.upstreams[name], state.live
        found = {upstream.dial, upstream.spare_dial, upstream.gating.dial if upstream.gating else None}
        if rollout is not None:
            found.add(self._named.get((rollout.id, name)))
            for task in (rollout.forward.get(name), rollout.revert.get(name)):
                found |= {task.old_dial, task.new_dial} if task is not None and not task.done else set()
        return {address for address in found if address is not None}

    def _require_free(self, state: Service, address: str, but: str | None = None) -> None:
        for name in state.upstreams:
            if name != but and address in self.taken(state, name):
                raise ConflictError(
                    f"{address} is already an address of upstream {name}; two upstreams at one address "
                    "could not be told apart"
                )


def _report(verdict: DrainVerdict, count: Open | None, dial: str) -> DrainReport:
    if verdict is DrainVerdict.UNKNOWN:
        raise ProxyUnavailableError(unknown_reason(dial))
    if verdict is DrainVerdict.DRAINED:
        return DrainReport(True, 0, Cut())
    return DrainReport(False, None if count is None else count.total, cut_of(count))


def _refuse_hopeless(state: Service, policy: Policy, world: World) -> None:
    """Refuse at once what could only end in a time-out: all serve, and not one may be taken out."""
    total = len(state.upstreams)
    all_serve = len(available(state, world)) == total
    if all_serve and policy.order is Order.STOP_FIRST and policy.min_ready >= total:
        raise ConflictError(
            f"{state.name} has {total} upstream(s) and min_ready is {policy.min_ready}: replacing one would "
            f'leave {total - 1}. Use order = "start_first" with a spare_dial, or set min_ready = {total - 1}'
        )
