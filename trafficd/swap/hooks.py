"""Hooks: programs of the user's that run at fixed points of a rollout, from the configuration only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from trafficd.core.model import StepKind
from trafficd.errors import TrafficdError
from trafficd.ports import Outcome
from trafficd.swap.process import CommandRunner


class Hooks:
    """Runs the hooks of one service. Exit status 0 is success."""

    def __init__(
        self,
        runner: CommandRunner,
        service: str,
        argv: Callable[[StepKind], Sequence[str] | None],
        timeout: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._runner = runner
        self._service = service
        self._argv = argv
        self._timeout = timeout
        self._now = now

    async def __call__(self, kind: StepKind, name: str, environment: Mapping[str, str], since: float) -> Outcome:
        """Run the hook, or join its run of before a restart. `since`: when it was journalled."""
        argv = self._argv(kind)
        if argv is None:
            return Outcome(ok=True)
        left = self._timeout - max(0.0, self._now() - since)
        slot = f"{self._service}:{environment.get('TRAFFICD_UPSTREAM', '')}"  # as the driver's
        try:
            ended = await self._runner.run(name, slot, argv, environment, left)
        except TrafficdError as error:
            return Outcome(False, str(error))
        # The run is not forgotten here: were we killed before its end is in the journal, it would run twice.
        reason = "" if ended.ok else ended.explain(argv[0], self._timeout)
        return Outcome(ended.ok, reason, ended.output)
