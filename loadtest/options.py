"""The flags of the command line, and the plans they ask for. Pure: files have been read, nothing has been sent.

What flags say together is judged here, so that every complaint names them and says what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import requestfile
from loadtest.arguments import Contents
from loadtest.model import Plan, PlanError, Proxy, RequestSpec, Stage
from loadtest.requestfile import Headers, merged
from loadtest.verdict import Condition

if TYPE_CHECKING:
    from loadtest.websocket import WebSocketPlan

USER_AGENT = "loadtest"
REDIRECTS = 10  # as Go's client
_PING_INTERVAL = 1.0  # s
_NO_LIMIT = 86_400.0  # s


@dataclass(frozen=True)
class Options:
    """One field a flag, in the order of the help. Times in seconds."""

    url: str | None
    total: int
    connections: int
    duration: float | None
    qps: float
    timeout: float
    processes: int
    rate: float | None
    poisson: bool
    stages: tuple[Stage, ...] | None
    method: str
    headers: Headers
    accept: str | None
    content_type: str | None
    body: str | None
    body_file: Contents | None
    user_agent: str | None
    host: str | None
    auth: str | None  # value of the Authorization header
    requests_file: Contents | None
    sequence_header: str | None
    proxy: Proxy | None
    http2: bool
    streams: int
    cacert: Path | None
    unix: str | None
    connect: tuple[str, int] | None
    insecure: bool
    disable_compression: bool
    disable_keepalive: bool
    disable_redirects: bool
    max_connection_age: float | None
    requests_per_connection: int | None
    retry_stale: bool
    websocket: bool
    output: str | None
    as_json: bool
    html: Path | None
    hdr: Path | None
    attribute: str | None
    fail_if: tuple[Condition, ...]
    no_progress: bool


OF_WEBSOCKETS = frozenset(
    {
        *("url", "websocket", "connections", "duration", "timeout", "headers", "user_agent", "host", "auth"),
        *("connect", "insecure", "cacert", "as_json", "no_progress"),
    }
)


def plan(options: Options) -> Plan:
    """What is to be sent. Raises PlanError."""
    _check(options)
    open_loop = options.rate is not None or options.stages is not None
    return Plan(
        requests=_requests(options),
        connections=options.connections,
        total=options.total,
        duration=_duration(options),
        rate=options.rate,
        qps=None if open_loop else options.qps or None,
        timeout=options.timeout or None,
        keepalive=not options.disable_keepalive,
        verify_tls=not options.insecure,
        dial=options.connect,
        attribute=options.attribute,
        stages=options.stages or (),
        poisson=options.poisson,
        processes=1 if options.output else options.processes,  # rows come in order, from the one process
        http2=options.http2,
        streams=options.streams,
        authorities=None if options.cacert is None else str(options.cacert),
        redirects=0 if options.disable_redirects else REDIRECTS,
        retry_stale=options.retry_stale,
        sequence_header=options.sequence_header,
        lifetime=options.max_connection_age,
        per_connection=options.requests_per_connection,
        unix=options.unix,
        proxy=options.proxy,
    )


def websocket_plan(options: Options) -> WebSocketPlan:
    """The connections to be held. Raises PlanError."""
    from loadtest.websocket import WebSocketPlan  # its library takes a while to import, and is mostly not wanted

    return WebSocketPlan(
        url=_given_url(options),
        connections=options.connections,
        interval=_PING_INTERVAL,
        message=None,
        timeout=options.timeout or _NO_LIMIT,
        verify_tls=not options.insecure,
        authorities=None if options.cacert is None else str(options.cacert),
        dial=options.connect,
        headers=_common_headers(options),
    )


def _check(options: Options) -> None:
    """Raises PlanError for flags that contradict each other."""
    open_loop = options.rate is not None or options.stages is not None
    elsewhere = [
        flag
        for flag, value in (("-x", options.proxy), ("--unix", options.unix), ("--connect", options.connect))
        if value
    ]
    wrong = (
        (
            open_loop and options.qps > 0,
            "-q is a rate for each worker (closed loop): leave it out with --rate or --stages",
        ),
        (options.poisson and not open_loop, "--poisson is about an open loop: give --rate or --stages with it"),
        (options.insecure and options.cacert is not None, "-k looks at no certificate: leave it or --cacert out"),
        (len(elsewhere) > 1, f"{' and '.join(elsewhere)} both say where to connect: give one of them"),
        (options.body is not None and options.body_file is not None, "-d and -D both give the body: give one of them"),
        (options.output is not None and options.as_json, "-o csv and --json both print to stdout: give one of them"),
        (options.disable_keepalive and options.http2, "-disable-keepalive has no meaning with -h2: leave one out"),
        (
            options.retry_stale and options.disable_keepalive,
            "--retry-stale is about kept-alive connections: leave it or -disable-keepalive out",
        ),
    )
    for holds, message in wrong:
        if holds:
            raise PlanError(message)


def _duration(options: Options) -> float | None:
    """-z, or else as long as the stages take. A longer run goes on at their last rate."""
    if options.duration:
        return options.duration
    return sum(stage.duration for stage in options.stages) if options.stages else None


def _requests(options: Options) -> tuple[RequestSpec, ...]:
    headers = _headers(options)
    body = options.body_file.data if options.body_file is not None else (options.body or "").encode()
    file = options.requests_file
    if file is None:
        return (RequestSpec(_given_url(options), options.method, headers, body),)
    if options.url is not None:
        _ = RequestSpec(options.url)  # paths are added to it
    try:
        text = file.data.decode()
    except UnicodeDecodeError as error:
        raise PlanError(f"--requests-file {file.name}: is not UTF-8 text: {error}") from None
    base = RequestSpec("http://localhost/", options.method, headers, body)
    return requestfile.parse(text, name=f"--requests-file {file.name}", base=base, url=options.url)


def _given_url(options: Options) -> str:
    if options.url is None:
        raise PlanError("give the URL to send requests to" + ("" if options.websocket else ", or --requests-file"))
    return options.url


def _headers(options: Options) -> Headers:
    """As hey makes them: -A, -U, -host and -a win over -H, and -H wins over -T and what is sent by itself."""
    common = _common_headers(options)
    by_itself = [("Content-Type", options.content_type or "text/html")]
    partial = any(name.lower() == "range" for name, _ in common)
    if not (options.disable_compression or partial or options.method == "HEAD"):
        by_itself.append(("Accept-Encoding", "gzip"))
    return merged(common, tuple(by_itself))


def _common_headers(options: Options) -> Headers:
    flags = (
        ("Host", options.host),
        ("User-Agent", options.user_agent),
        ("Accept", options.accept),
        ("Authorization", options.auth),
    )
    own = tuple((name, value) for name, value in flags if value)
    return merged(merged(own, options.headers), (("User-Agent", USER_AGENT),))
