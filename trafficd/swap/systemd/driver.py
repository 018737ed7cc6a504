"""The `systemd` driver: prepare looks whether the units are there, swap starts one with the version, retire stops one.

What is done is a program of ours (`action.sh`), run as a program of the user's is: here or on another host, once, and
found again by a daemon that was killed meanwhile. A swap that fails or is called off leaves its unit stopped.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from trafficd.config.systemd import SystemdSection
from trafficd.errors import TrafficdError
from trafficd.ports import Driver, Outcome, Said, Swap
from trafficd.swap.process import Ended, NotBegunError, Runner, last_line

log = logging.getLogger("trafficd.systemd")

_ACTION = Path(__file__).with_name("action.sh")
_SCRIPT = "TRAFFICD_SYSTEMD"  # the variable that has it
_WORDS = 7  # that `action.sh` takes
_UNTOUCHED = "exit 3"  # how `action.sh` says that it did nothing
_EXPLAIN = 10.0  # s for asking a unit why


class SystemdDriver:
    """`trafficd.ports.Driver` for the units of one service, and `Explains`.

    `runner_of` says where an upstream runs, `places_of` its addresses ("" for a worker), and `version_at` what should
    be running at one of them. `prepare` is asked first: the user's own program, say. `listed`: the upstreams that the
    configuration has, whose units it has looked at.
    """

    def __init__(
        self,
        service: str,
        section: SystemdSection,
        runner_of: Callable[[str], Runner],
        places_of: Callable[[str], Sequence[str]],
        version_at: Callable[[str, str], str | None],
        *,
        prepare: Driver,
        routed: bool,
        listed: Collection[str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._section = section
        self._runner_of = runner_of
        self._places_of = places_of
        self._version_at = version_at
        self._prepare = prepare
        self._routed = routed
        self._listed = listed
        self._now = now

    async def __call__(self, swap: Swap) -> Outcome:
        if not self._section.tells_apart() and swap.upstream not in self._listed:
            why = f"systemd.unit is {self._section.unit} for every upstream: write {{upstream}} or {{port}}"
            return Outcome(False, f"{swap.upstream} would be the unit of another one: {why}", begun=False)
        actions = {"prepare": self._prepared, "swap": self._swap, "retire": self._retire}
        try:
            return await actions[swap.action](swap)
        except ValueError as error:
            return Outcome(False, str(error), begun=False)

    async def explain(self, service: str, upstream: str, dial: str) -> Said | None:
        """What the unit at an address says."""
        runner = self._runner_of(upstream)
        try:
            unit = self._section.unit_of(service, upstream, dial, self._version_at(upstream, dial))
            name, slot = f"{service}-{upstream}-explain-{secrets.token_hex(4)}", f"{service}:{upstream}:explain"
            async with asyncio.timeout(_EXPLAIN):
                ended = await runner.run(name, slot, *self._call("explain", unit), _EXPLAIN)
        except (TrafficdError, ValueError, TimeoutError) as error:
            log.warning("%s/%s: its unit cannot be asked: %s", service, upstream, error or "no answer in time")
            return None
        reason = last_line(ended.output)
        return Said(f"{unit}{runner.where}: {reason}", ended.output) if ended.ok and reason else None

    async def _prepared(self, swap: Swap) -> Outcome:
        """The user's own program may bring the unit, so it is looked for afterwards."""
        wanted = []
        for place in self._places_of(swap.upstream):
            self._unit(swap.upstream, place, swap.previous_version)  # what could not be stopped is not touched
            wanted.append((self._unit(swap.upstream, place, swap.version), self._file(swap.upstream, place)))
        done = await self._prepare(swap)
        said = done.output
        for number, (unit, file) in enumerate(wanted):
            if done.ok:
                done = await self._act(swap, "check", unit, "", "", file, swap.version, run=f"check{number}")
                said += done.output
        return replace(done, output=said)

    async def _swap(self, swap: Swap) -> Outcome:
        dial = self._dial(swap)
        unit = self._unit(swap.upstream, dial, swap.version)
        before = self._unit(swap.upstream, swap.previous_dial, swap.previous_version)
        beside = "yes" if dial != swap.previous_dial else ""
        file = self._file(swap.upstream, dial)
        return await self._act(swap, "swap", unit, "" if before == unit else before, beside, file, swap.version)

    async def _retire(self, swap: Swap) -> Outcome:
        return await self._act(swap, "retire", self._unit(swap.upstream, self._dial(swap), swap.version))

    async def _act(self, swap: Swap, action: str, unit: str, *told: str, run: str | None = None) -> Outcome:
        runner = self._runner_of(swap.upstream)
        name = f"{swap.rollout}-{swap.upstream}-{run or action}-{swap.since:.6f}"
        slot = f"{swap.service}:{swap.upstream}"  # as the command driver's
        left = swap.timeout - max(0.0, self._now() - swap.since)
        try:
            ended = await runner.run(name, slot, *self._call(action, unit, *told), left)
        except TrafficdError as error:
            return Outcome(False, str(error), begun=not isinstance(error, NotBegunError))
        if ended.ok:
            return Outcome(True, output=ended.output)
        touched = ended.begun and ended.word != _UNTOUCHED
        return Outcome(
            False, _reason(ended, f"{unit}{runner.where}", action, swap.timeout), ended.output, begun=touched
        )

    def _call(self, action: str, *told: str) -> tuple[list[str], dict[str, str]]:
        """The words of a run of `action.sh`, and its environment, where the script itself is: `ps` stays readable."""
        words = [action, f"--{self._section.scope}", *told]
        words += [""] * (_WORDS - len(words))
        argv = ["/bin/sh", "-c", f'eval "${_SCRIPT}"', "trafficd-systemd", *words]
        return argv, {_SCRIPT: _ACTION.read_text(encoding="utf-8")}

    def _dial(self, swap: Swap) -> str:
        if swap.dial is None and self._routed:
            raise ValueError(
                f"there is no address for a unit of {swap.upstream} beside the one that runs: set its spare_dial"
            )
        return swap.dial or ""

    def _unit(self, upstream: str, dial: str, version: str | None) -> str:
        return self._section.unit_of(self._service, upstream, dial, version)

    def _file(self, upstream: str, dial: str) -> str:
        return self._section.file_of(self._service, upstream, dial) or ""


def _reason(ended: Ended, unit: str, action: str, timeout: float) -> str:
    said = last_line(ended.output)
    if ended.word.startswith("exit ") and said:
        return f"{unit}: {said}"
    return ended.explain(f"the {action} of {unit}", timeout)
