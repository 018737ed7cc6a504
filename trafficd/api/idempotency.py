"""Idempotency-Key: the same key and body get the same answer, another body 422.

A retry that comes while the first request is still at work waits for its answer. Answers of 5xx are not
kept, since a retry may do better. An abort waits for nothing, so not for this either: where the journal
does not answer, it is done without.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware

from trafficd.api.problems import BadRequestError, Handler
from trafficd.errors import InvalidError, TrafficdError
from trafficd.store.sqlite import Answer, SqliteJournal

log = logging.getLogger("trafficd.api")

_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_PATIENCE = 1.0  # s that an abort waits for the journal's word on its key

IDENTITY = web.RequestKey("identity", str)
USED = "this Idempotency-Key was used for another request; use a new key for a new one"


class Idempotency:
    """A middleware over the answers that the journal keeps."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._journal = journal
        self._busy: dict[str, tuple[asyncio.Lock, int]] = {}  # with how many hold it or wait for it

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = request.headers.get("Idempotency-Key")
        if key is None or request.method != "POST":
            return await handler(request)
        if not _KEY.fullmatch(key):
            raise BadRequestError("Idempotency-Key must be 1 to 200 visible ASCII characters")
        digest = hashlib.sha256(request.path.encode() + b"\0" + await request.read()).hexdigest()
        request[IDENTITY] = f"{key}:{digest}"  # a rollout remembers it, in case we die before the answer
        lock, users = self._busy.get(key, (asyncio.Lock(), 0))
        self._busy[key] = lock, users + 1
        try:
            async with lock:
                return await self._answer(key, digest, request, handler)
        finally:
            lock, users = self._busy.pop(key)
            if users > 1:
                self._busy[key] = lock, users - 1

    async def _answer(self, key: str, digest: str, request: web.Request, handler: Handler) -> web.StreamResponse:
        known = await self._known(key, urgent=_urgent(request))
        if known is not None and known.digest != digest:
            raise InvalidError(USED)
        if known is not None:
            return _replayed(request, known)
        # A caller that hangs up and asks again must find the work done, so it is not cancelled with it.
        return await asyncio.shield(asyncio.ensure_future(self._keep(key, digest, request, handler)))

    async def _known(self, key: str, *, urgent: bool) -> Answer | None:
        try:
            return await asyncio.wait_for(self._journal.answer(key), _PATIENCE if urgent else None)
        except (TrafficdError, TimeoutError):
            if not urgent:
                raise
            return None

    async def _keep(self, key: str, digest: str, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if isinstance(response, web.Response) and response.status < 500 and isinstance(response.body, bytes):
            answer = Answer(digest, response.status, response.body)
            try:
                await asyncio.wait_for(self._journal.keep_answer(key, answer), _PATIENCE if _urgent(request) else None)
            except (TrafficdError, TimeoutError) as error:
                # What was asked is done, and said so; only a retry will not be recognized.
                log.error("the answer to Idempotency-Key %s was not kept: %s", key, error)
        return response


def _urgent(request: web.Request) -> bool:
    return request.path.endswith("/abort")


def _replayed(request: web.Request, known: Answer) -> web.Response:
    headers = {"Idempotency-Replayed": "true"}
    if known.status == 201 and request.path.endswith(("/rollouts", "/rollback", "/verifications")):
        kind = "verifications" if request.path.endswith("/verifications") else "rollouts"
        headers["Location"] = f"/v1/{kind}/{orjson.loads(known.body)['id']}"
    media = "application/json" if known.status < 400 else "application/problem+json"
    return web.Response(status=known.status, body=known.body, content_type=media, headers=headers)


def middleware(journal: SqliteJournal) -> Middleware:
    """Answers to repeated keys, in front of the handlers."""
    idempotency = Idempotency(journal)

    @web.middleware
    async def keep(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await idempotency(request, handler)

    return keep
