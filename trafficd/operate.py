"""What people and scripts ask of a service: each request checked against the state, then journalled.

Repeating a request that is already fulfilled changes nothing and succeeds. What is refused says why and
what to do instead.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from trafficd.config import RolloutOverrides, ServiceSection
from trafficd.core import events as ev
from trafficd.core.drain import DrainVerdict, Open
from trafficd.core.model import Cut, Health, Order, Phase, Policy, Rollout, Service, StepKind, Task, Upstream, World
from trafficd.core.routing import available
from trafficd.engine import Engine
from trafficd.errors import ConflictError, GateError, InvalidError, NotFoundError, ProxyUnavailableError
from trafficd.observe import drain, gate, open_on
from trafficd.perform import cut_of, unknown_reason

STRATEGIES = ("rolling",)


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

        def check(state: Service) -> None:
            if name in state.upstreams:
                raise ConflictError(f"upstream {name!r} exists already; DELETE it first, or use another id")
            if len(state.upstreams) >= self.section.slots:
                raise ConflictError(
                    f"service {state.name} has {self.section.slots} slots and as many upstreams; "
                    "raise `slots` in the configuration"
                )
            for address in filter(None, (dial, spare_dial)):
                _require_free(state, address)

        known = self.state.upstreams.get(name)
        if known is not None and (known.dial, known.version, known.spare_dial) == (dial, version, spare_dial):
            return
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
        upstream = self._upstream(name)
        fresh = not upstream.drained
        if fresh:

            def check(state: Service) -> None:
                self._refuse_in_work(state, name)
                self._refuse_last(state, name, force=force)

            await self.engine.record(ev.DrainRequested(self.state.name, name, force, actor), check)
        await self.engine.routed_or_raise()
        dial = self._upstream(name).dial
        pool = self.engine.parts.pool
        if not wait:
            count = await open_on(pool, dial)
            return DrainReport(False, None if count is None else count.total, Cut())
        rollout = self.section.rollout
        limit = rollout.drain_timeout if timeout is None else timeout
        verdict, count = await drain(pool, dial, since=time.time(), quiet=rollout.drain_quiet, timeout=limit)
        report = _report(verdict, count, dial)
        if fresh:
            event = ev.DrainEnded(self.state.name, name, report.drained, report.in_flight, report.cut)
            await self.engine.record(event)
        return report

    async def ready(self, name: str, *, version: str | None, dial: str | None, wait: bool, actor: str = "") -> Upstream:
        """Put an upstream into traffic after its gate: the whole one when something new runs there."""
        upstream = self._upstream(name)
        if self._waits_for_caller(name):
            return await self._ready_in_rollout(name, version, dial, wait=wait)
        self._refuse_in_work(self.state, name)
        swapped = version not in (None, upstream.version) or dial not in (None, upstream.dial)
        if not swapped and upstream.serving is not None and not upstream.drained:
            return await self._ready_already(upstream, wait=wait)
        target = dial or upstream.dial

        def check(state: Service) -> None:
            self._refuse_in_work(state, name)
            if target != upstream.dial and target != upstream.spare_dial:
                _require_free(state, target)

        # Named again, an instance may have been replaced by the same version: let it prove itself.
        whole = version is not None or dial is not None
        event = ev.ReadyRequested(self.state.name, name, target, version or upstream.version, whole, actor)
        if upstream.gating is None or (upstream.gating.dial, upstream.gating.version) != (
            target,
            event.version,
        ):
            await self.engine.record(event, check)
        return await self._gated(name) if wait else self._upstream(name)

    async def _gated(self, name: str) -> Upstream:
        async with self.engine.changed:
            await self.engine.changed.wait_for(
                lambda: (u := self.state.upstreams.get(name)) is None or u.gating is None
            )
        upstream = self._upstream(name)
        if upstream.drained or upstream.serving is None:
            pulse = self.engine.monitor.pulse(name)
            raise GateError(
                f"{name} ({upstream.dial}) did not pass its gate within "
                f"{self.section.rollout.healthy_deadline:g} s and stays out of traffic: "
                f"{pulse.reason or 'not healthy for long enough'}"
            )
        self.engine.monitor.assume_up(name, upstream.serving)
        await self.engine.routed_or_raise()
        return upstream

    async def _ready_already(self, upstream: Upstream, *, wait: bool) -> Upstream:
        """Nothing to change; where the probes hold it for down, wait for a good one."""
        if not wait or self.engine.world().health.get(upstream.id) is Health.UP:
            await self.engine.routed_or_raise()
            return upstream
        deadline = self.section.rollout.healthy_deadline
        failure = await gate(
            self.engine.parts.probe, upstream.dial, since=time.time(), min_healthy_time=0.0, deadline=deadline
        )
        if failure is not None:
            raise GateError(f"{upstream.id}: {failure}")
        self.engine.monitor.assume_up(upstream.id, upstream.dial)
        await self.engine.routed_or_raise()
        return self._upstream(upstream.id)

    async def _ready_in_rollout(self, name: str, version: str | None, dial: str | None, *, wait: bool) -> Upstream:
        task = self._task(self.state, name)
        assert task is not None
        if version is not None and version != task.new_version:
            raise ConflictError(
                f"the live rollout wants {task.new_version} on {name}, not {version}; "
                "replace the instance by that version, or abort the rollout"
            )
        if dial is not None and dial != task.new_dial:
            _require_free(self.state, dial, but=name)
        if not self.replaced(self.state.name, name, dial):
            raise ConflictError(f"the rollout does not wait for {name} any more; look at `trafficd status`")
        if wait:
            async with self.engine.changed:
                await self.engine.changed.wait_for(lambda: self._left_task(name, task))
            ended = self._task(self.state, name)
            if ended is None or not (ended.admitted and ended.failed is None):
                rollout = self.state.rollout
                raise GateError(f"{name} was not admitted: {rollout.failure if rollout else 'the rollout ended'}")
            await self.engine.routed_or_raise()
        return self._upstream(name)

    def _left_task(self, name: str, before: Task) -> bool:
        task = self._task(self.state, name)
        if task is None or task.failed is not None or task.done or task.direction is not before.direction:
            return True
        return StepKind.ADMIT in task.steps[: task.cursor]

    def _waits_for_caller(self, name: str) -> bool:
        rollout = self.state.live
        task = self._task(self.state, name)
        return bool(
            rollout is not None
            and rollout.policy.external
            and task is not None
            and task.running
            and task.step.kind is StepKind.SWAP
        )

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
        ready = available(state, self.engine.world())
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
        if not self._live(rollout_id).paused:
            await self._on_live(ev.Paused(self.state.name, rollout_id, actor))

    async def resume(self, rollout_id: str, *, actor: str = "") -> None:
        if self._live(rollout_id).paused:
            await self._on_live(ev.Resumed(self.state.name, rollout_id, actor))

    async def promote(self, rollout_id: str) -> None:
        rollout = self._live(rollout_id)
        raise ConflictError(
            f"rollout {rollout_id} is {rollout.strategy}: it has no share to promote; it goes on by itself"
        )

    async def abort(self, rollout_id: str, *, revert: bool = True, actor: str = "") -> str | None:
        """Stop and send all traffic to the old version, at once. Returns a warning, or None."""
        rollout = self._live(rollout_id)
        if rollout.abort is not None and rollout.abort.revert == revert:
            return None
        event = ev.AbortRequested(self.state.name, rollout_id, revert, actor)
        return await self.engine.record_first_in_line(event)

    def _live(self, rollout_id: str) -> Rollout:
        rollout = self.rollout(rollout_id)
        if not rollout.live:
            raise ConflictError(f"rollout {rollout_id} has ended: {rollout.phase}")
        return rollout

    async def _on_live(self, event: ev.Paused | ev.Resumed) -> None:
        def check(state: Service) -> None:
            if state.live is None or state.live.id != event.rollout:
                raise ConflictError(f"rollout {event.rollout} has ended")
            if state.live.phase is Phase.ABORTING:
                raise ConflictError(f"rollout {event.rollout} is being aborted; an abort goes first")

        await self.engine.record(event, check)

    # -- shares ----------------------------------------------------------------------------------------

    async def canary(self, percent: float, *, actor: str = "") -> None:
        """Give the upstreams of other versions than the stable one this share of the traffic."""

        def check(state: Service) -> None:
            if state.live is not None:
                raise ConflictError(f"rollout {state.live.id} is live and moves the shares itself")
            others = [u for u in state.upstreams.values() if not state.regular(u) and u.serving and not u.drained]
            if not others:
                raise ConflictError(
                    f"service {state.name} has no canary: every ready upstream runs {state.stable or 'one version'}"
                )

        if self.state.canary_percent != percent or self.state.live is not None:
            await self.engine.record(ev.CanarySet(self.state.name, percent, actor), check)
        await self.engine.routed_or_raise()

    async def hold(self, *, actor: str = "") -> None:
        """Let requests wait at the proxy, with nobody behind it."""
        if not self.state.held:
            await self.engine.record(ev.Held(self.state.name, actor))
        await self.engine.routed_or_raise()

    async def release(self, *, actor: str = "") -> None:
        if self.state.held:
            await self.engine.record(ev.Released(self.state.name, actor))
        await self.engine.routed_or_raise()

    async def wait_for_end(self, rollout_id: str) -> Rollout:
        """Return the rollout once it has ended."""
        async with self.engine.changed:
            await self.engine.changed.wait_for(lambda: not self.rollout(rollout_id).live)
        return self.rollout(rollout_id)

    async def in_flight(self) -> dict[str, int | None]:
        """What is open on each upstream now, by id."""
        upstreams = self.state.upstreams.values()
        try:
            async with asyncio.timeout(2.0):
                counts = await self.engine.parts.pool.in_flight([u.dial for u in upstreams])
        except TimeoutError:
            counts = {}
        totals = {dial: c.requests + c.streams for dial, c in counts.items() if c is not None}
        return {u.id: totals.get(u.dial) for u in upstreams}


def _report(verdict: DrainVerdict, count: Open | None, dial: str) -> DrainReport:
    if verdict is DrainVerdict.UNKNOWN:
        raise ProxyUnavailableError(unknown_reason(dial))
    if verdict is DrainVerdict.DRAINED:
        return DrainReport(True, 0, Cut())
    return DrainReport(False, None if count is None else count.total, cut_of(count))


def _require_free(state: Service, address: str, but: str | None = None) -> None:
    for upstream in state.upstreams.values():
        if upstream.id != but and address in (upstream.dial, upstream.spare_dial):
            raise ConflictError(
                f"{address} is already an address of upstream {upstream.id}; two upstreams at one address "
                "could not be told apart"
            )


def _refuse_hopeless(state: Service, policy: Policy, world: World) -> None:
    """Refuse at once what could only end in a time-out: all serve, and not one may be taken out."""
    total = len(state.upstreams)
    all_serve = len(available(state, world)) == total
    if all_serve and policy.order is Order.STOP_FIRST and policy.min_ready >= total:
        raise ConflictError(
            f"{state.name} has {total} upstream(s) and min_ready is {policy.min_ready}: replacing one would "
            f'leave {total - 1}. Use order = "start_first" with a spare_dial, or set min_ready = {total - 1}'
        )
