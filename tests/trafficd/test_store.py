"""The journal on a real disk: what is acknowledged is there, and what cannot be read is said so."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import types
import typing
from collections.abc import AsyncIterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from trafficd.core import events as ev
from trafficd.core.events import Event
from trafficd.core.model import Phase, Upstream
from trafficd.errors import JournalError, StateError
from trafficd.store.codec import as_dict, decode, encode
from trafficd.store.sqlite import SCHEMA, Answer, SqliteJournal, StateLock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest_asyncio.fixture
async def journal(path: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(path)
    await journal.open()
    yield journal
    await journal.close()


async def opened(path: Path) -> SqliteJournal:
    journal = SqliteJournal(path)
    await journal.open()
    return journal


def change(path: Path, *statements: str) -> None:
    """What somebody else does to the file."""
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def spoil(path: Path, data: bytes, offset: int = 0) -> bytes:
    """Overwrite the file from `offset` to its end, or past it; what it is then."""
    old = path.read_bytes() if path.exists() else b""
    new = old[:offset] + data * max(1, (len(old) - offset) // max(1, len(data)))
    path.write_bytes(new)
    return new


# -- one of each event -------------------------------------------------------------------------------------


def members(union: Any) -> list[type[Any]]:
    if isinstance(union, types.UnionType):
        return [found for member in typing.get_args(union) for found in members(member)]
    return [union]


EVENTS = members(Event)


def sample(kind: Any, *, full: bool) -> Any:
    """A value of this type: with everything set, and texts that are hard to keep; or as bare as can be."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return args[0]
    if origin in (types.UnionType, typing.Union):
        chosen = [arg for arg in args if arg is not types.NoneType]
        return sample(chosen[0], full=full) if full or chosen == [*args] else None
    if origin is tuple:
        return (sample(args[0], full=full), sample(args[0], full=full)) if full else ()
    if origin is dict:
        return {"a": sample(args[1], full=full), "é\n": sample(args[1], full=False)} if full else {}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind)[-1 if full else 0]
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        made: Any = kind
        return made(**{field.name: sample(hints[field.name], full=full) for field in dataclasses.fields(kind)})
    plain = {str: ('é\0"\\\n\N{GRINNING FACE}', ""), bool: (True, False), int: (2**40, 0), float: (0.1, 0.0)}
    return plain[kind][0 if full else 1]


def test_the_module_of_events_holds_no_event_outside_the_union() -> None:
    """An event class that is forgotten in `Event` could be appended and never read."""
    defined = {
        value
        for value in vars(ev).values()
        if dataclasses.is_dataclass(value) and getattr(value, "__module__", "") == ev.__name__
    }
    assert defined == set(EVENTS)
    names = [typing.get_args(typing.get_type_hints(kind)["type"])[0] for kind in EVENTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("full", [True, False], ids=["full", "bare"])
@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
async def test_every_event_comes_back_as_it_was(journal: SqliteJournal, kind: type[Any], full: bool) -> None:
    event = sample(kind, full=full)
    entry = await journal.append(event)
    assert entry.event == event
    again = await journal.load(event.service)
    assert again == [entry]
    assert type(again[0].event) is kind
    assert repr(again[0].event) == repr(event)  # enums stay enums, tuples tuples
    assert as_dict(event)["type"] == event.type


def failure(number: int, service: str = "web", rollout: str = "r1") -> ev.FailureNoted:
    return ev.FailureNoted(service, rollout, str(number))


# -- reading -----------------------------------------------------------------------------------------------


async def test_entries_keep_their_order_and_survive_a_restart(path: Path) -> None:
    first = await opened(path)
    written = [await first.append(failure(number)) for number in range(20)]
    await first.close()
    second = await opened(path)
    assert await second.load("web") == written
    assert [entry.seq for entry in written] == list(range(1, 21))
    later = await second.append(failure(99))
    assert later.seq == 21
    await second.close()


async def test_each_service_has_its_own_history(journal: SqliteJournal) -> None:
    for number, service in enumerate(["web", "api", "web", "' OR 1=1 --"]):
        await journal.append(failure(number, service))
    assert [entry.event for entry in await journal.load("web")] == [failure(0), failure(2)]
    assert len(await journal.load("' OR 1=1 --")) == 1
    assert await journal.load("") == []


async def test_the_events_of_a_rollout_can_be_followed(journal: SqliteJournal) -> None:
    await journal.append(ev.Held("web"))
    entries = [await journal.append(failure(n, rollout=f"r{n % 2}")) for n in range(6)]
    assert await journal.rollout("r1") == entries[1::2]
    assert await journal.rollout("r1", after=entries[1].seq) == entries[3::2]
    assert await journal.rollout("r1", after=entries[5].seq) == []
    assert await journal.rollout("r9") == []


async def test_recent_is_the_newest_with_the_newest_last(journal: SqliteJournal) -> None:
    for number in range(10):
        await journal.append(failure(number, "web" if number % 2 else "api"))
    assert [e.event for e in await journal.recent(3)] == [failure(7), failure(8, "api"), failure(9)]
    assert [e.event for e in await journal.recent(2, "api")] == [failure(6, "api"), failure(8, "api")]
    assert len(await journal.recent(100)) == 10
    assert await journal.recent(0) == []


async def test_rollouts_are_ordered_by_their_beginning(journal: SqliteJournal) -> None:
    """An old rollout that still gets an event stays behind a newer one."""
    for rollout, service in [("r1", "web"), ("r2", "api"), ("r3", "web"), ("r1", "web")]:
        await journal.append(failure(0, service, rollout))
    await journal.append(ev.Held("web"))
    assert await journal.rollouts(None, 10) == ["r3", "r2", "r1"]
    assert await journal.rollouts("web", 10) == ["r3", "r1"]
    assert await journal.rollouts("web", 1) == ["r3"]


async def test_appends_at_once_are_all_there(journal: SqliteJournal) -> None:
    entries = await asyncio.gather(*(journal.append(failure(number)) for number in range(50)))
    assert await journal.load("web") == sorted(entries)
    assert len({entry.seq for entry in entries}) == 50


# -- what must not be written ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event", [ev.CanarySet("web", float("nan")), ev.CanarySet("web", float("inf")), ev.Held("web", "\ud800")]
)
async def test_what_could_not_be_read_again_is_not_written(journal: SqliteJournal, event: Event) -> None:
    """One such event, and no daemon would start on this journal any more."""
    with pytest.raises(JournalError, match="could not be read again"):
        await journal.append(event)
    assert await journal.load("web") == []


async def test_a_closed_journal_takes_nothing(path: Path) -> None:
    journal = SqliteJournal(path)
    with pytest.raises(JournalError, match="closed"):
        await journal.append(failure(1))
    await journal.open()
    await journal.close()
    await journal.close()
    with pytest.raises(JournalError, match="closed"):
        await journal.append(failure(1))
    with pytest.raises(JournalError, match="closed"):
        await journal.load("web")


async def test_a_journal_that_cannot_be_written_says_so_and_recovers(journal: SqliteJournal, path: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails in the same place."""
    await journal.append(failure(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(JournalError, match=r"journal\.sqlite cannot be used: .*Is the disk full"):
            await journal.append(failure(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    await journal.append(failure(3))
    assert [entry.event for entry in await journal.load("web")] == [failure(1), failure(3)]


async def test_a_read_only_journal_cannot_be_written(journal: SqliteJournal) -> None:
    """SQLite's own switch; file modes mean nothing to root, whom tests may run as."""
    await journal.append(failure(1))
    await journal._call(lambda: journal._db.execute("PRAGMA query_only=1"))
    with pytest.raises(JournalError, match="readonly"):
        await journal.append(failure(2))
    assert [entry.event for entry in await journal.load("web")] == [failure(1)]


async def test_the_journal_is_for_its_owner_only(journal: SqliteJournal, path: Path) -> None:
    """The output of commands is in it, and secrets may be in that."""
    await journal.append(failure(1))
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.glob("journal*")}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 3


# -- what cannot be read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"this is no database at all, " * 200, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_database(path: Path, damage: bytes) -> None:
    spoil(path, damage)
    with pytest.raises(StateError, match=f"the journal {path} is damaged") as caught:
        await opened(path)
    assert "backup" in str(caught.value)
    assert spoil(path, b"", len(damage)) == damage  # it is as it was


async def test_a_database_with_torn_pages(path: Path) -> None:
    journal = await opened(path)
    for number in range(400):
        await journal.append(failure(number))
    await journal.close()
    spoil(path, b"\xa5", 4096 * 4)
    with pytest.raises(StateError, match=f"the journal {path} is damaged"):
        await opened(path)


async def test_a_database_of_a_newer_trafficd(path: Path) -> None:
    await (await opened(path)).close()
    change(path, f"PRAGMA user_version={SCHEMA + 1}")
    with pytest.raises(StateError, match=r"written by a newer trafficd \(schema 2, this one knows 1\)"):
        await opened(path)


@pytest.mark.parametrize("body", ['{"type": "from_the_future", "service": "web"}', "{}", "[", '{"type": "held"}'])
async def test_an_event_that_is_not_known(journal: SqliteJournal, path: Path, body: str) -> None:
    await journal.append(ev.Held("web"))
    change(path, f"INSERT INTO events (at, service, body) VALUES (1, 'web', CAST('{body}' AS BLOB))")
    with pytest.raises(StateError, match=rf"{path} holds an event .*\(seq 2\)"):
        await journal.load("web")
    assert await journal.load("api") == []


async def test_a_field_that_a_newer_trafficd_added_is_no_fault() -> None:
    body = encode(ev.Held("web")).replace(b'"service"', b'"added":1,"service"')
    assert decode(body) == ev.Held("web")


async def test_an_upstream_of_before_there_were_groups_has_none() -> None:
    body = b'{"type":"upstream_added","service":"web","upstream":"a","dial":"10.0.0.1:80","configured":true}'
    assert decode(body) == ev.UpstreamAdded("web", "a", "10.0.0.1:80", configured=True, group=None)
    upstreams = (Upstream("a", "10.0.0.1:80", group="x"),)
    snapshot = encode(ev.Snapshotted("web", upstreams, None, None, None, False, None, ()))
    old = snapshot.replace(b',"group":"x"', b"")
    assert b"group" not in old
    event = decode(old)
    assert isinstance(event, ev.Snapshotted)
    assert event.upstreams[0].group is None


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be opened"):
        await opened(tmp_path / "no" / "journal.sqlite")
    with pytest.raises(StateError, match=f"state_dir {tmp_path}/no cannot be used: No such file"):
        StateLock(tmp_path / "no").acquire()


# -- answers -----------------------------------------------------------------------------------------------


async def test_answers_are_kept_over_a_restart(path: Path) -> None:
    journal = await opened(path)
    await journal.keep_answer("k", Answer("digest", 201, b'{"id": 1}'))
    await journal.close()
    journal = await opened(path)
    assert await journal.answer("k") == Answer("digest", 201, b'{"id": 1}')
    assert await journal.answer("other") is None
    await journal.keep_answer("k", Answer("digest 2", 200, b""))
    assert await journal.answer("k") == Answer("digest 2", 200, b"")
    await journal.close()


async def test_answers_expire_each_at_its_own_time(journal: SqliteJournal, path: Path) -> None:
    await journal.keep_answer("short", Answer("d", 200, b""), keep=0.05)
    await journal.keep_answer("long", Answer("d", 200, b""), keep=60.0)
    assert await journal.answer("short") is not None
    await asyncio.sleep(0.1)
    assert await journal.answer("short") is None
    await journal.keep_answer("another", Answer("d", 200, b""), keep=0.01)
    assert await journal.answer("long") is not None
    connection = sqlite3.connect(path)
    assert {row[0] for row in connection.execute("SELECT key FROM answers")} == {"long", "another"}
    connection.close()


# -- one daemon, and daemons that are killed ---------------------------------------------------------------

_HOLDER = """
import sys, time
from pathlib import Path
from trafficd.store.sqlite import StateLock
StateLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""

_WRITER = """
import asyncio, sys
from pathlib import Path
from trafficd.core.events import FailureNoted
from trafficd.store.sqlite import SqliteJournal

async def main():
    journal = SqliteJournal(Path(sys.argv[1]))
    await journal.open()
    number = 0
    while True:
        entry = await journal.append(FailureNoted("web", "r1", str(number)))
        sys.stdout.write(f"{entry.seq} {number}\\n")
        sys.stdout.flush()
        number += 1

asyncio.run(main())
"""


def child(script: str, argument: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, str(argument)], stdout=subprocess.PIPE, text=True, bufsize=1)


def test_a_second_daemon_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    with child(_HOLDER, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = StateLock(tmp_path)
        with pytest.raises(StateError, match=rf"another trafficd \(pid {holder.pid}\) already runs on {tmp_path}"):
            lock.acquire()
        holder.kill()
        holder.wait()
        lock.acquire()
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
        lock.release()


def test_a_released_lock_is_free(tmp_path: Path) -> None:
    first, second = StateLock(tmp_path), StateLock(tmp_path)
    first.acquire()
    with pytest.raises(StateError, match=f"pid {os.getpid()}"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


@pytest.mark.parametrize("acknowledged", [1, 40, 333])
async def test_what_was_acknowledged_to_a_killed_writer_is_there(path: Path, acknowledged: int) -> None:
    with child(_WRITER, path) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(acknowledged)]
        writer.kill()
        writer.wait()
        lines += [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    journal = await opened(path)
    there = [(entry.seq, entry.event) for entry in await journal.load("web")]
    await journal.close()
    wanted = [(int(seq), failure(int(number))) for seq, number in (line.split() for line in lines)]
    assert there[: len(wanted)] == wanted
    assert len(there) <= len(wanted) + 1  # the one that was written and not acknowledged


async def test_ends_are_kept_as_states(journal: SqliteJournal) -> None:
    await journal.append(ev.RolloutEnded("web", "r1", Phase.STUCK, "why"))
    (entry,) = await journal.load("web")
    assert isinstance(entry.event, ev.RolloutEnded)
    assert entry.event.state is Phase.STUCK
