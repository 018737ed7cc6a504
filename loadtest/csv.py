"""hey's CSV: a row for each complete answer, written as it comes, so that memory does not grow with their number.

Times in seconds. A request that got no complete answer has no row, as in hey; what failed is said elsewhere.
"""

from __future__ import annotations

from typing import TextIO

from loadtest.model import Outcome

HEADER = "response-time,DNS+dialup,DNS,Request-write,Response-delay,Response-read,status-code,offset"
_SECOND = 1e9  # ns


class Rows:
    """`start_ns` (time.monotonic_ns): what the offsets count from."""

    def __init__(self, stream: TextIO, start_ns: int) -> None:
        self._stream = stream
        self._start_ns = start_ns
        stream.write(f"{HEADER}\n")

    def add(self, outcome: Outcome) -> None:
        if outcome.status is not None:
            self._stream.write(row(outcome, self._start_ns))


def row(outcome: Outcome, start_ns: int) -> str:
    """Response time and offset count from when the request was due, which in a closed loop is when it was taken up.

    Writing is the time between having a connection and the first byte written.
    """
    written = outcome.written_ns or outcome.started_ns
    first_byte = outcome.first_byte_ns or outcome.finished_ns
    times = (
        outcome.finished_ns - outcome.scheduled_ns,
        outcome.dial_ns,
        outcome.dns_ns,
        max(0, written - outcome.started_ns - outcome.dial_ns),
        max(0, first_byte - written),
        outcome.finished_ns - first_byte,
    )
    fields = ",".join(f"{time / _SECOND:.4f}" for time in times)
    return f"{fields},{outcome.status},{(outcome.scheduled_ns - start_ns) / _SECOND:.4f}\n"
