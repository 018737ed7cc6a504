"""What a source outside says of one window: four numbers, or why they are none. Pure.

Nobody's slip becomes evidence: what is negative, not a number, not there or too much to be true is no answer at all.
Absent is not zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from trafficd.config.metrics import WORDS
from trafficd.core.analysis import Counts

MOST = 10_000_000  # of one window and arm; beyond it the judge's sums take too long
_QUOTED = 120  # characters of a strange answer that are shown
_WORD = re.compile(rf"\$({'|'.join(sorted(WORDS, key=len, reverse=True))})\b")
_ALMOST = 1e-9  # sums of tenths are not quite whole


class NoReadingError(Exception):
    """A source gave no counts; says what happened and what to do."""


class Question(NamedTuple):
    """What is asked: the counts from `since` until `until` (seconds since the epoch, the end left out)."""

    service: str
    metric: str
    since: float
    until: float
    canary: tuple[str, ...]  # addresses
    stable: tuple[str, ...]
    canary_version: str  # several are joined by commas; "" where nobody named one
    stable_version: str

    @property
    def environment(self) -> dict[str, str]:
        """For a program."""
        return {f"TRAFFICD_{name.upper()}": _text(value) for name, value in self._asdict().items()}

    @property
    def body(self) -> bytes:
        """For a webhook."""
        return orjson.dumps(self._asdict())

    def filled_in(self, query: str) -> str:
        """A query with what its dollar words stand for. Addresses and several versions are alternatives of a regular
        expression, escaped for a place in double quotes."""
        values = {
            "window": duration(self.until - self.since),
            "service": self.service,
            "metric": self.metric,
            "canary": _alternatives(self.canary),
            "stable": _alternatives(self.stable),
            "canary_version": self.canary_version.replace(",", "|"),
            "stable_version": self.stable_version.replace(",", "|"),
        }
        return _WORD.sub(lambda match: values[match[1]], query)


class Reading(NamedTuple):
    """As the source said it; Prometheus estimates, so they need not be whole."""

    canary_good: float
    canary_bad: float
    stable_good: float
    stable_bad: float


@dataclass
class Rounding:
    """From readings to whole counts: what is left over is kept for the next window, so that nothing is lost."""

    _left: Reading = field(default=Reading(0, 0, 0, 0), init=False)

    def whole(self, reading: Reading) -> tuple[Counts, Counts]:
        """The counts of the canary and of the stable version."""
        sums = [value + left for value, left in zip(reading, self._left, strict=True)]
        floors = [math.floor(value + _ALMOST) for value in sums]
        self._left = Reading(*(max(value - floor, 0.0) for value, floor in zip(sums, floors, strict=True)))
        good, bad, stable_good, stable_bad = floors
        return Counts(good + bad, bad), Counts(stable_good + stable_bad, stable_bad)


def answered(said: bytes) -> Reading:
    """What a program or a webhook answered. Raises `NoReadingError`."""
    wanted = 'answer with {"canary": {"good": 98, "bad": 2}, "stable": {"good": 990, "bad": 10}}'
    if not said.strip():
        raise NoReadingError(f"said nothing; {wanted}")
    try:
        document = orjson.loads(said)
    except orjson.JSONDecodeError as error:
        raise NoReadingError(f"said no JSON ({error}): {quoted(said)}; {wanted}") from None
    numbers = []
    for arm in ("canary", "stable"):
        for kind in ("good", "bad"):
            place = f"{arm}.{kind}"
            part = document.get(arm) if isinstance(document, dict) else None
            if not isinstance(part, dict) or kind not in part:
                raise NoReadingError(f"{place} is missing in {quoted(said)}; {wanted}")
            numbers.append(_count(place, part[kind]))
    return Reading(*numbers)


def sample(key: str, said: bytes) -> float:
    """The one number that Prometheus answered to the query `key` (its API's version 1). Raises `NoReadingError`."""
    try:
        document = orjson.loads(said)
        if document["status"] != "success":
            why = f"{document.get('errorType', '')}: {document.get('error', '')}"
            raise NoReadingError(f"{key}: Prometheus refused the query: {quoted(why.encode())}; try it in its own page")
        kind, result = document["data"]["resultType"], document["data"]["result"]
        if kind == "vector" and len(result) > 1:
            raise NoReadingError(f"{key}: the query gives {len(result)} series, not one number; put sum(...) around it")
        if kind == "vector" and not result:
            raise NoReadingError(
                f"{key}: the query gives nothing, which is not known to be zero; look at its labels, let interval be "
                'four times as long as Prometheus takes from scrape to scrape, or write "... or vector(0)" where '
                "nothing means zero"
            )
        if kind not in ("vector", "scalar"):
            raise NoReadingError(f"{key}: the query gives a {quoted(str(kind).encode())}, not one number")
        _, text = result[0]["value"] if kind == "vector" else result
        number = float(text) if isinstance(text, str) else text
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise NoReadingError(f"{key}: no answer of Prometheus: {quoted(said)}; is it its address?") from None
    return _count(key, number)


def _count(place: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NoReadingError(f"{place} is {quoted(orjson.dumps(value))}, not a number; count requests, or nothing")
    if math.isnan(value):
        raise NoReadingError(f"{place} is not a number (NaN), which is not known to be zero; look at the query")
    if value < 0:
        raise NoReadingError(f"{place} is {value:g}, below zero; count what happened in the window, not a difference")
    if value > MOST:
        raise NoReadingError(f"{place} is {value:g}, more than {MOST} in one window; count the window's requests only")
    return float(value)


def duration(seconds: float) -> str:
    """As Prometheus writes it: "10s", or "10500ms"."""
    milliseconds = max(round(seconds * 1000), 1)
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


def quoted(said: bytes) -> str:
    """The begin of an answer, safe for a terminal."""
    text = said[: 4 * _QUOTED].decode(errors="replace")
    plain = "".join(one if one.isprintable() else " " for one in text)
    return plain if len(plain) <= _QUOTED else f"{plain[:_QUOTED]}..."


def versions(names: Mapping[str, str | None]) -> str:
    """The versions of addresses, each once."""
    return ",".join(sorted({version for version in names.values() if version is not None}))


def _alternatives(addresses: tuple[str, ...]) -> str:
    return "|".join(re.escape(one).replace("\\", "\\\\") for one in addresses)


def _text(value: object) -> str:
    match value:
        case tuple():
            return ",".join(value)
        case float():
            return f"{value:.3f}"
        case _:
            return str(value)
