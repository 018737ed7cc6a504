"""The slot directory: atomic, mended, never half a table."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.errors import SlotError
from proxy.model import NOBODY, Table, stream_alias
from proxy.slots import SlotDirectory

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


@pytest.fixture
def slots(tmp_path: Path) -> SlotDirectory:
    directory = SlotDirectory(tmp_path / "slots", "web", 4)
    assert directory.mend() == []
    return directory


def table(*dials: str) -> Table:
    return dials


def test_a_fresh_directory_holds_nobody(slots: SlotDirectory) -> None:
    assert slots.read() == (NOBODY,) * 4


def test_what_is_written_is_read_back_in_both_spellings(slots: SlotDirectory) -> None:
    slots.write(table(A, B, A, C))
    assert slots.read() == (A, B, A, C)
    assert (slots.current / "003").read_text() == C
    assert (slots.current / "s003").read_text() == stream_alias(C)


def test_all_is_readable_by_others_and_writable_only_by_us_whatever_the_umask(slots: SlotDirectory) -> None:
    mask = os.umask(0o077)
    try:
        slots.write(table(A, A, B, B))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(slots.path.stat().st_mode) == 0o755
    assert stat.S_IMODE(slots.current.stat().st_mode) == 0o755
    assert {stat.S_IMODE((slots.current / name).stat().st_mode) for name in ("000", "s000", "003")} == {0o644}


def test_a_file_with_many_links_is_left_for_a_new_one(slots: SlotDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.slots._MOST_LINKS", 10)
    for _ in range(5):
        slots.write((A,) * 4)
    assert slots.read() == (A,) * 4
    assert (slots.current / "000").stat().st_nlink <= 10


def test_a_name_that_is_too_long_for_a_file_is_no_hindrance(slots: SlotDirectory) -> None:
    long = ".".join(["a" * 60] * 4) + ":65535"
    slots.write((long,) * 4)
    assert slots.read() == (long,) * 4


def test_the_previous_generation_is_kept_and_older_ones_are_swept(slots: SlotDirectory) -> None:
    for dials in ((A,) * 4, (B,) * 4, (C,) * 4):
        slots.write(dials)
        slots.sweep(older_than=0)
    assert len([entry for entry in os.listdir(slots.path) if entry.startswith("g")]) == 2
    assert slots.restore_previous((B,) * 4)
    assert slots.read() == (B,) * 4
    assert slots.restore_previous((C,) * 4), "and forth again"


def test_only_the_very_table_asked_for_is_restored(slots: SlotDirectory) -> None:
    slots.write((A,) * 4)
    slots.write((B,) * 4)
    assert not slots.restore_previous((C,) * 4)
    assert slots.read() == (B,) * 4


def in_parallel(slots: SlotDirectory, look: Callable[[], object], *, sweep: bool) -> list[object]:
    """What `look` sees, again and again, while 300 tables are written, each of one address only."""
    seen: list[object] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(look())

    slots.write((A,) * 4)
    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(300):
        slots.write(((A, B, C)[number % 3],) * 4)
        if sweep:
            slots.sweep()
    done.set()
    watcher.join()
    assert len(seen) > 100
    return seen


def test_a_reader_that_follows_the_link_once_sees_one_whole_table(slots: SlotDirectory) -> None:
    def look() -> int:
        directory = os.open(slots.current, os.O_RDONLY)
        files = [os.open(f"{index:03d}", os.O_RDONLY, dir_fd=directory) for index in range(4)]
        addresses = {os.read(file, 100) for file in files}
        for file in (*files, directory):
            os.close(file)
        return len(addresses)

    assert set(in_parallel(slots, look, sweep=False)) == {1}


def test_a_reader_of_one_slot_always_finds_it(slots: SlotDirectory) -> None:
    assert set(in_parallel(slots, (slots.current / "000").read_text, sweep=True)) == {A, B, C}


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: (p / "current" / "001").unlink(),
        lambda p: (p / "current" / "s001").unlink(),
        lambda p: (p / "current" / "001").write_text("{env.SECRET}:80"),
        lambda p: (p / "current" / "001").write_text(""),
        lambda p: (p / "current" / "extra").write_text(A),
        lambda p: (p / "current").unlink(),
        lambda p: ((p / "current").unlink(), (p / "current").symlink_to("../../etc")),
        lambda p: ((p / "current").unlink(), (p / "current").mkdir()),
    ],
)
def test_a_damaged_table_is_replaced_by_the_previous_one(slots: SlotDirectory, damage) -> None:  # type: ignore[no-untyped-def]
    slots.write(table(A, A, B, B))
    slots.write((C,) * 4)
    damage(slots.path)
    assert slots.read() is None
    assert slots.mend()
    assert slots.read() == (A, A, B, B)


def test_other_slots_than_before_keep_the_addresses(slots: SlotDirectory) -> None:
    slots.write(table(A, B, A, B))
    slots.write(table(A, B, A, B))
    wider = SlotDirectory(slots.root, "web", 8)
    assert wider.mend()
    assert sorted(wider.read() or ()) == [A] * 4 + [B] * 4


def test_half_written_and_foreign_files_are_removed_and_named(slots: SlotDirectory) -> None:
    slots.write((A,) * 4)
    (slots.path / "g00000099").mkdir()
    (slots.path / "g00000099" / "000").write_text(B)
    (slots.path / "notes.txt").write_text("hello")
    (slots.path / ".current.new").symlink_to("g00000099")
    notes = " ".join(slots.mend())
    assert "g00000099" in notes
    assert "notes.txt" in notes
    assert slots.read() == (A,) * 4
    assert set(os.listdir(slots.path)) - {"addresses", "spare"} == {"current", "previous", *links(slots)}


def links(slots: SlotDirectory) -> set[str]:
    return {str((slots.path / name).readlink()) for name in ("current", "previous")}


def test_mending_twice_finds_nothing_the_second_time(slots: SlotDirectory) -> None:
    slots.write((A,) * 4)
    slots.mend()
    assert slots.mend() == []


_FULL = """
import resource, sys
from pathlib import Path
from proxy.errors import SlotError
from proxy.slots import SlotDirectory
slots = SlotDirectory(Path(sys.argv[1]), "web", 4)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    slots.write(("10.0.0.9:80",) * 4)
except SlotError as error:
    print(error)
print(slots.read()[0], slots.restore_previous(("10.0.0.1:80",) * 4), slots.read()[0])
"""


def test_with_no_room_for_a_byte_the_way_back_is_still_open(slots: SlotDirectory) -> None:
    """A process that may write no file content stands in for a full disk."""
    slots.write((A,) * 4)
    slots.write((B,) * 4)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(slots.root)], capture_output=True, text=True, check=True, timeout=30
    )
    message, outcome = done.stdout.strip().splitlines()
    assert "cannot be written" in message
    assert "disk full" in message
    assert outcome == f"{B} True {A}"
    assert slots.mend() == [], "nothing half-written was left"
    assert slots.read() == (A,) * 4


def test_a_shift_among_known_addresses_makes_no_directory_and_writes_no_file(slots: SlotDirectory) -> None:
    slots.write((A, B, A, B))
    slots.write((B, C, B, C))
    slots.sweep(older_than=0)
    spare = (slots.path / "spare").stat().st_ino
    files = set(os.listdir(slots.path / "addresses"))
    slots.write((A, A, A, C))
    assert slots.current.stat().st_ino == spare
    assert set(os.listdir(slots.path / "addresses")) == files
    assert slots.read() == (A, A, A, C)
    assert not (slots.path / "spare").exists()
    slots.sweep()
    assert (slots.path / "spare").is_dir()


def test_what_a_crash_left_in_the_spare_is_no_hindrance(slots: SlotDirectory) -> None:
    slots.write((A,) * 4)
    slots.sweep()
    os.link(slots.current / "000", slots.path / "spare" / ".next")
    slots.write((B,) * 4)
    assert slots.read() == (B,) * 4
    slots.sweep()
    os.link(slots.current / "000", slots.path / "spare" / ".next")
    assert "spare" in " ".join(slots.mend())
    assert slots.mend() == []


def test_a_damaged_address_is_forgotten_at_the_start(slots: SlotDirectory) -> None:
    slots.write((A,) * 4)
    slots.write((B,) * 4)
    for name in (A, B, NOBODY):
        path = slots.path / "addresses" / name
        path.unlink()
        path.write_text("" if name == A else name)
    slots.mend()
    slots.write((A, B, A, B))
    assert slots.read() == (A, B, A, B)


def test_a_place_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "slots").write_text("a file")
    with pytest.raises(SlotError, match=str(tmp_path / "slots")):
        SlotDirectory(tmp_path / "slots", "web", 4).mend()
