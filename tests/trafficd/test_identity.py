"""The id of a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from trafficd.errors import StateError
from trafficd.store.identity import daemon_id


def test_it_is_made_once(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = daemon_id(tmp_path)
    assert daemon_id(tmp_path) == first
    assert len(first) == 16
    assert daemon_id(tmp_path / "other") != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["id", "other"], "nothing is left beside it"


@pytest.mark.parametrize("content", [b"", b"web-1\n", b"\xff\xfe", None])
def test_what_cannot_be_one_is_not_made_anew(tmp_path: Path, content: bytes | None) -> None:
    """A new id would make strangers of the containers that are there."""
    if content is None:
        (tmp_path / "id").mkdir()
    else:
        (tmp_path / "id").write_bytes(content)
    with pytest.raises(StateError, match=r"/id: .*trafficd\.daemon"):
        daemon_id(tmp_path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot be written to .*/nowhere/id: No such file"):
        daemon_id(tmp_path / "nowhere")
