"""Reports to be rendered, made by hand."""

from __future__ import annotations

from typing import Any

from loadtest.model import Bar, ErrorKind, Interval, Latency, Loss, Report, SelfCheck

BEGAN_AT = 1_700_000_000.0


def latency(mean: float = 2.0) -> Latency:
    """In ms; every figure another one."""
    factors = (0.5, 1, 0.6, 0.7, 0.8, 1.2, 1.4, 1.6, 3, 5, 8)
    return Latency(*(mean * factor for factor in factors))


def interval(begin: float, status: dict[int, int], errors: dict[ErrorKind, int] | None = None) -> Interval:
    return Interval(begin, 1.0, status, errors or {}, 100, latency() if status else None)


def loss(hit: int, at: float, kind: ErrorKind = ErrorKind.DROPPED, detail: str = "gone") -> Loss:
    """`at` in seconds since the start."""
    return Loss(hit=hit, at=BEGAN_AT + at, kind=kind, request=0, connection=7, detail=detail)


def report(**changes: Any) -> Report:
    """120 planned, 100 sent: 98 answered and 2 dropped."""
    given: dict[str, Any] = {
        "planned": 120,
        "sent": 100,
        "status": {200: 90, 404: 5, 503: 3},
        "errors": {ErrorKind.DROPPED: 2},
        "examples": {ErrorKind.DROPPED: "gone"},
        "idle_closed": 4,
        "elapsed": 2.5,
        "received": 9_800,
        "response": latency(2.0),
        "service": latency(1.5),
        "lag": latency(0.5),
        "histogram": tuple(Bar(1 + 2.0 * row, 50 if row == 3 else row) for row in range(11)),
        "by_attribute": {"v1": {200: 50}, "v2": {200: 40, 503: 3}},
        "self": SelfCheck(12.5),
        "began_at": BEGAN_AT,
        "intervals": (
            interval(0, {200: 60, 404: 5}),
            interval(1, {200: 20, 503: 3}, {ErrorKind.DROPPED: 2}),
            interval(2, {200: 10}),
        ),
        "losses": (loss(70, 1.2), loss(71, 1.3)),
        "phases": {"dial": latency(0.4), "dns": latency(0.1)},
    }
    return Report(**(given | changes))


def nothing() -> Report:
    """Three requests, none of them answered."""
    return report(
        planned=3,
        sent=3,
        status={},
        errors={ErrorKind.REFUSED: 3},
        examples={ErrorKind.REFUSED: "nobody there"},
        elapsed=0.001,
        received=0,
        response=None,
        service=None,
        histogram=(),
        by_attribute={},
        intervals=(),
        losses=(),
        phases={},
    )
