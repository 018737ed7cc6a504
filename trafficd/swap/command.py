"""The `command` driver: a program of the user's, from the configuration only, never through a shell.

It learns what to do from its environment: TRAFFICD_ACTION (prepare, swap, retire), TRAFFICD_SERVICE,
_UPSTREAM, _DIAL, _VERSION, _PREVIOUS_VERSION, _PREVIOUS_DIAL, _ROLLOUT. Exit status 0 is success. A program
that chooses the address itself (start_first without spare_dial) prints a line TRAFFICD_DIAL=host:port.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from proxy.model import parse_dial
from trafficd.errors import TrafficdError
from trafficd.ports import Outcome, Swap
from trafficd.swap.process import NotBegunError, Runner

_MARK = "TRAFFICD_DIAL="


def environment(swap: Swap) -> dict[str, str]:
    """What the program is told."""
    return {
        "TRAFFICD_ACTION": swap.action,
        "TRAFFICD_SERVICE": swap.service,
        "TRAFFICD_UPSTREAM": swap.upstream,
        "TRAFFICD_DIAL": swap.dial or "",
        "TRAFFICD_VERSION": swap.version,
        "TRAFFICD_PREVIOUS_VERSION": swap.previous_version or "",
        "TRAFFICD_PREVIOUS_DIAL": swap.previous_dial,
        "TRAFFICD_ROLLOUT": swap.rollout,
    }


class CommandDriver:
    """`trafficd.ports.Driver` that runs a program per action."""

    def __init__(
        self,
        runner: Runner,
        argv: Callable[[str], Sequence[str] | None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._runner = runner
        self._argv = argv
        self._now = now

    async def __call__(self, swap: Swap) -> Outcome:
        argv = self._argv(swap.action)
        if argv is None:
            return Outcome(ok=True)
        name = f"{swap.rollout}-{swap.upstream}-{swap.action}-{swap.since:.6f}"
        left = swap.timeout - max(0.0, self._now() - swap.since)
        slot = f"{swap.service}:{swap.upstream}"  # no name has a colon, so no two upstreams share a slot
        try:
            ended = await self._runner.run(name, slot, argv, environment(swap), left)
        except TrafficdError as error:
            return Outcome(ok=False, reason=str(error), begun=not isinstance(error, NotBegunError))
        # The run is not forgotten here: were we killed before its end is in the journal, it would run twice.
        if not ended.ok:
            return Outcome(
                False, ended.explain(f"{argv[0]}{self._runner.where}", swap.timeout), ended.output, begun=ended.begun
            )
        return _returned(ended.output)


def _returned(output: str) -> Outcome:
    """A success, with the address if the program named one."""
    named = [line.removeprefix(_MARK).strip(" \t\r") for line in output.split("\n") if line.startswith(_MARK)]
    if not named:
        return Outcome(ok=True, output=output)
    try:
        return Outcome(ok=True, output=output, dial=parse_dial(named[-1]))
    except ValueError as error:
        return Outcome(False, f"the driver returned an address that cannot be used: {error}", output)
