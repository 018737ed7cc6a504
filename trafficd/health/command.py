"""A probe that is a program of the user's: exit status 0 says healthy, anything else not, with what it said last.

The program comes from the configuration only and is run without a shell. It is told by its environment what it is asked
about: TRAFFICD_ACTION=probe, TRAFFICD_SERVICE, _UPSTREAM, _VERSION (the one that should be running there, empty when
nobody said) and _DIAL (empty for a worker).

Each run leads a process group of its own. However it ends, by itself, at its time-out, by a flood of output, or because
nobody wants the answer any more, the whole group is killed: a probe has nothing to save and leaves nothing behind. An
upstream has at most one run at a time, even where the one before cannot be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from trafficd.core.place import Expected, address

OUTPUT_LIMIT = 1 << 20  # bytes; who writes more than that is not answering a question
_KEPT = 4_096  # bytes of the output that are kept: its end
_SAID = 200  # characters of its last line that go into the reason
_READ = 65_536
_KILLED_BY = 5.0  # s that a killed process is given to vanish; one in an uninterruptible wait takes longer

# Python ignores the first two; the program must find all of them as any program does.
_DEFAULTS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD]


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
        self._runs: dict[str, _Run] = {}  # the newest of each upstream

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
            run = _Run(self._argv, self._environment(dial, expected))
        except (OSError, ValueError) as error:
            return f"{program} could not be started: {getattr(error, 'strerror', None) or error}"
        self._runs[expected.upstream] = run
        try:
            await run.over(self._timeout)
            return self._explain(run)
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

    def _explain(self, run: _Run) -> str | None:
        """Why the answer is not "healthy"; None when it is."""
        program, last = self._argv[0], _last_line(run.output)
        said = f": {last}" if last else ""
        if run.flooded:
            return f"{program} wrote more than {OUTPUT_LIMIT} bytes and was killed{said}"
        if not run.ended.done():
            return f"{program} did not end within {self._timeout:g} s and was killed{said}"
        status = run.ended.result()
        if status < 0:
            return f"{program} was killed by signal {-status}{said}"
        return f"{program} exited with status {status}{said}" if status else None

    async def aclose(self) -> None:
        """Kill what still runs."""
        for run in self._runs.values():
            await run.kill()


class _Run:
    """One process that leads a group of its own. It is our child: it is reaped when it ends, whoever still waits, and
    until then its pid is nobody else's. Raises OSError and ValueError when it cannot be started."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()  # the exit status; negative: a signal
        self.output = b""
        self.flooded = False
        self._written = 0
        self._pipe, into = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            self.pid = _spawn(argv, environment, into)
            self._handle = self._open_handle()
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(into)
        self._loop.add_reader(self._pipe, self._written_to)
        self._loop.add_reader(self._handle, self._exited)

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

    def _signal(self) -> None:
        with contextlib.suppress(OSError):  # it changed its user: it is then still there, and said to be
            os.killpg(self.pid, signal.SIGKILL)

    def _written_to(self) -> None:
        try:
            data = os.read(self._pipe, _READ)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._pipe)
            return
        self.output = (self.output + data)[-_KEPT:]
        self._written += len(data)
        if self._written > OUTPUT_LIMIT and not self.flooded:
            self.flooded = True
            self._signal()

    def _exited(self) -> None:
        self._signal()  # what it left in its group; before it is reaped, so that the number is still the group's
        _, status = os.waitpid(self.pid, 0)
        self._written_to()  # the pipe holds no more than one read takes
        self._loop.remove_reader(self._handle)
        self._loop.remove_reader(self._pipe)
        os.close(self._handle)
        os.close(self._pipe)
        self.ended.set_result(os.waitstatus_to_exitcode(status))


def _spawn(argv: Sequence[str], environment: Mapping[str, str], output: int) -> int:
    """Start it; its pid. Not by asyncio, which reaps a process before its group can be killed safely."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    return os.posix_spawnp(
        argv[0], list(argv), environment, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_DEFAULTS
    )


def _last_line(output: bytes) -> str:
    """The last line that says something, safe for a terminal."""
    for line in reversed(output.decode(errors="replace").splitlines()):
        if text := "".join(c if c.isprintable() else " " for c in line).strip():
            return text[:_SAID]
    return ""
