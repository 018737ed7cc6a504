"""Load on a stage, every outcome kept, and what a test asks of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from loadtest import runner
from loadtest.model import Outcome, Plan, Report, RequestSpec
from loadtest.websocket import WebSocketPlan, WebSocketReport, hold
from trafficd.demo.stage import Stage


@dataclass
class Load:
    """What was sent and what became of it, complete once the load has ended."""

    outcomes: list[Outcome] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    sockets: WebSocketReport | None = None

    @property
    def sent(self) -> int:
        return sum(report.sent for report in self.reports)

    def troubles(self) -> Counter[str]:
        """Every outcome that is no 200, and every cut WebSocket."""
        found = Counter(str(o.error or o.status) for o in self.outcomes if o.status != 200)
        if self.sockets is not None and self.sockets.cut:
            found["websocket cut"] = self.sockets.cut
        return found

    def between(self, begin_ns: int, end_ns: int) -> Counter[str]:
        """Who answered what was written and answered between two moments of the monotonic clock. What was under way
        at the second one may have met what came after it."""
        inside = (
            o for o in self.outcomes if o.written_ns is not None and begin_ns <= o.written_ns and o.finished_ns < end_ns
        )
        return Counter(str(o.attribute) for o in inside)


# What a change of Caddy's configuration may cost: requests that were just arriving on a kept-alive connection, and
# those that waited at the proxy.
_PRICE = frozenset({"dropped", "truncated", "502"})


def unexpected(stage: Stage, result: Load) -> Counter[str]:
    """The troubles that there must not be: with slots none at all; with `control = "admin"` all but the price of a
    change, which is at most one request of each connection."""
    troubles = result.troubles()
    if 'control = "admin"' not in stage.service:
        return troubles
    paid = sum(count for kind, count in troubles.items() if kind in _PRICE)
    most = stage.shifts() * CONNECTIONS
    return Counter({kind: count for kind, count in troubles.items() if kind not in _PRICE or paid > most})


CONNECTIONS = 8 + 8 + 2


@contextlib.asynccontextmanager
async def load(
    url: str, *, gets: int = 8, posts: int = 8, slow: int = 2, sockets: int = 0, qps: float | None = 30
) -> AsyncIterator[Load]:
    """Send from so many connections each while the block runs; `qps` of each GET and POST connection. Certificates
    are not verified: those of the tests are nobody's."""
    kept = Load()
    stop = asyncio.Event()
    specs = [
        (gets, RequestSpec(f"{url}/"), qps),
        (posts, RequestSpec(f"{url}/orders", "POST", body=b"x" * 500), qps),
        (slow, RequestSpec(f"{url}/slow?seconds=0.8", "POST", body=b"report"), 2),
    ]
    tasks = [
        asyncio.create_task(
            runner.run(
                Plan(
                    (spec,),
                    connections,
                    None,
                    3600.0,
                    qps=limit,
                    timeout=30.0,
                    verify_tls=False,
                    attribute="X-App-Instance",
                ),
                stop=stop,
                on_outcome=kept.outcomes.append,
            )
        )
        for connections, spec, limit in specs
        if connections
    ]
    plan = WebSocketPlan(
        url.replace("http", "ws", 1) + "/ws", connections=max(1, sockets), interval=0.1, verify_tls=False
    )
    holding = asyncio.create_task(hold(plan, stop=stop)) if sockets else None
    try:
        await asyncio.sleep(0.3)
        yield kept
        await asyncio.sleep(0.3)
    finally:
        stop.set()
        kept.reports = list(await asyncio.gather(*tasks))
        if holding is not None:
            kept.sockets = await holding
