"""The files: always a whole one, and what cannot be written or read is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trafficd.errors import StateError
from trafficd.report.course import Course
from trafficd.report.shelf import Shelf

BEGAN = 1_700_000_000.0


async def kept(shelf: Shelf, rollout: str = "r1") -> Course:
    course = Course(rollout, "web", BEGAN)
    course.enter(0, 5.0, BEGAN)
    await shelf.keep(course)
    return course


async def test_a_record_is_read_as_it_was_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "reports")
    assert await shelf.record("r1") is None
    course = await kept(shelf)
    assert await Shelf(tmp_path / "reports").record("r1") == course.record
    assert os.listdir(tmp_path / "reports") == ["r1.json"]
    assert (tmp_path / "reports").stat().st_mode & 0o077 == 0


async def test_one_that_goes_on_is_newer_than_its_file(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    course = shelf.open["r1"] = await kept(shelf)
    course.enter(1, 25.0, BEGAN + 5)
    found = await shelf.record("r1")
    assert found is not None
    assert len(found.stages) == 2
    del shelf.open["r1"]
    found = await shelf.record("r1")
    assert found is not None
    assert len(found.stages) == 1


async def test_what_cannot_be_written_is_said_and_tried_again(tmp_path: Path) -> None:
    place = tmp_path / "reports"
    place.write_text("no directory")
    shelf, course = Shelf(place), Course("r1", "web", BEGAN)
    with pytest.raises(StateError, match="cannot be written to"):
        await shelf.keep(course)
    place.unlink()
    await shelf.keep(course)
    assert not course.changed
    assert await Shelf(place).record("r1") == course.record


async def test_a_write_that_breaks_off_leaves_the_file_before(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    course = await kept(shelf)
    before = course.record
    (tmp_path / "r1.new").mkdir()  # so that the next write cannot even begin
    course.enter(1, 25.0, BEGAN + 5)
    with pytest.raises(StateError):
        await shelf.keep(course)
    assert await shelf.record("r1") == before


@pytest.mark.parametrize("body", [b"", b"{}", b'{"rollout": "r1"', b"\xff\xfe"])
async def test_a_damaged_file_is_named(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "r1.json").write_bytes(body)
    with pytest.raises(StateError, match=r"r1\.json cannot be read"):
        await Shelf(tmp_path).record("r1")


async def test_old_ones_go_but_those_that_still_matter(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for name in ("old", "newest", "open", "young"):
        course = await kept(shelf, name)
        if name == "open":
            shelf.open[name] = course
        if name != "young":
            os.utime(tmp_path / f"{name}.json", (BEGAN, BEGAN))
    (tmp_path / "torn.new").touch()
    os.utime(tmp_path / "torn.new", (BEGAN, BEGAN))
    assert await shelf.forget(BEGAN + 1, ["newest"]) == 2
    assert sorted(os.listdir(tmp_path)) == ["newest.json", "open.json", "young.json"]
    assert await Shelf(tmp_path / "none").forget(BEGAN + 1, []) == 0
