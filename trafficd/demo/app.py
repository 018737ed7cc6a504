"""The sample application of the demo, the tests and the benchmarks: what a well-behaved instance does.

    python -m trafficd.demo.app PORT VERSION [--host ADDRESS] [--warm-up SECONDS] [--needs HOST:PORT]
                                             [--healthy-for SECONDS] [--crash-after SECONDS] [--stops-in SECONDS]
                                             [--answers STATUS] [--without PATH]

Every request is answered 200 (or STATUS), whatever its method, path and body, and PATH 404; `/healthz` 503 until it is
warm, and while nothing listens where it has what it needs; `/slow` takes `?seconds=`; `/ws` echoes. TERM stops it as an
application should stop: no new connections, WebSockets closed with a close frame (1001), open requests answered to
their end, and whatever else it has to do then, which takes SECONDS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import time
import weakref
from dataclasses import dataclass

from aiohttp import WSCloseCode, web

_GRACE = 30.0  # s that open requests have after TERM
_REACH = 0.5  # s for reaching what it needs


@dataclass(frozen=True)
class Behaviour:
    """How the instance behaves. Times in seconds from its start; None: never."""

    version: str
    instance: str = ""
    warm_up: float = 0.0
    healthy_for: float | None = None
    crash_after: float | None = None
    needs: str | None = None  # a host and port without which it cannot do its work
    stops_in: float = 0.0
    answers: int = 200
    without: str | None = None  # a path that this version does not have


def build(behaviour: Behaviour) -> web.Application:
    """The application."""
    started = time.monotonic()
    headers = {"X-App-Version": behaviour.version, "X-App-Instance": behaviour.instance}
    sockets: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()

    async def health(request: web.Request) -> web.Response:
        age = time.monotonic() - started
        well = age >= behaviour.warm_up and (behaviour.healthy_for is None or age < behaviour.healthy_for)
        if well and behaviour.needs is not None and not await _is_reached(behaviour.needs):
            return web.Response(status=503, text=f"{behaviour.needs} cannot be reached", headers=headers)
        return web.Response(status=200 if well else 503, text=behaviour.version, headers=headers)

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(float(request.query.get("seconds", "1")))
        return web.Response(text=f"{behaviour.version}\n", headers=headers)

    async def websocket(request: web.Request) -> web.WebSocketResponse:
        opened = web.WebSocketResponse()
        opened.headers.update(headers)
        await opened.prepare(request)
        sockets.add(opened)
        async for message in opened:
            await opened.send_str(message.data)
        return opened

    async def close_sockets(app: web.Application) -> None:
        closing = [socket.close(code=WSCloseCode.GOING_AWAY, message=b"deploy") for socket in set(sockets)]
        await asyncio.gather(*closing, return_exceptions=True)

    async def finish(app: web.Application) -> None:
        await asyncio.sleep(behaviour.stops_in)

    async def anything(request: web.Request) -> web.Response:
        size = len(await request.read())
        status = 404 if request.path == behaviour.without else behaviour.answers
        return web.Response(status=status, text=f"{behaviour.version} {request.method} {size}\n", headers=headers)

    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_get("/healthz", health)
    app.router.add_get("/ws", websocket)
    app.router.add_route("*", "/slow", slow)
    app.router.add_route("*", "/{path:.*}", anything)
    app.on_shutdown.extend((close_sockets, finish))
    return app


async def _is_reached(place: str) -> bool:
    host, _, port = place.rpartition(":")
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_REACH):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
            return True
    return False


async def _crash(after: float) -> None:
    await asyncio.sleep(after)
    os._exit(70)  # as a crash would: nothing is closed in good order


def main() -> None:
    parser = argparse.ArgumentParser(prog="trafficd.demo.app")
    parser.add_argument("port", type=int)
    parser.add_argument("version")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--warm-up", type=float, default=0.0)
    parser.add_argument("--healthy-for", type=float)
    parser.add_argument("--crash-after", type=float)
    parser.add_argument("--needs")
    parser.add_argument("--stops-in", type=float, default=0.0)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--without")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    instance = f"{options.host}:{options.port}"
    told = {name: value for name, value in vars(options).items() if name not in ("host", "port")}
    app = build(Behaviour(instance=instance, **told))
    if options.crash_after is not None:

        async def begin(_: web.Application) -> None:
            asyncio.get_running_loop().create_task(_crash(options.crash_after))

        app.on_startup.append(begin)
    web.run_app(
        app, host=options.host, port=options.port, access_log=None, print=None, shutdown_timeout=_GRACE, backlog=1024
    )


if __name__ == "__main__":
    main()
