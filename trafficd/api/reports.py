"""The endpoint of reports: all that there is to say about one rollout, as JSON or as a page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from trafficd.api.endpoints import Endpoint, answer, part
from trafficd.api.report_schema import ReportView
from trafficd.api.report_view import report_view
from trafficd.api.verifications import verification_view
from trafficd.api.views import past_rollout
from trafficd.core.model import Rollout
from trafficd.errors import InvalidError, StateError
from trafficd.operate import Operator
from trafficd.report.course import Record
from trafficd.report.shelf import Shelf
from trafficd.store.sqlite import SqliteJournal
from trafficd.verify.verifier import Verifier

HEADERS = {
    # What it shows came from clients and servers: nothing may run in it, and nothing be loaded by it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class ReportApi:
    """`owner` finds who has a rollout that matters now; `shelf` None: a daemon that keeps no reports."""

    operators: Mapping[str, Operator]
    journal: SqliteJournal
    owner: Callable[[str], Operator | None]
    shelf: Shelf | None
    verifier: Verifier | None

    async def report(self, request: web.Request) -> web.StreamResponse:
        page = wants_page(request.query.get("format"), request.headers.get("Accept", ""))
        view = await self._view(part(request, "rollout"))
        if not page:
            return answer(view, headers={"Vary": "Accept"})
        from trafficd.api.report_page import page as rendered  # most daemons are never asked for one

        body = rendered(view, time.time())
        return web.Response(text=body, content_type="text/html", charset="utf-8", headers={**HEADERS, "Vary": "Accept"})

    async def _view(self, name: str) -> ReportView:
        entries = await self.journal.rollout(name)
        operator = self.owner(name)
        rollout = past_rollout(entries, name) if operator is None else operator.rollout(name)
        record, broken = None, ""
        if self.shelf is not None:
            try:
                record = await self.shelf.record(name)
            except StateError as error:
                broken = str(error)
        verification = None if self.verifier is None else await self.verifier.of(rollout.service, name)
        return report_view(
            rollout,
            entries,
            record,
            None if verification is None else verification_view(verification),
            broken or unjudged(rollout, record, self.operators.get(rollout.service)),
            time.time(),
        )

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of reports."""
        formats = {"format": {"enum": ["json", "html"]}}
        summary = "All about one rollout, also as a page for people (Accept: text/html, or format=html)"
        return [
            Endpoint("GET", "/v1/rollouts/{rollout}/report", summary, self.report, ReportView, problems=(404, 422),
                     query=formats, also=("text/html",)),
        ]  # fmt: skip


def wants_page(asked: str | None, accepts: str) -> bool:
    """Whether a browser asks, or somebody who says so. Raises `InvalidError`."""
    if asked is not None:
        if asked not in ("json", "html"):
            raise InvalidError(f"format {asked[:20]!r}: there is json and html")
        return asked == "html"
    kinds = [kind.partition(";")[0].strip().lower() for kind in accepts.split(",")]
    return "text/html" in kinds and "application/json" not in kinds


def unjudged(rollout: Rollout, record: Record | None, operator: Operator | None) -> str:
    """Why nothing of a rollout was judged, as far as that is known."""
    policy = rollout.policy
    if record is None and operator is not None and not operator.engine.judged:
        return "nothing is judged, because caddy.access_log is not set, or `trafficd plan` says why not"
    if not policy.beside and not policy.watch_time:
        return (
            f"a rollout of this kind ({rollout.strategy}) is judged while its new instances are watched, and "
            "watch_time is 0; strategy canary judges a share of the traffic"
        )
    if policy.beside and rollout.stage is None:
        return "its version never got a share of the traffic"
    if not policy.beside and len(rollout.touched) == 0:
        return "no instance of its version ever had traffic"
    if rollout.live:
        return "nothing is judged yet"
    return (
        "nothing is kept of it: old and new version never served beside each other, or it was judged by an earlier "
        "trafficd, or its file was removed"
    )
