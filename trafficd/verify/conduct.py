"""One verification, from its warm-up to its verdict.

    warm-up    load on the version that runs; where that does not go well already, nothing is touched
    rollout    the same load, in a second run so that both are measured apart, and the real rollout under it; without a
               version, drain and ready of each upstream in turn
    cool-down  the load goes on, and then the verdict

With `on_fail = "revert"` the rollout is aborted as soon as the failure is certain; where it has succeeded already, the
version is rolled back, under the same load.

What must outlive the daemon is kept before it matters: that there is a verification, its rollout, and which upstream
is drained for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from loadtest.model import LoadtestError, Loss, Report
from trafficd.config import VerifySection
from trafficd.core.machine import fold
from trafficd.core.model import Phase, Rollout, Service
from trafficd.errors import ConflictError, TrafficdError
from trafficd.operate import Operator
from trafficd.verify.load import Load
from trafficd.verify.phases import Begun, Span, Stage, Timeline, spans
from trafficd.verify.record import Lost, Verification, cut_stream, figures, lost_request, tallies
from trafficd.verify.target import Target
from trafficd.verify.verdict import Measured, Sockets, State, bad, certain, judge, notes, unfit

log = logging.getLogger("trafficd.verify")

MOST_LOSSES = 1_000  # that are listed; all are counted
_FLOWS = 30.0  # s within which the load must have begun

Begin = Callable[[], Awaitable[Rollout]]
Keep = Callable[[Verification, str | None], Awaitable[None]]


class _UnfitError(TrafficdError):
    """The verification cannot go on; the message is the reason."""


@dataclass
class Conductor:
    """`keep` makes the record durable, at its end with a page for people. `begin` begins the rollout, None: a cycle of
    all upstreams. `begun` is that rollout, for whoever waits for it."""

    record: Verification
    operator: Operator
    target: Target
    settings: VerifySection
    load: Load
    keep: Keep
    begin: Begin | None = None
    begun: asyncio.Future[Rollout] = field(init=False)

    def __post_init__(self) -> None:
        self.begun = asyncio.get_running_loop().create_future()
        self.begun.add_done_callback(_heard)
        self._before: Report | None = None
        self._during: Report | None = None  # the newest one while it runs
        self._sockets = Sockets() if self.target.sockets else None
        self._at_end: dict[int, int] = {}
        self._losses: list[Loss] = []
        self._cuts: list[tuple[float, str, str]] = []
        self._spans: list[Span] = []  # those of a cycle
        self._rollouts: dict[str, Rollout] = {}
        self._flows = asyncio.Event()
        self._certain = asyncio.Event()  # that it has failed
        self._aborted = False  # by us
        self._given_up = ""  # who has given the verification up
        self._halt = asyncio.Event()  # it was

    @property
    def _actor(self) -> str:
        return f"verification {self.record.id}"

    @property
    def _reverts(self) -> bool:
        return self.settings.on_fail == "revert"

    def give_up(self, actor: str) -> None:
        """End it as failed: in the warm-up at once, in a cycle after the upstream in work. Raises `ConflictError` where
        there is nothing to be given up but the rollout."""
        stage = self.record.stages[-1].stage if self.record.stages else Stage.WARM_UP
        if stage not in (Stage.WARM_UP, Stage.CYCLE):
            raise ConflictError(
                f"{self.record.id} is past its warm-up: to give up its rollout, trafficd abort {self.record.service}"
            )
        self._given_up = actor or "somebody"
        self._halt.set()

    def _refuse_given_up(self) -> None:
        if self._halt.is_set():
            raise _UnfitError(f"given up by {self._given_up} in the warm-up; nothing was touched")

    # -- what is known now -----------------------------------------------------------------------------

    def view(self) -> Verification:
        """How it stands, with what has been measured so far."""
        known = self._known_rollouts()
        timeline = Timeline(self.record.stages, (*self._spans, *(s for one in known for s in spans(one.steps))))
        lost = [lost_request(one, self.target, timeline) for one in self._losses]
        lost += [cut_stream(*one, timeline) for one in self._cuts]
        return replace(
            self.record,
            rollout_state=known[0].phase.value if known else None,
            spans=timeline.spans,
            before=figures(self._before),
            during=figures(self._during),
            requests=tallies(self.target.wanted, self._before, self._during),
            sockets=self._sockets,
            losses=tuple(sorted(lost, key=_when)),
        )

    def _known_rollouts(self) -> list[Rollout]:
        names = [name for name in (self.record.rollout, self.record.rollback) if name is not None]
        found = [self.operator.state.named(name) or self._rollouts.get(name) for name in names]
        return [one for one in found if one is not None]

    # -- the course ------------------------------------------------------------------------------------

    async def run(self) -> Verification:
        """All of it; the last record, which is kept. Cancelled: the daemon stops, and the next one finishes up."""
        reasons: Sequence[str]
        try:
            async with self._holding():
                reasons = await self._course()
        except (TrafficdError, LoadtestError) as error:
            reasons = [str(error)]
        except Exception as error:  # a bug of ours is no verdict
            log.exception("%s", self.record.id)
            reasons = [f"unexpected {type(error).__name__} (please report; the log has it): {error}"]
        if not self.begun.done():
            self.begun.set_exception(ConflictError(f"the rollout was not begun: {'; '.join(reasons)}"))
        state = State.FAILED if reasons else State.PASSED
        last = replace(self.view(), state=state, ended_at=time.time(), reasons=tuple(reasons), cycling=None)
        if self._before is not None and self._during is not None:
            last = replace(last, notes=(*last.notes, *notes(self._measured())))
        log.info("%s: %s %s", last.id, last.state, "; ".join(reasons))
        try:
            await self.keep(last, self._page(last))
        finally:
            self.record = last  # not before: whoever sees the end may look for the page
        return last

    def _page(self, last: Verification) -> str | None:
        if self._before is None:
            return None
        from trafficd.verify.page import page  # an idle daemon makes none

        return page(last, self.target.plan, self._before, self._during or self._before)

    async def _course(self) -> list[str]:
        await self._stage(Stage.WARM_UP)
        self._before = await self.load.send(
            self.target.warm_up(self.settings.warm_up),
            stop=self._halt,
            on_loss=self._lost,
            on_progress=self._warmed,
        )
        self._refuse_given_up()
        reasons = unfit(self.target.wanted, self._before, self._sockets)
        if reasons:
            self._note("this was in the warm-up: nothing was touched")
            return reasons
        async with self._sending() as ended:
            failure = await (self._cycled() if self.begin is None else self._rolled_out(self.begin))
            self._at_end = _answers(self._during)
            await self._stage(Stage.COOL_DOWN)
            await self._cool_down()
            await self._take_back()
            broken = "the load ended before the verification did" if ended() else None
        await self._take_back()  # what came at the very end
        reasons = judge(self.target.wanted, self._measured(), self.settings.p99_factor)
        return [*reasons, *filter(None, (failure, broken))]

    def _measured(self) -> Measured:
        assert self._before is not None, "there was a warm-up"
        assert self._during is not None, "there was load"
        return Measured(self._before, self._during, self._sockets, self._at_end)

    async def _stage(self, stage: Stage) -> None:
        self.record = replace(self.record, stages=(*self.record.stages, Begun(stage, time.time())))
        await self.keep(self.record, None)

    def _note(self, text: str) -> None:
        self.record = replace(self.record, notes=(*self.record.notes, text))

    # -- the load --------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _holding(self) -> AsyncIterator[None]:
        """The WebSockets, from the warm-up to the end."""
        if not self.target.sockets:
            yield
            return
        stop = asyncio.Event()
        task = asyncio.create_task(
            self.load.hold(self.target, stop=stop, on_cut=self._cut, on_progress=self._sockets_changed)
        )
        async with _ended(task, stop):
            yield

    @contextlib.asynccontextmanager
    async def _sending(self) -> AsyncIterator[Callable[[], bool]]:
        """The load after the warm-up, once it flows. Yields whether it has ended by itself."""
        stop = asyncio.Event()
        task = asyncio.create_task(
            self.load.send(self.target.plan, stop=stop, on_loss=self._lost, on_progress=self._progressed)
        )
        async with _ended(task, stop):
            flowing = asyncio.create_task(self._flows.wait())
            try:
                await asyncio.wait((task, flowing), timeout=_FLOWS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                flowing.cancel()
            if not self._flows.is_set() and not task.done():
                raise _UnfitError(f"the load did not begin within {_FLOWS:g} s; nothing was touched")
            if task.done():
                task.result()
                raise _UnfitError("the load ended at once; nothing was touched")
            yield task.done
        self._during = task.result()

    def _warmed(self, report: Report) -> None:
        self._before = report

    def _progressed(self, report: Report) -> None:
        self._during = report
        if report.answered:
            self._flows.set()
        self._look()

    def _lost(self, loss: Loss) -> None:
        if len(self._losses) < MOST_LOSSES:
            self._losses.append(loss)
        if self._in_work:
            self._certain.set()

    def _cut(self, at: float, path: str, detail: str) -> None:
        if len(self._cuts) < MOST_LOSSES:
            self._cuts.append((at, path, detail))
        if self._in_work:
            self._certain.set()

    def _sockets_changed(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._look()

    @property
    def _in_work(self) -> bool:
        return self.record.stages[-1].stage is not Stage.WARM_UP

    def _look(self) -> None:
        """Whether it is certain by now that it has failed."""
        if self._in_work and self._during is not None and certain(self.target.wanted, self._measured()):
            self._certain.set()

    # -- what is verified ------------------------------------------------------------------------------

    async def _rolled_out(self, begin: Begin) -> str | None:
        """The rollout, to its end; why that is no success, or None."""
        self._refuse_given_up()
        await self._stage(Stage.ROLLOUT)
        try:
            rollout = await begin()
        except Exception as error:
            if not self.begun.done():
                self.begun.set_exception(error)
            raise
        self.record = replace(self.record, rollout=rollout.id)
        self.begun.set_result(rollout)
        await self.keep(self.record, None)
        watching = asyncio.create_task(self._abort_when_certain(rollout.id)) if self._reverts else None
        try:
            ended = await self._end_of(rollout.id)
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        if ended.phase is Phase.SUCCEEDED or (self._aborted and ended.phase is Phase.REVERTED):
            return None
        return f"rollout {ended.id} ended as {ended.phase}: {ended.reason or ended.failure or 'no reason is known'}"

    async def _abort_when_certain(self, rollout: str) -> None:
        await self._certain.wait()
        self._aborted = True
        try:
            warning = await self.operator.abort(rollout, revert=True, actor=self._actor)
        except TrafficdError as error:
            self._note(f"rollout {rollout} could not be aborted: {error}")
        else:
            self._note(f"rollout {rollout} was aborted by this verification" + (f": {warning}" if warning else ""))

    async def _end_of(self, rollout: str) -> Rollout:
        """Wait until a rollout has ended; how it did, also where another one has begun since."""
        engine = self.operator.engine

        def over() -> bool:
            found = self.operator.state.named(rollout)
            return found is None or not found.live

        async with engine.ledger.changed:
            await engine.ledger.changed.wait_for(over)
        history = await engine.parts.journal.rollout(rollout)
        folded = fold(Service(self.record.service), ((entry.at, entry.event) for entry in history)).rollout
        if folded is None:
            raise _UnfitError(f"rollout {rollout} is not in the journal any more")
        self._rollouts[rollout] = folded
        return folded

    async def _cycled(self) -> str | None:
        """Drain each upstream that serves, and make it ready again; why not all of them, or None."""
        self._refuse_given_up()
        await self._stage(Stage.CYCLE)
        names = serving(self.operator.state)
        if len(names) < 2:
            raise _UnfitError("fewer than two upstreams serve any more, so none was drained")
        for name in names:
            if self._certain.is_set() and self._reverts:
                self._note(f"{name} and those after it were not drained any more")
                return None
            if self._halt.is_set():
                return f"given up by {self._given_up}: {name} and those after it were not drained"
            self.operator.refuse_busy()  # whose rollout began meanwhile goes first
            await self._cycle(name)
        return None

    async def _cycle(self, name: str) -> None:
        self.record = replace(self.record, cycling=name)
        await self.keep(self.record, None)
        refused: TrafficdError | None = None
        with self._span("drain", name):
            try:
                report = await self.operator.drain(name, timeout=None, wait=True, force=False, actor=self._actor)
                if not report.drained:
                    self._note(f"drain {name}: {report.in_flight} were still open at drain_timeout")
            except TrafficdError as error:
                refused = error
        upstream = self.operator.state.upstreams.get(name)
        if refused is not None and (upstream is None or not upstream.drained):
            raise refused  # nothing to make ready; and to a rollout that began meanwhile it would say "replaced"
        with self._span("ready", name):
            # Also after a drain that did not end well: it is out of traffic all the same.
            await self.operator.ready(name, version=None, dial=None, wait=True, actor=self._actor)
        self.record = replace(self.record, cycling=None)
        await self.keep(self.record, None)
        if refused is not None:
            raise refused

    @contextlib.contextmanager
    def _span(self, what: str, upstream: str) -> Iterator[None]:
        number = len(self._spans)
        self._spans.append(Span(what, upstream, time.time()))
        yield
        self._spans[number] = replace(self._spans[number], end=time.time())

    async def _cool_down(self) -> None:
        """Let the load go on; not longer than it takes to know that the version must go again."""
        if not self._reverts:
            await asyncio.sleep(self.settings.cool_down)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.cool_down):
                await self._certain.wait()

    async def _take_back(self) -> None:
        """Roll the version back where it has been rolled out, is still there, and is known to be bad."""
        name = self.record.rollout
        if not self._reverts or name is None or self.record.rollback is not None:
            return
        known = self._certain.is_set() or bad(self.target.wanted, self._measured(), self.settings.p99_factor)
        if not known or self._rollouts[name].phase is not Phase.SUCCEEDED:
            return
        newest = self.operator.state.rollout
        if newest is None or newest.id != name:
            self._note(f"{self.record.version} was not rolled back: another rollout has begun since")
            return
        await self._stage(Stage.ROLLBACK)
        try:
            back = await self.operator.rollback(actor=self._actor)
        except TrafficdError as error:
            self._note(f"{self.record.version} could not be rolled back: {error}")
            return
        self.record = replace(self.record, rollback=back.id)
        await self.keep(self.record, None)
        ended = await self._end_of(back.id)
        self._note(f"{self.record.version} was rolled back to {back.version}: rollout {back.id} {ended.phase}")


@contextlib.asynccontextmanager
async def _ended(task: asyncio.Task[object], stop: asyncio.Event) -> AsyncIterator[None]:
    """Stop a part of the load in good order after the block; at once where the block failed."""
    try:
        yield
        stop.set()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def serving(state: Service) -> list[str]:
    """The upstreams that take part in ordinary traffic: those that a cycle drains."""
    return [one.id for one in state.upstreams.values() if one.serving and not one.drained and state.regular(one)]


def _answers(report: Report | None) -> dict[int, int]:
    return {} if report is None else {number: sum(found.values()) for number, found in report.by_request.items()}


def _when(lost: Lost) -> float:
    return lost.at


def _heard(future: asyncio.Future[Rollout]) -> None:
    """Nobody need wait for it."""
    if not future.cancelled():
        future.exception()
