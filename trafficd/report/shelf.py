"""The records of judged rollouts, a file each: `state_dir/reports/ROLLOUT.json`.

A file is written beside its place and then renamed, so there is always a whole one, and in a thread, so that a slow or
full disk keeps nobody waiting. What cannot be written is tried again, and said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from trafficd.errors import StateError
from trafficd.report.course import Course, Record, decode, encode

log = logging.getLogger("trafficd.report")

_TEMPORARY = ".new"


@dataclass
class Shelf:
    """`open` are the courses that go on: their records are newer than their files."""

    directory: Path
    open: dict[str, Course] = field(default_factory=dict)  # by rollout

    def _path(self, rollout: str) -> Path:
        return self.directory / f"{rollout}.json"

    async def record(self, rollout: str) -> Record | None:
        """What is kept of a rollout, as it stands. Raises `StateError`."""
        course = self.open.get(rollout)
        if course is not None:
            return course.record
        return await asyncio.to_thread(self._read, rollout)

    def _read(self, rollout: str) -> Record | None:
        path = self._path(rollout)
        try:
            return decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is none that this trafficd wrote"
            raise StateError(f"the report {path} cannot be read: {why}; it may be removed") from error

    async def keep(self, course: Course) -> None:
        """Write how a course stands, where that has changed. Raises `StateError`: it is not kept then."""
        if not course.changed:
            return
        course.changed = False
        try:
            await asyncio.to_thread(self._write, course.rollout, encode(course.record))
        except OSError as error:
            course.changed = True
            raise StateError(
                f"the report of {course.rollout} cannot be written to {self.directory}: {error.strerror}; a restart "
                "would lose what it tells since. Is the disk full?"
            ) from error
        except BaseException:
            course.changed = True
            raise

    def _write(self, rollout: str, body: bytes) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self._path(rollout)
        beside = place.with_suffix(_TEMPORARY)
        try:
            with beside.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(place)
        except OSError:
            with contextlib.suppress(OSError):  # on a full disk half a file is in everybody's way
                beside.unlink(missing_ok=True)
            raise

    async def forget(self, before: float, keep: Collection[str]) -> int:
        """Remove what was last written before (s since the epoch), but of the rollouts in `keep`; how many went."""
        return await asyncio.to_thread(self._forget, before, {*keep, *self.open})

    def _forget(self, before: float, keep: Collection[str]) -> int:
        count = 0
        try:
            for path in list(self.directory.iterdir()):
                if path.stem not in keep and path.suffix in (".json", _TEMPORARY) and path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)
                    count += 1
        except FileNotFoundError:
            return count  # nothing was ever judged, or it went in this moment
        except OSError as error:
            log.error("old reports in %s cannot be removed: %s", self.directory, error.strerror)
        return count
