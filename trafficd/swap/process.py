"""Run one command under its supervisor, or find again the one that a killed daemon left running.

The supervisor (`supervise`) leads a process group of its own and writes how the command ended to a file,
so a restarted daemon learns the true exit status of a command it did not start. A command is known by
its process group, pid and start time together; a pid alone may be somebody else's by now.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trafficd.errors import TrafficdError

SUPERVISOR = Path(__file__).with_name("supervise.py")
OUTPUT_LIMIT = 8_000  # bytes of a command's output that are kept in the journal: its end
GRACE = 10.0  # s between TERM and KILL
_POLL = 0.02


@dataclass(frozen=True)
class Ended:
    """How a command ended. `word` is the supervisor's; `output` the end of what the command wrote."""

    word: str
    output: str

    @property
    def ok(self) -> bool:
        return self.word == "exit 0"

    def explain(self, program: str, timeout: float) -> str:
        """Why it is not ok, for a person."""
        kind, _, rest = self.word.partition(" ")
        last = self.output.strip().splitlines()[-1:] or [""]
        said = f": {last[0][:200]}" if last[0] else ""
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
            case _:
                return f"{program} ended in an unknown way ({self.word})"


class CommandRunner:
    """Runs commands whose state lives under `directory` (<state_dir>/commands)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._leaving = False

    def leave(self) -> None:
        """From now on a cancelled call leaves its command running: the daemon stops, the deploy does not."""
        self._leaving = True

    async def run(
        self, name: str, slot: str, argv: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> Ended:
        """Run `argv`, or join the run of this `name` that is under way already.

        `name` is unique for the step, so that asking again after a crash finds the same run. `slot` names
        what two commands must not work on at once: one upstream. When cancelled, the command is ended.
        """
        run_dir = self._directory / name
        lock = self._directory / f"{slot}.lock"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            ended = await self._find(run_dir, lock)
            if ended is None:
                ended = await self._start(run_dir, lock, argv, environment, timeout)
        except asyncio.CancelledError:
            if self._leaving:
                raise
            await asyncio.shield(self._end(run_dir, lock))
            raise
        except OSError as error:
            raise TrafficdError(f"{argv[0]} could not be started: {error}") from error
        return ended

    def forget(self, name: str) -> None:
        """Remove what a run left behind, once its end is in the journal."""
        shutil.rmtree(self._directory / name, ignore_errors=True)

    async def _find(self, run_dir: Path, lock: Path) -> Ended | None:
        """The end of an earlier run of this step; waits for it when it still goes on."""
        while await asyncio.to_thread(_held, lock):
            await asyncio.sleep(_POLL)
        ended = _read(run_dir)
        if ended is not None and ended.word != "busy":
            return ended
        # The supervisor itself was killed: its group may live on without it.
        while (leader := _orphans(run_dir)) is not None:
            _signal_group(leader, signal.SIGTERM)
            await asyncio.sleep(_POLL)
        return None

    async def _start(
        self, run_dir: Path, lock: Path, argv: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> Ended:
        while True:
            shutil.rmtree(run_dir, ignore_errors=True)
            run_dir.mkdir(mode=0o700, parents=True)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(SUPERVISOR),
                str(run_dir),
                str(lock),
                repr(timeout),
                repr(GRACE),
                "--",
                *argv,
                env={**os.environ, **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            await process.wait()
            ended = _read(run_dir)
            if ended is None:
                raise TrafficdError(f"the supervisor of {argv[0]} was killed (status {process.returncode})")
            if ended.word != "busy":
                return ended
            # A supervisor that a killed daemon had just started got the lock first: wait for it.
            while await asyncio.to_thread(_held, lock):
                await asyncio.sleep(_POLL)
            earlier = _read(run_dir)
            if earlier is not None and earlier.word != "busy":
                return earlier

    async def _end(self, run_dir: Path, lock: Path) -> None:
        """End a running command: TERM to the supervisor, which passes it on and kills after its grace."""
        for _ in range(int((GRACE + 2) / _POLL)):
            leader = _leader(run_dir)
            if leader is None and not _held(lock):
                return
            if leader is not None:
                _signal(leader, signal.SIGTERM)
            if _read(run_dir) is not None:
                return
            await asyncio.sleep(_POLL)


def _held(lock: Path) -> bool:
    """Whether a supervisor holds the lock."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _read(run_dir: Path) -> Ended | None:
    try:
        word = (run_dir / "exit").read_text().strip()
    except OSError:
        return None
    try:
        with (run_dir / "output").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - OUTPUT_LIMIT))
            output = file.read().decode(errors="replace")
    except OSError:
        output = ""
    return Ended(word, output)


def _identity(run_dir: Path) -> tuple[int, str] | None:
    try:
        pid, _, start = (run_dir / "process").read_text().strip().partition(" ")
        return int(pid), start
    except (OSError, ValueError):
        return None


def _start_time(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _leader(run_dir: Path) -> int | None:
    """The supervisor's pid, if it is still the very process that wrote the file."""
    identity = _identity(run_dir)
    if identity is None or _start_time(identity[0]) != identity[1]:
        return None
    return identity[0]


def _orphans(run_dir: Path) -> int | None:
    """The process group, when its leader was killed and members are left.

    A group id cannot be given to another process while the group has members, so one whose leader's
    start time does not match is only ours if nobody leads it.
    """
    identity = _identity(run_dir)
    if identity is None or _start_time(identity[0]) is not None:
        return None
    try:
        os.killpg(identity[0], 0)
    except OSError:
        return None
    return identity[0]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return
