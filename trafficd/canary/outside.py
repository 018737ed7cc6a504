"""Asks the sources of a canary's extra metrics, each in its own time, while one comparison runs.

Windows follow each other without a gap, and each is counted once: one whose look failed is asked again as a part of the
next. Nobody waits for a source but its own task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from trafficd.canary.compare import Comparison
from trafficd.canary.readings import NoReadingError, Question, Rounding, versions
from trafficd.canary.sources import Source, source_of
from trafficd.config.metrics import MetricSection
from trafficd.core.model import Service
from trafficd.observe import steady_clock
from trafficd.trouble import Trouble

log = logging.getLogger("trafficd.canary")


@dataclass
class Outside:
    """`state` tells which versions run now; `trouble` is told what is in the way of a metric."""

    comparison: Comparison
    state: Callable[[], Service]
    trouble: Trouble
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _faults: dict[str, str] = field(default_factory=dict)

    def begin(self, metrics: list[MetricSection]) -> list[asyncio.Task[None]]:
        """Ask from now on; the tasks, which end once they are told to `stop`."""
        self._tasks = [
            asyncio.create_task(self._run(one, source_of(one)), name=f"metric {one.name}") for one in metrics
        ]
        return self._tasks

    def stop(self) -> None:
        """Ask no more. A program that runs is killed meanwhile."""
        for task in self._tasks:
            task.cancel()
        self.trouble.say("metrics", "")

    async def _run(self, metric: MetricSection, source: Source) -> None:
        try:
            await self._poll(metric, source)
        finally:
            await source.aclose()

    async def _poll(self, metric: MetricSection, source: Source) -> None:
        now, began = steady_clock(), self.comparison.since
        since, number, rounding = began, 0, Rounding()
        while True:
            number = max(number + 1, int((now() - began) // metric.interval))
            until = began + number * metric.interval
            await asyncio.sleep(max(0.0, until - now()))
            try:
                reading = await source.ask(self._question(metric.name, since, until))
            except NoReadingError as error:
                self._say(metric.name, f"metric {metric.name}: {error}")
                continue
            except Exception as error:  # or the metric would be left alone, with nobody told
                log.exception("metric %s: unexpected", metric.name)
                what = f"unexpected {type(error).__name__} (please report; the log has it): {error}"
                self._say(metric.name, f"metric {metric.name}: {what}")
                continue
            self._say(metric.name, "")
            since = until
            self.comparison.count(until, metric.name, *rounding.whole(reading))

    def _question(self, metric: str, since: float, until: float) -> Question:
        state, arms = self.state(), self.comparison.arms
        runs = {one.serving: one.version for one in state.upstreams.values() if one.serving is not None}
        runs |= {one.dial: one.version for _, one in state.besides()}
        canary, stable = (
            versions({dial: version for dial, version in runs.items() if dial in arm})
            for arm in (arms.canary, arms.stable)
        )
        return Question(
            state.name, metric, since, until, tuple(sorted(arms.canary)), tuple(sorted(arms.stable)), canary, stable
        )

    def _say(self, metric: str, text: str) -> None:
        self._faults[metric] = text
        self.trouble.say("metrics", "\n".join(filter(None, self._faults.values())))
