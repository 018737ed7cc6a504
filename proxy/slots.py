"""The slot directory of one service: small files that Caddy reads at every request.

    <root>/<service>/current          symbolic link to the generation in force
    <root>/<service>/previous         symbolic link to the one before it
    <root>/<service>/g00000012/000    one file a slot, holding one address
    <root>/<service>/g00000012/s000   the same address in another spelling, for upgraded streams
    <root>/<service>/spare            a directory made ready for the next generation
    <root>/<service>/addresses/...    one file an address and spelling; slots are hard links to them
    <root>/<service>/pins/<name>/...  the same for each pin (`proxy.pins`), but that its slots are links to the
                                      service's own files of addresses

A shift makes the next generation beside the current one and replaces `current` by one rename, so readers see the old
table or the new one and nothing between. It is made of the spare, which has all its entries already: only those that
differ are replaced, by hard links to files that are there. So a shift among known addresses needs no disk space, and an
abort moves traffic on a full disk. The previous generation stays whole as well.

Nothing is fsynced: the journal is the durable truth, and `mend` repairs what a crash of the machine left.
Caddy may run as another user, so all is world-readable; only our user can write.

Every method blocks on the disk; call them off the event loop. One writer per service: the daemon's state lock
sees to that.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from proxy.errors import SlotError
from proxy.model import NOBODY, Table, parse_dial, parse_name, slot_name, stream_alias, stream_slot_name
from proxy.pins import DIRECTORY as PINS

CURRENT = "current"
PREVIOUS = "previous"
_GENERATION = "g"
_MOST_LINKS = 60_000  # to one file, just under what ext4 allows; other file systems allow more
KEPT = 2.0  # s that a generation stays at least: a reader may be on its way to it, and the machine be busy
_ADDRESSES = "addresses"
_SPARE = "spare"
_NEXT = ".next"  # an entry on its way to its name


@dataclass(frozen=True)
class SlotDirectory:
    """The slots of one service, or of one of its pins: `slots` of them under `root`/`name`. `known` is where the files
    of addresses are; None: in the directory itself."""

    root: Path
    name: str
    slots: int
    known: Path | None = None

    @property
    def path(self) -> Path:
        return self.root / self.name

    def pin(self, name: str, slots: int) -> SlotDirectory:
        """The slots of a pin of this service. What the service's slots know, needs no disk space there either."""
        return SlotDirectory(self.path / PINS, name, slots, self._addresses)

    def pins(self) -> list[str]:
        """The pins that have a directory, configured or not."""
        try:
            entries = sorted(
                entry.name for entry in os.scandir(self.path / PINS) if entry.is_dir(follow_symlinks=False)
            )
        except OSError:
            return []
        return [name for name in entries if _is_name(name)]

    def keep_pins(self, names: Collection[str]) -> None:
        """Remove the directories of all other pins. What cannot be done now is done another time."""
        directory = self.path / PINS
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(directory)):
                if entry.name not in names:
                    _remove(Path(entry.path))
            if not names:
                directory.rmdir()

    @property
    def _addresses(self) -> Path:
        return self.known or self.path / _ADDRESSES

    @property
    def current(self) -> Path:
        """What Caddy's dial placeholders point into."""
        return self.path / CURRENT

    # -- reading ---------------------------------------------------------------------------------------

    def read(self) -> Table | None:
        """The table in force; None where there is none or it is not whole."""
        return self._read_generation(self.current)

    def _read_generation(self, directory: Path) -> Table | None:
        try:
            names = {entry.name for entry in os.scandir(directory)}
            if names != set(self._file_names()):
                return None
            table = tuple(_read_address(f"{directory}/{slot_name(index)}") for index in range(self.slots))
            streams = (_read_text(f"{directory}/{stream_slot_name(index)}") for index in range(self.slots))
            whole = all(text == stream_alias(dial) for text, dial in zip(streams, table, strict=True))
        except (OSError, ValueError):
            return None
        return table if whole else None

    def _file_names(self) -> Iterator[str]:
        for index in range(self.slots):
            yield slot_name(index)
            yield stream_slot_name(index)

    # -- writing ---------------------------------------------------------------------------------------

    def write(self, table: Table) -> None:
        """Put a table in force, atomically; the one before is kept.

        Older generations stay until `sweep`. Raises `SlotError`; then the table that was in force still is.
        """
        if len(table) != self.slots:
            raise ValueError(f"a table of {len(table)} entries for {self.slots} slots")
        before = _target(self.current)
        fresh = f"{_GENERATION}{self._next_number():08d}"
        try:
            self._make(fresh, table)
            if before is not None:
                with contextlib.suppress(OSError):
                    os.utime(self.path / before)  # from now on it may be forgotten, after a while
                self._point(PREVIOUS, before)
            self._point(CURRENT, fresh)
        except OSError as error:
            raise SlotError(_cannot("written", self.path, error)) from error

    def _make(self, name: str, table: Table) -> None:
        """Make a generation: of the spare, else anew, else of one that is long forgotten."""
        spare = self.path / _SPARE
        if spare.is_dir():
            self._fill(spare, table)
        else:
            self._make_anew(table)
        spare.rename(self.path / name)

    def _make_anew(self, table: Table) -> None:
        spare = self.path / _SPARE
        try:
            self._make_spare(table)
        except OSError:
            shutil.rmtree(spare, ignore_errors=True)
            oldest = min(self._forgotten(), default=None)
            if oldest is None:
                raise
            (self.path / oldest).rename(spare)
            self._fill(spare, table)

    def _make_spare(self, table: Table) -> None:
        _make_directory(self.path / _SPARE)
        self._fill(self.path / _SPARE, table)

    def sweep(self, older_than: float = KEPT) -> None:
        """Make the next spare, and remove what is neither current nor previous and has not been in force for
        `older_than` seconds. What cannot be done now is done another time.
        """
        limit = time.time() - older_than
        with contextlib.suppress(OSError):
            for name in sorted(self._forgotten()):
                if (self.path / name).stat().st_mtime >= limit:
                    continue
                if (self.path / _SPARE).exists():
                    shutil.rmtree(self.path / name, ignore_errors=True)
                else:
                    (self.path / name).rename(self.path / _SPARE)
        table = self.read()
        if table is not None:
            with contextlib.suppress(OSError):
                self._make_spare(table)

    def _forgotten(self) -> list[str]:
        """The generations that are neither current nor previous."""
        keep = {_target(self.current), _target(self.path / PREVIOUS)}
        return [e.name for e in os.scandir(self.path) if e.name.startswith(_GENERATION) and e.name not in keep]

    def restore_previous(self, table: Table) -> bool:
        """Put the previous generation back in force if it is this very table: a rename, no space needed."""
        before = _target(self.path / PREVIOUS)
        if before is None or self._read_generation(self.path / before) != table:
            return False
        now = _target(self.current)
        try:
            self._point(CURRENT, before)
            if now is not None:
                self._point(PREVIOUS, now)
        except OSError as error:
            raise SlotError(_cannot("written", self.path, error)) from error
        return True

    def mend(self) -> list[str]:
        """Make the directory usable: make what is missing, remove what is half-written or foreign.

        Returns what was found wrong, in words. Where no whole table is in force, the previous one is put in
        force; where that is not whole either, NOBODY: requests wait until the next shift. Raises `SlotError`.
        """
        try:
            return list(self._mend())
        except OSError as error:
            raise SlotError(_cannot("prepared", self.path, error)) from error

    def _mend(self) -> Iterator[str]:
        _make_directory(self.root)
        _make_directory(self.path)
        self._mend_addresses()
        for name in (CURRENT, PREVIOUS):
            link = self.path / name
            if not link.is_symlink() and link.exists():
                yield f"{link} was no symbolic link; removed"
                _remove(link)
        if self.read() is None:
            yield from self._replace_broken()
        yield from self._remove_foreign()

    def _mend_addresses(self) -> None:
        """Forget those that were damaged with the machine: the next shift writes them anew."""
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(self._addresses)):
                path = Path(entry.path)
                try:
                    whole = _address_file(path.read_text(encoding="ascii")) == entry.name
                except (OSError, ValueError):
                    whole = False
                if not whole:
                    _remove(path)

    def _replace_broken(self) -> Iterator[str]:
        found = _target(self.current)
        before = _target(self.path / PREVIOUS)
        if found is not None:
            yield f"the slot table {self.current} was not whole (other slots, or damaged)"
        if before is not None and self._read_generation(self.path / before) is not None:
            self._point(CURRENT, before)
            yield "the previous slot table is in force again"
            return
        salvaged = self._salvage(self.current)
        self.write(salvaged or (NOBODY,) * self.slots)
        if salvaged:
            yield "the addresses in it were kept"

    def _salvage(self, directory: Path) -> Table | None:
        """A table of the right size from whatever a damaged or resized one still says."""
        try:
            names = sorted(e.name for e in os.scandir(directory) if e.name.isascii() and e.name.isdigit())
        except OSError:
            return None
        found = []
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                found.append(_read_address(f"{directory}/{name}"))
        if not found:
            return None
        return tuple(found[index * len(found) // self.slots] for index in range(self.slots))

    def _remove_foreign(self) -> Iterator[str]:
        keep = {CURRENT, PREVIOUS, _ADDRESSES, _target(self.current), _target(self.path / PREVIOUS)}
        if self._is_spare():
            keep.add(_SPARE)
        if (self.path / PINS).is_dir():
            keep.add(PINS)
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            if entry.name in keep:
                continue
            # A whole generation is only an older one that nobody had swept yet.
            if not entry.name.startswith(_GENERATION) or self._read_generation(Path(entry.path)) is None:
                yield f"{entry.path} does not belong there; removed"
            _remove(Path(entry.path))

    def _is_spare(self) -> bool:
        try:
            return {entry.name for entry in os.scandir(self.path / _SPARE)} == set(self._file_names())
        except OSError:
            return False

    def _fill(self, directory: Path, table: Table) -> None:
        """Make a directory's entries those of a table; what is right already is not touched."""
        target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            there = {entry.name: entry.inode() for entry in os.scandir(target)}
            if _NEXT in there:
                os.unlink(_NEXT, dir_fd=target)
            sources = {dial: (self._source(dial), self._source(stream_alias(dial))) for dial in dict.fromkeys(table)}
            for index, dial in enumerate(table):
                for name, source in zip((slot_name(index), stream_slot_name(index)), sources[dial], strict=True):
                    if name not in there:
                        os.link(source.path, name, dst_dir_fd=target)
                    elif there[name] != source.inode:
                        os.link(source.path, _NEXT, dst_dir_fd=target)
                        os.rename(_NEXT, name, src_dir_fd=target, dst_dir_fd=target)
        finally:
            os.close(target)

    def _source(self, text: str) -> _Source:
        """The file that holds an address, to link slots to; a new one where none is or it has many links."""
        path = self._addresses / _address_file(text)
        try:
            known = path.stat()
            if known.st_nlink + self.slots <= _MOST_LINKS:
                return _Source(str(path), known.st_ino)
            path.unlink()
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(path, flags, 0o644)
        except FileNotFoundError:  # the very first one
            _make_directory(path.parent)
            fd = os.open(path, flags, 0o644)
        try:
            if os.write(fd, text.encode("ascii")) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            made = os.fstat(fd)
            if made.st_mode & 0o777 != 0o644:  # whatever the umask says
                os.fchmod(fd, 0o644)
            return _Source(str(path), made.st_ino)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)

    def _next_number(self) -> int:
        try:
            names = [entry.name[1:] for entry in os.scandir(self.path) if entry.name.startswith(_GENERATION)]
        except FileNotFoundError:
            return 1
        except OSError as error:
            raise SlotError(_cannot("read", self.path, error)) from error
        return 1 + max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)

    def _point(self, link: str, generation: str) -> None:
        """Make a link point to a generation, in one rename."""
        scratch = self.path / f".{link}.new"
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(generation)
        scratch.rename(self.path / link)

    def remove(self) -> None:
        """Remove everything, for a service or pin that is no more."""
        shutil.rmtree(self.path, ignore_errors=True)


class _Source(NamedTuple):
    """A file that slots are linked to."""

    path: str
    inode: int


def _address_file(text: str) -> str:
    """The name of the file of an address; long host names have no room in one."""
    return text if len(text) < 200 else hashlib.sha256(text.encode()).hexdigest()


def _make_directory(path: Path) -> None:
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o777 != 0o755:  # whatever the umask says: Caddy may be another user
        path.chmod(0o755)


def _is_name(text: str) -> bool:
    try:
        return parse_name(text) == text
    except ValueError:
        return False


def _read_text(path: str) -> str:
    # Not Path.open: at the start many thousands of these small files are read, and it costs five times as much.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 300).decode("ascii")
    finally:
        os.close(fd)


def _read_address(path: str) -> str:
    """The address in a slot; `ValueError` when it is none, or not written by us."""
    text = _read_text(path)
    if text != NOBODY and parse_dial(text) != text:
        raise ValueError(f"{path} holds {text!r}")
    return text


def _target(link: Path) -> str | None:
    """The generation a link points to, if it is a name beside it."""
    try:
        target = str(link.readlink())
    except OSError:
        return None
    return target if target.startswith(_GENERATION) and "/" not in target else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _cannot(verb: str, path: Path, error: OSError) -> str:
    return f"the slots in {path} cannot be {verb}: {error.strerror or error}. Is the disk full, or not ours?"
