"""The loop of one service: observe, decide, journal, perform, again.

The engine holds no truth of its own: the state is the fold of the journal (the ledger), the routing is a function of
the state and the probes, and what has to be performed (the works) is what the fold says is running. So a restart is
nothing special: fold, observe, and go on.

An abort comes first: the new routing is written before the journal is, because sending traffic to what
works must not wait for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from trafficd.core import events as ev
from trafficd.core import invariants
from trafficd.core.addresses import holder
from trafficd.core.analysis import Analysis
from trafficd.core.health import Pulse
from trafficd.core.judge import Verdict
from trafficd.core.judged import Judged
from trafficd.core.model import Finding, Health, Service, Wait, World
from trafficd.core.plan import Decision, decide
from trafficd.core.queue import Terms
from trafficd.core.routing import route
from trafficd.core.warming import Warming
from trafficd.errors import ProxyUnavailableError, TrafficdError
from trafficd.ledger import Ledger
from trafficd.observe import HealthMonitor
from trafficd.perform import Hands, RunHook
from trafficd.ports import Driver, Entry, Journal, Pool, Probe
from trafficd.trouble import Trouble
from trafficd.works import Works

log = logging.getLogger("trafficd.engine")

_TICK = 1.0  # s between decisions while a rollout is live or pending or an upstream ejected: what only time can end
_RETRY = 0.5  # s before a failed write (slots, journal) is tried again
_AFTER_BUG = 60.0  # s before a decision is tried again that would have broken an invariant


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
    foreign: Callable[[str], str | None] = lambda dial: None  # whose of another service an address is, in words
    check: Probe | None = None  # the preview checks of a new instance
    slots: int = 100
    slow_start: float = 0.0  # s in which what is put back into traffic gets its full weight
    judged: bool = False  # whether the answers of a canary are to be logged, and so can be judged


class Engine:
    """Runs one service."""

    def __init__(self, name: str, parts: Parts) -> None:
        self.name = name
        self.parts = parts
        self.trouble = Trouble(name)
        self.ledger = Ledger(name, parts.journal, self.trouble, self.wake)
        self.waits: tuple[Wait, ...] = ()
        self.panic: str | None = None
        self.analysis: Analysis | None = None  # of the canary that has a share, or had one last
        self.finding: Finding | None = None  # what it means for a rollout
        self.judging = False  # whether it is still being judged
        self._warming = Warming(parts.slow_start)
        self.monitor = HealthMonitor(
            parts.probe, interval=parts.interval, rise=parts.rise, fall=parts.fall, on_change=self._health_changed
        )
        hands = Hands(
            pool=parts.pool,
            driver=parts.driver,
            probe=parts.probe,
            hook=parts.hook,
            routed=self.routed,
            admitted=self._admitted,
            holder=self._holder,
            check=parts.check or _unchecked,
            fall=parts.fall,
            occupied=self._occupied,
            left_at=lambda dial: self._left_at.get(dial, 0.0),
        )
        self.works = Works(
            self.ledger,
            hands,
            min_healthy_time=parts.min_healthy_time,
            healthy_deadline=parts.healthy_deadline,
            terms=parts.terms,
            trouble=self.trouble,
        )
        self._left_at: dict[str, float] = {}  # when traffic was moved away from an address (s since the epoch)
        self._wake_at: float | None = None
        self._wake = asyncio.Event()
        self._routing = asyncio.Lock()
        self._loop: asyncio.Task[None] | None = None

    @property
    def state(self) -> Service:
        """The fold of everything journalled so far, and of an abort that is in force before it is."""
        return self.ledger.state

    @property
    def judged(self) -> bool:
        """Whether the answers of a canary can be judged."""
        return self.parts.judged and not self.trouble.unlogged

    # -- life ------------------------------------------------------------------------------------------

    def take(self, entries: Iterable[Entry]) -> None:
        """Fold what is in the journal already, before `start`."""
        self.ledger.take(entries)

    def start(self) -> None:
        """Begin to probe, decide and act. What the proxy sends traffic to now is taken for up until
        its first probe: a restart of the daemon must not take anything out of traffic."""
        self.works.resume()
        self._warming.warm(self.parts.pool.shares())
        shares = {**self.parts.pool.shares()}
        for pinned in self.parts.pool.pinned().values():
            shares |= pinned
        self._watch()
        for upstream in self.state.upstreams.values():
            if upstream.serving is not None and shares.get(upstream.serving):
                self.monitor.assume_up(upstream.id, upstream.serving)
        for upstream, one in self.state.besides():
            if shares.get(one.dial):
                self.monitor.assume_up(one.key(upstream.id), one.dial)
        self._loop = asyncio.create_task(self._run(), name=f"engine {self.name}")

    async def stop(self) -> None:
        """Stop acting. Commands that run go on by themselves; the next daemon finds them."""
        if self._loop is not None:
            self._loop.cancel("daemon stops")
        await self.works.aclose()
        await self.ledger.aclose()
        if self._loop is not None:
            await asyncio.gather(self._loop, return_exceptions=True)
        await self.monitor.aclose()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                busy = await self.step()
                self.trouble.say("bug", "")
            except TrafficdError as error:  # the journal: full, not writable, damaged
                self.trouble.say("journal", str(error))
                await asyncio.sleep(_RETRY)
                continue
            except invariants.InvariantError as error:
                # A bug of ours: begin nothing more, keep the routing, and say so. An abort still gets through.
                self.trouble.say("bug", f"stopped before breaking an invariant (please report): {error}")
                await self._sleep(_AFTER_BUG)
                continue
            except Exception as error:  # or the service would be left alone, with nobody told
                log.exception("%s: unexpected", self.name)
                self.trouble.say("bug", f"unexpected {type(error).__name__} (please report; the log has it): {error}")
                await asyncio.sleep(_RETRY)
                continue
            if not busy:
                await self._sleep(self._pause())

    def _pause(self) -> float | None:
        """How long (s) until the next decision at the latest, if nothing happens."""
        now = time.time()
        ejected = any(upstream.ejected for upstream in self.state.upstreams.values())
        ticks = self.state.live or self.state.pending or ejected or self.trouble.lines()
        pauses = [_TICK] if ticks else []
        if self._wake_at is not None:
            pauses.append(max(0.0, self._wake_at - now))
        if (pause := self._warming.pause(now)) is not None:
            pauses.append(pause)
        return min(pauses, default=None)

    async def _sleep(self, timeout: float | None) -> None:
        """Sleep until something changes, at most `timeout` seconds."""
        # Not `wait_for`: in Python 3.11 it swallows a cancellation that comes with the wake, and `stop` waits for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    # -- deciding --------------------------------------------------------------------------------------

    def world(self) -> World:
        """What is known of the world now."""
        return World(
            health=self.monitor.health(),
            down_since=self.monitor.down_since(),
            unreachable=self.monitor.unreachable(),
            shares=self.parts.pool.shares(),
            warmth=self._warming.warmth(time.time(), self._candidates()),
            slots=self.parts.slots,
            finding=self.finding,
            judged=self.judged,
        )

    def _candidates(self) -> list[str]:
        """The addresses that may get traffic."""
        serving = [u.serving for u in self.state.upstreams.values() if u.serving is not None]
        return serving + [one.dial for _, one in self.state.besides()]

    def decide(self) -> Decision:
        return decide(self.state, self.world(), time.time(), self.parts.terms)

    async def step(self) -> bool:
        """One turn of the loop; whether there is more to decide at once."""
        self._watch()
        decision = self.decide()
        self.waits, self.panic, self._wake_at = decision.waits, decision.panic, decision.wake_at
        # Before anything that needs the journal: traffic follows the probes, and an abort, without it.
        await self._route()
        self.works.cancel(decision.cancel)
        await self.ledger.write_late()
        if decision.event is not None:
            await self._record_if_current(decision.event)
        self.works.keep_up()
        return decision.event is not None

    async def _record_if_current(self, event: ev.Event) -> None:
        """Journal what was decided, unless the state moved on while we waited for our turn."""

        def current(_: Service) -> bool:
            same = self.decide().event == event
            if same:
                invariants.check(self.state, self.world(), event)
            return same

        await self.ledger.record(event, current)

    def _watch(self) -> None:
        """Probe every upstream at the address it serves or will serve at, and what runs beside it."""
        places = {u.id: u.serving or u.dial for u in self.state.upstreams.values()}
        places |= {one.key(u.id): one.dial for u, one in self.state.besides() if not one.retiring}
        self.monitor.watch(places)

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
                before = {dial for dial, share in self.parts.pool.shares().items() if share}
                shifted = await self.parts.pool.shift(decision.weights, decision.pins)
                after = {dial for dial, share in self.parts.pool.shares().items() if share}
                self._left_at |= dict.fromkeys(before - after, time.time())
                self._warming.seen(time.time(), decision.weights)
            if shifted:
                log.info("%s: traffic goes to %s%s", self.name, _weights(decision.weights), _pins(decision.pins))
                await self.ledger.notify()
            self.trouble.say("proxy", "")
        except Exception as error:  # whatever the adapter met: traffic stays where it is, and we try again
            self.trouble.say("proxy", f"the routing could not be written: {error}")

    async def routed(self) -> None:
        """Return when the proxy has the routing that the journal calls for now."""
        while True:
            await self._route()
            if not self.trouble.proxy:
                return
            await asyncio.sleep(_RETRY)

    def _admitted(self, upstream: str, dial: str) -> None:
        """What has just passed its gate is up."""
        self.monitor.assume_up(upstream, dial)
        self.wake()

    def _holder(self, upstream: str, dial: str) -> str | None:
        """Whose an address is, if it is another upstream's, in words."""
        name = holder(self.state, dial, but=upstream)
        if name is not None:
            return f"upstream {name}"
        own = self.state.upstreams.get(upstream)
        other = next((one for one in own.beside if one.dial == dial), None) if own is not None else None
        if other is not None:
            return f"the instance of {other.version} that runs beside {upstream}"
        return self.parts.foreign(dial)

    def _occupied(self, upstream: str) -> str | None:
        """What stays at an upstream's second address, if anything, and what can be done about that, in words."""
        own = self.state.upstreams.get(upstream)
        other = next((one for one in own.beside if one.dial == own.spare_dial), None) if own is not None else None
        if other is None:
            return None
        stop = f"`trafficd retire {self.name} {other.version}` stops it"
        return f"{other.version} runs at its spare_dial {other.dial} ({stop})"

    async def routed_or_raise(self) -> None:
        """Like `routed`, but a failure is the caller's to hear of."""
        await self._route()
        if self.trouble.proxy:
            raise ProxyUnavailableError(self.trouble.proxy)

    # -- judging ---------------------------------------------------------------------------------------

    def judge(self, analysis: Analysis, judged: Judged, *, acts: bool = True) -> None:
        """Take what the judge says now. Where it only reports, a FAIL leaves a rollout without a verdict."""
        self.analysis, self.judging = analysis, True
        if judged.rollout is None:
            self.finding = None
            return
        before = self.finding
        verdict, why = analysis.verdict, analysis.why
        if verdict is Verdict.FAIL and not acts:
            verdict, why = Verdict.HOLD, f'it would FAIL, and on_fail = "report" ({why})'
        self.finding = Finding(judged.rollout, judged.stage, verdict, why)
        if before is None or (before.stage, before.verdict) != (judged.stage, verdict):
            self.wake()

    # -- events ----------------------------------------------------------------------------------------

    async def record(self, event: ev.Event, check: Callable[[Service], bool | None] | None = None) -> None:
        """Journal an event and fold it, unless `check` refuses it: see `Ledger.record`."""
        await self.ledger.record(event, check)

    async def record_first_in_line(self, event: ev.Event) -> str | None:
        """Put an abort in force before it is journalled: see `Ledger.first_in_line`."""
        return await self.ledger.first_in_line(event, self._route)


async def _unchecked(dial: str) -> None:
    """There are no preview checks."""


def _weights(weights: Mapping[str, int]) -> str:
    if not any(weights.values()):
        return "nobody: requests wait"
    total = sum(weights.values())
    shares = (f"{dial} {100 * weight / total:.4g} %" for dial, weight in sorted(weights.items()))
    return ", ".join(shares)


def _pins(pins: Mapping[str, Mapping[str, int]]) -> str:
    """Those that do not go where everybody goes."""
    own = ((name, weights) for name, weights in sorted(pins.items()) if any(weights.values()))
    return "".join(f"; pinned by {name}: {_weights(weights)}" for name, weights in own)
