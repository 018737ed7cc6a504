"""The words of a load test: what is sent, how often, and what became of it. Pure.

Every request that was started ends as exactly one `Outcome`, which has either the status of a complete
answer or one kind of error, never both and never neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import quote, urlsplit


class LoadtestError(Exception):
    """Anything the load generator reports to a person."""


class PlanError(LoadtestError):
    """The load test cannot be run as asked; the message says which part of it is wrong."""


class ErrorKind(StrEnum):
    """Why a request got no complete answer."""

    REFUSED = "refused"  # no connection: refused, or the address is unreachable
    CONNECT_TIMEOUT = "connect_timeout"  # time was up before a request could be written
    DNS = "dns"
    TLS = "tls"
    PROXY = "proxy"
    DROPPED = "dropped"  # connected, then the connection went before the first response byte
    TRUNCATED = "truncated"  # it went after the first response byte
    TIMEOUT = "timeout"  # time was up before the answer was complete
    PROTOCOL = "protocol"  # what came is not HTTP
    REDIRECT = "redirect"
    RESET_STREAM = "reset_stream"
    LOCAL = "local"  # this machine is out of descriptors, ports or memory


class Origin(NamedTuple):
    """Where connections go."""

    tls: bool
    host: str
    port: int


@dataclass(frozen=True)
class RequestSpec:
    """One request as it goes on the wire. A `Host` among the headers replaces the URL's."""

    url: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    weight: int = 1  # how often in relation to the other requests of the plan
    template: bool = False  # {{seq}}, {{uuid}} and {{random:LOW:HIGH}} in URL, headers and body are filled in

    def __post_init__(self) -> None:
        """Raises PlanError for a URL that cannot be requested."""
        if self.method.upper() == "CONNECT":
            raise PlanError("method CONNECT cannot be load-tested: it opens a tunnel")
        _ = self.origin, self.target

    @property
    def origin(self) -> Origin:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise PlanError(f"URL {self.url!r} is malformed: {error}") from None
        if parts.scheme not in ("http", "https"):
            raise PlanError(f"URL {self.url!r} must begin with http:// or https://")
        if parts.username is not None:
            raise PlanError("credentials in the URL are not sent; give an Authorization header instead")
        if not parts.hostname:
            raise PlanError(f"URL {self.url!r} has no host")
        tls = parts.scheme == "https"
        return Origin(tls, parts.hostname, port or (443 if tls else 80))

    @property
    def authority(self) -> str:
        """What the Host header says unless `headers` overrides it."""
        return urlsplit(self.url).netloc

    @property
    def target(self) -> str:
        """Path and query, with what may not stand in a request line percent-encoded."""
        parts = urlsplit(self.url)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]|")
        return f"{path}?{query}" if query else path


@dataclass(frozen=True)
class Stage:
    """A piece of an open loop: within `duration` seconds the rate goes evenly from the one before to `rate`."""

    duration: float
    rate: float  # requests a second at its end


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy: asked in absolute form for http://, for a tunnel (CONNECT) for https://."""

    host: str
    port: int
    authorization: str | None = None  # value of the Proxy-Authorization header


@dataclass(frozen=True)
class Plan:
    """One run. Times in seconds.

    Closed loop by default: each of `connections` workers sends its next request when the last one is
    answered, at most `qps` a second. With `rate`, an open loop: requests are due at a constant total rate
    whatever the answers do. `duration` takes the place of `total`; requests in flight at its end finish.
    """

    requests: tuple[RequestSpec, ...]  # sent in turn, as often as their weights say
    connections: int = 50
    total: int | None = 200
    duration: float | None = None
    rate: float | None = None  # requests a second in all
    qps: float | None = None  # requests a second of each worker
    timeout: float | None = 20.0  # of one request, connecting included; None: no limit
    keepalive: bool = True
    verify_tls: bool = True
    dial: tuple[str, int] | None = None  # connect here instead of to the URL's host and port
    attribute: str | None = None  # a response header whose value attributes the answer
    stages: tuple[Stage, ...] = ()  # an open loop whose rate changes, beginning at `rate` or 0
    poisson: bool = False  # an open loop with exponential gaps, as independent users make, in place of even ones
    seed: int = 1  # of everything that is random
    processes: int = 1
    http2: bool = False
    streams: int = 10  # with HTTP/2, at most so many requests at a time on one of as many connections as that takes
    redirects: int = 10  # that are followed at most; 0: none, a 3xx is an answer as any other
    retry_stale: bool = False  # resend once what a kept-alive connection dropped; counted apart
    sequence_header: str | None = None  # a request header that carries the number of the request
    lifetime: float | None = None  # s after which a connection is not used again
    per_connection: int | None = None  # requests after which a connection is not used again
    unix: str | None = None  # connect to this socket
    proxy: Proxy | None = None
    authorities: str | None = None  # a PEM file: certificates must be signed by one of these, not the system's

    def __post_init__(self) -> None:
        """Raises PlanError."""
        if not self.requests:
            raise PlanError("there is no request to send")
        if len({request.origin for request in self.requests}) > 1:
            raise PlanError("all requests of a plan must have the same scheme, host and port")
        if self.http2 and self.proxy is not None and not self.origin.tls:
            raise PlanError("HTTP/2 without TLS does not go through a proxy")
        if self.duration is None and self.total is None:
            raise PlanError("give a number of requests or a duration")
        if self.poisson and not self.open_loop:
            raise PlanError("Poisson gaps are about an open loop: give a rate, or stages")
        if self.open_loop and self.qps is not None:
            raise PlanError("a total rate (open loop) and a rate for each worker exclude each other")
        amounts: dict[str, float | None] = {
            "connections": self.connections,
            "number of requests": self.total,
            "duration": self.duration,
            "rate": self.rate,
            "rate for each worker": self.qps,
            "time-out": self.timeout,
            "streams": self.streams,
        }
        for name, amount in amounts.items():
            if amount is not None and not 0 < amount < math.inf:
                raise PlanError(f"the {name} must be over 0, not {amount:g}")

    @property
    def origin(self) -> Origin:
        return self.requests[0].origin

    @property
    def open_loop(self) -> bool:
        """Whether requests are due by the clock, whatever the answers do."""
        return self.rate is not None or bool(self.stages)


class Outcome(NamedTuple):
    """What became of one request. Times are those of the monotonic clock (time.monotonic_ns)."""

    hit: int  # the how-manieth request of the run, from 0
    connection: int | None  # number of the connection, from 0; None when there was none
    status: int | None  # of a complete answer
    error: ErrorKind | None
    scheduled_ns: int  # when it was due
    started_ns: int  # when a worker took it up
    written_ns: int | None  # when its first byte was written; None: nothing was
    first_byte_ns: int | None  # when the first byte of the response came
    finished_ns: int
    size: int  # bytes of body received
    attribute: str | None  # value of the header named by Plan.attribute
    detail: str  # of the error, for people
    request: int = 0  # which of the plan's requests it was
    dns_ns: int = 0  # of opening its connection; 0 where that was open already
    dial_ns: int = 0  # the look-up, connecting and the TLS handshake together
    tls_ns: int = 0
    resent: bool = False  # sent again after a kept-alive connection had dropped it (Plan.retry_stale)


class Loss(NamedTuple):
    """One request that got no complete answer."""

    hit: int
    at: float  # s since the epoch, when it failed
    kind: ErrorKind
    request: int  # which of the plan's requests
    connection: int | None
    detail: str
    attribute: str | None = None  # of an answer whose head had come (Plan.attribute)


@dataclass(frozen=True)
class Interval:
    """What finished in one stretch of time."""

    begin: float  # s since the start
    seconds: float
    status: Mapping[int, int]
    errors: Mapping[ErrorKind, int]
    received: int
    response: Latency | None


@dataclass(frozen=True)
class Latency:
    """The distribution of one time, in milliseconds."""

    min: float
    mean: float
    p10: float
    p25: float
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class Bar:
    """One row of a histogram: `count` values up to `upto` milliseconds, and over the row before."""

    upto: float
    count: int


@dataclass(frozen=True)
class SelfCheck:
    """What the generator knows about its own part in the numbers."""

    cpu_us_per_request: float | None  # of all generating processes; None when nothing was sent
    valid: bool = True
    why: str = ""
    loop_lag_ms: float | None = None  # p99 of how late the event loop ran what was due
    gc_pause_ms: float | None = None  # the longest
    cpu_share: float | None = None  # of one core, the busiest process
    faults: tuple[str, ...] = ()  # of generating processes: what they had not told yet is not counted


@dataclass(frozen=True)
class Report:
    """What was measured. A time is None when nothing was measured, which is not zero."""

    planned: int
    sent: int
    status: Mapping[int, int]  # complete answers only
    errors: Mapping[ErrorKind, int]
    examples: Mapping[ErrorKind, str]  # the first detail of each kind
    idle_closed: int  # kept-alive connections the server had closed before they were wanted again
    elapsed: float  # s, from the start to the last outcome
    received: int  # bytes of bodies
    response: Latency | None  # of complete answers: from when it was due to its last byte
    service: Latency | None  # of complete answers: from the first byte written to the last received
    lag: Latency | None  # of every request: from when it was due to when it was taken up
    histogram: tuple[Bar, ...]  # of response times
    by_attribute: Mapping[str, Mapping[int, int]]  # status counts for each attribute value
    self: SelfCheck
    began_at: float = 0.0  # s since the epoch
    resent: int = 0  # with Plan.retry_stale
    redirected: int = 0  # redirects that were followed
    phases: Mapping[str, Latency] = field(default_factory=dict)  # dns, dial, tls, write, wait, read; of samples
    intervals: tuple[Interval, ...] = ()  # one a second at first, longer ones in a long run
    losses: tuple[Loss, ...] = ()  # the first 10,000
    by_request: Mapping[int, Mapping[int, int]] = field(default_factory=dict)  # status counts for each of the plan's
    hdr: Mapping[str, str] = field(default_factory=dict)  # response, service, lag: HdrHistograms of ns, V2 in base64

    @property
    def answered(self) -> int:
        return sum(self.status.values())

    @property
    def skipped(self) -> int:
        return self.planned - self.sent

    @property
    def lost(self) -> int:
        """Requests that were sent and got no complete answer."""
        return sum(self.errors.values())

    @property
    def rps(self) -> float:
        """Complete answers a second."""
        return self.answered / self.elapsed if self.elapsed > 0 else 0.0
