"""Commands on another host: a real sshd, and connections cut in every place that can be reached."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ssh.conftest import GRACE
from tests.ssh.sshd import NEEDS_SSHD, Sshd
from trafficd.errors import TrafficdError
from trafficd.ports import Swap
from trafficd.ssh.connections import Connections
from trafficd.swap import supervise
from trafficd.swap.command import CommandDriver, environment
from trafficd.swap.process import Ended, NotBegunError
from trafficd.swap.remote import RemoteRunner, parse_reply

pytestmark = NEEDS_SSHD


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def until(holds: Callable[[], object], within: float = 15.0) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.02)


def number_in(path: Path) -> int:
    text = path.read_text().strip() if path.exists() else ""
    return int(text.splitlines()[-1]) if text else 0


def alive(pid: int) -> bool:
    return supervise.stat(pid)[0] not in ("", "Z", "X")


def slowly(place: Path, seconds: float = 1.0) -> list[str]:
    """A command that counts how often it ran, and says so at its end."""
    return sh(f"echo $$ >>'{place}/ran'; echo starting; sleep {seconds}; wc -l <'{place}/ran'; exit 3")


def times_run(place: Path) -> int:
    return len((place / "ran").read_text().splitlines()) if (place / "ran").exists() else 0


SWAP = Swap("swap", "web", "a", "v2", "v1", "10.0.0.1:80", "10.0.0.1:80", "r1", 20.0, time.time())


# -- how a command ends ----------------------------------------------------------------------------------


async def test_status_output_and_environment(runner: RemoteRunner) -> None:
    told = {"TRAFFICD_VERSION": "v2", "TRAFFICD_DIAL": "$(id) 'a' \"b\"\n`c` é"}
    ended = await runner.run("run", "web:a", sh('echo "$TRAFFICD_VERSION,$TRAFFICD_DIAL"; exit 3'), told, 10)
    assert ended == Ended("exit 3", "v2,$(id) 'a' \"b\"\n`c` é\n")
    assert await runner.run("run", "web:a", sh("echo again"), {}, 10) == ended


async def test_the_driver_tells_the_place(runner: RemoteRunner) -> None:
    swap = dataclasses.replace(SWAP, since=time.time())
    outcome = await CommandDriver(runner, lambda _: sh("echo no such image; exit 1"))(swap)
    assert (outcome.ok, outcome.begun) == (False, True)
    assert outcome.reason == "/bin/sh on 127.0.0.1 exited with status 1: no such image"
    outcome = await CommandDriver(runner, lambda _: sh("env | grep ^TRAFFICD | sort; echo TRAFFICD_DIAL=10.0.0.2:81"))(
        dataclasses.replace(swap, upstream="b")
    )
    assert outcome.ok
    assert outcome.dial == "10.0.0.2:81"
    told = environment(dataclasses.replace(swap, upstream="b"))
    assert outcome.output.splitlines()[:-1] == sorted(f"{name}={value}" for name, value in told.items())


async def test_nothing_was_done_where_the_program_is_missing(runner: RemoteRunner) -> None:
    outcome = await CommandDriver(runner, lambda _: ["/no/such/program"])(dataclasses.replace(SWAP, since=time.time()))
    assert outcome.reason == "/no/such/program on 127.0.0.1 could not be started: No such file or directory"
    assert not outcome.begun


async def test_arguments_that_no_program_can_take(runner: RemoteRunner) -> None:
    with pytest.raises(NotBegunError, match="/bin/true on 127.0.0.1 could not be started: a NUL"):
        await runner.run("run", "web:a", ["/bin/true", "a\0b"], {}, 10)


@pytest.mark.slow
async def test_a_time_out_ends_the_whole_group(runner: RemoteRunner, sshd: Sshd) -> None:
    script = f"trap '' TERM; sleep 60 & echo $! >'{sshd.home}/pid'; echo pulling; wait; sleep 60"
    ended = await runner.run("run", "web:a", sh(script), {}, 0.5)
    assert ended.explain("deploy", 0.5) == "deploy did not end within 0.5 s and was ended: pulling"
    assert not alive(number_in(sshd.home / "pid"))


async def test_a_cancelled_command_is_ended(runner: RemoteRunner, sshd: Sshd) -> None:
    task = asyncio.create_task(
        runner.run("run", "web:a", sh(f"trap '' TERM; echo $$ >'{sshd.home}/pid'; sleep 60; sleep 60"), {}, 30)
    )
    await until(lambda: number_in(sshd.home / "pid"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(number_in(sshd.home / "pid"))
    assert (await runner.run("run", "web:a", sh("echo ran"), {}, 10)).word == "ended"


@pytest.mark.slow
async def test_a_daemon_that_stops_leaves_the_command(
    runner: RemoteRunner, sshd: Sshd, connections: Connections, tmp_path: Path
) -> None:
    task = asyncio.create_task(runner.run("run", "web:a", slowly(sshd.home), {}, 30))
    await until(lambda: times_run(sshd.home))
    runner.leave()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await connections.aclose()
    after = RemoteRunner(tmp_path / "commands", sshd.host, connections, grace=GRACE)
    assert await after.run("run", "web:a", slowly(sshd.home), {}, 30) == Ended("exit 3", "starting\n1\n")


@pytest.mark.slow
async def test_two_commands_never_work_on_one_upstream_at_once(runner: RemoteRunner, sshd: Sshd) -> None:
    script = sh(f"mkdir '{sshd.home}/busy' || exit 9; sleep 0.3; rmdir '{sshd.home}/busy'")
    runs = await asyncio.gather(*(runner.run(f"run{n}", "web:a", script, {}, 30) for n in range(3)))
    assert [run.word for run in runs] == ["exit 0"] * 3


@pytest.mark.slow
async def test_many_upstreams_on_one_host_at_once(runner: RemoteRunner) -> None:
    runs = await asyncio.gather(*(runner.run(f"run{n}", f"web:{n}", sh("sleep 0.2"), {}, 30) for n in range(20)))
    assert [run.word for run in runs] == ["exit 0"] * 20


# -- connections that are cut ----------------------------------------------------------------------------


async def test_cut_in_mid_command_it_goes_on_and_is_found_again(runner: RemoteRunner, sshd: Sshd) -> None:
    task = asyncio.create_task(runner.run("run", "web:a", slowly(sshd.home), {}, 30))
    await until(lambda: times_run(sshd.home))
    pid = number_in(sshd.home / "ran")
    assert sshd.cut()
    assert alive(pid), "the command outlives the connection"
    assert await task == Ended("exit 3", "starting\n1\n")


@pytest.mark.slow
async def test_a_connection_that_falls_silent_is_given_up(sshd: Sshd, tmp_path: Path) -> None:
    """As behind a firewall that forgot it: nothing arrives any more, and nothing says so."""
    connections = Connections(dataclasses.replace(sshd.settings, keepalive=0.3))
    runner = RemoteRunner(tmp_path / "commands", sshd.host, connections, grace=GRACE)
    task = asyncio.create_task(runner.run("run", "web:a", slowly(sshd.home, 0.2), {}, 60))
    await until(lambda: times_run(sshd.home))
    frozen = sshd.signal(signal.SIGSTOP)
    assert frozen
    try:
        assert await task == Ended("exit 3", "starting\n1\n")
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
        await connections.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5])
async def test_cut_at_any_moment_it_runs_exactly_once(runner: RemoteRunner, sshd: Sshd, after: float) -> None:
    task = asyncio.create_task(runner.run("run", "web:a", slowly(sshd.home, 0.2), {}, 60))
    for _ in range(3):
        await asyncio.sleep(after)
        sshd.cut()
    assert await task == Ended("exit 3", "starting\n1\n")


@pytest.mark.slow
async def test_a_host_that_is_away_for_a_while(runner: RemoteRunner, sshd: Sshd) -> None:
    task = asyncio.create_task(runner.run("run", "web:a", slowly(sshd.home, 0.2), {}, 60))
    await until(lambda: times_run(sshd.home))
    sshd.stop()
    await until((sshd.runs / "run" / "exit").exists)
    assert not task.done()
    sshd.start()
    assert await task == Ended("exit 3", "starting\n1\n")


@pytest.mark.slow
async def test_a_host_that_stays_away_leaves_it_unknown(runner: RemoteRunner, sshd: Sshd) -> None:
    async def swap() -> None:
        outcome = await CommandDriver(runner, lambda _: slowly(sshd.home, 30))(
            dataclasses.replace(SWAP, since=time.time(), timeout=4.0)
        )
        assert not outcome.ok
        assert outcome.begun
        assert "UNKNOWN whether /bin/sh on 127.0.0.1 has done its work" in outcome.reason
        assert "~/.trafficd/runs/r1-a-swap-" in outcome.reason

    task = asyncio.create_task(swap())
    await until(lambda: times_run(sshd.home))
    sshd.stop()
    await task


@pytest.mark.slow
async def test_a_host_that_was_never_reached_was_sent_nothing(runner: RemoteRunner, sshd: Sshd) -> None:
    sshd.stop()
    swap = dataclasses.replace(SWAP, since=time.time(), timeout=1.0)
    outcome = await CommandDriver(runner, lambda _: sh("true"))(swap)
    assert not outcome.ok
    assert not outcome.begun
    assert "/bin/sh on 127.0.0.1 was not started: ssh://" in outcome.reason


async def test_a_host_that_refuses_us_is_not_asked_again(runner: RemoteRunner, sshd: Sshd) -> None:
    (sshd.directory / "authorized_keys").write_text("")
    with pytest.raises(NotBegunError, match="takes none of our keys"):
        await asyncio.wait_for(runner.run("run", "web:a", sh("true"), {}, 600), 20)


async def test_after_a_killed_daemon_an_unreachable_host_leaves_it_unknown(
    runner: RemoteRunner, sshd: Sshd, connections: Connections, tmp_path: Path
) -> None:
    """The next daemon knows, from disk, that the first one had sent it; and to which host."""
    task = asyncio.create_task(runner.run("run", "web:a", slowly(sshd.home, 0.5), {}, 30))
    await until(lambda: times_run(sshd.home))
    runner.leave()
    task.cancel()
    await asyncio.wait([task])
    elsewhere = sshd.host._replace(port=1)
    after = RemoteRunner(tmp_path / "commands", elsewhere, connections, grace=GRACE)
    sshd.stop()
    with pytest.raises(TrafficdError, match="UNKNOWN") as caught:
        await after.run("run", "web:a", sh("true"), {}, 0.5)
    assert not isinstance(caught.value, NotBegunError)
    sshd.start()
    assert await after.run("run", "web:a", sh("true"), {}, 30) == Ended("exit 3", "starting\n1\n")


@pytest.mark.slow
async def test_a_killed_supervisor_leaves_nothing_running_and_is_not_repeated(runner: RemoteRunner, sshd: Sshd) -> None:
    task = asyncio.create_task(runner.run("run", "web:a", slowly(sshd.home, 60), {}, 30))
    await until(lambda: times_run(sshd.home))
    lock = sshd.home / ".trafficd" / "locks" / "web:a"
    os.kill(int(lock.read_text().split(" ")[0]), signal.SIGKILL)
    with pytest.raises(TrafficdError, match=r"supervisor of /bin/sh on 127.0.0.1 was killed \(signal KILL\)"):
        await task
    assert not alive(number_in(sshd.home / "ran"))
    assert times_run(sshd.home) == 1


@pytest.mark.slow
async def test_killed_while_nobody_listens_it_is_not_repeated(runner: RemoteRunner, sshd: Sshd) -> None:
    """The supervisor and the connection go at once, as when the host loses its power."""
    task = asyncio.create_task(runner.run("run", "web:a", slowly(sshd.home, 60), {}, 30))
    await until(lambda: times_run(sshd.home))
    lock = sshd.home / ".trafficd" / "locks" / "web:a"
    supervisor = int(lock.read_text().split(" ")[0])
    sshd.stop()
    os.kill(supervisor, signal.SIGKILL)
    sshd.start()
    ended = await task
    assert "whether it had done its work is not known" in ended.explain("deploy", 30)
    assert not alive(number_in(sshd.home / "ran"))
    assert times_run(sshd.home) == 1


@pytest.mark.slow
async def test_what_a_killed_supervisor_left_is_ended_before_the_next_command(runner: RemoteRunner, sshd: Sshd) -> None:
    task = asyncio.create_task(runner.run("run", "web:a", slowly(sshd.home, 60), {}, 30))
    await until(lambda: times_run(sshd.home))
    runner.leave()
    task.cancel()
    await asyncio.wait([task])
    lock = sshd.home / ".trafficd" / "locks" / "web:a"
    os.kill(int(lock.read_text().split(" ")[0]), signal.SIGKILL)
    pid = number_in(sshd.home / "ran")
    assert alive(pid)
    script = f"grep -q '^State:.[^ZX]' /proc/{pid}/status 2>/dev/null && exit 9; exit 0"
    assert (await runner.run("next", "web:a", sh(script), {}, 30)).word == "exit 0"


# -- shells that say or do something else ------------------------------------------------------------------


@pytest.mark.slow
async def test_a_login_shell_that_runs_nothing(runner: RemoteRunner, sshd: Sshd) -> None:
    sshd.stop()
    sshd.start("ForceCommand echo This account is not available.; exit 1")
    with pytest.raises(NotBegunError, match=r"does not run `exec /bin/sh -s` \(exit status 1\): This account is not"):
        await runner.run("run", "web:a", sh("true"), {}, 10)


async def test_a_login_shell_that_chatters(runner: RemoteRunner, sshd: Sshd) -> None:
    sshd.stop()
    sshd.start("ForceCommand echo Welcome; echo trafficd-0 end exit 9; eval $SSH_ORIGINAL_COMMAND")
    assert await runner.run("run", "web:a", sh("echo ran"), {}, 10) == Ended("exit 0", "ran\n")


async def test_a_shell_that_leads_no_group_runs_nothing(runner: RemoteRunner, sshd: Sshd) -> None:
    sshd.stop()
    sshd.start("ForceCommand /bin/sh -s; true")
    ended = await runner.run("run", "web:a", sh("echo ran"), {}, 10)
    assert ended.explain("deploy", 10).startswith("deploy could not be started: the shell that sshd starts leads no")
    assert not ended.begun


@pytest.mark.parametrize(
    ("said", "began", "word", "output"),
    [
        (b"", False, None, b""),
        (b"n begin\n", True, None, b""),
        (b"hi\nn begin\nn wait\nn end exit 0\n", True, "exit 0", b""),
        (b"n begin\nn end error x y\nout\nn end exit 1\n", True, "error x y", b"out\nn end exit 1\n"),
        (b"m end exit 0\n", False, None, b""),
    ],
)
def test_replies(said: bytes, began: bool, word: str | None, output: bytes) -> None:
    reply = parse_reply(said, "n")
    assert (reply.began, reply.word, reply.output) == (began, word, output)
