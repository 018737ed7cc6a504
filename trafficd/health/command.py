"""A probe that is a program of the user's: exit status 0 says healthy, anything else not, with what it said last.

The program comes from the configuration only and is run without a shell. It is told by its environment what it is asked
about: TRAFFICD_ACTION=probe, TRAFFICD_SERVICE, _UPSTREAM, _VERSION (the one that should be running there, empty when
nobody said) and _DIAL (empty for a worker).

A run is over with all that it started (`trafficd.child`), at its time-out, or when nobody wants the answer any more. An
upstream has at most one run at a time, even where the one before cannot be killed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from trafficd.child import Child
from trafficd.core.place import Expected, address


class CommandProbe:
    """`trafficd.ports.Probe` for one service. `timeout` in seconds; `expected` tells what should run at a place."""

    def __init__(
        self, service: str, argv: Sequence[str], timeout: float, expected: Callable[[str], Expected | None]
    ) -> None:
        self._service = service
        self._argv = list(argv)
        self._timeout = timeout
        self._expected = expected
        self._turns: dict[str, asyncio.Lock] = {}
        self._runs: dict[str, Child] = {}  # the newest of each upstream

    async def __call__(self, dial: str) -> str | None:
        expected = self._expected(dial)
        if expected is None:
            return f"nothing should be running at {dial}"
        async with self._turns.setdefault(expected.upstream, asyncio.Lock()):
            # Asked again, because what should run there may have changed while we waited for our turn.
            return await self._probe(dial, self._expected(dial) or expected)

    async def _probe(self, dial: str, expected: Expected) -> str | None:
        program = self._argv[0]
        before = self._runs.get(expected.upstream)
        if before is not None and not before.ended.done():
            return f"{program} was not run: an earlier run of it cannot be killed (process {before.pid})"
        try:
            run = Child(self._argv, self._environment(dial, expected))
        except (OSError, ValueError) as error:
            return f"{program} could not be started: {getattr(error, 'strerror', None) or error}"
        self._runs[expected.upstream] = run
        try:
            await run.over(self._timeout)
            return run.failure(program, self._timeout)
        finally:
            await run.kill()

    def _environment(self, dial: str, expected: Expected) -> dict[str, str]:
        return {
            **os.environ,
            "TRAFFICD_ACTION": "probe",
            "TRAFFICD_SERVICE": self._service,
            "TRAFFICD_UPSTREAM": expected.upstream,
            "TRAFFICD_VERSION": expected.version or "",
            "TRAFFICD_DIAL": address(dial) or "",
        }

    async def aclose(self) -> None:
        """Kill what still runs."""
        for run in self._runs.values():
            await run.kill()
