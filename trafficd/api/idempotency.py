"""Idempotency-Key: the same key and body get the same answer, another body 422.

A retry that comes while the first request is still at work waits for its answer. Answers of 5xx are not
kept, since a retry may do better.
"""

from __future__ import annotations

import asyncio
import hashlib
import re

from aiohttp import web
from aiohttp.typedefs import Middleware

from trafficd.api.problems import BadRequestError, Handler
from trafficd.errors import InvalidError
from trafficd.store.sqlite import Answer, SqliteJournal

_KEY = re.compile(r"[\x21-\x7e]{1,200}")


class Idempotency:
    """A middleware over the answers that the journal keeps."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._journal = journal
        self._busy: dict[str, asyncio.Lock] = {}

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = request.headers.get("Idempotency-Key")
        if key is None or request.method != "POST":
            return await handler(request)
        if not _KEY.fullmatch(key):
            raise BadRequestError("Idempotency-Key must be 1 to 200 visible ASCII characters")
        digest = hashlib.sha256(request.path.encode() + b"\0" + await request.read()).hexdigest()
        request["idempotency"] = f"{key}:{digest}"  # a rollout remembers it, in case we die before the answer
        lock = self._busy.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                return await self._answer(key, digest, request, handler)
        finally:
            if not lock.locked():
                self._busy.pop(key, None)

    async def _answer(self, key: str, digest: str, request: web.Request, handler: Handler) -> web.StreamResponse:
        known = await self._journal.answer(key)
        if known is not None and known.digest != digest:
            raise InvalidError("this Idempotency-Key was used for another request; use a new key for a new one")
        if known is not None:
            kind = "application/json" if known.status < 400 else "application/problem+json"
            return web.Response(
                status=known.status, body=known.body, content_type=kind, headers={"Idempotency-Replayed": "true"}
            )
        # A caller that hangs up and asks again must find the work done, so it is not cancelled with it.
        response = await asyncio.shield(asyncio.ensure_future(self._keep(key, digest, request, handler)))
        return response

    async def _keep(self, key: str, digest: str, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if isinstance(response, web.Response) and response.status < 500 and isinstance(response.body, bytes):
            await self._journal.keep_answer(key, Answer(digest, response.status, response.body))
        return response


def middleware(journal: SqliteJournal) -> Middleware:
    idempotency = Idempotency(journal)

    @web.middleware
    async def keep(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await idempotency(request, handler)

    return keep
