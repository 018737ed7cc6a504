"""One request after the other: takes a slot, sends, hears what became of it, counts it, goes on.

A lane has no task and no future: carriers call it, and it sends its next request within that call. That is the hot
path of the generator. A request is written at most once, but for what a kept-alive connection dropped, where the
plan says so (`retry_stale`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns

from loadtest.exchange import Carrier, Dialled, Failure, Head, Opener, Opening
from loadtest.feed import Feed
from loadtest.metrics import Metrics
from loadtest.model import ErrorKind, Origin, Outcome, Plan, PlanError
from loadtest.redirect import follow, redirects
from loadtest.wire import Encoder, Recipes, Wire

_SAMPLED = 15  # of so many requests and one the phases are recorded, beside those that open a connection
_AT_ONCE = Dialled()
_NEVER = 1 << 62


@dataclass
class Course:
    """What the lanes of one process share. `idle` is called by a lane that has no request under way any more."""

    plan: Plan
    feed: Feed
    recipes: Recipes
    encoder: Encoder
    opener: Opener
    metrics: Metrics
    on_outcome: Callable[[Outcome], None] | None
    timeout_ns: int
    begin: Callable[[], None]
    idle: Callable[[], None]


class Lane:
    __slots__ = (
        "_carrier", "_carriers", "_connection", "_course", "_dialled", "_fixed", "_followed", "_metrics", "_opening",
        "_origin", "_resent", "_reused", "_sent_ns", "_started_ns", "_take", "_timeout_ns", "_wire", "_write_ns",
        "deadline_ns", "due_ns", "hit",
    )  # fmt: skip
    _wire: Wire

    def __init__(self, course: Course) -> None:
        self._course = course
        self._take = course.feed.take
        self._timeout_ns = course.timeout_ns
        self._metrics = course.metrics if course.on_outcome is None else None  # where answers are counted at once
        self._fixed = course.recipes.fixed
        self._origin: Origin | None = None  # where `_carrier` leads
        self._carrier: Carrier | None = None  # the one used last
        self._carriers: dict[Origin, Carrier] = {}  # to other places
        self._opening: Opening | None = None
        self._dialled = _AT_ONCE
        self._reused = False  # the carrier had an answer before
        self._resent = False
        self._followed = 0
        self._started_ns = 0
        self._sent_ns = 0  # when the first byte was written; 0: nothing was
        self._write_ns = 0  # what writing took
        self._connection: int | None = None  # that the request was written to
        self.hit = 0
        self.due_ns = 0
        self.deadline_ns = _NEVER  # of the request under way

    # what the feed and the clock call

    def begin(self, now: int) -> None:
        if self._take(self, now):
            self.start(now)

    def start(self, now: int) -> None:
        """Begin the hit that the feed has given."""
        self._course.begin()
        self._go(now)

    def expire(self) -> None:
        """Time is up."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
            self._record_failure(Failure(ErrorKind.CONNECT_TIMEOUT, "not connected in time"), 0, 0)
        elif self._carrier is not None:
            self._carrier.give_up(self, Failure(ErrorKind.TIMEOUT, "no complete response in time"))

    def abandon(self) -> None:
        """The run is over, and nobody wants to know."""
        if self._opening is not None:
            self._opening.cancel()
        elif self._carrier is not None:
            self._carrier.give_up(self, None)

    # what carriers and the opener call

    def opened(self, carrier: Carrier, dialled: Dialled) -> None:
        self._opening = None
        self._carrier, self._origin = carrier, self._wire.origin
        self._dialled = Dialled(*map(sum, zip(self._dialled, dialled, strict=True)))
        self._reused = False
        if carrier.usable:
            self._write(carrier, monotonic_ns())
        else:
            self._forget()
            self._opening = self._course.opener.open(self, self._wire.origin)

    def not_opened(self, failure: Failure) -> None:
        self._opening = None
        self._record_failure(failure, 0, 0)

    def answered(self, head: Head, size: int, first_byte_ns: int) -> None:
        now = monotonic_ns()
        self._reused = True
        if head.location and self._follow(head, size, first_byte_ns, now):
            return
        metrics, wire = self._metrics, self._wire
        if metrics is not None:
            metrics.answered(head, wire.request, size, self.due_ns, self._started_ns, self._sent_ns, now)
        else:
            self._tell(now, head, None, size, first_byte_ns)
        if self._dialled is not _AT_ONCE or not self.hit & _SAMPLED:
            self._sample(first_byte_ns or now, now)
            self._dialled = _AT_ONCE
            self._resent = False  # for what is sent again is dialled anew
        carrier = self._carrier
        if wire is not self._fixed or carrier is None or not carrier.open:
            self._next(now)
        elif self._take(self, now):  # the same again, on the same connection: as `_go` does it, in fewer steps
            self._started_ns = self._sent_ns = now
            self.deadline_ns = now + self._timeout_ns
            carrier.send(wire, self)
            if not self.hit & _SAMPLED:
                self._write_ns = monotonic_ns() - now
        else:
            self._rest()

    def failed(self, failure: Failure, size: int, first_byte_ns: int) -> None:
        stale = self._reused and failure.kind is ErrorKind.DROPPED and not first_byte_ns
        self._drop_what_ended()  # over HTTP/2 the connection may well go on
        if stale and self._course.plan.retry_stale and not self._resent:
            self._resent = True
            self._course.metrics.resent += 1
            self._opening = self._course.opener.open(self, self._wire.origin)
            return
        self._record_failure(failure, size, first_byte_ns)

    # the course of one request

    def _go(self, now: int) -> None:
        self._started_ns = now
        self.deadline_ns = now + self._timeout_ns
        self._sent_ns = 0
        self._connection = None
        self._dialled = _AT_ONCE
        self._resent = False
        self._followed = 0
        self._send(self._fixed or self._course.recipes.wire(self.hit), now)

    def _send(self, wire: Wire, now: int) -> None:
        self._wire = wire
        if wire.origin is not self._origin and wire.origin != self._origin:
            self._change_to(wire.origin)
        carrier = self._carrier
        if carrier is not None:
            if carrier.usable:
                self._write(carrier, now)
                return
            if not carrier.retired:
                self._course.metrics.idle_closed += 1
            self._forget()
        self._opening = self._course.opener.open(self, wire.origin)

    def _write(self, carrier: Carrier, now: int) -> None:
        if not self._sent_ns:
            self._sent_ns = now
        self._connection = carrier.number
        carrier.send(self._wire, self)
        if not self.hit & _SAMPLED:
            self._write_ns = monotonic_ns() - now

    def _change_to(self, origin: Origin) -> None:
        """Lay the connection to one place aside, and take up the one to another."""
        if self._carrier is not None and self._origin is not None:
            self._carriers[self._origin] = self._carrier
        self._carrier, self._origin = self._carriers.pop(origin, None), origin
        self._reused = self._carrier is not None

    def _forget(self) -> None:
        self._carrier = self._origin = None
        self._reused = False

    def _follow(self, head: Head, size: int, first_byte_ns: int, now: int) -> bool:
        """Whether the answer sends elsewhere, and that is seen to."""
        course, most = self._course, self._course.plan.redirects
        if not most or not redirects(head.status, head.location):
            return False
        if self._followed >= most:
            failure = Failure(ErrorKind.REDIRECT, f"more than {most} redirects")
            self._record_failure(failure, size, first_byte_ns)
            return True
        try:
            message = follow(self._wire.message, head.status, head.location or "")
            wire = course.encoder.wire(message, self._wire.request)
        except PlanError as error:
            self._record_failure(Failure(ErrorKind.REDIRECT, f"bad Location: {error}"), size, first_byte_ns)
            return True
        self._followed += 1
        course.metrics.redirected += 1
        self._drop_what_ended()
        self._send(wire, now)
        return True

    def _record_failure(self, failure: Failure, size: int, first_byte_ns: int) -> None:
        now = monotonic_ns()
        self._tell(now, None, failure, size, first_byte_ns)
        self._next(now)

    def _next(self, now: int) -> None:
        self._drop_what_ended()
        if self._take(self, now):
            self._go(now)
        else:
            self._rest()

    def _rest(self) -> None:
        self.deadline_ns = _NEVER
        self._course.idle()

    def _drop_what_ended(self) -> None:
        """A connection that its last answer has ended was not closed while idle."""
        if self._carrier is not None and not self._carrier.open:
            self._forget()

    # what is told of it

    def _tell(self, now: int, head: Head | None, failure: Failure | None, size: int, first_byte_ns: int) -> None:
        written = self._sent_ns or None
        outcome = Outcome(
            hit=self.hit,
            connection=self._connection,
            status=head.status if head is not None and failure is None else None,
            error=None if failure is None else failure.kind,
            scheduled_ns=self.due_ns,
            started_ns=self._started_ns,
            written_ns=written,
            first_byte_ns=None if written is None or not (first_byte_ns or head) else first_byte_ns or now,
            finished_ns=now,
            size=size,
            attribute=None if head is None else head.attribute,
            detail="" if failure is None else failure.detail,
            request=self._wire.request,
            dns_ns=self._dialled.dns_ns,
            dial_ns=self._dialled.dial_ns,
            tls_ns=self._dialled.tls_ns,
            resent=self._resent,
        )
        course = self._course
        course.metrics.add(outcome)
        if course.on_outcome is not None:
            course.on_outcome(outcome)

    def _sample(self, first_byte_ns: int, now: int) -> None:
        dialled = self._dialled
        self._course.metrics.phases(
            dns_ns=dialled.dns_ns,
            dial_ns=dialled.dial_ns,
            tls_ns=dialled.tls_ns,
            write_ns=self._write_ns,
            wait_ns=first_byte_ns - self._sent_ns,
            read_ns=now - first_byte_ns,
        )
