"""Those who are asked for a canary's metrics: an HTTP server that answers as it is told, and a tiny Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

GOOD: dict[str, Any] = {"canary": {"good": 98, "bad": 2}, "stable": {"good": 990, "bad": 10}}


@contextlib.asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """A server on loopback that answers everything by this; its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = next(address[1] for address in runner.addresses if isinstance(address, tuple))
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
        await asyncio.sleep(0)


class Prometheus:
    """Answers instant queries as the HTTP API of Prometheus says it does: {"status", "data": {"resultType", "result"}},
    values as [time, "number"]. `series`: by query; a query that is not there gives no series."""

    def __init__(self, **series: str) -> None:
        self.series = series
        self.asked: list[tuple[str, str]] = []  # query, time

    async def answer(self, request: web.Request) -> web.Response:
        if (request.method, request.path) != ("GET", "/api/v1/query"):
            return web.Response(status=404, text="404 page not found")
        query, at = request.query["query"], request.query["time"]
        self.asked.append((query, at))
        if "(" in query and not query.endswith(")"):
            error = {"status": "error", "errorType": "bad_data", "error": "parse error: unclosed left parenthesis"}
            return web.Response(status=400, body=orjson.dumps(error), content_type="application/json")
        name = query.partition("{")[0]
        found = [{"metric": {}, "value": [float(at), value]} for value in self.series.get(name, "").split()]
        answer = {"status": "success", "data": {"resultType": "vector", "result": found}}
        return web.json_response(answer)
