"""One run of a short program of the user's, without a shell, in a process group of its own.

However it ends, by itself, by `kill`, or by a flood of output, the whole group is killed: what only answers a question
has nothing to save and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OUTPUT_LIMIT = 1 << 20  # bytes; who writes more than that is not answering a question
_SAID = 200  # characters of a last line that are quoted
_READ = 65_536  # bytes; as many as a pipe holds
_KILLED_BY = 5.0  # s that a killed process is given to vanish; one in an uninterruptible wait takes longer

# Python ignores the first two; the program must find all of them as any program does.
_DEFAULTS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD]


@dataclass
class _Pipe:
    """The reading end of what the program writes to, and the last `kept` bytes of it."""

    end: int
    kept: int
    written: int = 0
    tail: bytes = b""

    def read(self) -> bool:
        """Take what is there; whether more may come."""
        try:
            data = os.read(self.end, _READ)
        except BlockingIOError:
            return True
        self.tail = (self.tail + data)[-self.kept :]
        self.written += len(data)
        return bool(data)


class Child:
    """One process that leads a group of its own. It is our child: it is reaped when it ends, whoever still waits, and
    until then its pid is nobody else's. Raises OSError and ValueError when it cannot be started.

    `kept`: so many bytes of the output's end are kept. `apart`: standard error is not a part of `output`, but `errors`.
    """

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], *, kept: int = 4_096, apart: bool = False
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()  # the exit status; negative: a signal
        self.flooded = False
        self._pipes: list[_Pipe] = []
        into: list[int] = []
        try:
            for _ in range(2 if apart else 1):
                end, other = os.pipe()
                into.append(other)
                self._pipes.append(_Pipe(end, kept))
                os.set_blocking(end, False)
            self.pid = _spawn(argv, environment, into[0], into[-1])
            self._handle = self._open_handle()
        except BaseException:
            for pipe in self._pipes:
                os.close(pipe.end)
            raise
        finally:
            for other in into:
                os.close(other)
        for pipe in self._pipes:
            self._loop.add_reader(pipe.end, self._written_to, pipe)
        self._loop.add_reader(self._handle, self._exited)

    @property
    def output(self) -> bytes:
        return self._pipes[0].tail

    @property
    def errors(self) -> bytes:
        """Standard error, where it is kept apart; else `output` once more."""
        return self._pipes[-1].tail

    def _open_handle(self) -> int:
        """A descriptor that becomes readable when the process ends."""
        try:
            return os.pidfd_open(self.pid)
        except OSError:
            self._signal()
            os.waitpid(self.pid, 0)
            raise

    async def over(self, timeout: float) -> None:
        """Return when it has ended, at the latest after `timeout` seconds."""
        await asyncio.wait((self.ended,), timeout=timeout)

    async def kill(self) -> None:
        """Kill it with its group, if it has not ended, and see it gone."""
        if not self.ended.done():
            self._signal()
            await self.over(_KILLED_BY)

    def failure(self, program: str, timeout: float) -> str | None:
        """Why this is no run that succeeded within its time; None where it is one."""
        last = last_line(self.errors) or last_line(self.output)
        said = f": {last}" if last else ""
        if self.flooded:
            return f"{program} wrote more than {OUTPUT_LIMIT} bytes and was killed{said}"
        if not self.ended.done():
            return f"{program} did not end within {timeout:g} s and was killed{said}"
        status = self.ended.result()
        if status < 0:
            return f"{program} was killed by signal {-status}{said}"
        return f"{program} exited with status {status}{said}" if status else None

    def _signal(self) -> None:
        with contextlib.suppress(OSError):  # it changed its user: it is then still there, and said to be
            os.killpg(self.pid, signal.SIGKILL)

    def _written_to(self, pipe: _Pipe) -> None:
        if not pipe.read():
            self._loop.remove_reader(pipe.end)
        elif pipe.written > OUTPUT_LIMIT and not self.flooded:
            self.flooded = True
            self._signal()

    def _exited(self) -> None:
        self._signal()  # what it left in its group; before it is reaped, so that the number is still the group's
        _, status = os.waitpid(self.pid, 0)
        for pipe in self._pipes:
            pipe.read()  # all that is left: a pipe holds no more than one read takes
            self._loop.remove_reader(pipe.end)
            os.close(pipe.end)
        self._loop.remove_reader(self._handle)
        os.close(self._handle)
        self.ended.set_result(os.waitstatus_to_exitcode(status))


def _spawn(argv: Sequence[str], environment: Mapping[str, str], output: int, errors: int) -> int:
    """Start it; its pid. Not by asyncio, which reaps a process before its group can be killed safely."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, errors, 2),
    ]
    return os.posix_spawnp(
        argv[0], list(argv), environment, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_DEFAULTS
    )


def last_line(output: bytes) -> str:
    """The last line that says something, safe for a terminal."""
    for line in reversed(output.decode(errors="replace").splitlines()):
        if text := "".join(c if c.isprintable() else " " for c in line).strip():
            return text[:_SAID]
    return ""
