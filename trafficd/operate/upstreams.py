"""Requests about single upstreams: add and remove, drain, ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from trafficd.core import events as ev
from trafficd.core import groups
from trafficd.core.drain import DrainVerdict, Open
from trafficd.core.model import Cut, Health, Order, Rollout, Service, StepKind, Task, Upstream, World
from trafficd.core.place import address, worker
from trafficd.core.routing import available, route
from trafficd.errors import ConflictError, GateError, InvalidError, ProxyUnavailableError
from trafficd.observe import drain, gate, open_on
from trafficd.operate.requests import Requests
from trafficd.perform import cut_of, unknown_reason

_ASK_AGAIN = 0.02  # s until an external driver that does not wait yet is told again


@dataclass(frozen=True)
class DrainReport:
    """`in_flight` is None where it is not known. `cut`: what was still open when the time was up."""

    drained: bool
    in_flight: int | None
    cut: Cut


@dataclass
class UpstreamRequests(Requests):
    """Take upstreams out of traffic, put them back, add and remove them."""

    async def add_upstream(
        self, name: str, dial: str | None, version: str | None, spare_dial: str | None, *, group: str | None = None
    ) -> None:
        """Add an upstream; it receives traffic after one good probe. Adding it again is no change.

        `dial` is None for a worker, and only for one.
        """
        self._refuse_dials(dial=dial, spare_dial=spare_dial)
        if dial is None and self.section.routed:
            raise InvalidError(f"dial: say at which address {name} is, as host:port")
        dial = dial or worker(name)
        if dial == spare_dial:
            raise InvalidError(f"dial and spare_dial are both {dial}: old and new could not run side by side")

        def check(state: Service) -> bool:
            known = state.upstreams.get(name)
            wanted = (dial, version, spare_dial, group)
            if known is not None and (known.dial, known.version, known.spare_dial, known.group) == wanted:
                return False
            if known is not None:
                raise ConflictError(f"upstream {name!r} exists already; DELETE it first, or use another id")
            if self.section.routed and len(state.upstreams) >= self.section.slots:
                raise ConflictError(
                    f"service {state.name} has {self.section.slots} slots and as many upstreams; "
                    "raise `slots` in the configuration"
                )
            for place in filter(None, (dial, spare_dial)):
                self._require_free(state, place)
            return True

        added = ev.UpstreamAdded(self.state.name, name, dial, version, spare_dial, group=group)
        await self.engine.record(added, check)

    async def remove_upstream(self, name: str, *, force: bool = False) -> None:
        """Remove an upstream from traffic and from the service. Drain it first to lose nothing."""
        self._upstream(name)

        def check(state: Service) -> None:
            if state.live is not None:
                raise ConflictError(
                    f"rollout {state.live.id} is live; wait for it, or abort it, before removing an upstream"
                )
            self._refuse_last(state, name, force=force)
            self._refuse_together(state, name, force=force)

        await self.engine.record(ev.UpstreamRemoved(self.state.name, name), check)
        await self.engine.routed_or_raise()

    async def drain(self, name: str, *, timeout: float | None, wait: bool, force: bool, actor: str = "") -> DrainReport:
        """Take an upstream out of traffic and wait for what is open on it.

        A worker is taken out of the count of those that are ready, so that `min_ready` guards the others.
        """
        self._upstream(name)
        fresh = False

        def check(state: Service) -> bool:
            nonlocal fresh
            self._refuse_left(state)
            fresh = not self._upstream(name).drained
            if fresh:
                self._refuse_in_work(state, name)
                self._refuse_last(state, name, force=force)
                self._refuse_together(state, name, force=force)
            return fresh

        await self.engine.record(ev.DrainRequested(self.state.name, name, force, actor), check)
        await self.engine.routed_or_raise()
        report = await self._emptied(self._upstream(name), timeout, wait=wait)
        if not self._upstream(name).drained:
            raise ConflictError(
                f"{name} was made ready again meanwhile, so it is not drained; look at `trafficd status`"
            )
        if wait and fresh:
            event = ev.DrainEnded(self.state.name, name, report.drained, report.in_flight, report.cut)
            await self.engine.record(event)
        return report

    async def _emptied(self, upstream: Upstream, timeout: float | None, *, wait: bool) -> DrainReport:
        """All of its instances: whoever drains it may be about to take the machine down."""
        dials = [upstream.dial, *(one.dial for one in upstream.beside)]
        reports = await asyncio.gather(*(self._emptied_at(dial, timeout, wait=wait) for dial in dials))
        counts = [report.in_flight for report in reports]
        known = [count for count in counts if count is not None]
        return DrainReport(
            all(report.drained for report in reports),
            sum(known) if len(known) == len(counts) else None,
            Cut(sum(r.cut.requests for r in reports), sum(r.cut.streams for r in reports)),
        )

    async def _emptied_at(self, dial: str, timeout: float | None, *, wait: bool) -> DrainReport:
        if address(dial) is None:
            return DrainReport(True, None, Cut())  # nobody calls a worker, and nothing is counted
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
        self._refuse_dials(dial=dial)
        upstream = self._upstream(name)
        if self._callers_turn(name) is not None:
            return await self._ready_in_rollout(name, version, dial, wait=wait)
        if self._brought(upstream, version, dial):
            await self.engine.routed_or_raise()
            return upstream  # the live rollout has admitted it, and gives it its share
        swapped = version not in (None, upstream.version) or dial not in (None, upstream.dial)
        if not swapped and upstream.serving is not None and not upstream.drained:
            if upstream.ejected:
                event = ev.UpstreamReturned(self.state.name, name, actor or "an operator")
                await self.engine.record(event, lambda _: self._upstream(name).ejected)
            return await self._ready_already(upstream, wait=wait)
        target, runs = dial or upstream.dial, version or upstream.version
        # Named again, an instance may have been replaced by the same version: let it prove itself.
        whole = version is not None or dial is not None or upstream.unproven

        def check(state: Service) -> bool:
            current = self._upstream(name)
            self._refuse_in_work(state, name)
            if swapped:
                _refuse_beside(state, current, target)
            if target not in (current.dial, current.spare_dial):
                self._require_free(state, target, but=name)
            known = current.gating
            if known is not None and (known.dial, known.version, known.swapped) == (target, runs, whole):
                return False
            self.engine.works.gate_failures.pop(name, None)
            return True

        await self.engine.record(ev.ReadyRequested(self.state.name, name, target, runs, whole, actor), check)
        return await self._gated(name, target, runs) if wait else self._upstream(name)

    def _brought(self, upstream: Upstream, version: str | None, dial: str | None) -> bool:
        """Whether this is what the live rollout has brought up beside the serving instance already."""
        live = self.state.live
        other = upstream.other(live.version) if live is not None and live.policy.beside and version else None
        return other is not None and other.version == version and dial in (None, other.dial)

    async def eject(self, event: ev.UpstreamEjected, holds: Callable[[Service, World], bool]) -> None:
        """Take an upstream out of traffic for a while, if that still holds at the moment of journalling."""
        await self.engine.record(event, lambda state: holds(state, self.engine.world()))
        await self.engine.routed_or_raise()

    async def _gated(self, name: str, target: str, version: str | None) -> Upstream:
        """Wait for the end of this gate; another one, or a drain, may take its place."""

        def over() -> bool:
            upstream = self.state.upstreams.get(name)
            gating = None if upstream is None else upstream.gating
            return gating is None or (gating.dial, gating.version) != (target, version)

        async with self.engine.ledger.changed:
            await self.engine.ledger.changed.wait_for(over)
        upstream = self._upstream(name)
        if not upstream.drained and (upstream.serving, upstream.version) == (target, version):
            self.engine.monitor.assume_up(name, target)
            await self.engine.routed_or_raise()
            return upstream
        failure = self.engine.works.gate_failures.get(name)
        if failure is None or upstream.gating is not None:
            raise ConflictError(
                f"something else was asked of {name} before it had passed its gate; look at `trafficd status`"
            )
        out = upstream.drained or upstream.serving is None
        stays = "stays out of traffic" if out else f"goes on with {upstream.version or 'what ran before'}"
        raise GateError(f"{_at(name, target)} did not pass its gate and {stays}: {failure}")

    async def _ready_already(self, upstream: Upstream, *, wait: bool) -> Upstream:
        """Nothing to change; where the probes hold it for down, wait for a good one."""
        name, dial = upstream.id, upstream.dial
        if wait and self.engine.world().health.get(name) is not Health.UP:
            deadline = self.section.rollout.healthy_deadline
            probe = self.engine.parts.probe
            failure = await gate(probe, dial, since=time.time(), min_healthy_time=0.0, deadline=deadline)
            if failure is not None:
                raise GateError(f"{_at(name, dial)}: {failure}")
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
        async with self.engine.ledger.changed:
            await self.engine.ledger.changed.wait_for(lambda: self._left_task(name, task, rollout))
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

    def _left_undone(self) -> str:
        if not self.section.routed:
            return "works. Make another one ready first, or repeat with force"
        return (
            "answers. Make another one ready first, or repeat with force: requests then wait at the proxy "
            f"for up to {self.section.try_duration:g} s"
        )

    def _refuse_last(self, state: Service, name: str, *, force: bool) -> None:
        world = self.engine.world()
        # Who would answer, once released; and what runs beside it is not to get the traffic of the last one.
        state = replace(state, held=False, canary_percent=None, shares={})
        ready = available(state, world)
        if not ready:
            # Where probes see nobody alive, the last that traffic still goes to is as good as ready.
            weights = route(state, world).weights
            ready = frozenset(u.id for u in state.upstreams.values() if u.serving and weights.get(u.serving))
        if ready == {name} and not force:
            raise ConflictError(
                f"{name} is the last ready upstream of {state.name}; without it nobody {self._left_undone()}"
            )

    def _refuse_together(self, state: Service, name: str, *, force: bool) -> None:
        """Refuse to take something of a second group out of traffic."""
        live = state.live
        apart = groups.apart(state, self.engine.world(), live.tasks if live and not live.policy.beside else ())
        other = None if force else apart.keeps(name)
        if other is not None:
            raise ConflictError(f"{groups.together(apart, name, other)}. Wait until it is ready, or repeat with force")


def _refuse_beside(state: Service, upstream: Upstream, target: str) -> None:
    live = state.live
    if live is not None and live.policy.beside:
        raise ConflictError(
            f"rollout {live.id} brings {live.version} beside {upstream.version or 'what runs'} on {upstream.id}; wait "
            f"for its end, or `trafficd abort {state.name}`, before something else runs there"
        )
    if any(one.retiring and one.dial == target for one in upstream.beside):
        raise ConflictError(f"what runs at {target} is being retired; wait until `trafficd status` shows it no more")


def _at(name: str, place: str) -> str:
    return name if address(place) is None else f"{name} ({place})"


def _report(verdict: DrainVerdict, count: Open | None, dial: str) -> DrainReport:
    if verdict is DrainVerdict.UNKNOWN:
        raise ProxyUnavailableError(unknown_reason(dial))
    if verdict is DrainVerdict.DRAINED:
        return DrainReport(True, 0, Cut())
    return DrainReport(False, None if count is None else count.total, cut_of(count))
