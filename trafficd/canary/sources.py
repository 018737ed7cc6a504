"""Who is asked for the counts of a metric: a program, a webhook, or Prometheus.

All of them are somebody else's, so each question has an end: a time-out over all of it, and a size that an answer may
not exceed. Programs are run without a shell. Whatever goes wrong is a `NoReadingError`, never a zero.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from trafficd.canary.readings import NoReadingError, Question, Reading, answered, quoted, sample
from trafficd.child import OUTPUT_LIMIT, Child
from trafficd.config.metrics import QUERIES, MetricSection

_KEPT_OUT = (401, 403)
_UNKNOWN = "give the metric the headers by which it knows us"


class Source(Protocol):
    """Asked for one window at a time. Raises `NoReadingError`."""

    async def ask(self, question: Question) -> Reading: ...

    async def aclose(self) -> None: ...


def source_of(section: MetricSection) -> Source:
    """The one that the section names."""
    if section.command is not None:
        return Program(section.command, section.timeout)
    if section.webhook is not None:
        return Webhook(section.webhook, section.timeout, section.headers)
    assert section.prometheus is not None, "a metric has a source"
    queries = dict(zip(QUERIES, section.queries, strict=True))
    return Prometheus(section.prometheus, queries, section.timeout, section.headers)


@dataclass
class Program:
    """Told by its environment, and read on its standard output."""

    argv: Sequence[str]
    timeout: float
    _run: Child | None = None

    async def ask(self, question: Question) -> Reading:
        program = self.argv[0]
        if self._run is not None and not self._run.ended.done():
            raise NoReadingError(
                f"{program} was not run: an earlier run of it cannot be killed (process {self._run.pid}); see what it "
                "waits for"
            )
        try:
            run = Child(self.argv, {**os.environ, **question.environment}, kept=OUTPUT_LIMIT, apart=True)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise NoReadingError(f"{program} could not be started: {why}; see its path and mode") from None
        self._run = run
        try:
            await run.over(self.timeout)
            failure = run.failure(program, self.timeout)
        finally:
            await run.kill()
        if failure is not None:
            raise NoReadingError(f"{failure}; run it by hand, or raise the metric's timeout if it needs longer")
        return answered(run.output)

    async def aclose(self) -> None:
        if self._run is not None:
            await self._run.kill()


@dataclass
class Webhook:
    """Told by a JSON body, and answers with one."""

    url: str
    timeout: float
    headers: Mapping[str, str]
    _http: Http = field(init=False)

    def __post_init__(self) -> None:
        self._http = Http(self.headers)

    async def ask(self, question: Question) -> Reading:
        async with _within(self.timeout, self.url):
            status, said = await self._http.post(self.url, question.body)
        if status != 200:
            remedy = _UNKNOWN if status in _KEPT_OUT else "see its own log"
            raise NoReadingError(f"{self.url} answered {status}, not 200: {quoted(said)}; {remedy}")
        return answered(said)

    async def aclose(self) -> None:
        await self._http.aclose()


@dataclass
class Prometheus:
    """Four instant queries at the end of the window."""

    url: str
    queries: Mapping[str, str]  # by the names of `QUERIES`
    timeout: float
    headers: Mapping[str, str]
    _http: Http = field(init=False)

    def __post_init__(self) -> None:
        self._http = Http(self.headers)

    async def ask(self, question: Question) -> Reading:
        place, numbers = f"{self.url.rstrip('/')}/api/v1/query", []
        async with _within(self.timeout, place):
            for key in QUERIES:
                query = question.filled_in(self.queries[key])
                status, said = await self._http.get(place, {"query": query, "time": f"{question.until:.3f}"})
                if status not in (200, 400, 422, 503):  # the others are not Prometheus's own
                    remedy = _UNKNOWN if status in _KEPT_OUT else "is it Prometheus's address?"
                    raise NoReadingError(f"{place} answered {status}: {quoted(said)}; {remedy}")
                numbers.append(sample(key, said))
        return Reading(*numbers)

    async def aclose(self) -> None:
        await self._http.aclose()


class Http:
    """Requests with the user's headers, and small answers. The client is made with the first one, without a proxy."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._client: httpx.AsyncClient | None = None

    async def post(self, url: str, body: bytes) -> tuple[int, bytes]:
        return await self._exchange("POST", url, content=body, headers={"Content-Type": "application/json"})

    async def get(self, url: str, parameters: Mapping[str, str]) -> tuple[int, bytes]:
        return await self._exchange("GET", url, params=dict(parameters), headers={})

    async def _exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes | None = None,
        params: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        if self._client is None:
            self._client = httpx.AsyncClient(trust_env=False, timeout=None, follow_redirects=False)
        # As it is: what a small answer unpacks to may be large.
        told = httpx.Headers(dict(self._headers))
        told.update({"Accept": "application/json", "Accept-Encoding": "identity", **headers})
        try:
            async with self._client.stream(method, url, content=content, params=params, headers=told) as response:
                return response.status_code, await _body(url, response)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise NoReadingError(
                f"{url}: {str(error) or type(error).__name__}; is it there, and reachable from this machine?"
            ) from error

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()


async def _body(url: str, response: httpx.Response) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise NoReadingError(f"{url} answered packed, and was asked not to; let it answer plain JSON")
    parts, size = [], 0
    async for part in response.aiter_raw():
        parts.append(part)
        size += len(part)
        if size > OUTPUT_LIMIT:
            raise NoReadingError(f"{url} answered with more than {OUTPUT_LIMIT} bytes; let it answer the counts only")
    return b"".join(parts)


@contextlib.asynccontextmanager
async def _within(timeout: float, whose: str) -> AsyncIterator[None]:
    """All of an exchange within so many seconds, or a `NoReadingError`."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise NoReadingError(
            f"{whose} did not answer within {timeout:g} s; raise the metric's timeout if it needs longer"
        ) from None
