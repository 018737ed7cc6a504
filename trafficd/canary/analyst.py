"""Reads the access log while some service has a canary, and takes its traffic away when it is worse; and for outliers
(`ejector`), where a service wants that.

Nothing here is on the way of a request, and Caddy does not notice when nobody reads. What cannot be read is no
evidence, neither for nor against: it is said, and the canary keeps its share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxy.accessline import Answer
from proxy.accesslog import Follower, Position
from proxy.errors import ProxyError
from trafficd.canary.chronicle import Chronicle
from trafficd.canary.compare import Arms, Comparison, Settings, resume
from trafficd.canary.ejector import Ejector
from trafficd.canary.errors import Errors
from trafficd.canary.outside import Outside
from trafficd.config import ServiceSection
from trafficd.core.judge import Verdict
from trafficd.core.judged import Judged, judged
from trafficd.errors import TrafficdError
from trafficd.operate import Operator
from trafficd.report.shelf import Shelf

log = logging.getLogger("trafficd.canary")

_PAUSE = 0.25  # s between looks at the log
_SAMPLE = 1.0  # s between counts of what is open
_COUNT_TIME = 1.0  # s that a count may take
_PAST = 4 << 20  # bytes before the end of the log that say what is slow
_KEPT = 5_000  # answers of a service from before its canary
_ACTOR = "judge"
_ANEW = "Caddy goes on with a removed file until it rolls it or is restarted; a daemon that begins later cannot read it"


@dataclass
class _Watch:
    """One canary that has a share."""

    judged: Judged
    comparison: Comparison
    outside: Outside
    sampled_at: float = 0.0
    ended: bool = False


@dataclass
class Analyst:
    """`path`: the access log, as this process sees it; `shelf`: where the reports of rollouts are kept."""

    path: Path
    operators: Mapping[str, Operator]
    shelf: Shelf
    _chronicle: Chronicle = field(init=False)
    _ejector: Ejector = field(init=False)
    _follower: Follower | None = None
    _watches: dict[str, _Watch] = field(default_factory=dict)  # by service
    _recent: dict[str, deque[Answer]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=_KEPT)))
    _asking: set[asyncio.Task[None]] = field(default_factory=set)  # of metrics from outside, now and just before

    def __post_init__(self) -> None:
        self._ejector = Ejector(self.operators)
        self._chronicle = Chronicle(self.shelf, self.operators)

    async def run(self) -> None:
        """For ever."""
        try:
            await self._turns()
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)
            await self._chronicle.aclose()

    async def _turns(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception as error:  # or all canaries would be left alone, with nobody told
                log.exception("unexpected")
                self._say(f"unexpected {type(error).__name__} (please report; the log has it): {error}")
            await asyncio.sleep(_PAUSE)

    def _say(self, text: str, warning: str = "") -> None:
        """Why the answers of the canaries cannot be judged; where they can, what may be wrong all the same."""
        self._ejector.blind = text
        for name in self._watches:
            self.operators[name].engine.trouble.say("blind", f"the canary is not judged: {text}" if text else warning)

    async def _turn(self) -> None:
        wanted = {
            name: found
            for name, one in self.operators.items()
            if one.engine.judged and (found := judged(one.state)) is not None
        }
        for name in self._watches.keys() - wanted.keys():
            self.operators[name].engine.trouble.say("blind", "")
            self.operators[name].engine.judging = False
            self._watches.pop(name).outside.stop()
        await self._chronicle.turn(wanted, time.time())
        if not wanted and not self._ejector.wanted and not self._chronicle.open:
            self._close()
            return
        await self._read()
        now = time.time()
        for name, found in wanted.items():
            await self._judge(self._watch(name, found, now), self.operators[name], now)
        await self._ejector.turn(time.time())

    def _close(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None
            self._recent.clear()

    async def _read(self) -> None:
        """Hand out what is new in the log."""
        try:
            if self._follower is None:
                self._follower = await asyncio.to_thread(_open, self.path)
            answers, full = await asyncio.to_thread(_next, self._follower)
        except ProxyError as error:
            self._say(str(error))
            return
        if full:
            self._say(f"Caddy cannot write the access log {self.path}, as its disk is full: make room there")
        elif not self._follower.missing:
            self._say("")
        elif self._follower.position is None:
            self._say(
                f"Caddy writes no access log at {self.path}: may its user write there, or was it removed? {_ANEW}"
            )
        else:
            self._say("", f"the access log {self.path} was removed; what is still written into it is judged. {_ANEW}")
        for answer in answers:
            watch = self._watches.get(answer.service)
            if watch is not None:
                watch.comparison.take(answer)
            self._ejector.take(answer)
            self._chronicle.take(answer)
            self._recent[answer.service].append(answer)

    @property
    def _behind(self) -> bool:
        """Whether the log holds more than was read."""
        return self._follower is None or self._follower.position is None or self._follower.behind > 0

    def _watch(self, name: str, found: Judged, now: float) -> _Watch:
        """The watch of what is to be judged now of a service."""
        section = self.operators[name].section
        arms = Arms(frozenset(found.canary), found.stable, frozenset(section.canary.strata))
        watch = self._watches.get(name)
        if watch is None or not _same(watch.judged, found):
            if watch is not None:
                watch.outside.stop()
            known, since = self._recent[name], now
            # A stage may be older than this daemon: where the log still holds all of it, that is counted again.
            if found.since is not None and known and known[0].at <= found.since:
                since = found.since
            comparison = resume(known, arms, since, _settings(section))
            watch = _Watch(found, comparison, self._ask(comparison, self.operators[name]))
            self._watches[name] = watch
            log.info("%s: the canary %s is judged from now on", name, ", ".join(sorted(found.canary)))
        elif watch.judged.step != found.step:
            watch.comparison.begin_step()
        watch.judged = found
        watch.comparison.arms = arms
        return watch

    def _ask(self, comparison: Comparison, operator: Operator) -> Outside:
        """Begin to ask for the metrics from outside, if there are any."""
        outside = Outside(comparison, lambda: operator.state, operator.engine.trouble)
        for task in outside.begin(operator.section.canary.metrics):
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        return outside

    async def _judge(self, watch: _Watch, operator: Operator, now: float) -> None:
        comparison = watch.comparison
        if now - watch.sampled_at >= _SAMPLE:
            watch.sampled_at = now
            await self._sample(comparison, operator)
        comparison.pass_time(now)
        operator.engine.judge(comparison.analysis, watch.judged, acts=operator.section.canary.on_fail == "abort")
        self._chronicle.judged(operator.state.name, watch.judged, comparison, time.time())
        if comparison.analysis.verdict is not Verdict.FAIL or watch.ended:
            return
        watch.ended = True
        why = comparison.analysis.why
        if operator.section.canary.on_fail == "report":
            log.warning("%s: the canary is worse: %s", operator.state.name, why)
            return
        log.warning("%s: the canary is worse, and gets no more traffic: %s", operator.state.name, why)
        problem = await _away(operator, watch.judged, why)
        if problem is not None:
            log.error("%s: %s", operator.state.name, problem)

    async def _sample(self, comparison: Comparison, operator: Operator) -> None:
        """Count what is open on both arms; unknown where one count is, or while the log is behind."""
        arms = comparison.arms
        try:
            async with asyncio.timeout(_COUNT_TIME):
                counts = await operator.engine.parts.pool.in_flight([*arms.canary, *arms.stable])
        except Exception as error:  # whatever the adapter met
            log.debug("%s: in-flight counts not readable: %s", operator.state.name, error)
            counts = {}
        known = {dial: count.requests for dial, count in counts.items() if count is not None}
        canary, stable = (
            None if self._behind or not dials <= known.keys() else sum(known[dial] for dial in dials)
            for dials in (arms.canary, arms.stable)
        )
        comparison.sample(time.time(), canary, stable)


async def _away(operator: Operator, found: Judged, why: str) -> str | None:
    """Take the canary's traffic away, at once; what went wrong, in words."""
    if found.rollout is None:
        return await operator.end_canary(why, actor=_ACTOR)
    live = operator.state.live
    if live is None or live.id != found.rollout:
        return None
    try:
        return await operator.abort(live.id, revert=live.policy.auto_revert, actor=_ACTOR, reason=why)
    except TrafficdError as error:
        return str(error)


def _settings(section: ServiceSection) -> Settings:
    canary = section.canary
    return Settings(
        canary.alpha,
        canary.limit,
        Errors.of(canary),
        sticky=section.affinity != "none",
        outside=tuple(metric.name for metric in canary.metrics),
        required=frozenset(metric.name for metric in canary.metrics if metric.required),
    )


def _same(before: Judged, now: Judged) -> bool:
    """Whether it is the same canary: that of one rollout, whose instances come one by one; or the same instances."""
    return before.rollout == now.rollout and (now.rollout is not None or before.canary == now.canary)


def _next(follower: Follower) -> tuple[list[Answer], bool]:
    """What is new in the log; and, where nothing is, whether that is for want of room on its disk. Blocking."""
    answers = follower.read()
    if answers:
        return answers, False
    try:
        disk = os.statvfs(follower.path.parent)
    except OSError:
        return answers, False
    return answers, disk.f_blocks > 0 and disk.f_bavail == 0


def _open(path: Path) -> Follower:
    """From a while before its end on."""
    try:
        found = path.stat()
    except OSError:
        return Follower(path)
    return Follower(path, Position(found.st_ino, max(0, found.st_size - _PAST)))
