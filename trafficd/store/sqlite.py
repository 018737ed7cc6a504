"""The journal in SQLite: WAL, every append fsynced before it returns.

One thread does all the work, so that a slow or hanging disk never stops the event loop (probes, drains
and an abort go on). One daemon per state directory, held by a lock on a file beside the database.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from trafficd.core.events import Event
from trafficd.errors import JournalError, StateError
from trafficd.ports import Entry
from trafficd.store.codec import decode, encode

SCHEMA = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    service TEXT NOT NULL,
    rollout TEXT,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS events_service ON events (service, seq);
CREATE INDEX IF NOT EXISTS events_rollout ON events (rollout, seq);
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    expires REAL NOT NULL,
    digest TEXT NOT NULL,
    status INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS verifications (
    id TEXT PRIMARY KEY,
    service TEXT NOT NULL,
    at REAL NOT NULL,
    live INTEGER NOT NULL,
    body BLOB NOT NULL,
    page BLOB
);
CREATE INDEX IF NOT EXISTS verifications_service ON verifications (service, at);
"""

T = TypeVar("T")


class Answer(NamedTuple):
    """What a request with an Idempotency-Key was answered with."""

    digest: str
    status: int
    body: bytes


class StateLock:
    """One daemon per state directory. Released by the kernel however the daemon ends."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "lock"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Raises `StateError` when another daemon holds it, or the directory cannot be used."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"state_dir {self._path.parent} cannot be used: {error.strerror}; make it, owned by trafficd's user"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise StateError(
                f"another trafficd (pid {holder}) already runs on {self._path.parent}; "
                "stop it first, or give this one a state_dir of its own"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class SqliteJournal:
    """`trafficd.ports.Journal` on a SQLite file, and the answers kept for Idempotency-Keys."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def open(self) -> None:
        """Raises `StateError` when the file is damaged or of a newer trafficd."""
        await self._call(self._open)

    def _open(self) -> None:
        try:
            # Made here, for its mode: the output of commands is in it.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error
        try:
            self._prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            raise self._unusable(error) from error
        except StateError:
            connection.close()
            raise
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA:
            raise StateError(
                f"{self._path} was written by a newer trafficd (schema {version}, this one knows "
                f"{SCHEMA}); run the newer one"
            )
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise self._damaged(found)
        connection.executescript(_TABLES)
        connection.execute(f"PRAGMA user_version={SCHEMA}")

    def _unusable(self, error: Exception) -> StateError:
        if _is_damage(error):
            return self._damaged(error)
        return StateError(f"the journal {self._path} cannot be opened: {error}")

    def _damaged(self, error: Exception | str) -> StateError:
        return StateError(
            f"the journal {self._path} is damaged: {error}. Traffic goes on as it is routed now. Bring the "
            "file back from a backup, or move it away: trafficd then begins anew from its configuration"
        )

    async def close(self) -> None:
        """Closing again is no error."""
        if not self._closed:
            await self._call(self._close)
            self._closed = True
            self._thread.shutdown(wait=False)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def append(self, event: Event) -> Entry:
        """Write one event; it is on disk when this returns. Raises `JournalError` when it is not."""
        (entry,) = await self._write([event])
        return entry

    async def append_all(self, events: Sequence[Event]) -> list[Entry]:
        """Write several events, all of them or none; they are on disk when this returns."""
        return await self._write(events)

    async def _write(self, events: Sequence[Event]) -> list[Entry]:
        try:
            bodies = [encode(event) for event in events]
        except ValueError as error:
            raise JournalError(f"not journalled, because it could not be read again: {error}") from error
        at = time.time()
        rows = [(at, e.service, getattr(e, "rollout", None), body) for e, body in zip(events, bodies, strict=True)]

        def work() -> list[int]:
            if len(rows) == 1:
                return [self._insert(rows[0])]
            self._db.execute("BEGIN IMMEDIATE")
            try:
                numbers = [self._insert(row) for row in rows]
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            return numbers

        return [Entry(seq, at, event) for seq, event in zip(await self._call(work), events, strict=True)]

    def _insert(self, row: tuple[float, str, str | None, bytes]) -> int:
        statement = "INSERT INTO events (at, service, rollout, body) VALUES (?, ?, ?, ?)"
        return self._db.execute(statement, row).lastrowid or 0

    async def load(self, service: str) -> list[Entry]:
        """All events of one service, oldest first."""
        return await self._select("service = ? AND seq > ?", (service, 0))

    async def load_all(self) -> dict[str, list[Entry]]:
        """All events of every service, oldest first."""
        found: dict[str, list[Entry]] = {}
        for entry in await self._select("? = ''", ("",)):
            found.setdefault(entry.event.service, []).append(entry)
        return found

    async def rollout(self, rollout: str, after: int = 0) -> list[Entry]:
        """The events of one rollout after sequence number `after`."""
        return await self._select("rollout = ? AND seq > ?", (rollout, after))

    async def recent(self, limit: int, service: str | None = None) -> list[Entry]:
        """The newest events, newest last."""
        where = "service = ?" if service else "? = ''"
        rows = await self._select(f"{where} ORDER BY seq DESC LIMIT {int(limit)}", (service or "",), order="")
        return rows[::-1]

    async def services(self) -> frozenset[str]:
        """Every service that the journal knows of."""
        rows = await self._call(lambda: self._db.execute("SELECT DISTINCT service FROM events").fetchall())
        return frozenset(str(row[0]) for row in rows)

    async def rollouts(self, service: str | None, limit: int) -> list[str]:
        """The ids of the newest rollouts, newest first."""
        where, values = ("service = ? AND", (service,)) if service else ("", ())
        query = (
            f"SELECT rollout FROM events WHERE {where} rollout IS NOT NULL "
            f"GROUP BY rollout ORDER BY MIN(seq) DESC LIMIT {int(limit)}"
        )
        rows = await self._call(lambda: self._db.execute(query, values).fetchall())
        return [row[0] for row in rows]

    async def prune(self, service: str, before: float, keep: Collection[str], *, dry: bool = False) -> int:
        """Remove the rollouts of a service, all but those in `keep`, whose last event was before (s since the epoch).

        Returns how many events those are; `dry`: removes nothing.
        """
        old = (
            "rollout IN (SELECT rollout FROM events WHERE service = ? AND rollout IS NOT NULL "
            f"AND rollout NOT IN ({', '.join('?' * len(keep))}) "
            "GROUP BY rollout HAVING MAX(at) < ?)"
        )
        verb = "SELECT COUNT(*) FROM events WHERE" if dry else "DELETE FROM events WHERE"

        def work() -> int:
            cursor = self._db.execute(f"{verb} {old}", (service, *keep, before))
            return int(cursor.fetchone()[0]) if dry else cursor.rowcount

        return await self._call(work)

    async def answer(self, key: str) -> Answer | None:
        """What the request with this Idempotency-Key was answered with, if it was seen."""
        query = "SELECT digest, status, body FROM answers WHERE key = ? AND expires > ?"
        row = await self._call(lambda: self._db.execute(query, (key, time.time())).fetchone())
        return Answer(*row) if row else None

    async def keep_answer(self, key: str, answer: Answer, *, keep: float = 7 * 86_400.0) -> None:
        """Keep an answer for `keep` seconds."""
        now = time.time()

        def write() -> None:
            self._db.execute("DELETE FROM answers WHERE expires <= ?", (now,))
            values = (key, now + keep, *answer)
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", values)

        await self._call(write)

    # -- verifications ---------------------------------------------------------------------------------

    async def keep_verification(
        self, name: str, service: str, at: float, *, live: bool, body: bytes, page: bytes | None
    ) -> None:
        """Keep how a verification stands, in the place of what was known of it; `page`: the same for people.

        It is on disk when this returns.
        """
        query = "INSERT OR REPLACE INTO verifications VALUES (?, ?, ?, ?, ?, ?)"
        await self._call(lambda: self._db.execute(query, (name, service, at, live, body, page)))

    async def live_verifications(self) -> list[bytes]:
        """Those that are kept as not ended."""
        query = "SELECT body FROM verifications WHERE live"
        rows = await self._call(lambda: self._db.execute(query).fetchall())
        return [row[0] for row in rows]

    async def verification(self, name: str) -> bytes | None:
        """How the verification with this id stands, if there is one."""
        return await self._one("SELECT body FROM verifications WHERE id = ?", name)

    async def verification_page(self, name: str) -> bytes | None:
        return await self._one("SELECT page FROM verifications WHERE id = ?", name)

    async def verification_of(self, service: str, rollout: str) -> bytes | None:
        """The newest one that a rollout ran under, if there is one."""
        query = (
            "SELECT body FROM verifications WHERE service = ? AND json_extract(CAST(body AS TEXT), '$.rollout') = ? "
            "ORDER BY at DESC LIMIT 1"
        )
        row = await self._call(lambda: self._db.execute(query, (service, rollout)).fetchone())
        return row[0] if row else None

    async def verifications(self, service: str | None, limit: int) -> list[bytes]:
        """The newest ones, newest first."""
        where, values = ("WHERE service = ?", (service,)) if service else ("", ())
        query = f"SELECT body FROM verifications {where} ORDER BY at DESC LIMIT {int(limit)}"
        rows = await self._call(lambda: self._db.execute(query, values).fetchall())
        return [row[0] for row in rows]

    async def prune_verifications(self, service: str, before: float) -> int:
        """Remove those of a service that began before (s since the epoch); how many went."""
        query = "DELETE FROM verifications WHERE service = ? AND at < ?"
        return await self._call(lambda: self._db.execute(query, (service, before)).rowcount)

    async def _one(self, query: str, value: str) -> bytes | None:
        row = await self._call(lambda: self._db.execute(query, (value,)).fetchone())
        return row[0] if row else None

    async def _select(self, where: str, values: tuple[object, ...], order: str = "ORDER BY seq") -> list[Entry]:
        query = f"SELECT seq, at, body FROM events WHERE {where} {order}"
        # Decoded in the thread too: a long history must not keep probes and an abort waiting.
        return await self._call(lambda: [self._entry(*row) for row in self._db.execute(query, values).fetchall()])

    def _entry(self, seq: int, at: float, body: bytes) -> Entry:
        try:
            return Entry(seq, at, decode(body))
        except ValidationError as error:
            raise StateError(
                f"the journal {self._path} holds an event that this trafficd does not know (seq {seq}); "
                f"was it written by a newer one? {error}"
            ) from error

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise JournalError("the journal is closed")
        return self._connection

    async def _call(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise JournalError("the journal is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            if _is_damage(error):
                raise self._damaged(error) from error
            raise JournalError(
                f"the journal {self._path} cannot be used: {error}. Is the disk full, or not writable?"
            ) from error


def _is_damage(error: Exception) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))
