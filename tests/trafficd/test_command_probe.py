"""Probes that are programs: real processes, each with its own way to answer or not to."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from trafficd.child import OUTPUT_LIMIT
from trafficd.core.place import Expected, worker
from trafficd.health.command import CommandProbe

PLACES: Mapping[str, Expected] = {
    worker("a"): Expected("a", "v1"),
    worker("b"): Expected("b", None),
    "10.0.0.1:80": Expected("c", "v2"),
    "10.0.0.1:81": Expected("c", "v3"),
}
A = worker("a")


def probe(*argv: str, timeout: float = 5.0) -> CommandProbe:
    return CommandProbe("jobs", argv, timeout, PLACES.get)


def shell(script: str, timeout: float = 5.0) -> CommandProbe:
    return probe("sh", "-c", script, timeout=timeout)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def gone(pid: int) -> bool:
    """It ends within a second: what is killed together does not vanish at the very same moment."""
    deadline = time.monotonic() + 1.0
    while alive(pid) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return not alive(pid)


async def pids(file: Path, count: int) -> list[int]:
    """The process ids that a script wrote into a file, a line each."""
    async with asyncio.timeout(5):
        while True:
            with suppress(OSError):
                lines = await asyncio.to_thread(lambda: file.read_text().split())
                if len(lines) == count:
                    return [int(line) for line in lines]
            await asyncio.sleep(0.01)


def children() -> set[str]:
    """Our processes, those too that have ended and are not reaped."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test leaves a process of ours behind, nor a descriptor."""
    before, descriptors = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert children() <= before
    assert len(os.listdir("/proc/self/fd")) <= descriptors


async def test_exit_status_0_is_healthy() -> None:
    assert await probe("true")(A) is None


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "sh exited with status 3"),
        ("echo the broker is away; exit 1", "sh exited with status 1: the broker is away"),
        ("echo first; echo last >&2; echo; exit 1", "sh exited with status 1: last"),
        (r"printf '\033[31mred\007'; exit 1", "sh exited with status 1: [31mred"),
        (r"printf '\377\376'; exit 1", "sh exited with status 1: \ufffd\ufffd"),
        ("kill -TERM $$", "sh was killed by signal 15"),
    ],
    ids=["silent", "with a reason", "the last line", "for a terminal", "no text", "killed"],
)
async def test_anything_else_is_not_and_says_why(script: str, says: str) -> None:
    assert await shell(script)(A) == says


async def test_a_program_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    file = tmp_path / "check"
    file.write_text("#!/bin/sh\n")
    assert await probe(str(file))(A) == f"{file} could not be started: Permission denied"
    missing = str(tmp_path / "missing")
    assert await probe(missing)(A) == f"{missing} could not be started: No such file or directory"


async def test_it_is_told_what_it_is_asked_about(tmp_path: Path) -> None:
    words = "$TRAFFICD_ACTION $TRAFFICD_SERVICE $TRAFFICD_UPSTREAM ($TRAFFICD_VERSION) $TRAFFICD_DIAL"
    run = shell(f'echo "{words}" >>{tmp_path}/said')
    for place in PLACES:
        assert await run(place) is None
    assert [line.strip() for line in (tmp_path / "said").read_text().splitlines()] == [
        "probe jobs a (v1)",
        "probe jobs b ()",
        "probe jobs c (v2) 10.0.0.1:80",
        "probe jobs c (v3) 10.0.0.1:81",
    ]
    assert await run("10.9.9.9:80") == "nothing should be running at 10.9.9.9:80"


async def test_at_its_time_out_the_whole_group_is_killed(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 60 & echo $! >>{tmp_path}/pids; echo $$ >>{tmp_path}/pids; echo still at it; wait"
    begun = time.monotonic()
    said = await shell(script, timeout=0.4)(A)
    assert said == "sh did not end within 0.4 s and was killed: still at it"
    assert time.monotonic() - begun < 3
    for pid in await pids(tmp_path / "pids", 2):
        assert await gone(pid)


async def test_cancelled_it_is_killed(tmp_path: Path) -> None:
    run = shell(f"sleep 60 & echo $! >>{tmp_path}/pids; echo $$ >>{tmp_path}/pids; wait")
    task = asyncio.create_task(run(A))
    started = await pids(tmp_path / "pids", 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in started:
        assert await gone(pid)
    await run.aclose()


async def test_what_a_good_one_leaves_behind_is_killed_too(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert await shell(f"sleep 60 & echo $! >{tmp_path}/pids")(A) is None
    assert time.monotonic() - begun < 3, "nobody waits for what holds the output open"
    (pid,) = await pids(tmp_path / "pids", 1)
    assert await gone(pid)


async def test_much_output_is_no_fault_and_a_flood_is() -> None:
    assert await shell("head -c 300000 /dev/zero")(A) is None
    said = await shell("head -c 300000 /dev/zero; echo; echo why; exit 1")(A)
    assert said == "sh exited with status 1: why"
    begun = time.monotonic()
    said = await probe("yes", "no" * 50)(A)
    assert said is not None
    assert said.startswith(f"yes wrote more than {OUTPUT_LIMIT} bytes and was killed: no")
    assert time.monotonic() - begun < 3


async def test_an_upstream_has_one_at_a_time_and_others_do_not_wait(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = shell(f"echo + >>{log}; sleep 0.1; echo - >>{log}")
    assert [*await asyncio.gather(run("10.0.0.1:80"), run("10.0.0.1:81"), run("10.0.0.1:80"))] == [None] * 3
    assert log.read_text().split() == ["+", "-"] * 3
    log.unlink()
    await asyncio.gather(run(A), run(worker("b")))
    assert log.read_text().split() == ["+", "+", "-", "-"]


async def test_one_that_cannot_be_killed_is_not_joined_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """It changed its user, or waits for a disk that is gone."""
    run = shell("sleep 0.6", timeout=0.05)
    monkeypatch.setattr("trafficd.child._KILLED_BY", 0.05)
    with monkeypatch.context() as patched:
        patched.setattr("os.killpg", lambda group, number: None)
        assert await run(A) == "sh did not end within 0.05 s and was killed"
        said = await run(A)
    assert said is not None
    assert "an earlier run of it cannot be killed (process" in said
    await asyncio.sleep(0.8)
    assert "did not end" in str(await run(A)), "it has ended, so the next one is run"


async def test_hundreds_leave_nothing_behind() -> None:
    run = probe("true")
    for _ in range(50):
        assert [*await asyncio.gather(*(run(place) for place in PLACES))] == [None] * 4
