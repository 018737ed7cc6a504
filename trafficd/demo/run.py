"""The demo itself: warm up, deploy v2 over v1 under load, cool down, and the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import orjson
import uvloop

import loadtest.runner
from loadtest.model import Plan, Report, RequestSpec
from loadtest.websocket import WebSocketPlan, WebSocketReport, hold
from trafficd.client import Json
from trafficd.demo.stage import Stage
from trafficd.show import event_line

_SLOW = 1.5  # s that a slow request takes
_INTERRUPTED = 130

SETTINGS = """
[services.web.health]
interval = "500ms"
[services.web.rollout]
min_healthy_time = "{healthy}"
drain_timeout = "{drain}"
[services.web.hooks]
"""


@dataclass(frozen=True)
class Pace:
    """How long the parts take, in seconds."""

    warm_up: float
    min_healthy_time: float
    drain_timeout: float
    cool_down: float


FAST = Pace(warm_up=1.0, min_healthy_time=0.5, drain_timeout=2.0, cool_down=0.5)
FULL = Pace(warm_up=3.0, min_healthy_time=3.0, drain_timeout=4.0, cool_down=2.0)


@dataclass
class Load:
    """All that is sent at the service while it is deployed."""

    url: str
    stop: asyncio.Event

    def __post_init__(self) -> None:
        gets = self._plan(8, "GET", "/")
        posts = self._plan(8, "POST", "/orders", body=b'{"item": 1}' * 20)
        slow = self._plan(4, "POST", f"/slow?seconds={_SLOW}", body=b"report", qps=None)
        self._tasks = [asyncio.create_task(loadtest.runner.run(plan, stop=self.stop)) for plan in (gets, posts, slow)]
        sockets = WebSocketPlan(self.url.replace("http", "ws", 1) + "/ws", connections=6, interval=0.25)
        self._sockets = asyncio.create_task(hold(sockets, stop=self.stop))

    def _plan(self, connections: int, method: str, path: str, body: bytes = b"", qps: float | None = 40) -> Plan:
        request = RequestSpec(self.url + path, method, body=body)
        return Plan(
            (request,),
            connections=connections,
            total=None,
            duration=3600.0,
            qps=qps,
            timeout=30.0,
            attribute="X-App-Version",
        )

    async def finish(self) -> tuple[list[Report], WebSocketReport]:
        """Let the requests under way end; what became of all of them."""
        self.stop.set()
        reports = await asyncio.gather(*self._tasks)
        return list(reports), await self._sockets

    async def aclose(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._tasks, self._sockets]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class Verdict:
    """What is printed at the end."""

    reports: list[Report]
    sockets: WebSocketReport
    rollout: Json

    @property
    def lost(self) -> int:
        return sum(report.lost for report in self.reports)

    @property
    def requests(self) -> int:
        return sum(report.sent for report in self.reports)

    def status(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for report in self.reports:
            total.update({str(code): count for code, count in report.status.items()})
        return dict(sorted(total.items()))

    def errors(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for report in self.reports:
            total.update({kind.value: count for kind, count in report.errors.items() if count})
        return dict(sorted(total.items()))

    def versions(self) -> dict[str, int]:
        """Answers by the version that gave them."""
        total: Counter[str] = Counter()
        for report in self.reports:
            for version, counts in report.by_attribute.items():
                total[version] += sum(counts.values())
        return dict(sorted(total.items()))

    @property
    def ok(self) -> bool:
        only_200 = set(self.status()) == {"200"}
        no_cut = self.sockets.opened > 0 and self.sockets.cut == 0 and self.sockets.failed == 0
        return self.rollout["state"] == "succeeded" and self.lost == 0 and only_200 and no_cut

    def as_json(self) -> Json:
        """The JSON contract of `trafficd demo --json`."""
        rollout = {key: self.rollout[key] for key in ("strategy", "version", "state", "seconds")}
        return {
            "ok": self.ok,
            "requests": self.requests,
            "lost": self.lost,
            "status": self.status(),
            "errors": self.errors(),
            "websockets": {"opened": self.sockets.opened, "cut": self.sockets.cut},
            "rollouts": [rollout],
        }

    def as_text(self) -> str:
        seconds, state = self.rollout["seconds"], self.rollout["state"]
        by_version = ", ".join(f"{count} by {version}" for version, count in self.versions().items())
        status = ", ".join(f"{count} x {code}" for code, count in self.status().items())
        errors = ", ".join(f"{count} {kind}" for kind, count in self.errors().items()) or "none"
        sockets = self.sockets
        return (
            f"\nrollout     {state} in {seconds:.1f} s\n"
            f"requests    {self.requests} sent: {status} ({by_version})\n"
            f"lost        {self.lost} (errors: {errors})\n"
            f"websockets  {sockets.opened} opened, {sockets.cut} cut, {sockets.closed} closed in good order by the "
            f"old version; {sockets.echoed} of {sockets.sent} messages echoed\n"
            + "".join(f"            not opened {count} times: {why}\n" for why, count in sockets.examples.items())
            + "\n"
            + ("Nothing was lost." if self.ok else "NOT GOOD: see above.")
        )


async def play(pace: Pace, say: Callable[[str], None]) -> Verdict:
    """Run the demo; everything is ended when this returns or raises."""
    settings = SETTINGS.format(healthy=f"{pace.min_healthy_time}s", drain=f"{pace.drain_timeout}s")
    stage = Stage(settings=settings, start_options=("--warm-up", "0.5"), swap_options=("v=--warm-up 0.5",))
    try:
        say(f"starting three instances of v1, a Caddy at {stage.url} and the daemon")
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        say("load: GET, POST, slow POST and WebSockets, no request is ever sent twice")
        load = Load(stage.url, asyncio.Event())
        try:
            await asyncio.sleep(pace.warm_up)
            say("trafficd deploy web v2")
            rollout = await asyncio.to_thread(_deploy, stage, say)
            await asyncio.sleep(pace.cool_down)
            reports, sockets = await load.finish()
        finally:
            await load.aclose()
        return Verdict(reports, sockets, rollout)
    finally:
        say("cleaning up")
        await stage.aclose()  # whoever is interrupting hears of the first time only: see _until_signal


def _deploy(stage: Stage, say: Callable[[str], None]) -> Json:
    client = stage.client()
    try:
        begun = client.call("POST", "/v1/services/web/rollouts", {"version": "v2"})
        for event in client.events(begun["id"], patience=0):
            line = event_line(event)
            if line is not None:
                say(f"  {time.strftime('%H:%M:%S', time.localtime(event['at']))} {line}")
        return client.call("GET", f"/v1/rollouts/{begun['id']}")
    finally:
        client.close()


async def _until_signal(pace: Pace, say: Callable[[str], None]) -> Verdict | None:
    """Play, or clean up at the first SIGINT, SIGTERM or SIGHUP; None then. Further ones are not heard: they would
    leave behind what is just being ended."""
    playing = asyncio.ensure_future(play(pace, say))
    loop = asyncio.get_running_loop()
    heard = False

    def interrupt() -> None:
        nonlocal heard
        if not heard:
            heard = True
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    with contextlib.suppress(asyncio.CancelledError):
        return await playing
    return None


def main(*, fast: bool, as_json: bool) -> int:
    """Run the demo and print its verdict; the exit status."""

    def say(text: str) -> None:
        click.echo(text, err=as_json)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        verdict = runner.run(_until_signal(FAST if fast else FULL, say))
    if verdict is None:
        click.echo("interrupted; everything that was started is ended", err=True)
        return _INTERRUPTED
    if as_json:
        click.echo(orjson.dumps(verdict.as_json()).decode())
    else:
        click.echo(verdict.as_text())
    return 0 if verdict.ok else 1
