"""Run one command on another host, once, however often the connection is lost meanwhile.

The supervisor there (trafficd/ssh/supervise.sh) outlives the connection and keeps what it knows by the run's name. So
a connection lost in mid-command tells nothing about the command: we connect again and ask for the same run, which
finds it under way, or ended. Before anything is sent that is noted here on disk, with the host; so it is certain,
also after the daemon was killed, whether the command may have begun.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trafficd.errors import HostRefusedError, HostUnreachableError, TrafficdError
from trafficd.ssh.connections import Connections
from trafficd.ssh.host import Host, parse_host
from trafficd.ssh.script import SHELL, supervised
from trafficd.swap import supervise
from trafficd.swap.process import GRACE, KEEP, Ended, NotBegunError, last_line, read_end, sweep

log = logging.getLogger("trafficd.swap.remote")

PATIENCE = 30.0  # s that a host which was sent nothing yet is tried
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # s between two tries; then always the last
_SLACK = 10.0  # s that a host is given to answer, beside all that it waits for
_HEARD = 1 << 18  # bytes; a supervisor says far less


class Reply(NamedTuple):
    """What was heard of a supervisor.

    Whether it `began` its work at all; its `word` for how the run ended, and the end of what the command wrote; or who
    is in its way (`busy`). `noise` is the last line of what somebody else said before.
    """

    began: bool
    word: str | None
    output: bytes
    busy: str | None
    noise: str


def parse_reply(said: bytes, nonce: str) -> Reply:
    """The supervisor's lines among what the login shell may have said before them."""
    began, busy, noise, rest = False, None, b"", said
    while rest:
        line, _, rest = rest.partition(b"\n")
        mark, _, what = line.partition(b" ")
        if mark != nonce.encode():
            noise = line if line.strip() and not began else noise
        elif what.startswith(b"end "):
            return Reply(True, what[4:].decode(errors="replace"), rest, None, "")
        elif what.startswith(b"busy "):
            busy = what[5:].decode(errors="replace")
        else:
            began = True
    return Reply(began, None, b"", busy, last_line(noise.decode(errors="replace")))


@dataclass
class _Run:
    """One run as this daemon knows it. `deadline` is in loop time; `sent`: the host may have it."""

    name: str
    slot: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    host: Host
    deadline: float
    sent: bool

    @property
    def program(self) -> str:
        return f"{self.argv[0]} on {self.host.name}"


class RemoteRunner:
    """`CommandRunner` on another host. `directory` is the same as that one's (<state_dir>/commands)."""

    def __init__(self, directory: Path, host: Host, connections: Connections, *, grace: float = GRACE) -> None:
        self._directory = directory
        self._host = host
        self._connections = connections
        self._grace = grace
        self._leaving = False
        self._swept = False
        self.where = f" on {host.name}"

    def leave(self) -> None:
        """From now on a cancelled call leaves its command running: the daemon stops, the deploy does not."""
        self._leaving = True

    async def run(
        self, name: str, slot: str, argv: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> Ended:
        """As `CommandRunner.run`. Raises `TrafficdError` also when the host cannot be reached until the time-out, and
        `NotBegunError` when nothing was sent to it."""
        run_dir = self._directory / name
        known = read_end(run_dir)
        if known is not None:
            return known
        noted = _noted(run_dir)
        deadline = asyncio.get_running_loop().time() + timeout
        run = _Run(name, slot, argv, environment, run_dir, noted or self._host, deadline, noted is not None)
        try:
            return await self._persist(run)
        except asyncio.CancelledError:
            if run.sent and not self._leaving:
                await asyncio.shield(self._call_off(run))
            raise

    async def _persist(self, run: _Run) -> Ended:
        """Ask until the host tells how the run ended."""
        clock = asyncio.get_running_loop().time
        patient_until, tries = clock() + PATIENCE, 0
        while True:
            try:
                return await self._ask(run)
            except HostUnreachableError as error:
                refused = isinstance(error, HostRefusedError) and not run.sent
                if refused or clock() >= (run.deadline if run.sent else min(run.deadline, patient_until)):
                    raise _given_up(run, error) from error
                log.warning("%s: %s; trying again", run.name, error)
            until = run.deadline if run.sent else min(run.deadline, patient_until)
            await asyncio.sleep(max(0.0, min(_PAUSES[min(tries, len(_PAUSES) - 1)], until - clock())))
            tries += 1

    async def _ask(self, run: _Run) -> Ended:
        """Run it, or join the run that is under way, or hear how it ended."""
        clock = asyncio.get_running_loop().time
        left = max(0.0, run.deadline - clock())
        ending = 2 * (self._grace + supervise.KILLED_BY)
        nonce, before = _nonce(), run.sent
        try:
            script = self._script("run", run, nonce, left, left + ending)
        except ValueError as error:
            raise NotBegunError(f"{run.program} could not be started: {error}") from error
        # It may have to wait for another command as long as that takes, and then takes its own time.
        within = 2 * (left + ending) + _SLACK
        reply, status = await self._say(run, script, nonce, within)
        if reply.word is not None:
            return _kept(run.directory, reply)
        if reply.busy is not None:
            why = f"another command for the same upstream still runs there (process group {reply.busy})"
            raise _not_begun(before, f"{run.program} was not started: {why}; end it, then try again")
        if not reply.began:
            said = f": {reply.noise}" if reply.noise else ""
            raise _not_begun(
                before,
                f"{run.program} was not started: the login shell of {run.host} does not run `{SHELL}` ({status}){said}",
            )
        await self._call_off(run)
        raise TrafficdError(
            f"the supervisor of {run.program} was killed ({status}), and what was left of the command was ended; "
            "whether it had done its work is not known"
        )

    async def _call_off(self, run: _Run) -> None:
        """See that the run is over, or never begins."""
        ending = 2 * (self._grace + supervise.KILLED_BY)
        clock = asyncio.get_running_loop().time
        until, pause = clock() + ending + self._connections.settings.connect_timeout, 0.2
        while True:
            nonce = _nonce()
            script = self._script("end", run, nonce, 0.0, ending)
            try:
                reply, status = await self._say(run, script, nonce, ending + _SLACK, reserved=True)
            except TrafficdError as error:
                fault = str(error)
            else:
                if reply.word is not None:
                    _kept(run.directory, reply)
                elif reply.busy is None:  # busy: another run is at work, and ours finds that it was called off
                    log.warning("%s could not be called off (%s): it may still run there", run.program, status)
                return
            if clock() >= until:
                log.warning("%s could not be called off: %s: it may still run there", run.program, fault)
                return
            await asyncio.sleep(pause)

    def _script(self, action: str, run: _Run, nonce: str, limit: float, patience: float) -> bytes:
        settings: dict[str, str | int] = {
            "nonce": nonce,
            "name": run.name,
            "slot": run.slot,
            "limit": _hundredths(limit),
            "patience": _hundredths(patience),
            "grace": _hundredths(self._grace),
            "killed_by": _hundredths(supervise.KILLED_BY),
            "kept": supervise.OUTPUT_KEPT,
            "cap": supervise.OUTPUT_CAP,
        }
        return supervised(action, settings, run.argv, run.environment)

    async def _say(
        self, run: _Run, script: bytes, nonce: str, within: float, *, reserved: bool = False
    ) -> tuple[Reply, str]:
        """Send it, and hear what there is to hear, with how the session ended in words. Raises `HostUnreachableError`
        when the connection is lost before, or nothing is heard for so long."""
        try:
            async with (
                asyncio.timeout(within),
                self._connections.session(run.host, SHELL, reserved=reserved) as process,
            ):
                if not run.sent:
                    self._note(run)
                process.stdin.write(script)
                process.stdin.write_eof()
                said = b""
                while data := await process.stdout.read(_HEARD):
                    said += data
                    if len(said) > _HEARD:
                        raise TrafficdError(f"{run.host} answers with far more than was asked for")
                await process.wait_closed()
                reply = parse_reply(said, nonce)
                if reply.word is None and process.exit_status is None and process.exit_signal is None:
                    raise HostUnreachableError(f"the connection to {run.host} was lost")
                return reply, _status(process.exit_status, process.exit_signal)
        except TimeoutError:
            raise HostUnreachableError(f"{run.host} has not answered for {within:g} s") from None

    def _note(self, run: _Run) -> None:
        """From now on the command may have begun. On disk before anything is sent."""
        try:
            run.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (run.directory / "host").open("w") as file:
                file.write(f"{run.host}\n")
                file.flush()
                os.fsync(file.fileno())
            for directory in (run.directory, self._directory):
                _sync(directory)
        except OSError as error:
            raise NotBegunError(f"{run.program} was not started: {run.directory}: {error.strerror}") from error
        run.sent = True
        if not self._swept:
            sweep(self._directory, KEEP)
            self._swept = True


def _given_up(run: _Run, error: HostUnreachableError) -> TrafficdError:
    if not run.sent:
        return NotBegunError(f"{run.program} was not started: {error}")
    return TrafficdError(
        f"it is UNKNOWN whether {run.program} has done its work: {error}; it was not heard of again until the "
        f"time-out, and may still run there. Look at ~/.trafficd/runs/{run.name} on {run.host}: the file exit says how "
        "it ended, output what it wrote; without exit it runs, or was cut off"
    )


def _not_begun(sent_before: bool, text: str) -> TrafficdError:
    """Whoever sent it before may have begun it."""
    return TrafficdError(text) if sent_before else NotBegunError(text)


def _kept(run_dir: Path, reply: Reply) -> Ended:
    """The end of a run, kept here as well: it is asked for again when the daemon is killed before it is journalled."""
    assert reply.word is not None, "it has ended"
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (run_dir / "output").write_bytes(reply.output)
        supervise.leave(str(run_dir), reply.word)
    except OSError as error:  # a full disk: the host knows it still
        log.warning("%s: %s", run_dir, error)
        return Ended(reply.word, reply.output.decode(errors="replace"))
    return read_end(run_dir) or Ended(reply.word, "")


def _noted(run_dir: Path) -> Host | None:
    """Where an earlier daemon may have begun this run."""
    try:
        return parse_host((run_dir / "host").read_text().strip())
    except (OSError, ValueError):
        return None


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _nonce() -> str:
    return f"trafficd-{secrets.token_hex(8)}"


def _hundredths(seconds: float) -> int:
    return max(0, round(seconds * 100))


def _status(status: int | None, killed: object) -> str:
    if killed is not None:
        name = killed[0] if isinstance(killed, tuple) and killed else "?"
        return f"signal {name}"
    return "exit status unknown" if status is None else f"exit status {status}"
