"""The `docker` driver: prepare pulls, swap puts a container of the version where another one runs, retire stops one.

A call that fails or is cancelled leaves nothing of what it made. An Engine that gives no answer (it is being restarted,
say) is asked again, from the look at what is there on: `job` finds what is done already.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from trafficd.config.docker import DockerSection
from trafficd.errors import TrafficdError
from trafficd.ports import Outcome, Said, Swap
from trafficd.swap.docker import survey
from trafficd.swap.docker.definition import UndefinedError
from trafficd.swap.docker.engine import Engine, UnreachableError
from trafficd.swap.docker.engines import Engines
from trafficd.swap.docker.job import Job, MovedError, NotUpError, Setting
from trafficd.swap.docker.said import said

log = logging.getLogger("trafficd.docker")

PATIENCE = 120.0  # s that an Engine may give no answer before an action fails
_EXPLAIN = 10.0  # s for asking a container why
_RETRY = 0.5


class DockerDriver:
    """`trafficd.ports.Driver` for the containers of one service, and `Explains`.

    `daemon` is this daemon's id: a container that bears another's is a stranger's.
    `engine_of` and `dial_of` say on which Engine an upstream is, and at which address now. `reserved`: ports that the
    driver must not choose. `patience`: seconds that an Engine may give no answer.
    """

    def __init__(
        self,
        section: DockerSection,
        engines: Engines,
        daemon: str,
        engine_of: Callable[[str], str],
        dial_of: Callable[[str], str],
        *,
        routed: bool = True,
        reserved: Collection[int] = (),
        now: Callable[[], float] = time.time,
        patience: float = PATIENCE,
    ) -> None:
        self._setting = Setting(section, engines, daemon, routed, frozenset(reserved))
        self._engine_of = engine_of
        self._dial_of = dial_of
        self._now = now
        self._patience = patience
        self._leaving = False

    def leave(self) -> None:
        """From now on a cancelled call leaves things as they are: the daemon stops, and the next one goes on."""
        self._leaving = True

    async def __call__(self, swap: Swap) -> Outcome:
        if swap.action == "prepare" and self._setting.routed:
            swap = replace(swap, previous_dial=self._dial_of(swap.upstream))
        job = Job(self._setting, swap, self._engine(swap.upstream))
        left = swap.timeout - max(0.0, self._now() - swap.since)
        try:
            async with asyncio.timeout(left):
                return await self._persistently(job)
        except TimeoutError:
            error: Exception = TrafficdError(f"{swap.action} did not end within {swap.timeout:g} s on {job.engine.url}")
        except asyncio.CancelledError:
            if not self._leaving:
                await asyncio.shield(job.undo())
            raise
        except (TrafficdError, UndefinedError) as caught:
            error = caught
        await job.undo()
        output = "\n".join(filter(None, (job.output(), error.output if isinstance(error, NotUpError) else "")))
        return Outcome(False, str(error), output, begun=job.begun or swap.resumed)

    async def _persistently(self, job: Job) -> Outcome:
        """Do it, from the start again whenever the Engine gives no answer."""
        actions = {"prepare": job.prepare, "swap": job.swap_in, "retire": job.retire}
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return await actions[job.swap.action]()
            except MovedError as error:
                log.info("%s/%s: %s", job.swap.service, job.swap.upstream, error)
            except UnreachableError as error:
                # Before anything is touched, an Engine that was never reached is a reason not to begin.
                if time.monotonic() > deadline or (job.swap.action == "prepare" and not job.answered):
                    raise
                log.warning("%s/%s: %s: asking again", job.swap.service, job.swap.upstream, error)
                await asyncio.sleep(_RETRY)

    async def explain(self, service: str, upstream: str, dial: str) -> Said | None:
        """What the container at an address says."""
        engine = self._engine(upstream)
        try:
            async with asyncio.timeout(_EXPLAIN):
                listing = await engine.listing(service=service, upstream=upstream)
                one = survey.newest_at(survey.of_daemon(listing, self._setting.daemon), dial)
                inspect = None if one is None else await engine.inspect(one.id)
                return None if inspect is None else await said(engine, inspect)
        except (TrafficdError, TimeoutError) as error:
            log.warning("%s/%s: its container cannot be asked: %s", service, upstream, error or "no answer in time")
            return None

    def _engine(self, upstream: str) -> Engine:
        return Engine(self._setting.engines, self._engine_of(upstream))
