"""Renders what became of the WebSockets that were held: text for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

from loadtest.report import shown
from loadtest.websocket import Ending, WebSocketReport

_SECOND = 1e9  # ns
_MOST_LINES = 100


@dataclass(frozen=True)
class Held:
    """A run. `began_ns` and `ended_ns` are of the monotonic clock, `ended_at` is in seconds since the epoch."""

    report: WebSocketReport
    began_ns: int
    ended_ns: int
    ended_at: float

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.began_ns) / _SECOND

    def since_start(self, ending: Ending) -> float:
        return (ending.at_ns - self.began_ns) / _SECOND

    def at(self, ending: Ending) -> float:
        """Seconds since the epoch."""
        return self.ended_at - (self.ended_ns - ending.at_ns) / _SECOND


def reasons(held: Held) -> tuple[str, ...]:
    """Why the run failed; empty when it passed. What the server closed in good order is no failure."""
    report = held.report
    found = (
        (report.cut, f"{report.cut} cut"),
        (report.failed, f"{report.failed} not opened"),
        (not report.opened and not report.failed, "nothing was opened"),
    )
    return tuple(reason for holds, reason in found if holds)


def to_json(held: Held) -> str:
    """One object. Times in seconds: `at` since the epoch."""
    report = held.report
    document = {
        "websockets": {
            "opened": report.opened,
            "failed": report.failed,
            "closed": report.closed,
            "cut": report.cut,
            "sent": report.sent,
            "echoed": report.echoed,
        },
        "seconds": round(held.seconds, 3),
        "cuts": _endings(held, report.cuts),
        "closes": _endings(held, report.closes),
        "failures": report.examples,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()


def _endings(held: Held, endings: Sequence[Ending]) -> list[dict[str, object]]:
    return [
        {"connection": ending.connection, "at": round(held.at(ending), 3), "detail": ending.detail}
        for ending in endings
    ]


def to_text(held: Held) -> str:
    return "\n".join(_lines(held)) + "\n"


def _lines(held: Held) -> Iterator[str]:
    report = held.report
    yield from ("", "WebSockets:", f"  Total:\t{held.seconds:.4f} secs", f"  Opened:\t{report.opened}")
    yield from (f"  Not opened:\t{report.failed}", f"  Closed:\t{report.closed} (by the server, in good order)")
    yield from (f"  Cut:\t{report.cut}", f"  Pings:\t{report.sent} sent, {report.echoed} answered")
    for title, endings in (("Cut", report.cuts), ("Closed", report.closes)):
        if endings:
            yield from ("", f"{title} (time since the start, connection):")
            yield from (
                f"  {held.since_start(ending):.3f} secs\t#{ending.connection}: {shown(ending.detail)}"
                for ending in endings[:_MOST_LINES]
            )
        if len(endings) > _MOST_LINES:
            yield f"  and {len(endings) - _MOST_LINES} more"
    if report.examples:
        yield from ("", "Not opened:", *(f"  [{count}]\t{shown(why)}" for why, count in report.examples.items()))
