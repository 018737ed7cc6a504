"""What runs for one service: the steps of its live rollout, the gates of `ready` by hand, and the retirement of
instances beside the serving ones; a task each.

What has to run is what the fold says is running; `keep_up` makes it so. A task ends by journalling its outcome, and
nothing is ended twice: once an outcome is on its way to the journal, it can no longer be cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from trafficd.core import events as ev
from trafficd.core.model import Beside, Gating, Policy, Rollout, Service, StepKey, StepKind, StepRecord, Upstream
from trafficd.core.queue import Terms
from trafficd.errors import TrafficdError
from trafficd.ledger import Ledger
from trafficd.observe import gate
from trafficd.perform import Done, Hands, describe, perform, retire
from trafficd.ports import Outcome
from trafficd.trouble import Trouble

log = logging.getLogger("trafficd.engine")

_GIVEN_UP = "stopped, because the rollout is given up"


@dataclass
class Work:
    """One running step."""

    task: asyncio.Task[None]
    begun: bool = False  # its task has had its first turn
    cancelled: bool = False
    ending: bool = False  # its outcome is known and on its way into the journal


class Works:
    """`min_healthy_time` and `healthy_deadline` (s) are those of a `ready` by hand."""

    def __init__(
        self,
        ledger: Ledger,
        hands: Hands,
        *,
        min_healthy_time: float,
        healthy_deadline: float,
        terms: Terms,
        trouble: Trouble,
    ) -> None:
        self.gate_failures: dict[str, str] = {}  # why the last `ready` by hand failed, by upstream
        self.steps: dict[StepKey, Work] = {}
        self._ledger = ledger
        self._hands = hands
        self._min_healthy_time = min_healthy_time
        self._healthy_deadline = healthy_deadline
        self._terms = terms
        self._trouble = trouble
        self._gates: dict[str, tuple[Gating, asyncio.Task[None]]] = {}
        self._retirements: dict[str, asyncio.Task[None]] = {}  # by upstream: no two commands work on one at once
        self._unstopped: dict[tuple[str, str], str] = {}  # (upstream, address): what may still run there, in words
        self._retired_before: frozenset[str] = frozenset()
        self._resumed: frozenset[StepKey] = frozenset()

    def resume(self) -> None:
        """What runs by the journal now was interrupted by the end of an earlier daemon."""
        rollout = self._ledger.state.live
        self._resumed = frozenset(step.key for step in rollout.running_steps()) if rollout else frozenset()
        self._retired_before = frozenset(one.dial for _, one in self._ledger.state.besides() if one.retiring)

    def keep_up(self) -> None:
        """Make what runs here match what the fold says is running."""
        self._perform()
        self._gate()
        self._retire()

    def cancel(self, keys: Iterable[StepKey]) -> None:
        """Give these steps up; each ends as failed."""
        for key in keys:
            work = self.steps.get(key)
            if work is not None and not work.cancelled and not work.ending:
                work.cancelled = True
                if work.begun:  # a task that is cancelled before its first turn never has one, and ends nothing
                    work.task.cancel()

    async def aclose(self) -> None:
        """Stop. Commands that run go on by themselves; the next daemon finds them."""
        tasks = [work.task for work in self.steps.values()] + [task for _, task in self._gates.values()]
        tasks += self._retirements.values()
        for task in tasks:
            task.cancel("daemon stops")
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- steps -----------------------------------------------------------------------------------------

    def _perform(self) -> None:
        rollout = self._ledger.state.live
        if rollout is None:
            return
        for record in rollout.running_steps():
            if record.key not in self.steps:
                resumed = record.key in self._resumed
                name = f"{rollout.service}: {describe(record.key)}"
                task = asyncio.create_task(self._step(rollout, record, resumed=resumed), name=name)
                self.steps[record.key] = Work(task)

    async def _step(self, rollout: Rollout, record: StepRecord, *, resumed: bool) -> None:
        key = record.key
        log.info("%s: %s%s", rollout.id, describe(key), " (resumed)" if resumed else "")
        work = self.steps[key]
        work.begun = True
        if work.cancelled and not resumed:
            done = Done(Outcome(False, _GIVEN_UP, begun=False))
        else:
            if work.cancelled:  # what an earlier daemon began has to be ended, as if we had been at it already
                asyncio.get_running_loop().call_soon(work.task.cancel)
            done = await self._performed(rollout, record, work, resumed=resumed)
        if not done.outcome.ok:
            log.error("%s: %s failed: %s", rollout.id, describe(key), done.outcome.reason)
        await self._ended(rollout, key, work, done)

    async def _performed(self, rollout: Rollout, record: StepRecord, work: Work, *, resumed: bool) -> Done:
        try:
            return await perform(self._hands, rollout, record, resumed=resumed)
        except asyncio.CancelledError:
            if not work.cancelled:
                raise
            return Done(Outcome(False, _GIVEN_UP))
        except TrafficdError as error:
            return Done(Outcome(False, str(error)))
        except Exception as error:  # a bug in an adapter must fail the step, not hang the rollout
            log.exception("%s: %s", rollout.id, describe(record.key))
            return Done(Outcome(False, f"unexpected {type(error).__name__}: {error}"))

    async def _ended(self, rollout: Rollout, key: StepKey, work: Work, done: Done) -> None:
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
        work.ending = True
        await self._ledger.insist(event)
        if key.kind is StepKind.SWAP and done.outcome.ok and self._unstopped:
            self._unstopped = {place: text for place, text in self._unstopped.items() if place[0] != key.upstream}
            self._say_unstopped()
        self.steps.pop(key, None)
        self._resumed -= {key}  # the next rollout may have a step of this name

    # -- instances that are not to run any more --------------------------------------------------------

    def _retire(self) -> None:
        for upstream, one in self._ledger.state.besides():
            if one.retiring and upstream.id not in self._retirements:
                task = asyncio.create_task(self._retired(upstream.id, one), name=f"retire {upstream.id} {one.dial}")
                self._retirements[upstream.id] = task

    async def _retired(self, upstream: str, one: Beside) -> None:
        service, resumed = self._ledger.state.name, one.dial in self._retired_before
        log.info("%s: %s retires %s, %s", service, upstream, one.version, one.dial)
        try:
            policy = self._terms("rolling", {}, len(self._ledger.state.upstreams))
            policy = policy if isinstance(policy, Policy) else Policy()
            done = await retire(self._hands, policy, service, upstream, one, resumed=resumed)
        except TrafficdError as error:
            done = Done(Outcome(False, str(error)))
        except Exception as error:  # a bug in an adapter must not keep the next rollout waiting for ever
            log.exception("%s: retire %s", service, one.dial)
            done = Done(Outcome(False, f"unexpected {type(error).__name__}: {error}"))
        reason = done.outcome.reason
        self._unstopped.pop((upstream, one.dial), None)
        if not done.outcome.ok:
            self._unstopped[upstream, one.dial] = (
                f"{one.version} of {upstream} at {one.dial} may still run, stop it by hand (this is said until "
                f"{upstream} is replaced the next time): {reason}"
            )
        self._say_unstopped()
        event = ev.RetireEnded(service, upstream, one.dial, done.outcome.ok, reason, done.cut)
        await self._ledger.insist(event)
        self._retirements.pop(upstream, None)
        self._retired_before -= {one.dial}
        self._retire()  # another one of this upstream may have waited

    def _say_unstopped(self) -> None:
        upstreams = self._ledger.state.upstreams
        self._unstopped = {key: text for key, text in self._unstopped.items() if key[0] in upstreams}
        self._trouble.say("retired", "\n".join(text.replace("\n", " ") for text in self._unstopped.values()))

    # -- ready by hand ---------------------------------------------------------------------------------

    def _gate(self) -> None:
        upstreams = self._ledger.state.upstreams
        for name, (gating, task) in list(self._gates.items()):
            current = upstreams.get(name)
            if current is None or current.gating not in (None, gating) or (current.drained and not current.gating):
                del self._gates[name]
                task.cancel()
        for upstream in upstreams.values():
            if upstream.gating is not None and upstream.id not in self._gates:
                task = asyncio.create_task(self._ready(upstream, upstream.gating))
                self._gates[upstream.id] = (upstream.gating, task)
                task.add_done_callback(partial(self._gate_done, upstream.id))

    def _gate_done(self, name: str, task: asyncio.Task[None]) -> None:
        if name in self._gates and self._gates[name][1] is task:
            del self._gates[name]

    async def _ready(self, upstream: Upstream, gating: Gating) -> None:
        failure = await gate(
            self._hands.probe,
            gating.dial,
            since=gating.since,
            min_healthy_time=self._min_healthy_time if gating.swapped else 0.0,
            deadline=self._healthy_deadline,
        )
        wanted = True

        def still_wanted(state: Service) -> bool:
            nonlocal wanted
            current = state.upstreams.get(upstream.id)
            wanted = current is not None and current.gating == gating
            if wanted and failure is not None:
                self.gate_failures[upstream.id] = failure
            return wanted

        event = ev.ReadyEnded(self._ledger.state.name, upstream.id, failure is None, failure or "")
        await self._ledger.insist(event, still_wanted)
        if wanted and failure is None:
            self._hands.admitted(upstream.id, gating.dial)
