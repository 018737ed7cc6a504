"""The endpoints of verifications. `trafficd.verify` does the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from aiohttp import web

from trafficd.api import idempotency
from trafficd.api.endpoints import NEWEST, Endpoint, actor, answer, limit, part, read
from trafficd.api.schema import StartRollout, VerifyRollout
from trafficd.api.verify_schema import (
    FiguresView,
    LatencyView,
    LostView,
    SocketsView,
    SpanView,
    StageView,
    StartVerification,
    TallyView,
    VerificationList,
    VerificationView,
)
from trafficd.config import VerifyOverrides
from trafficd.errors import ConflictError, InvalidError, NotFoundError
from trafficd.operate import Operator
from trafficd.operate.rollouts import IfLive
from trafficd.verify.conduct import Conductor
from trafficd.verify.record import Figures, Tally, Verification
from trafficd.verify.verifier import Verifier, Wish


@dataclass(frozen=True)
class VerificationApi:
    """The handlers. `verifier` None: a daemon that has none."""

    operators: Mapping[str, Operator]
    verifier: Verifier | None

    def _verifier(self) -> Verifier:
        if self.verifier is None:
            raise ConflictError("this daemon verifies nothing")
        return self.verifier

    def _known(self, service: str) -> str:
        if service not in self.operators:
            raise NotFoundError.service(service, self.operators)
        return service

    async def start(self, request: web.Request) -> web.StreamResponse:
        wanted = await read(request, StartVerification)
        wish = Wish(wanted.version, message=wanted.message, key=request.get(idempotency.IDENTITY))
        service = self._known(wanted.service)
        conductor = await self._verifier().begin(service, wish, _overrides(wanted), actor(request))
        view = verification_view(conductor.view())
        return answer(view, 201, {"Location": f"/v1/verifications/{view.id}"})

    async def verified(self, operator: Operator, wish: Wish, wanted: StartRollout, who: str) -> Conductor:
        """The verification of a rollout that was asked for with `verify`."""
        if wanted.if_live is not IfLive.REFUSE:
            raise InvalidError(
                f'verify: with if_live = "{wanted.if_live}" nobody knows when the rollout begins; leave out one of them'
            )
        overrides = _overrides(wanted.verify) if isinstance(wanted.verify, VerifyRollout) else VerifyOverrides()
        return await self._verifier().begin(operator.state.name, wish, overrides, who)

    async def one(self, request: web.Request) -> web.StreamResponse:
        return answer(verification_view(await self._verifier().get(part(request, "verification"))))

    async def give_up(self, request: web.Request) -> web.StreamResponse:
        name = part(request, "verification")
        return answer(verification_view(await self._verifier().give_up(name, actor(request))))

    async def newest(self, request: web.Request) -> web.StreamResponse:
        service = request.query.get("service")
        if service is not None:
            self._known(service)
        found = await self._verifier().newest(service, limit(request))
        return answer(VerificationList(verifications=[verification_view(one) for one in found]))

    async def page(self, request: web.Request) -> web.StreamResponse:
        body = await self._verifier().page(part(request, "verification"))
        # What it shows came from servers: nothing may run in it, and nothing be loaded by it.
        headers = {
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            "X-Content-Type-Options": "nosniff",
        }
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of verifications."""
        one = "/v1/verifications/{verification}"
        return [
            Endpoint("POST", "/v1/verifications", "A rollout under load, with a verdict", self.start, VerificationView,
                     StartVerification, 201, (400, 404, 409, 422, 503)),
            Endpoint("GET", "/v1/verifications", "The newest verifications", self.newest, VerificationList,
                     problems=(404, 422), query=NEWEST),
            Endpoint("GET", one, "One verification, as it stands", self.one, VerificationView, problems=(404,)),
            Endpoint("POST", one + "/abort", "Give up one that is in its warm-up, or drains upstreams", self.give_up,
                     VerificationView, problems=(404, 409)),
            Endpoint("GET", one + "/page", "One that has ended, as a page for people", self.page,
                     problems=(404, 409), media="text/html"),
        ]  # fmt: skip


def _overrides(wanted: VerifyRollout) -> VerifyOverrides:
    return VerifyOverrides.model_construct(**{name: getattr(wanted, name) for name in VerifyOverrides.model_fields})


def verification_view(one: Verification) -> VerificationView:
    return VerificationView(
        id=one.id,
        service=one.service,
        version=one.version,
        state=one.state.value,
        reasons=list(one.reasons),
        notes=list(one.notes),
        address=one.address,
        actor=one.actor,
        on_fail="revert" if one.on_fail == "revert" else "report",
        started_at=one.started_at,
        ended_at=one.ended_at,
        rollout=one.rollout,
        rollout_state=one.rollout_state,
        rollback=one.rollback,
        sent=one.sent,
        lost=one.lost,
        warm_up=_figures(one.before),
        during=_figures(one.during),
        requests=[_tally(tally) for tally in one.requests],
        websockets=None
        if one.sockets is None
        else SocketsView(
            opened=one.sockets.opened, closed=one.sockets.closed, cut=one.sockets.cut, failed=one.sockets.failed
        ),
        losses=[LostView(**asdict(lost)) for lost in one.losses],
        stages=[StageView(stage=begun.stage.value, at=begun.at) for begun in one.stages],
        steps=[
            SpanView(step=span.what, upstream=span.upstream, begin=span.begin, end=span.end, back=span.back)
            for span in one.spans
        ],
    )


def _figures(part: Figures | None) -> FiguresView | None:
    if part is None:
        return None
    return FiguresView(
        sent=part.sent,
        answered=part.answered,
        lost=part.lost,
        rps=part.rps,
        status=_counts(part.status),
        errors=dict(part.errors),
        latency=None if part.latency is None else LatencyView(**asdict(part.latency)),
        answered_by={value: _counts(counts) for value, counts in part.by.items()},
        valid=part.valid,
        why=part.why,
    )


def _tally(tally: Tally) -> TallyView:
    return TallyView(
        request=tally.request,
        compatible=tally.compatible,
        expected=list(tally.expected),
        warm_up=_counts(tally.before),
        rollout=_counts(tally.during),
    )


def _counts(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(status): count for status, count in counts.items()}
