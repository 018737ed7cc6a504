"""Which answers are errors. Pure.

The service says which statuses are (Caddy's own 502 and 504 for an upstream count as its answers), and whether what the
upstream cut short is. A client that left is the client's affair, but where an answer has to begin within some time:
then whoever was kept waiting for longer met a time-out, patient or not.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.accessline import Answer
from trafficd.config.canary import TRUNCATED, CanarySection


@dataclass(frozen=True)
class Errors:
    """`within`: s in which the header of an answer has to come; None: whenever it comes."""

    statuses: frozenset[int]
    truncated: bool
    within: float | None = None

    def met(self, answer: Answer) -> bool:
        """Whether this one is an error."""
        if answer.status in self.statuses or (self.truncated and answer.truncated):
            return True
        return self.within is not None and _waited(answer) > self.within

    @classmethod
    def of(cls, section: CanarySection) -> Errors:
        """What a service takes for errors."""
        statuses: set[int] = set()
        for kind in section.errors:
            if kind.endswith("xx"):
                statuses |= set(range(100 * int(kind[0]), 100 * int(kind[0]) + 100))
            elif kind != TRUNCATED:
                statuses.add(int(kind))
        return cls(frozenset(statuses), TRUNCATED in section.errors, section.answer_within)


STANDARD = Errors.of(CanarySection())


def _waited(answer: Answer) -> float:
    """How long the upstream let a client wait, in s. Waiting for a slot is not its doing, and is in the duration of a
    request that had to be tried again. The upload of a body cannot be told apart: Caddy's clock runs meanwhile."""
    if answer.latency is not None:
        return answer.latency
    return 0.0 if answer.answered or answer.retries else answer.duration
