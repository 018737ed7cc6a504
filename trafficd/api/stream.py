"""Server-sent events of a rollout, resumable with Last-Event-ID: the id is the journal's sequence number."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import web

from trafficd.api.problems import BadRequestError
from trafficd.api.views import event_view
from trafficd.engine import Engine
from trafficd.store.sqlite import SqliteJournal

_HEARTBEAT = 15.0  # s between comments on a quiet stream, so that proxies do not close it
_RETRY = 1000  # ms after which a client that lost the stream comes back


def last_event_id(request: web.Request) -> int:
    """Where to resume. Raises `BadRequestError` when the header is no sequence number."""
    text = request.headers.get("Last-Event-ID", "0").strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequestError(f"Last-Event-ID {text[:40]!r} is not a sequence number of this journal")
    return int(text)


async def stream(request: web.Request, engine: Engine, journal: SqliteJournal, rollout_id: str) -> web.StreamResponse:
    """Send the rollout's events as they are journalled; ends when the rollout has ended."""
    after = last_event_id(request)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    await response.prepare(request)
    await response.write(f"retry: {_RETRY}\n\n".encode())
    while True:
        live = _live(engine, rollout_id)
        for entry in await journal.rollout(rollout_id, after):
            after = entry.seq
            view = event_view(entry)
            data = orjson.dumps(view.model_dump(mode="json")).decode()
            await response.write(f"id: {entry.seq}\nevent: {view.type}\ndata: {data}\n\n".encode())
        if not live:
            break
        try:
            await asyncio.wait_for(_changed(engine), _HEARTBEAT)
        except TimeoutError:
            await response.write(b": still here\n\n")
    await response.write_eof()
    return response


def _live(engine: Engine, rollout_id: str) -> bool:
    live = engine.state.live
    return live is not None and live.id == rollout_id


async def _changed(engine: Engine) -> None:
    async with engine.changed:
        await engine.changed.wait()
