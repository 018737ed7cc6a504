"""Server-sent events of a rollout, resumable with Last-Event-ID: the id is the journal's sequence number."""

from __future__ import annotations

import asyncio
import logging

import orjson
from aiohttp import web

from trafficd.api.problems import BadRequestError
from trafficd.api.views import event_view
from trafficd.engine import Engine
from trafficd.errors import TrafficdError
from trafficd.store.sqlite import SqliteJournal

log = logging.getLogger("trafficd.api")

_HEARTBEAT = 15.0  # s between comments on a quiet stream, so that proxies do not close it
_RETRY = 1000  # ms after which a client that lost the stream comes back


def last_event_id(request: web.Request) -> int:
    """Where to resume. Raises `BadRequestError` when the header is no sequence number."""
    text = request.headers.get("Last-Event-ID", "0").strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequestError(f"Last-Event-ID {text[:40]!r} is not a sequence number of this journal")
    return int(text)


OPEN: web.AppKey[set[asyncio.Task[object]]] = web.AppKey("open_streams", set)


async def cut_streams(app: web.Application) -> None:
    """End every open stream, when the daemon stops: the reader comes back and goes on from its last event."""
    for task in app[OPEN]:
        task.cancel()


async def stream(request: web.Request, engine: Engine, journal: SqliteJournal, rollout_id: str) -> web.StreamResponse:
    """Send the rollout's events as they are journalled; ends when the rollout has ended."""
    after = last_event_id(request)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    await response.prepare(request)
    task = asyncio.current_task()
    assert task is not None
    request.app[OPEN].add(task)
    try:
        await response.write(f"retry: {_RETRY}\n\n".encode())
        await _send(response, engine, journal, rollout_id, after)
        await response.write_eof()
    except ConnectionError:
        log.debug("the reader of %s is gone", request.path)
    except TrafficdError as error:
        # Cut, not ended: the client then comes back and goes on from its last event.
        log.error("the events of %s: %s", rollout_id, error)
        if request.transport is not None:
            request.transport.abort()
    finally:
        request.app[OPEN].discard(task)
    return response


async def _send(
    response: web.StreamResponse, engine: Engine, journal: SqliteJournal, rollout_id: str, after: int
) -> None:
    while True:
        seen, live = engine.ledger.revision, _live(engine, rollout_id)
        for entry in await journal.rollout(rollout_id, after):
            after = entry.seq
            view = event_view(entry)
            data = orjson.dumps(view.model_dump(mode="json")).decode()
            await response.write(f"id: {entry.seq}\nevent: {view.type}\ndata: {data}\n\n".encode())
        if not live:
            return
        try:
            await asyncio.wait_for(_changed(engine, seen), _HEARTBEAT)
        except TimeoutError:
            await response.write(b": still here\n\n")


def _live(engine: Engine, rollout_id: str) -> bool:
    rollout = engine.state.named(rollout_id)
    return rollout is not None and rollout.live


async def _changed(engine: Engine, seen: int) -> None:
    """Return once there is more than was `seen`: what came while we read the journal counts as well."""
    async with engine.ledger.changed:
        await engine.ledger.changed.wait_for(lambda: engine.ledger.revision != seen)
