"""The load itself, in processes of its own: the daemon's event loop is not the generator's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from loadtest.model import Loss, Plan, Report
from trafficd.verify.target import MARK, Target
from trafficd.verify.verdict import Sockets

OnCut = Callable[[float, str, str], None]  # when (s since the epoch), which path, and how it ended


class Load(Protocol):
    """What a verification needs of the load generator."""

    async def send(
        self,
        plan: Plan,
        *,
        stop: asyncio.Event,
        on_loss: Callable[[Loss], None],
        on_progress: Callable[[Report], None],
    ) -> Report:
        """Run a plan to its end, or until `stop`."""
        ...

    async def hold(
        self, target: Target, *, stop: asyncio.Event, on_cut: OnCut, on_progress: Callable[[Sockets], None]
    ) -> Sockets:
        """Hold the target's WebSockets until `stop`."""
        ...


class Generators:
    """`Load` by the load generator. It is imported when it is wanted: an idle daemon does not need its libraries."""

    async def send(
        self,
        plan: Plan,
        *,
        stop: asyncio.Event,
        on_loss: Callable[[Loss], None],
        on_progress: Callable[[Report], None],
    ) -> Report:
        """Raises `loadtest.model.LoadtestError`."""
        from loadtest import runner

        return await runner.run_apart(plan, stop=stop, on_loss=on_loss, on_progress=on_progress)

    async def hold(
        self, target: Target, *, stop: asyncio.Event, on_cut: OnCut, on_progress: Callable[[Sockets], None]
    ) -> Sockets:
        """Raises `loadtest.model.LoadtestError`."""
        from loadtest.holder import hold_apart
        from loadtest.websocket import WebSocketPlan, WebSocketReport

        first = target.plan.requests[0]
        scheme = "wss" if target.plan.origin.tls else "ws"
        plans = [
            WebSocketPlan(
                f"{scheme}://{first.authority}{held.path}",
                connections=held.connections,
                interval=held.interval,
                message=None,
                headers=(MARK,),
                verify_tls=target.plan.verify_tls,
                authorities=target.plan.authorities,
                dial=target.dial,
            )
            for held in target.sockets
        ]

        def told(reports: Sequence[WebSocketReport]) -> Sockets:
            examples: dict[str, int] = {}
            for report in reports:
                for why, count in report.examples.items():
                    examples[why] = examples.get(why, 0) + count
            return Sockets(
                opened=sum(report.opened for report in reports),
                closed=sum(report.closed for report in reports),
                cut=sum(report.cut for report in reports),
                failed=sum(report.failed for report in reports),
                examples=examples,
            )

        last = await hold_apart(
            plans,
            stop=stop,
            on_cut=lambda cut: on_cut(cut.at, target.sockets[cut.plan].path, cut.detail),
            on_progress=lambda reports: on_progress(told(reports)),
        )
        return told(last)
