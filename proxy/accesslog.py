"""Follow the access log (`proxy.logged`) while Caddy writes and rolls it. Blocking file I/O, no asyncio.

The file is held open and read at a position of our own, so that nothing done to its name takes lines away: a file that
was rolled or removed is read to its end first. Then come the files that were rolled since it was opened, in the order
of their names, and then the one that has the name now.

Invariants: each line that is whole is decoded once, in the order in which it was written, whatever the cutting of
writes and wherever the file is rolled. What is not read is counted: bytes that were skipped because we were too far
behind, lines that are none, and the times when something may be missing (`gaps`). One call reads a bounded number of
bytes, so it ends however fast the file grows.

What cannot be seen: a file that is cut to nothing and has grown beyond our position before we look. Caddy makes no such
file by itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from proxy.accessline import Answer, BadLineError, Decoder
from proxy.errors import AccessLogError

_CHUNK = 1 << 18  # bytes of one read
_LONGEST = 1 << 16  # bytes of a line; ours are cut to less than 1,000
MAX_BEHIND = 32 << 20  # bytes; at 5,000 requests/s of 300 bytes each, 20 s
LIMIT = 4 << 20  # bytes of one call; some 0.1 s of work


class Position(NamedTuple):
    """A place between two lines: the file's inode, and the offset in it."""

    inode: int
    offset: int


@dataclass
class Counts:
    """What came of it so far."""

    lines: int = 0  # that told of a request
    bad: int = 0  # that were none of ours, cut off or garbage
    skipped: int = 0  # bytes not looked at, as we were too far behind
    rolled: int = 0  # files that were read to their end and left for another
    truncated: int = 0  # times that the file was cut to less than we had read
    gaps: int = 0  # times that something may be missing which nobody can count


class Follower:
    """Reads one access log from its end, or from `position` on; a file that appears later is read from its begin, and
    where that of `position` is gone, all files that there are.

    For one thread at a time.
    """

    def __init__(self, path: Path, position: Position | None = None, max_behind: int = MAX_BEHIND) -> None:
        self.path = path
        self.counts = Counts()
        self.behind = 0  # bytes that were not read yet when the last call ended
        self.last_at: float | None = None  # Unix time at which the last request ended that was read
        self.missing = True  # no file has the name: nothing can be written there, or it was removed under Caddy
        self._max_behind = max_behind
        self._decoder = Decoder()
        self._fd: int | None = None
        self._offset = 0  # of what is read next
        self._rest = b""  # the begin of a line whose end is not written yet
        self._resync = False  # whether we stand within a line that is not ours to decode
        self._older: frozenset[str] = frozenset()  # rolled files that were there before the one that is open
        self._begin(position)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def position(self) -> Position | None:
        """Where another follower would go on; None when there was no file yet."""
        if self._fd is None:
            return None
        return Position(os.fstat(self._fd).st_ino, self._offset - len(self._rest))

    def read(self, limit: int = LIMIT) -> list[Answer]:
        """The requests in the next `limit` bytes, in order; none when nothing was written.

        Raises `AccessLogError` when there is a file that cannot be read.
        """
        answers: list[Answer] = []
        try:
            if self._unread() > self._max_behind:
                self._skip()
            while limit > 0 and (data := self._take(min(limit, _CHUNK))):
                limit -= len(data)
                self._split(data, answers)
            self.behind = self._unread()
        except OSError as error:
            raise AccessLogError(
                f"the access log {self.path} cannot be read: {error.strerror}; nothing is known of the answers of "
                "upstreams until it can. Caddy writes it, and its directory and mode must let this process read it"
            ) from error
        return answers

    # -- lines -----------------------------------------------------------------------------------------

    def _split(self, data: bytes, answers: list[Answer]) -> None:
        if self._resync:
            skipped, newline, data = data.partition(b"\n")
            self.counts.skipped += len(skipped) + len(newline)
            if not newline:
                return
            self._resync = False
        *lines, self._rest = (self._rest + data).split(b"\n")
        decode, found = self._decoder.decode, len(answers)
        for line in lines:
            try:
                # After a truncation under a writer that does not append, zeros stand where the old lines were.
                answer = decode(line.lstrip(b"\0"))
            except BadLineError:
                self.counts.bad += 1
                continue
            if answer is not None:
                answers.append(answer)
        if len(answers) > found:
            self.counts.lines += len(answers) - found
            self.last_at = answers[-1].at
        if len(self._rest) > _LONGEST:
            self._drop_rest()
            self._resync = True

    def _drop_rest(self) -> None:
        if self._rest.strip(b"\0"):
            self.counts.bad += 1
        self._rest = b""

    # -- files -----------------------------------------------------------------------------------------

    def _begin(self, position: Position | None) -> None:
        with contextlib.suppress(OSError):  # told by the first `read`
            self._older = frozenset(path.name for path in self._rolled())
            if position is None:
                if self._open_named():
                    self._go_to_end(0)
            else:
                self._resume(position)

    def _resume(self, position: Position) -> None:
        rolled = self._rolled()
        for index, path in enumerate([*rolled, self.path]):
            if _inode(path) == position.inode:
                self._open(path, rolled[:index])
                self._offset = position.offset
                return
        self._older = frozenset()  # all of it may be new
        self.counts.gaps += 1

    def _take(self, size: int) -> bytes:
        """The next bytes, from whatever file has them; none when all is read."""
        if self._fd is None and not self._open_first():
            return b""
        while True:
            assert self._fd is not None
            data = os.pread(self._fd, size, self._offset)
            if data.startswith(b"\0") and (start := os.lseek(self._fd, self._offset, os.SEEK_DATA)) > self._offset:
                self._offset = start  # beyond a hole, which may be large
                continue
            if data:
                self._offset += len(data)
                return data
            if os.fstat(self._fd).st_size < self._offset:
                self.counts.truncated += 1
                self._drop_rest()
                self._offset = 0
            elif not self._advance():
                return b""

    def _advance(self) -> bool:
        """Go on to the next file, if the open one has lost its name; whether there may be more to read now."""
        assert self._fd is not None
        named, here = _inode(self.path), os.fstat(self._fd)
        self.missing = named is None
        if named is None or named == here.st_ino:
            return False
        if here.st_size > self._offset:
            return True  # written after we came to the end, before it was rolled
        successor, older = self._successor(here.st_ino)
        left, rest_bad = self._fd, bool(self._rest)
        if not self._open(successor, older):
            return False  # rolled or removed again in between: next time
        if successor == self.path and _inode_of(self._fd) != named:
            os.close(self._fd)  # another file has the name by now: what was rolled has to be looked at again
            self._fd, self._offset = left, here.st_size
            return True
        os.close(left)
        self.counts.rolled += 1
        self.counts.bad += rest_bad
        self._rest, self._resync = b"", False
        return True

    def _successor(self, inode: int) -> tuple[Path, list[Path]]:
        """The file that follows the one with this inode, and the rolled ones before that."""
        rolled = self._rolled()
        for index, path in enumerate(rolled):
            if _inode(path) == inode:
                return next(iter(rolled[index + 1 :]), self.path), rolled[: index + 1]
        self.counts.gaps += 1  # removed, and others after it may be, too
        newer = [path for path in rolled if path.name not in self._older]
        return next(iter(newer), self.path), [path for path in rolled if path.name in self._older]

    def _rolled(self) -> list[Path]:
        return rolled(self.path)

    def _open_first(self) -> bool:
        """Open what was written first since we began: it may have been rolled already."""
        rolled = self._rolled()
        newer = [path for path in rolled if path.name not in self._older]
        older = [path for path in rolled if path.name in self._older]
        if newer and self._open(newer[0], older):
            return True
        return self._open_named()

    def _open_named(self) -> bool:
        opened = self._open(self.path, self._rolled())
        self.missing = not opened
        return opened

    def _open(self, path: Path, older: list[Path]) -> bool:
        """Open a file at its begin; whether it was there. The one that was open before is left to the caller."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._offset = 0
        self._older = frozenset(file.name for file in older)
        return True

    # -- being behind ----------------------------------------------------------------------------------

    def _unread(self) -> int:
        """Bytes that are written and were not read."""
        if self._fd is None:
            return 0
        here = os.fstat(self._fd)
        unread = max(here.st_size - self._offset, 0)
        named = _inode(self.path)
        if named is None or named == here.st_ino:
            return unread
        return unread + sum(_size(path) for path in self._after(here.st_ino))

    def _after(self, inode: int) -> Iterator[Path]:
        for path in self._rolled():
            if path.name not in self._older and _inode(path) != inode:
                yield path
        yield self.path

    def _skip(self) -> None:
        """Go to a quarter of what we may be behind, before the end of the newest file."""
        before = self._unread()
        left = self._fd
        assert left is not None
        if _inode(self.path) not in (None, _inode_of(left)) and self._open_named():
            os.close(left)
        self._rest = b""
        self._go_to_end(self._max_behind // 4)
        self.counts.skipped += max(before - self._unread(), 0)

    def _go_to_end(self, before: int) -> None:
        """Stand at the first begin of a line that is at most so many bytes before the end."""
        assert self._fd is not None
        self._offset = max(os.fstat(self._fd).st_size - before, 0)
        self._resync = self._offset > 0 and os.pread(self._fd, 1, self._offset - 1) != b"\n"


def rolled(path: Path) -> list[Path]:
    """The files that Caddy's roller has renamed, the oldest first: NAME-TIME-REASON.EXT."""
    begin, end = f"{path.stem}-", path.suffix
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(entry.name for entry in entries)
    except FileNotFoundError:
        return []
    return [path.with_name(name) for name in names if name.startswith(begin) and name.endswith(end)]


def before_end(path: Path, size: int) -> Position | None:
    """Where to begin to read about the last `size` bytes, in a rolled file where the newest has fewer; None: there is
    no file. The line that stands there may be half of one.

    Raises `AccessLogError` when the directory cannot be looked into.
    """
    try:
        place = None
        for file in (path, *reversed(rolled(path))):
            found = file.stat()
            place = Position(found.st_ino, max(0, found.st_size - size))
            size -= found.st_size
            if size <= 0:
                break
    except FileNotFoundError:
        return place  # the newest is not there, or the rolled one was removed just now
    except OSError as error:
        raise AccessLogError(
            f"the access log {path} cannot be looked at: {error.strerror}; its directory must let this process in"
        ) from error
    return place


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _inode_of(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
