"""What the generator knows about its own part in the numbers: how late its event loop ran, how long its collector of
garbage paused it, how much of a core it took; and whether it kept to its schedule."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any, NamedTuple

from loadtest.histogram import Histogram
from loadtest.metrics import Snapshot
from loadtest.model import Plan, SelfCheck

_MOST_LOOP_LAG_MS = 50.0
_MOST_LAG_MS = 100.0
_INTERVAL = 0.02  # s
_MOST_SHARE = 0.95


class Watched(NamedTuple):
    """Of one process, or the worst of several."""

    loop_lag_ms: float | None = None  # p99
    gc_pause_ms: float = 0.0  # the longest
    cpu_seconds: float = 0.0  # of all
    cpu_share: float = 0.0  # of one core

    def beside(self, other: Watched) -> Watched:
        lags = [ms for ms in (self.loop_lag_ms, other.loop_lag_ms) if ms is not None]
        return Watched(
            max(lags, default=None),
            max(self.gc_pause_ms, other.gc_pause_ms),
            self.cpu_seconds + other.cpu_seconds,
            max(self.cpu_share, other.cpu_share),
        )


class Watch:
    """Watches this process while it is entered; within a running event loop."""

    def __init__(self) -> None:
        self._lag = Histogram()
        self._pause = 0
        self._paused_at = 0

    def __enter__(self) -> Watch:
        self._began, self._cpu = time.monotonic(), time.process_time()
        gc.callbacks.append(self._collecting)
        self._task = asyncio.create_task(self._look())
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()
        gc.callbacks.remove(self._collecting)

    def seen(self) -> Watched:
        """What there was until now."""
        latency = self._lag.latency()
        cpu, wall = time.process_time() - self._cpu, time.monotonic() - self._began
        return Watched(
            None if latency is None else latency.p99, self._pause / 1e6, cpu, cpu / wall if wall > 0 else 0.0
        )

    def _collecting(self, phase: str, _info: dict[str, Any]) -> None:
        now = time.monotonic_ns()
        if phase == "start":
            self._paused_at = now
        else:
            self._pause = max(self._pause, now - self._paused_at)

    async def _look(self) -> None:
        while True:
            due = time.monotonic_ns() + round(_INTERVAL * 1e9)
            await asyncio.sleep(_INTERVAL)
            self._lag.extend(stalled(time.monotonic_ns() - due, round(_INTERVAL * 1e9)))


def stalled(late: int, interval: int) -> range:
    """How late one look was, and each of those that were due meanwhile would have been, in ns. Otherwise a loop that
    stood still for a second of ten would count as one look of 500, not as a tenth of the requests."""
    return range(max(0, late), -1 if late <= 0 else 0, -interval)


def self_check(
    plan: Plan, counted: Snapshot, watched: Watched, faults: tuple[str, ...] = (), *, skipped: int = 0
) -> SelfCheck:
    """Whether the generator kept to its own schedule. A closed loop has none to keep to; and that all lanes were busy
    because the server was slow is no fault of the generator's: that is lag, and what was `skipped`, and is only
    remarked upon."""
    reasons = (*faults, *_late(plan, counted, watched, skipped))
    return SelfCheck(
        cpu_us_per_request=1e6 * watched.cpu_seconds / counted.sent if counted.sent else None,
        valid=not reasons,
        why="; ".join(reasons) or _remark(plan, counted, skipped),
        loop_lag_ms=watched.loop_lag_ms,
        gc_pause_ms=watched.gc_pause_ms,
        faults=faults,
        cpu_share=watched.cpu_share,
    )


def _behind(plan: Plan, counted: Snapshot, skipped: int) -> str:
    """How far the run was behind its schedule; empty where it was not."""
    lag = counted.lag.latency()
    late = f"schedule lag p99 is {lag.p99:.0f} ms" if lag is not None and lag.p99 > _MOST_LAG_MS else ""
    unsent = f"{skipped} skipped" if 100 * skipped >= max(1, counted.sent + skipped) else ""
    return ", ".join(filter(None, (late, unsent))) if plan.open_loop else ""


def _remark(plan: Plan, counted: Snapshot, skipped: int) -> str:
    behind = _behind(plan, counted, skipped)
    connections = f"all {plan.connections} connections were busy with requests that the server had not answered"
    return f"{behind}: {connections}" if behind else ""


def _late(plan: Plan, counted: Snapshot, watched: Watched, skipped: int) -> tuple[str, ...]:
    if not plan.open_loop:
        return ()
    reasons = []
    if watched.loop_lag_ms is not None and watched.loop_lag_ms > _MOST_LOOP_LAG_MS:
        reasons.append(
            f"the generator's event loop ran {watched.loop_lag_ms:.0f} ms late (p99): this machine is too busy"
        )
    if _behind(plan, counted, skipped) and watched.cpu_share > _MOST_SHARE:
        reasons.append(f"the generator needed {100 * watched.cpu_share:.0f} % of a core: use a lower rate, or -cpus")
    return tuple(reasons)
