"""Commands and their supervisors: real processes, killed in every place that can be reached."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from trafficd.core.model import StepKind
from trafficd.errors import TrafficdError
from trafficd.ports import Outcome, Swap
from trafficd.swap import supervise
from trafficd.swap.command import CommandDriver
from trafficd.swap.hooks import Hooks
from trafficd.swap.process import OUTPUT_LIMIT, CommandRunner, Ended

GRACE = 0.3


def sleeper(pid: Path | None = None) -> subprocess.Popen[bytes]:
    """A process group of somebody else's; with `pid` its leader goes and leaves a member, whose pid it writes."""
    script = "exec sleep 60" if pid is None else f"sleep 60 & echo $! > {pid}"
    process = subprocess.Popen(sh(script), start_new_session=True)
    if pid is not None:
        process.wait()
    return process


def written_lock(directory: Path, text: str) -> None:
    """The lock file of an upstream as somebody left it."""
    directory.mkdir(exist_ok=True)
    (directory / "web:a.lock").write_text(text)


def runs_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*") if path.is_dir())


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the runner keeps its state; nothing that was started from there may be left behind."""
    yield tmp_path / "commands"
    for lock in (tmp_path / "commands").glob("*.lock"):
        left = lock.read_text().split(" ")[0]
        if left:
            supervise.end_group(int(left), 0.0)


@pytest.fixture
def runner(directory: Path) -> CommandRunner:
    return CommandRunner(directory, grace=GRACE)


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def start(
    runner: CommandRunner, script: str, name: str = "run", slot: str = "web:a", timeout: float = 20.0
) -> asyncio.Task[Ended]:
    task = asyncio.create_task(runner.run(name, slot, sh(script), {}, timeout))
    await asyncio.sleep(0)
    return task


async def until(holds: Callable[[], bool], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    return supervise.stat(pid)[0] not in ("", "Z", "X")


def unless_alive(pid: str) -> str:
    """Exit status 9 while the process lives, else 0. A zombie that init has not reaped yet is dead."""
    return f"grep -q '^State:.[^ZX]' /proc/{pid}/status 2>/dev/null && exit 9; exit 0"


def number_in(path: Path) -> int:
    """The pid that a script wrote, 0 while it has not."""
    text = path.read_text().strip() if path.exists() else ""
    return int(text.splitlines()[-1]) if text else 0


def supervisor_of(lock: Path) -> int:
    text = lock.read_text() if lock.exists() else ""
    return int(text.split(" ")[0]) if text.endswith("\n") else 0


# -- how a command ends ------------------------------------------------------------------------------------


async def test_success_with_its_output(runner: CommandRunner) -> None:
    ended = await runner.run("run", "web:a", sh("echo out; echo err >&2"), {}, 10)
    assert ended == Ended("exit 0", "out\nerr\n")
    assert ended.ok


async def test_failure_tells_the_status_and_the_last_line(runner: CommandRunner) -> None:
    ended = await runner.run("run", "web:a", sh("echo pulling; echo no such image; echo; exit 7"), {}, 10)
    assert not ended.ok
    assert ended.explain("deploy", 10) == "deploy exited with status 7: no such image"


async def test_what_a_command_says_cannot_reach_the_terminal_raw(runner: CommandRunner) -> None:
    ended = await runner.run("run", "web:a", sh(r"printf 'bad \033[2Jnews\377\n'; exit 1"), {}, 10)
    assert ended.explain("deploy", 10) == "deploy exited with status 1: bad  [2Jnews\N{REPLACEMENT CHARACTER}"


async def test_a_signal_is_named(runner: CommandRunner) -> None:
    ended = await runner.run("run", "web:a", sh("kill -USR1 $$"), {}, 10)
    assert ended.explain("deploy", 10) == f"deploy was killed by signal {signal.SIGUSR1.value}"


@pytest.mark.parametrize(
    ("program", "why"), [("/no/such/program", "No such file"), ("/etc/passwd", "Permission denied")]
)
async def test_a_program_that_cannot_be_started(runner: CommandRunner, program: str, why: str) -> None:
    ended = await runner.run("run", "web:a", [program], {}, 10)
    assert not ended.ok
    assert ended.explain(program, 10).startswith(f"{program} could not be started: {why}")


async def test_arguments_that_no_program_can_take(runner: CommandRunner) -> None:
    with pytest.raises(TrafficdError, match="/bin/true could not be started"):
        await runner.run("run", "web:a", ["/bin/true", "a\0b"], {}, 10)


async def test_arguments_go_through_no_shell(runner: CommandRunner, tmp_path: Path) -> None:
    hostile = ["$(touch x)", "; touch x", "a b", "*", "`touch x`", "--", "", "é\n"]
    code = "import sys; print(ascii(sys.argv[1:]))"
    ended = await runner.run("run", "web:a", [sys.executable, "-c", code, *hostile], {}, 10)
    assert ended.output.strip() == ascii(hostile)


async def test_the_environment_is_the_daemons_and_what_is_told(
    runner: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.setenv("TRAFFICD_VERSION", "of another time")
    script = sh('echo "$INHERITED,$TRAFFICD_VERSION,$TRAFFICD_DIAL"')
    ended = await runner.run("run", "web:a", script, {"TRAFFICD_VERSION": "v2", "TRAFFICD_DIAL": "$(id)"}, 10)
    assert ended.output == "yes,v2,$(id)\n"


@pytest.fixture
def leaked() -> Iterator[None]:
    """A descriptor of ours that every program we start would inherit."""
    fd = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield
    os.close(fd)


@pytest.mark.usefixtures("leaked", "nothing_ignored")
async def test_the_command_finds_nothing_unusual(runner: CommandRunner) -> None:
    """No open descriptor of the daemon, no signal blocked or ignored, an empty standard input."""
    script = "ls /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; cat | wc -c"
    ended = await runner.run("run", "web:a", sh(script), {}, 10)
    count, blocked, ignored, stdin = ended.output.split("\n")[:4]
    assert count == "4"  # 0, 1, 2 and the one that ls reads with
    standard = (1 << 31) - 1  # without 32 and 33, which glibc keeps for itself
    assert [int(line.split()[1], 16) & standard for line in (blocked, ignored)] == [0, 0]
    assert stdin == "0"


async def test_only_the_end_of_much_output_is_kept(runner: CommandRunner, directory: Path) -> None:
    script = "i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done"
    ended = await runner.run("run", "web:a", sh(script), {}, 10)
    assert ended.output.endswith("line 29999\n")
    assert ended.output.startswith("line ")
    assert OUTPUT_LIMIT - 20 < len(ended.output) <= OUTPUT_LIMIT
    assert (directory / "run" / "output").stat().st_size <= supervise.OUTPUT_KEPT


async def test_output_without_end_does_not_fill_the_disk(runner: CommandRunner, directory: Path) -> None:
    """The supervisor looks once a second; without it several gigabytes would be there by then."""
    largest = 0
    script = "i=0; while [ $i -lt 8 ]; do head -c 1500000 /dev/zero | tr '\\0' x; i=$((i+1)); sleep 0.3; done; echo end"
    task = await start(runner, script)
    while not task.done():
        await asyncio.sleep(0.02)
        output = directory / "run" / "output"
        largest = max(largest, output.stat().st_size if output.exists() else 0)
    assert (await task).output.endswith("xend\n")
    assert 1_500_000 <= largest < 8_000_000


async def test_what_a_successful_command_leaves_behind_lives(
    runner: CommandRunner, directory: Path, tmp_path: Path
) -> None:
    """That is the new instance; not even the next command of the upstream may end it."""
    pid = tmp_path / "pid"
    await runner.run("run-1", "web:a", sh(f"sleep 60 & echo $! > {pid}"), {}, 10)
    try:
        assert (directory / "web:a.lock").read_text() == ""
        assert (await runner.run("run-2", "web:a", sh("true"), {}, 10)).ok
        assert alive(number_in(pid))
    finally:
        os.kill(number_in(pid), signal.SIGKILL)


# -- time-outs ---------------------------------------------------------------------------------------------


async def test_a_timeout_ends_the_whole_group_gently_first(runner: CommandRunner, tmp_path: Path) -> None:
    pid, said = tmp_path / "pid", tmp_path / "said"
    script = f"trap 'echo bye > {said}; exit 0' TERM; sleep 60 & echo $! > {pid}; wait"
    ended = await runner.run("run", "web:a", sh(script), {}, 0.4)
    assert ended.explain("deploy", 0.4) == "deploy did not end within 0.4 s and was ended"
    assert said.read_text() == "bye\n"
    assert not alive(number_in(pid))


async def test_a_grandchild_that_ignores_term_is_killed_after_the_grace(runner: CommandRunner, tmp_path: Path) -> None:
    """Also where the command itself ends at once on TERM."""
    pid = tmp_path / "pid"
    script = f"(trap '' TERM; echo $(sh -c 'echo $PPID') > {pid}; while :; do sleep 0.1; done) & wait"
    begun = time.monotonic()
    ended = await runner.run("run", "web:a", sh(script), {}, 0.4)
    assert ended.word == "timeout"
    assert time.monotonic() - begun >= 0.4 + GRACE
    assert number_in(pid)
    assert not alive(number_in(pid))


async def test_a_command_that_ignores_term_is_killed(runner: CommandRunner) -> None:
    ended = await runner.run("run", "web:a", sh("trap '' TERM; while :; do sleep 0.1; done"), {}, 0.3)
    assert ended.word == "timeout"


async def test_a_step_without_time_left_does_not_begin(runner: CommandRunner, tmp_path: Path) -> None:
    """Resumed too late: a swap that is killed in its first second would do harm."""
    ended = await runner.run("run", "web:a", sh(f"touch {tmp_path}/touched"), {}, -5.0)
    assert ended.word == "timeout"
    assert not (tmp_path / "touched").exists()


# -- cancelling and leaving --------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.0, 0.002, 0.01, 0.03, 0.2], ids=str)
async def test_a_cancelled_call_ends_the_command(
    runner: CommandRunner, directory: Path, tmp_path: Path, after: float
) -> None:
    """At whatever moment: before the supervisor is up, too."""
    done = tmp_path / "done"
    task = await start(runner, f"sleep 0.5; echo done > {done}")
    await asyncio.sleep(after)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert supervisor_of(directory / "web:a.lock") == 0
    await asyncio.sleep(0.6)
    assert not done.exists()
    assert (await runner.run("run", "web:a", sh("true"), {}, 10)).word == "ended"


async def test_after_leaving_a_cancelled_call_leaves_the_command_running(
    runner: CommandRunner, directory: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    task = await start(runner, f"echo x >> {ran}; sleep 0.6; echo finished; exit 4")
    await until(ran.exists)
    runner.leave()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ended = await CommandRunner(directory, grace=GRACE).run("run", "web:a", sh("not this"), {}, 10)
    assert ended == Ended("exit 4", "finished\n")
    assert ran.read_text() == "x\n"


async def test_cancelling_a_joined_run_ends_it(runner: CommandRunner, directory: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    task = await start(runner, f"echo $$ > {pid}; sleep 60")
    await until(lambda: number_in(pid) > 0)
    runner.leave()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    other = CommandRunner(directory, grace=GRACE)
    joined = await start(other, "true")
    await asyncio.sleep(0.2)
    assert not joined.done()
    joined.cancel()
    begun = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await joined
    assert time.monotonic() - begun < supervise.KILLED_BY  # its own supervisor did it, when told
    assert not alive(number_in(pid))


# -- daemons and supervisors that are killed ---------------------------------------------------------------

_DAEMON = """
import asyncio, sys
from pathlib import Path
from trafficd.swap.process import CommandRunner
directory, script = sys.argv[1:]
runner = CommandRunner(Path(directory), grace=0.3)
asyncio.run(runner.run("run", "web:a", ["/bin/sh", "-c", script], {}, 20))
"""


def daemon(directory: Path, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _DAEMON, str(directory), script])


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize("pause", [0.0, 1.2], ids=["joined while it runs", "found when it had ended"])
async def test_a_command_outlives_the_daemon_and_its_end_is_known(
    runner: CommandRunner, directory: Path, tmp_path: Path, pause: float
) -> None:
    ran = tmp_path / "ran"
    script = f"echo x >> {ran}; sleep 0.8; echo the end; exit 3"
    process = daemon(directory, script)
    await until(ran.exists)
    kill(process)
    await asyncio.sleep(pause)
    assert await runner.run("run", "web:a", sh(script), {}, 20) == Ended("exit 3", "the end\n")
    assert await runner.run("run", "web:a", sh(script), {}, 20) == Ended("exit 3", "the end\n")
    assert ran.read_text() == "x\n"


async def test_a_daemon_killed_at_any_moment_of_the_start_never_doubles_the_command(
    directory: Path, tmp_path: Path
) -> None:
    """Whether its supervisor has the lock yet or not, the command runs once, and never beside itself."""
    for number, pause in enumerate([0.0, 0.005, 0.01, 0.015, 0.02, 0.03]):
        place = directory / str(number)
        ran, running = tmp_path / f"ran{number}", tmp_path / f"running{number}"
        script = f"mkdir {running} || exit 9; echo x >> {ran}; sleep 0.2; rmdir {running}"
        process = daemon(place, script)
        await until(lambda place=place, process=process: place.exists() or process.poll() is not None)  # type: ignore[misc]
        await asyncio.sleep(pause)
        kill(process)
        ended = await CommandRunner(place, grace=GRACE).run("run", "web:a", sh(script), {}, 20)
        assert ended.word == "exit 0"
        await asyncio.sleep(0.05)
        assert ran.read_text() == "x\n"


@pytest.mark.parametrize("deaf", [False, True], ids=["ends on TERM", "ignores TERM"])
async def test_what_a_killed_supervisor_left_is_ended_before_the_command_runs_again(
    runner: CommandRunner, directory: Path, tmp_path: Path, deaf: bool
) -> None:
    ran, pids, running = tmp_path / "ran", tmp_path / "pids", tmp_path / "running"
    trap = "trap '' TERM" if deaf else "trap 'rmdir $R; exit' TERM"
    script = (
        f"R={running}; {trap}; echo x >> {ran}; echo $$ >> {pids}; "
        f"if [ -e $R ]; then {unless_alive(f'$(head -1 {pids})')}; fi; mkdir $R; "
        "while :; do sleep 0.05; done"
    )
    process = daemon(directory, script)
    await until(lambda: number_in(pids) > 0 and running.exists())
    first = number_in(pids)
    kill(process)
    os.kill(supervisor_of(directory / "web:a.lock"), signal.SIGKILL)
    if deaf:
        ended = await runner.run("run", "web:a", sh(script), {}, 20)
        assert ended.word == "exit 0", "the first one still lived when the second one began"
    else:
        ended = await runner.run("run", "web:a", sh(script), {}, 0.5)
        assert ended.word == "timeout"
    assert not alive(first)
    assert ran.read_text() == "x\nx\n"


async def test_another_step_of_the_upstream_does_not_run_beside_orphans_either(
    runner: CommandRunner, directory: Path, tmp_path: Path
) -> None:
    """An abort after a crash: the revert's swap must not run beside what is left of the first one."""
    pid = tmp_path / "pid"
    process = daemon(directory, f"echo $$ > {pid}; while :; do sleep 0.05; done")
    await until(lambda: number_in(pid) > 0)
    kill(process)
    os.kill(supervisor_of(directory / "web:a.lock"), signal.SIGKILL)
    ended = await runner.run("revert", "web:a", sh(unless_alive(str(number_in(pid)))), {}, 10)
    assert ended.word == "exit 0"


async def test_a_supervisor_killed_under_us_is_no_success(
    runner: CommandRunner, directory: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    task = await start(runner, f"echo $$ > {pid}; while :; do sleep 0.05; done")
    await until(lambda: number_in(pid) > 0)
    os.kill(supervisor_of(directory / "web:a.lock"), signal.SIGKILL)
    with pytest.raises(TrafficdError, match=r"supervisor of /bin/sh was killed \(signal 9\)"):
        await task
    assert not alive(number_in(pid))


async def test_a_pid_that_is_somebody_elses_now_is_never_signalled(runner: CommandRunner, directory: Path) -> None:
    """Neither as the leader of a run that is joined and cancelled, nor as a group of orphans."""
    bystander = sleeper()
    try:
        start_time = int(supervise.stat(bystander.pid)[1]) - 1
        stale = f"{bystander.pid} {start_time} {supervise.epoch()} {directory / 'run'}\n"
        written_lock(directory, stale)
        assert (await runner.run("run", "web:a", sh("echo ran"), {}, 10)).output == "ran\n"
        written_lock(directory, stale)
        task = await start(runner, "sleep 60", name="other")
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert bystander.poll() is None
    finally:
        kill(bystander)


async def test_a_group_of_another_boot_is_nobody_we_know(
    runner: CommandRunner, directory: Path, tmp_path: Path
) -> None:
    """After a reboot a group without its leader, any daemon's, may have the number that is in our file."""
    pid = tmp_path / "pid"
    leader = sleeper(pid)
    try:
        written_lock(directory, f"{leader.pid} 1 another-boot/1 {directory / 'run'}\n")
        assert (await runner.run("run", "web:a", sh("true"), {}, 10)).ok
        assert alive(number_in(pid))
    finally:
        os.kill(number_in(pid), signal.SIGKILL)


@pytest.mark.parametrize("damage", ["", "\n", "garbage", "1 2 3", "x y z w\n", "\0\0\0\0"])
async def test_a_damaged_lock_file_stops_nothing(runner: CommandRunner, directory: Path, damage: str) -> None:
    written_lock(directory, damage)
    assert (await runner.run("run", "web:a", sh("true"), {}, 10)).ok


async def test_an_end_lost_with_the_power_is_no_end(runner: CommandRunner, directory: Path) -> None:
    """A rename may survive a power loss without the content of the file."""
    (directory / "run").mkdir(parents=True)
    (directory / "run" / "exit").write_text("")
    assert await runner.run("run", "web:a", sh("echo ran"), {}, 10) == Ended("exit 0", "ran\n")


# -- slots -------------------------------------------------------------------------------------------------


async def test_commands_of_one_upstream_never_overlap(directory: Path, tmp_path: Path) -> None:
    running, ran = tmp_path / "running", tmp_path / "ran"
    script = f"mkdir {running} || exit 9; echo x >> {ran}; sleep 0.1; rmdir {running}"
    runners = [CommandRunner(directory, grace=GRACE) for _ in range(4)]
    ends = await asyncio.gather(*(r.run(f"run-{n}", "web:a", sh(script), {}, 20) for n, r in enumerate(runners)))
    assert [end.word for end in ends] == ["exit 0"] * 4
    assert ran.read_text() == "x\n" * 4


async def test_the_same_run_asked_for_twice_at_once_runs_once(directory: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = sh(f"echo x >> {ran}; sleep 0.2; echo said; exit 5")
    runners = [CommandRunner(directory, grace=GRACE) for _ in range(4)]
    ends = await asyncio.gather(*(r.run("run", "web:a", script, {}, 20) for r in runners))
    assert ends == [Ended("exit 5", "said\n")] * 4
    assert ran.read_text() == "x\n"


async def test_commands_of_two_upstreams_run_side_by_side(runner: CommandRunner, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"

    def meet(mine: Path, other: Path) -> list[str]:
        return sh(f"touch {mine}; while [ ! -e {other} ]; do sleep 0.02; done")

    ends = await asyncio.gather(
        runner.run("run-a", "web:a", meet(here, there), {}, 10),
        runner.run("run-b", "web:b", meet(there, here), {}, 10),
    )
    assert [end.word for end in ends] == ["exit 0"] * 2


async def test_an_upstream_that_is_busy_for_too_long_is_said_so(directory: Path, tmp_path: Path) -> None:
    runner = CommandRunner(directory, grace=0.0)
    pid = tmp_path / "pid"
    long = await start(runner, f"echo $$ > {pid}; sleep 60", name="long")
    await until(lambda: number_in(pid) > 0)
    holder = supervisor_of(directory / "web:a.lock")
    code = f"import sys; sys.path.insert(0, {str(Path(supervise.__file__).parent)!r}); import supervise; "
    code += "supervise.KILLED_BY = 0.1; sys.exit(supervise.main(sys.argv[1:]))"
    impatient = [sys.executable, "-c", code, str(directory / "short"), str(directory / "web:a.lock")]
    done = await asyncio.create_subprocess_exec(*impatient, "0.1", "0", "--", "/bin/true")
    assert await done.wait() == supervise.BUSY
    assert supervisor_of(directory / "web:a.lock") == holder
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)


async def test_forgotten_runs(runner: CommandRunner, directory: Path) -> None:
    """The end is remembered until it must be in the journal, then the directory is cleared."""
    await runner.run("old", "web:a", sh("true"), {}, 10)
    await runner.run("new", "web:a", sh("true"), {}, 10)
    week_ago = time.time() - 8 * 86_400
    os.utime(directory / "old" / "exit", (week_ago, week_ago))
    await CommandRunner(directory).run("newest", "web:a", sh("true"), {}, 10)
    assert runs_in(directory) == ["new", "newest"]
    runner.forget("new")
    assert runs_in(directory) == ["newest"]


async def test_a_state_directory_that_is_gone_is_made_again(runner: CommandRunner, directory: Path) -> None:
    await runner.run("one", "web:a", sh("true"), {}, 10)
    shutil.rmtree(directory)
    assert (await runner.run("two", "web:a", sh("true"), {}, 10)).ok


async def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrafficdError, match="could not be started"):
        await CommandRunner(tmp_path / "file" / "commands").run("run", "web:a", sh("true"), {}, 10)


# -- the driver --------------------------------------------------------------------------------------------

SWAP = Swap(
    action="swap",
    service="web",
    upstream="a",
    version="v2",
    previous_version="v1",
    dial=None,
    previous_dial="10.0.0.1:80",
    rollout="r1",
    timeout=10.0,
    since=1000.0,
)


def driver(runner: CommandRunner, argv: Sequence[str] | None, now: float = 1000.0) -> CommandDriver:
    return CommandDriver(runner, lambda action: argv if action == "swap" else None, now=lambda: now)


async def test_the_driver_tells_the_program_what_to_do(runner: CommandRunner) -> None:
    outcome = await driver(runner, sh("env | grep ^TRAFFICD_ | sort"))(replace(SWAP, dial="10.0.0.1:81"))
    assert outcome.ok
    assert outcome.output.split() == [
        "TRAFFICD_ACTION=swap",
        "TRAFFICD_DIAL=10.0.0.1:81",
        "TRAFFICD_PREVIOUS_DIAL=10.0.0.1:80",
        "TRAFFICD_PREVIOUS_VERSION=v1",
        "TRAFFICD_ROLLOUT=r1",
        "TRAFFICD_SERVICE=web",
        "TRAFFICD_UPSTREAM=a",
        "TRAFFICD_VERSION=v2",
    ]
    assert outcome.dial == "10.0.0.1:81"  # the program printed it, which is how an address is returned


async def test_an_action_without_a_program_is_done(runner: CommandRunner, directory: Path) -> None:
    assert await driver(runner, sh("false"))(replace(SWAP, action="retire")) == Outcome(ok=True)
    assert runs_in(directory) == []


async def test_the_address_that_the_program_chose(runner: CommandRunner) -> None:
    script = r"echo TRAFFICD_DIAL=10.0.0.9:1000; printf 'TRAFFICD_DIAL= Host.Example:8081 \r\n'; echo done"
    outcome = await driver(runner, sh(script))(SWAP)
    assert (outcome.ok, outcome.dial) == (True, "host.example:8081")


@pytest.mark.parametrize(
    "dial",
    ["", "host", "h:0", "h:99999", "{env.SECRET}:80", "a/b:80", "../x:80", "h:80\x0b", "h:80,i:80", "::1:80"],
)
async def test_an_address_that_cannot_be_used_is_a_failure(runner: CommandRunner, dial: str) -> None:
    outcome = await driver(runner, ["printf", "%s\n", f"TRAFFICD_DIAL={dial}"])(SWAP)
    assert not outcome.ok
    assert "an address that cannot be used" in outcome.reason
    assert outcome.dial is None


async def test_only_a_whole_line_is_an_address(runner: CommandRunner) -> None:
    """Not one in the middle of a line, and not one made by cutting the output there."""
    padding = OUTPUT_LIMIT - len("TRAFFICD_DIAL=10.0.0.9:1000\n")
    script = (
        f"echo see TRAFFICD_DIAL=10.0.0.9:1000; printf no-TRAFFICD_DIAL=10.0.0.9:1000'\\n'; head -c {padding} /dev/zero"
    )
    outcome = await driver(runner, sh(script))(SWAP)
    assert (outcome.ok, outcome.dial) == (True, None)


async def test_a_failure_has_a_reason(runner: CommandRunner) -> None:
    outcome = await driver(runner, sh("echo disk full; exit 2"))(SWAP)
    assert (outcome.ok, outcome.reason) == (False, "/bin/sh exited with status 2: disk full")
    assert outcome.output == "disk full\n"


async def test_the_time_counts_from_the_journalled_start(runner: CommandRunner) -> None:
    begun = time.monotonic()
    outcome = await driver(runner, sh("sleep 30"), now=1009.5)(SWAP)
    assert outcome.reason == "/bin/sh did not end within 10 s and was ended"
    assert time.monotonic() - begun < 5


async def test_a_swap_performed_again_before_its_end_was_journalled_runs_once(
    runner: CommandRunner, directory: Path, tmp_path: Path
) -> None:
    """A crash between the end of the command and the journal: the restarted daemon asks again."""
    script = sh(f"echo x >> {tmp_path}/ran; echo TRAFFICD_DIAL=h:8081")
    first = await driver(runner, script)(SWAP)
    again = await driver(CommandRunner(directory), script)(replace(SWAP, resumed=True))
    assert first == again == Outcome(True, "", "TRAFFICD_DIAL=h:8081\n", "h:8081")
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_upstreams_with_look_alike_names_do_not_wait_for_each_other(
    runner: CommandRunner, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    one = sh(f"touch {here}; while [ ! -e {there} ]; do sleep 0.02; done")
    two = sh(f"touch {there}; while [ ! -e {here} ]; do sleep 0.02; done")
    outcomes = await asyncio.gather(
        driver(runner, one)(replace(SWAP, service="web-a", upstream="b")),
        driver(runner, two)(replace(SWAP, service="web", upstream="a-b", rollout="r2")),
    )
    assert [outcome.ok for outcome in outcomes] == [True, True]


async def test_hooks_run_once_too_and_never_beside_the_swap(runner: CommandRunner, tmp_path: Path) -> None:
    running = tmp_path / "running"
    script = sh(f"mkdir {running} || exit 9; echo x >> {tmp_path}/ran; sleep 0.2; rmdir {running}")
    hooks = Hooks(runner, "web", lambda kind: script, 10.0, now=lambda: 1000.0)
    environment = {"TRAFFICD_UPSTREAM": "a"}
    outcomes = await asyncio.gather(
        hooks(StepKind.BEFORE_SWAP, "hook", environment, 1000.0),
        hooks(StepKind.BEFORE_SWAP, "hook", environment, 1000.0),
        driver(runner, script)(SWAP),
    )
    assert [outcome.ok for outcome in outcomes] == [True] * 3
    assert (tmp_path / "ran").read_text() == "x\nx\n"
