"""Run one command under its supervisor, or find again the one that a killed daemon left running.

The supervisor (`supervise`) leads a process group of its own, decides under a lock whether the command has
to run at all, and writes how it ended to a file. So a restarted daemon learns the true exit status of a
command it did not start, by asking for it again: a second supervisor waits for the first and finds its
work done. A process is known by its pid and start time together; a pid alone may be somebody else's by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trafficd.errors import TrafficdError
from trafficd.swap import supervise

SUPERVISOR = Path(supervise.__file__)
OUTPUT_LIMIT = 8_000  # bytes of a command's output that are kept in the journal: its end
GRACE = 10.0  # s between TERM and KILL
KEEP = 7 * 86_400.0  # s that the end of a run is remembered
_POLL = 0.02


class NotBegunError(TrafficdError):
    """A command was not started."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. `word` is the supervisor's; `output` the end of what the command wrote."""

    word: str
    output: str

    @property
    def begun(self) -> bool:
        """Whether the command was started at all."""
        return not self.word.startswith("error")

    @property
    def ok(self) -> bool:
        return self.word == "exit 0"

    def explain(self, program: str, timeout: float) -> str:
        """Why it is not ok, for a person."""
        kind, _, rest = self.word.partition(" ")
        last = last_line(self.output)
        said = f": {last}" if last else ""
        match kind:
            case "exit":
                return f"{program} exited with status {rest}{said}"
            case "signal":
                return f"{program} was killed by signal {rest}{said}"
            case "timeout":
                return f"{program} did not end within {timeout:g} s and was ended{said}"
            case "error":
                return f"{program} could not be started: {rest}"
            case "ended":
                return f"{program} was ended on request"
            case "killed":
                return (
                    f"the supervisor of {program} was killed, or the host restarted, while it ran: whether it had done "
                    "its work is not known"
                )
            case _:
                return f"{program} ended in an unknown way ({self.word})"


class Runner(Protocol):
    """Runs a command by its name, once: `CommandRunner` here, `RemoteRunner` on another host."""

    @property
    def where(self) -> str:
        """What is added to a program's name, so that it tells its place."""
        ...

    async def run(
        self, name: str, slot: str, argv: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> Ended: ...


class CommandRunner:
    """Runs commands whose state lives under `directory` (<state_dir>/commands).

    `grace`: seconds between TERM and KILL for a command that has to end.
    """

    def __init__(self, directory: Path, *, grace: float = GRACE) -> None:
        self._directory = directory
        self._grace = grace
        self._leaving = False
        self._swept = False

    where = ""  # how the place of its commands is added to their names

    def leave(self) -> None:
        """From now on a cancelled call leaves its command running: the daemon stops, the deploy does not."""
        self._leaving = True

    async def run(
        self, name: str, slot: str, argv: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> Ended:
        """Run `argv`, or join the run of this `name` that is under way already or has ended.

        `name` is unique for the step, so that asking again after a crash finds the same run. `slot` names
        what two commands must not work on at once: one upstream. `timeout` in seconds. When cancelled, the
        command is ended. Raises `TrafficdError` when it cannot be known how the command ended.
        """
        run_dir, lock = self._directory / name, self._directory / f"{slot}.lock"
        known = read_end(run_dir)
        if known is not None:
            return known
        try:
            pid = self._spawn(run_dir, lock, argv, environment, timeout)
        except (OSError, ValueError) as error:
            raise NotBegunError(f"{argv[0]} could not be started: {error}") from error
        supervisor = _Supervisor(pid)
        try:
            await supervisor.end()
        except asyncio.CancelledError:
            if not self._leaving:
                await asyncio.shield(self._end(supervisor, run_dir, lock))
            raise
        return await self._ended(supervisor, run_dir, lock, argv[0])

    def forget(self, name: str) -> None:
        """Remove what a run left behind. Not before its end is in the journal: asked again for a run that
        is forgotten, the command would run again. Without it a run is forgotten after `KEEP`."""
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def _spawn(
        self, run_dir: Path, lock: Path, argv: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> int:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._swept:
            sweep(self._directory, KEEP)
            self._swept = True
        options = [str(run_dir), str(lock), repr(timeout), repr(self._grace)]
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
        # Not asyncio's subprocess: that one kills its child when the loop ends or the object is collected.
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(SUPERVISOR), *options, "--", *argv],
            {**os.environ, **environment},
            file_actions=null,
            setsid=True,
            setsigmask=(),
            setsigdef=supervise.DEFAULTS,
        )

    async def _ended(self, supervisor: _Supervisor, run_dir: Path, lock: Path, program: str) -> Ended:
        ended = read_end(run_dir)
        if ended is not None:
            return ended
        match supervisor.status:
            case supervise.GIVEN_UP:
                return Ended("ended", "")
            case supervise.BUSY:
                raise NotBegunError(
                    f"{program} was not started: another command for the same upstream still runs "
                    f"(process group {_holder(lock)}); end it, then try again"
                )
            case status:
                await self._end(supervisor, run_dir, lock)
                raise TrafficdError(
                    f"the supervisor of {program} was killed ({_describe(status)}), and what was left of "
                    "the command was ended; whether it had done its work is not known"
                )

    async def _end(self, supervisor: _Supervisor, run_dir: Path, lock: Path) -> None:
        """End the command, whoever runs it: our supervisor, one that an earlier daemon started, or none.

        A supervisor does it by itself on TERM; the rest is for one that was killed or hangs.
        """
        supervisor.signal(signal.SIGTERM)
        group = _group(run_dir, lock)
        if group is not None and _alive(group):
            supervise.send(group, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace + 2 * supervise.KILLED_BY):
                await _until(lambda: supervisor.gone() and (group is None or not _alive(group)))
        group = _group(run_dir, lock)
        if group is not None:
            await asyncio.to_thread(supervise.end_group, group, self._grace)
        _close(run_dir)


class _Supervisor:
    """Our child; `status` is how it ended, None while it runs or when that cannot be known."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._gone = False
        self.status: int | None = None

    def gone(self) -> bool:
        """Whether it has ended; it is then reaped."""
        if not self._gone:
            try:
                done, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # reaped by somebody else
                self._gone = True
            else:
                self._gone = bool(done)
                self.status = os.waitstatus_to_exitcode(status) if done else None
        return self._gone

    async def end(self) -> None:
        """Return when it has ended: at once, where the kernel can tell."""
        try:
            handle = os.pidfd_open(self._pid)
        except OSError:
            await _until(self.gone)
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        await _until(self.gone)

    def signal(self, number: int) -> None:
        if not self.gone():
            os.kill(self._pid, number)  # not reaped, so the pid is still its own


async def _until(predicate: Callable[[], bool]) -> None:
    """Poll until it holds: processes that are not our children can be watched in no other way that works on every
    kernel and loop."""
    while not predicate():  # noqa: ASYNC110 - nothing here could set an event
        await asyncio.sleep(_POLL)


def read_end(run_dir: Path) -> Ended | None:
    """How a run ended; None when it has not, or when a power loss left nothing of it."""
    try:
        word = (run_dir / "exit").read_text().strip()
    except OSError:
        return None
    return Ended(word, _tail(run_dir / "output")) if word else None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - OUTPUT_LIMIT)
            file.seek(start)
            data = file.read()
    except OSError:
        return ""
    if start:  # a line that is cut could be taken for one that it is not
        data = data.partition(b"\n")[2] or data
    return data.decode(errors="replace")


def last_line(output: str) -> str:
    """The last line that says something, safe for a terminal."""
    for line in reversed(output.splitlines()):
        if text := "".join(c if c.isprintable() else " " for c in line).strip():
            return text[:200]
    return ""


def _close(run_dir: Path) -> None:
    """A run that was ended on request is over: no supervisor may start it afterwards."""
    with contextlib.suppress(OSError):
        run_dir.mkdir(mode=0o700, exist_ok=True)
        if read_end(run_dir) is None:
            supervise.leave(str(run_dir), "ended")


def sweep(directory: Path, age: float) -> None:
    """Forget the runs that ended `age` seconds ago."""
    before = time.time() - age
    for end in directory.glob("*/exit"):
        with contextlib.suppress(OSError):
            if end.stat().st_mtime < before:
                shutil.rmtree(end.parent, ignore_errors=True)


def _holder(lock: Path) -> str:
    try:
        return lock.read_text().split(" ")[0] or "unknown"
    except OSError:
        return "unknown"


def _group(run_dir: Path, lock: Path) -> int | None:
    """The process group of this run, if its command has not ended in order."""
    try:
        pid, start, age, owner = lock.read_text().strip().split(" ", 3)
        group = int(pid)
    except (OSError, ValueError):
        return None
    if owner != str(run_dir) or age != supervise.epoch():
        return None
    # Another start time: the pid is another process's by now, so the group is gone.
    return group if supervise.stat(group)[1] in ("", start) else None


def _alive(pid: int) -> bool:
    return supervise.stat(pid)[0] not in ("", "Z", "X")


def _describe(status: int | None) -> str:
    if status is None:
        return "exit status unknown"
    return f"signal {-status}" if status < 0 else f"exit status {status}"
