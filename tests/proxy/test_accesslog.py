"""Following a file: each line exactly once and in order, whatever happens to the file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accesslog import Counts, Follower, Position
from proxy.errors import AccessLogError
from tests.proxy.logfile import Writer, line


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    opened = Writer(tmp_path / "access.log")
    yield opened
    opened.close()


@pytest.fixture
def follower(writer: Writer) -> Iterator[Follower]:
    opened = Follower(writer.path)
    yield opened
    opened.close()


def numbers(follower: Follower, limit: int = 1 << 20) -> list[int]:
    """The numbers of the lines that one call gives."""
    return [int(answer.path[1:]) for answer in follower.read(limit)]


def is_missing(follower: Follower) -> bool:
    """Whether no file has the name; mypy would take what was true once for true later."""
    return follower.missing


def drained(follower: Follower, limit: int = 1 << 20) -> list[int]:
    found = numbers(follower, limit)
    while follower.behind:
        found += numbers(follower, limit)
    return found


# -- each line once ------------------------------------------------------------------------------------

PIECE = st.integers(1, 900)  # bytes of a write, or of a read
STEP = st.one_of(
    st.tuples(st.just("write"), PIECE),
    st.tuples(st.just("read"), PIECE),
    st.tuples(st.just("roll"), st.just(0)),
    st.tuples(st.just("restart"), st.just(0)),
)


@given(steps=st.lists(STEP, max_size=60), garbage=st.sets(st.integers(0, 40)))
def test_any_cutting_and_any_rolling_gives_each_line_once_and_in_order(
    steps: list[tuple[str, int]], garbage: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        writer = Writer(Path(directory) / "access.log")
        follower = Follower(writer.path)
        written, seen, pending = 0, [], b""
        for what, size in steps:
            if what == "write":
                while len(pending) < size:
                    pending += b"{garbage\n" if written in garbage else line(written)
                    written += 1
                writer.write(pending[:size])
                pending = pending[size:]
            elif what == "read":
                seen += numbers(follower, size)
            elif what == "roll":
                if b"\n" in pending:  # Caddy rolls between two writes, and a write is a whole line
                    rest, _, pending = pending.partition(b"\n")
                    writer.write(rest + b"\n")
                writer.roll()
            else:
                position = follower.position
                follower.close()
                follower = Follower(writer.path, position)
        writer.write(pending)
        seen += drained(follower, 500)
        assert seen == [number for number in range(written) if number not in garbage]
        assert follower.counts.skipped == follower.counts.gaps == 0
        assert follower.behind == 0
        follower.close()
        writer.close()


def test_a_line_is_told_when_its_end_is_written(writer: Writer, follower: Follower) -> None:
    whole = line(7)
    writer.write(whole[:-1])
    assert follower.read() == []
    writer.write(b"\n")
    assert numbers(follower) == [7]


def test_what_was_there_before_is_not_read(tmp_path: Path, writer: Writer) -> None:
    writer.write(line(0) + line(1)[:20])
    follower = Follower(writer.path)
    writer.write(line(1)[20:] + line(2))
    assert numbers(follower) == [2]
    assert follower.counts.bad == 0
    follower.close()


def test_a_position_is_gone_on_from_though_the_file_was_rolled_twice(writer: Writer, follower: Follower) -> None:
    writer.write(line(0) + line(1)[:-5])
    assert numbers(follower) == [0]
    position = follower.position
    writer.write(line(1)[-5:])
    writer.roll()
    writer.write(line(2))
    writer.roll()
    writer.write(line(3))
    again = Follower(writer.path, position)
    assert drained(again) == [1, 2, 3]
    again.close()


def test_a_position_in_a_file_that_is_gone_is_a_gap(writer: Writer) -> None:
    writer.write(line(0))
    writer.roll()
    writer.write(line(1))
    follower = Follower(writer.path, Position(1, 0))
    assert numbers(follower) == [0, 1]
    assert follower.counts.gaps == 1
    follower.close()


def test_a_file_that_comes_later_is_read_from_its_begin(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "later" / "access.log")
    assert follower.read() == []
    assert is_missing(follower)
    assert follower.position is None
    (tmp_path / "later").mkdir()
    writer = Writer(tmp_path / "later" / "access.log")
    writer.write(line(0))
    writer.roll()
    writer.write(line(1))
    assert numbers(follower) == [0, 1]
    assert not is_missing(follower)
    writer.close()
    follower.close()


# -- what is done to the file --------------------------------------------------------------------------


def test_several_files_that_were_rolled_unseen_are_read_in_order(writer: Writer, follower: Follower) -> None:
    for number in range(5):
        writer.write(line(2 * number) + line(2 * number + 1))
        writer.roll()
    assert drained(follower, 100) == list(range(10))
    assert follower.read() == []  # the newest, which is empty yet
    assert follower.counts == Counts(lines=10, rolled=5)


class Late(Follower):
    """One in whose way something happens between the end of what it read and its look for another file."""

    happens: Callable[[], object] | None = None

    def _advance(self) -> bool:
        if self.happens is not None:
            happens, self.happens = self.happens, None
            happens()
        return super()._advance()


def test_what_is_written_after_we_came_to_the_end_and_before_it_was_rolled_is_read(writer: Writer) -> None:
    follower = Late(writer.path)
    writer.write(line(0))

    def write_and_roll() -> None:
        writer.write(line(1))
        writer.roll()
        writer.write(line(2))

    follower.happens = write_and_roll
    assert numbers(follower) == [0, 1, 2]
    follower.close()


def test_a_line_that_was_never_ended_does_not_spoil_the_next_file(writer: Writer, follower: Follower) -> None:
    writer.write(line(0) + line(1)[:30])
    writer.roll()
    writer.write(line(2))
    assert drained(follower) == [0, 2]
    assert follower.counts.bad == 1


def test_a_rolled_file_that_was_deleted_unseen_is_a_gap_and_the_next_is_read(writer: Writer) -> None:
    old = writer.roll()
    follower = Follower(writer.path)
    writer.write(line(0))
    held = writer.roll()
    writer.write(line(1))
    lost = writer.roll()
    writer.write(line(2))
    for path in (old, held, lost):
        path.unlink()
    assert drained(follower) == [0, 2]
    assert follower.counts.gaps == 1
    follower.close()


def test_a_removed_file_is_read_on_until_another_has_its_name(writer: Writer, follower: Follower) -> None:
    writer.path.unlink()
    writer.write(line(0))
    assert numbers(follower) == [0]
    assert is_missing(follower)
    writer.write(line(1))
    writer.reopen()
    writer.write(line(2))
    assert drained(follower) == [1, 2]
    assert not is_missing(follower)


@pytest.mark.parametrize("appends", [True, False])
def test_a_file_that_is_cut_to_nothing_is_read_from_its_begin(tmp_path: Path, appends: bool) -> None:
    """Caddy goes on where it was, behind a hole, in a file that it made itself; in one that was there it appends."""
    path = tmp_path / "access.log"
    with path.open("ab" if appends else "wb", buffering=0) as file:
        file.write(b"")
        follower = Follower(path)
        file.write(line(0) * 100_000)
        assert len(drained(follower)) == 100_000
        os.truncate(path, 0)
        assert follower.read() == []
        assert follower.counts.truncated == 1
        file.write(line(1))
        assert drained(follower) == [1], "and the hole is jumped over"
        assert follower.counts.bad == 0
        follower.close()


def test_a_line_that_the_cut_took_half_of_is_counted(writer: Writer, follower: Follower) -> None:
    writer.write(line(0) + line(1)[:30])
    assert numbers(follower) == [0]
    os.truncate(writer.path, 0)
    writer.write(line(2)[:20])
    follower.read()
    writer.write(line(2)[20:])
    assert numbers(follower) == [2]
    assert follower.counts.bad == 1


# -- bounds --------------------------------------------------------------------------------------------


def test_a_call_reads_no_more_than_its_limit_and_tells_how_far_it_is_behind(writer: Writer, follower: Follower) -> None:
    size = len(line(0))
    writer.write(line(0) * 10)
    assert len(follower.read(3 * size + 10)) == 3
    assert follower.behind == 10 * size - (3 * size + 10)
    writer.roll()
    writer.write(line(0) * 5)
    follower.read(1)
    assert follower.behind == 15 * size - (3 * size + 11), "what was rolled is still to be read"
    assert follower.last_at == pytest.approx(1795613655.99)


@pytest.mark.parametrize("rolls", [0, 2])
def test_too_far_behind_it_goes_near_the_end_and_counts_what_it_left(writer: Writer, rolls: int) -> None:
    size = len(line(5000))
    follower = Follower(writer.path, max_behind=100 * size)
    for _ in range(rolls):
        writer.write(line(1000) * 200)
        writer.roll()
    writer.write(b"".join(line(5000 + number) for number in range(300)))
    seen = drained(follower)
    assert seen == list(range(5300 - len(seen), 5300)), "in order, and up to the last"
    assert 20 <= len(seen) <= 25
    written = rolls * 200 * len(line(1000)) + 300 * size
    assert follower.counts.skipped == written - len(seen) * size
    assert follower.counts.bad == 0
    follower.close()


def test_a_line_without_an_end_takes_no_memory(writer: Writer, follower: Follower) -> None:
    for _ in range(40):
        writer.write(b"x" * 10_000)
        follower.read()
    assert len(follower._rest) <= 1 << 16
    writer.write(b"\n" + line(1))
    assert numbers(follower) == [1]
    assert follower.counts.bad == 1


def test_a_file_that_cannot_be_read_is_named_with_what_it_means(tmp_path: Path) -> None:
    (tmp_path / "access.log").mkdir()
    follower = Follower(tmp_path / "access.log")
    with pytest.raises(AccessLogError, match=r"access\.log cannot be read: Is a directory; nothing is known"):
        follower.read()
    follower.close()
