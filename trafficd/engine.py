"""The loop of one service: observe, decide, journal, perform, again.

The engine holds no truth of its own: the state is the fold of the journal, the routing is a function of
the state and the probes, and what has to be performed is what the fold says is running. So a restart is
nothing special: fold, observe, and go on.

An abort comes first: the new routing is written before the journal is, because sending traffic to what
works must not wait for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from trafficd.core import events as ev
from trafficd.core import invariants
from trafficd.core.addresses import holder
from trafficd.core.health import Pulse
from trafficd.core.machine import advance, fold
from trafficd.core.model import Gating, Health, Rollout, Service, StepKey, StepRecord, Upstream, Wait, World
from trafficd.core.plan import Decision, decide
from trafficd.core.queue import Terms
from trafficd.core.routing import route
from trafficd.errors import ProxyUnavailableError, TrafficdError
from trafficd.observe import HealthMonitor, gate
from trafficd.perform import Done, Hands, RunHook, describe, perform
from trafficd.ports import Driver, Entry, Journal, Outcome, Pool, Probe

log = logging.getLogger("trafficd.engine")

_TICK = 1.0  # s between decisions while a rollout is live or pending, for the waits that only time can end
_RETRY = 0.5  # s before a failed write (slots, journal) is tried again
_AFTER_BUG = 60.0  # s before a decision is tried again that would have broken an invariant
_GIVEN_UP = "stopped, because the rollout is given up"
_PATIENCE = 2.0  # s that whoever aborts is kept waiting for the journal


@dataclass(frozen=True)
class Parts:
    """The adapters that one engine works with."""

    pool: Pool
    driver: Driver
    probe: Probe
    hook: RunHook
    journal: Journal
    interval: float
    rise: int
    fall: int
    min_healthy_time: float
    healthy_deadline: float
    terms: Terms  # the policy of a rollout that was queued, once it begins
    on_entry: Callable[[Entry], None] = lambda entry: None
    foreign: Callable[[str], str | None] = lambda dial: None  # whose of another service an address is, in words


@dataclass
class Trouble:
    """What keeps the engine from acting now, in words; empty when nothing does."""

    proxy: str = ""  # the routing cannot be written
    caddy: str = ""  # Caddy cannot be reached, or the service is not in its configuration
    sites: str = ""  # a site of the service cannot be put back
    counts: str = ""  # what is open cannot be counted
    journal: str = ""
    bug: str = ""

    def lines(self) -> list[str]:
        return [line for line in (self.proxy, self.caddy, self.sites, self.counts, self.journal, self.bug) if line]


@dataclass
class _Work:
    task: asyncio.Task[None]
    begun: bool = False  # its task has had its first turn
    cancelled: bool = False
    ending: bool = False  # its outcome is known and on its way into the journal


@dataclass
class Engine:
    """Runs one service. `state` is the fold of everything journalled so far."""

    name: str
    parts: Parts
    state: Service = field(init=False)
    trouble: Trouble = field(default_factory=Trouble)
    waits: tuple[Wait, ...] = ()
    panic: str | None = None
    revision: int = 0  # counts what `changed` tells of, so that nobody sleeps through a change
    gate_failures: dict[str, str] = field(default_factory=dict)  # why the last `ready` by hand failed, by upstream

    def __post_init__(self) -> None:
        self.state = Service(self.name)
        self.monitor = HealthMonitor(
            self.parts.probe,
            interval=self.parts.interval,
            rise=self.parts.rise,
            fall=self.parts.fall,
            on_change=self._health_changed,
        )
        self.changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._recording = asyncio.Lock()
        self._routing = asyncio.Lock()
        self._unwritten: list[ev.Event] = []
        self._late: asyncio.Task[None] | None = None
        self._steps: dict[StepKey, _Work] = {}
        self._gates: dict[str, tuple[Gating, asyncio.Task[None]]] = {}
        self._resumed: frozenset[StepKey] = frozenset()
        self._loop: asyncio.Task[None] | None = None
        self._hands = Hands(
            pool=self.parts.pool,
            driver=self.parts.driver,
            probe=self.parts.probe,
            hook=self.parts.hook,
            routed=self.routed,
            admitted=self.monitor.assume_up,
            holder=self._holder,
        )

    # -- life ------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Fold the journal. What is running in it was interrupted by the end of an earlier daemon."""
        entries = await self.parts.journal.load(self.name)
        self.state = fold(self.state, ((entry.at, entry.event) for entry in entries))
        rollout = self.state.live
        self._resumed = frozenset(step.key for step in rollout.running_steps()) if rollout else frozenset()

    def start(self) -> None:
        """Begin to probe, decide and act. What the proxy sends traffic to now is taken for up until
        its first probe: a restart of the daemon must not take anything out of traffic."""
        shares = self.parts.pool.shares()
        self._watch()
        for upstream in self.state.upstreams.values():
            if upstream.serving is not None and shares.get(upstream.serving):
                self.monitor.assume_up(upstream.id, upstream.serving)
        self._loop = asyncio.create_task(self._run(), name=f"engine {self.name}")

    async def stop(self) -> None:
        """Stop acting. Commands that run go on by themselves; the next daemon finds them."""
        tasks = [work.task for work in self._steps.values()] + [task for _, task in self._gates.values()]
        tasks += [task for task in (self._loop, self._late) if task is not None]
        for task in tasks:
            task.cancel("daemon stops")
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.monitor.aclose()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                busy = await self.step()
                self.troubled("bug", "")
            except TrafficdError as error:  # the journal: full, not writable, damaged
                self.troubled("journal", str(error))
                await asyncio.sleep(_RETRY)
                continue
            except invariants.InvariantError as error:
                # A bug of ours: begin nothing more, keep the routing, and say so. An abort still gets through.
                self.troubled("bug", f"stopped before breaking an invariant (please report): {error}")
                await self._sleep(_AFTER_BUG)
                continue
            except Exception as error:  # or the service would be left alone, with nobody told
                log.exception("%s: unexpected", self.name)
                self.troubled("bug", f"unexpected {type(error).__name__} (please report; the log has it): {error}")
                await asyncio.sleep(_RETRY)
                continue
            if not busy:
                waiting = self.state.live is not None or self.state.pending is not None
                await self._sleep(_TICK if waiting or self.trouble.lines() else None)

    async def _sleep(self, timeout: float | None) -> None:
        """Sleep until something changes, at most `timeout` seconds."""
        # Not `wait_for`: in Python 3.11 it swallows a cancellation that comes with the wake, and `stop` waits for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    # -- deciding --------------------------------------------------------------------------------------

    def world(self) -> World:
        """What is known of the world now."""
        return World(health=self.monitor.health(), shares=self.parts.pool.shares())

    def decide(self) -> Decision:
        return decide(self.state, self.world(), time.time(), self.parts.terms)

    async def step(self) -> bool:
        """One turn of the loop; whether there is more to decide at once."""
        self._watch()
        decision = self.decide()
        self.waits, self.panic = decision.waits, decision.panic
        # Before anything that needs the journal: traffic follows the probes, and an abort, without it.
        await self._route()
        self._cancel(decision.cancel)
        await self._write_late()
        if decision.event is not None:
            invariants.check(self.state, self.world(), decision.event)
            await self._record_if_current(decision.event)
        self._perform()
        self._gate()
        return decision.event is not None

    async def _record_if_current(self, event: ev.Event) -> None:
        """Journal what was decided, unless the state moved on while we waited for our turn."""
        async with self._recording:
            if self.decide().event == event:
                await self._append(event)

    def _watch(self) -> None:
        """Probe every upstream at the address it serves or will serve at."""
        self.monitor.watch({u.id: u.serving or u.dial for u in self.state.upstreams.values()})

    def _health_changed(self, upstream: str, pulse: Pulse) -> None:
        known = self.state.upstreams.get(upstream)
        if known is None or known.serving is None or known.drained:
            log.debug("%s/%s, out of traffic, is %s", self.name, upstream, pulse.health)
        elif pulse.health is Health.DOWN:
            log.warning("%s/%s is down: %s", self.name, upstream, pulse.reason)
        else:
            log.info("%s/%s is %s", self.name, upstream, pulse.health)
        self.wake()

    def wake(self) -> None:
        """Something changed: decide again."""
        self._wake.set()

    # -- routing ---------------------------------------------------------------------------------------

    def in_the_open(self) -> Mapping[str, int]:
        """The weights that there would be with no maintenance and no hold."""
        return route(replace(self.state, maintenance=None, held=False), self.world()).weights

    async def _route(self) -> None:
        """Write the routing that the state calls for at the moment of writing: never an older one."""
        if self.state.left:
            return  # Caddy goes on without us
        try:
            async with self._routing:
                decision = self.decide()
                shifted = await self.parts.pool.shift(decision.weights)
            if shifted:
                log.info("%s: traffic goes to %s", self.name, _weights(decision))
                await self._notify()
            self.troubled("proxy", "")
        except Exception as error:  # whatever the adapter met: traffic stays where it is, and we try again
            self.troubled("proxy", f"the routing could not be written: {error}")

    async def routed(self) -> None:
        """Return when the proxy has the routing that the journal calls for now."""
        while True:
            await self._route()
            if not self.trouble.proxy:
                return
            await asyncio.sleep(_RETRY)

    def _holder(self, upstream: str, dial: str) -> str | None:
        """Whose an address is, if it is another upstream's, in words."""
        name = holder(self.state, dial, but=upstream)
        return self.parts.foreign(dial) if name is None else f"upstream {name}"

    async def routed_or_raise(self) -> None:
        """Like `routed`, but a failure is the caller's to hear of."""
        await self._route()
        if self.trouble.proxy:
            raise ProxyUnavailableError(self.trouble.proxy)

    def troubled(self, kind: str, text: str) -> None:
        """Say what keeps the engine from acting; empty when nothing does any more."""
        if getattr(self.trouble, kind) != text:
            setattr(self.trouble, kind, text)
            if text:
                log.error("%s: %s", self.name, text)

    # -- the journal -----------------------------------------------------------------------------------

    async def record(self, event: ev.Event, check: Callable[[Service], bool | None] | None = None) -> None:
        """Journal an event and fold it. Given the state of that moment, `check` may refuse it, by raising, or
        return False where there is nothing left to do."""
        async with self._recording:
            if check is not None and check(self.state) is False:
                return
            await self._append(event)
        self.wake()

    async def record_all(self, events: Sequence[ev.Event]) -> None:
        """Journal several events at once and fold them: what a configuration changed, say."""
        async with self._recording:
            for entry in await self.parts.journal.append_all(events):
                self.state = advance(self.state, entry.at, entry.event)
                self.parts.on_entry(entry)
            await self._notify()
        self.wake()

    async def _append(self, event: ev.Event) -> None:
        entry = await self.parts.journal.append(event)
        self.troubled("journal", "")
        self.state = advance(self.state, entry.at, event)
        self.parts.on_entry(entry)
        await self._notify()

    async def record_first_in_line(self, event: ev.Event) -> str | None:
        """Fold and route by an event before it is journalled: for an abort, which waits for nothing.

        Returns what went wrong with the journal, if anything; it is written as soon as it can be.
        """
        self.state = advance(self.state, time.time(), event)
        self._unwritten.append(event)
        await self._route()
        self.wake()
        # Shielded: a write that is given up half way may be on disk all the same, and would be written again.
        if self._late is None or self._late.done():
            self._late = asyncio.create_task(self._write_late(), name=f"late write {self.name}")
            self._late.add_done_callback(_heard)
        try:
            await asyncio.wait_for(asyncio.shield(self._late), _PATIENCE)
        except (TrafficdError, TimeoutError) as error:
            return self.unjournalled(str(error))
        return None

    def unjournalled(self, reason: str = "") -> str | None:
        """What is in force and not in the journal yet, in words; None where all is."""
        if not self._unwritten:
            return None
        return f"the abort is in force but not in the journal yet: {reason or 'the disk does not answer'}"

    async def _write_late(self) -> None:
        async with self._recording:
            while self._unwritten:
                entry = await self.parts.journal.append(self._unwritten[0])
                self._unwritten.pop(0)
                self.troubled("journal", "")
                self.parts.on_entry(entry)
                await self._notify()

    async def _notify(self) -> None:
        self.revision += 1
        async with self.changed:
            self.changed.notify_all()

    # -- performing ------------------------------------------------------------------------------------

    def _perform(self) -> None:
        """Make what runs here match what the fold says is running."""
        rollout = self.state.live
        if rollout is None:
            return
        for record in rollout.running_steps():
            if record.key not in self._steps:
                resumed = record.key in self._resumed
                task = asyncio.create_task(
                    self._step(rollout, record, resumed=resumed), name=f"{self.name}: {describe(record.key)}"
                )
                self._steps[record.key] = _Work(task)

    async def _step(self, rollout: Rollout, record: StepRecord, *, resumed: bool) -> None:
        key = record.key
        log.info("%s: %s%s", rollout.id, describe(key), " (resumed)" if resumed else "")
        work = self._steps[key]
        work.begun = True
        if work.cancelled and not resumed:
            done = Done(Outcome(False, _GIVEN_UP, begun=False))
        else:
            if work.cancelled:  # what an earlier daemon began has to be ended, as if we had been at it already
                asyncio.get_running_loop().call_soon(work.task.cancel)
            done = await self._performed(rollout, record, resumed=resumed)
        if not done.outcome.ok:
            log.error("%s: %s failed: %s", rollout.id, describe(key), done.outcome.reason)
        await self._ended(rollout, key, done)

    async def _performed(self, rollout: Rollout, record: StepRecord, *, resumed: bool) -> Done:
        try:
            return await perform(self._hands, rollout, record, resumed=resumed)
        except asyncio.CancelledError:
            work = self._steps.get(record.key)
            if work is None or not work.cancelled:
                raise
            return Done(Outcome(False, _GIVEN_UP))
        except TrafficdError as error:
            return Done(Outcome(False, str(error)))
        except Exception as error:  # a bug in an adapter must fail the step, not hang the rollout
            log.exception("%s: %s", rollout.id, describe(record.key))
            return Done(Outcome(False, f"unexpected {type(error).__name__}: {error}"))

    async def _ended(self, rollout: Rollout, key: StepKey, done: Done) -> None:
        event = ev.StepEnded(
            service=rollout.service,
            rollout=rollout.id,
            upstream=key.upstream,
            direction=key.direction,
            step=key.kind,
            ok=done.outcome.ok,
            reason=done.outcome.reason,
            dial=done.outcome.dial,
            cut=done.cut,
            output=done.outcome.output,
            begun=done.outcome.begun,
        )
        # From here on an abort must not cancel it: the end may be on disk already, and a step whose end was
        # journalled but never folded would be waited for until the daemon is restarted.
        work = self._steps.get(key)
        if work is not None:
            work.ending = True
        while True:
            try:
                async with self._recording:
                    await self._append(event)
                    self._steps.pop(key, None)
                    self._resumed -= {key}  # the next rollout may have a step of this name
                break
            except TrafficdError as error:
                self.troubled("journal", str(error))
                await asyncio.sleep(_RETRY)
        self.wake()

    def _cancel(self, keys: frozenset[StepKey]) -> None:
        for key in keys:
            work = self._steps.get(key)
            if work is not None and not work.cancelled and not work.ending:
                work.cancelled = True
                if work.begun:  # a task that is cancelled before its first turn never has one, and ends nothing
                    work.task.cancel()

    # -- ready by hand ---------------------------------------------------------------------------------

    def _gate(self) -> None:
        for name, (gating, task) in list(self._gates.items()):
            current = self.state.upstreams.get(name)
            if current is None or current.gating not in (None, gating) or (current.drained and not current.gating):
                del self._gates[name]
                task.cancel()
        for upstream in self.state.upstreams.values():
            if upstream.gating is not None and upstream.id not in self._gates:
                task = asyncio.create_task(self._ready(upstream, upstream.gating))
                self._gates[upstream.id] = (upstream.gating, task)
                task.add_done_callback(partial(self._gate_done, upstream.id))

    def _gate_done(self, name: str, task: asyncio.Task[None]) -> None:
        if name in self._gates and self._gates[name][1] is task:
            del self._gates[name]

    async def _ready(self, upstream: Upstream, gating: Gating) -> None:
        failure = await gate(
            self.parts.probe,
            gating.dial,
            since=gating.since,
            min_healthy_time=self.parts.min_healthy_time if gating.swapped else 0.0,
            deadline=self.parts.healthy_deadline,
        )

        wanted = True

        def still_wanted(state: Service) -> bool:
            nonlocal wanted
            current = state.upstreams.get(upstream.id)
            wanted = current is not None and current.gating == gating
            if wanted and failure is not None:
                self.gate_failures[upstream.id] = failure
            return wanted

        event = ev.ReadyEnded(self.name, upstream.id, failure is None, failure or "")
        while True:
            try:
                await self.record(event, still_wanted)
                break
            except TrafficdError as error:
                self.troubled("journal", str(error))
                await asyncio.sleep(_RETRY)
        if wanted and failure is None:
            self.monitor.assume_up(upstream.id, gating.dial)
        self.wake()


def _heard(task: asyncio.Task[None]) -> None:
    """Take note of how a write ended that nobody may have waited for; the loop tries it again."""
    if not task.cancelled():
        task.exception()


def _weights(decision: Decision) -> str:
    if not decision.weights:
        return "nobody: requests wait"
    total = sum(decision.weights.values())
    shares = (f"{dial} {100 * weight / total:.4g} %" for dial, weight in sorted(decision.weights.items()))
    return ", ".join(shares)
