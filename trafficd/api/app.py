"""The aiohttp application: the endpoints of the API over the operators of each service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import orjson
from aiohttp import web

import trafficd
from proxy.sites import Sites
from trafficd.api import guard as guarding
from trafficd.api import idempotency, schema, views
from trafficd.api.endpoints import BODY_LIMIT, NEWEST, Endpoint, actor, answer, limit, openapi, part, read
from trafficd.api.forecast import ForecastApi
from trafficd.api.problems import problems
from trafficd.api.reports import ReportApi
from trafficd.api.sites import SiteApi
from trafficd.api.stream import OPEN, cut_streams, stream
from trafficd.api.verifications import VerificationApi
from trafficd.api.versions import VersionApi
from trafficd.config import RolloutOverrides
from trafficd.core.events import RolloutQueued, RolloutStarted
from trafficd.errors import ConfigError, ConflictError, InvalidError, NotFoundError
from trafficd.operate import Operator
from trafficd.preview import Preview
from trafficd.report.shelf import Shelf
from trafficd.store.sqlite import SqliteJournal
from trafficd.verify.verifier import Verifier, Wish


class Upkeep(Protocol):
    """What concerns the daemon as a whole and its configuration file."""

    def reload(self) -> None:
        """Take up a changed configuration."""
        ...

    async def preview(self) -> Preview:
        """What that would write into Caddy's configuration."""
        ...

    def caddyfile(self, service: str) -> str:
        """A service's snippet for a Caddyfile."""
        ...


@dataclass(frozen=True)
class Api:
    """The handlers. Each reads its request, asks an operator, and answers."""

    operators: Mapping[str, Operator]
    journal: SqliteJournal
    upkeep: Upkeep | None = None
    sites: Sites | None = None
    verifier: Verifier | None = None
    access_log: Path | None = None
    shelf: Shelf | None = None
    started_at: float = field(default_factory=time.time)

    # -- services --------------------------------------------------------------------------------------

    def _operator(self, request: web.Request) -> Operator:
        return self._named(part(request, "service"))

    def _named(self, name: str) -> Operator:
        operator = self.operators.get(name)
        if operator is None:
            raise NotFoundError.service(name, self.operators)
        return operator

    async def _view(self, operator: Operator) -> schema.ServiceView:
        return views.service_view(operator.engine, await operator.in_flight())

    async def services(self, request: web.Request) -> web.StreamResponse:
        listed = await asyncio.gather(*(self._view(operator) for operator in self.operators.values()))
        return answer(schema.ServiceList(services=list(listed)))

    async def service(self, request: web.Request) -> web.StreamResponse:
        return answer(await self._view(self._operator(request)))

    async def add_upstream(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        wanted = await read(request, schema.AddUpstream)
        self._refuse_foreign(operator, wanted.dial, wanted.spare_dial)
        await operator.add_upstream(wanted.id, wanted.dial, wanted.version, wanted.spare_dial, group=wanted.group)
        return answer(await self._upstream(operator, wanted.id), 201)

    def _refuse_foreign(self, operator: Operator, *dials: str | None) -> None:
        """Two services must not share an address: what is open there would be nobody's."""
        for other in self.operators.values():
            for upstream in other.state.upstreams if other is not operator else ():
                shared = other.taken(other.state, upstream) & {*dials}
                if shared:
                    raise ConflictError(
                        f"{shared.pop()} is already an address of upstream {upstream} of service {other.state.name}"
                    )

    async def _upstream(self, operator: Operator, name: str) -> schema.UpstreamView:
        view = await self._view(operator)
        for upstream in view.upstreams:
            if upstream.id == name:
                return upstream
        raise NotFoundError(f"upstream {name!r} was removed at the same moment")

    async def remove_upstream(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        wanted = await read(request, schema.RemoveUpstream)
        force = wanted.force or request.query.get("force") in ("1", "true")
        await operator.remove_upstream(part(request, "upstream"), force=force)
        return answer(await self._view(operator))

    async def drain(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        wanted = await read(request, schema.Drain)
        report = await operator.drain(
            part(request, "upstream"),
            timeout=wanted.timeout,
            wait=wanted.wait,
            force=wanted.force,
            actor=actor(request),
        )
        return answer(
            schema.DrainView(drained=report.drained, in_flight=report.in_flight, cut=views.cut_view(report.cut))
        )

    async def ready(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        wanted = await read(request, schema.Ready)
        name = part(request, "upstream")
        self._refuse_foreign(operator, wanted.dial)
        await operator.ready(name, version=wanted.version, dial=wanted.dial, wait=wanted.wait, actor=actor(request))
        return answer(await self._upstream(operator, name))

    async def canary(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        wanted = await read(request, schema.Canary)
        await operator.canary(wanted.percent, actor=actor(request))
        return answer(await self._view(operator))

    async def hold(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        await read(request, schema.Nothing)
        await operator.hold(actor=actor(request))
        return answer(await self._view(operator))

    async def release(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        await read(request, schema.Nothing)
        await operator.release(actor=actor(request))
        return answer(await self._view(operator))

    async def freeze(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        wanted = await read(request, schema.FreezeService)
        until = wanted.until.timestamp() if wanted.until else None
        if wanted.duration is not None:
            until = time.time() + wanted.duration
        await operator.freeze(wanted.reason, until, actor=actor(request))
        return answer(await self._view(operator))

    async def thaw(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        await read(request, schema.Nothing)
        await operator.thaw(actor=actor(request))
        return answer(await self._view(operator))

    async def maintenance(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        wanted = await read(request, schema.Maintain)
        if wanted.on:
            await operator.begin_maintenance(wanted.reason, actor=actor(request))
        else:
            await operator.end_maintenance(actor=actor(request))
        return answer(await self._view(operator))

    async def leave(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        await read(request, schema.Nothing)
        await operator.leave(actor=actor(request))
        return answer(await self._view(operator))

    async def join(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        await read(request, schema.Nothing)
        await operator.join(actor=actor(request))
        return answer(await self._view(operator))

    # -- rollouts --------------------------------------------------------------------------------------

    async def start_rollout(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        wanted = await read(request, schema.StartRollout, tables=("verify",), lists=("steps",))
        overrides = RolloutOverrides.model_construct(
            **{name: getattr(wanted, name) for name in RolloutOverrides.model_fields}
        )
        begun = await self._begun(operator, request)
        if begun is not None:
            return begun
        key = request.get(idempotency.IDENTITY)
        if wanted.verify is not False:
            wish = Wish(wanted.version, wanted.strategy, overrides, wanted.message, key)
            conductor = await self._verifications.verified(operator, wish, wanted, actor(request))
            view = views.current_view(operator.engine, await conductor.begun)
            return _created(schema.StartedView(**view.model_dump(), verification=conductor.record.id))
        rollout = await operator.start(
            wanted.version,
            wanted.strategy,
            overrides,
            actor=actor(request),
            message=wanted.message,
            key=key,
            if_live=wanted.if_live,
        )
        return _created(_started(views.current_view(operator.engine, rollout)))

    @property
    def _verifications(self) -> VerificationApi:
        return VerificationApi(self.operators, self.verifier)

    async def _begun(self, operator: Operator, request: web.Request) -> web.Response | None:
        """The answer about the rollout that this very request asked for, where the daemon ended before it answered."""
        key = request.get(idempotency.IDENTITY)
        if key is None:
            return None
        for entry in await self.journal.load(operator.state.name):
            event = entry.event
            if not isinstance(event, RolloutQueued | RolloutStarted) or event.key is None:
                continue
            if event.key == key:
                return _created(_started(await self._rollout(event.rollout)))
            if event.key.rpartition(":")[0] == key.rpartition(":")[0]:
                raise InvalidError(idempotency.USED)
        return None

    async def rollback(self, request: web.Request) -> web.StreamResponse:
        operator = self._operator(request)
        await read(request, schema.Nothing)
        begun = await self._begun(operator, request)
        if begun is not None:
            return begun
        rollout = await operator.rollback(actor=actor(request), key=request.get(idempotency.IDENTITY))
        return _created(_started(views.rollout_view(rollout)))

    def _owner(self, rollout_id: str) -> Operator | None:
        """The operator whose newest rollout this is, or the one that waits behind it."""
        return next((one for one in self.operators.values() if one.state.named(rollout_id) is not None), None)

    async def _live(self, request: web.Request) -> tuple[Operator, str]:
        rollout_id = part(request, "rollout")
        operator = self._owner(rollout_id)
        if operator is None:
            past = views.past_rollout(await self.journal.rollout(rollout_id), rollout_id)
            raise ConflictError(f"rollout {rollout_id} has ended: {past.phase}")
        return operator, rollout_id

    async def _rollout(self, rollout_id: str) -> schema.RolloutView:
        operator = self._owner(rollout_id)
        if operator is not None:
            return views.current_view(operator.engine, operator.rollout(rollout_id))
        entries = await self.journal.rollout(rollout_id)
        return views.rollout_view(views.past_rollout(entries, rollout_id))

    async def rollout(self, request: web.Request) -> web.StreamResponse:
        return answer(await self._rollout(part(request, "rollout")))

    async def rollouts(self, request: web.Request) -> web.StreamResponse:
        service = request.query.get("service")
        if service is not None:
            self._named(service)
        ids = await self.journal.rollouts(service, limit(request))
        return answer(schema.RolloutList(rollouts=[await self._rollout(name) for name in ids]))

    async def rollout_events(self, request: web.Request) -> web.StreamResponse:
        rollout_id = part(request, "rollout")
        operator = self._owner(rollout_id)
        if operator is None:
            past = views.past_rollout(await self.journal.rollout(rollout_id), rollout_id)
            operator = self._named(past.service)
        return await stream(request, operator.engine, self.journal, rollout_id)

    async def pause(self, request: web.Request) -> web.StreamResponse:
        operator, rollout_id = await self._live(request)
        await read(request, schema.Nothing)
        await operator.pause(rollout_id, actor=actor(request))
        return answer(await self._rollout(rollout_id))

    async def resume(self, request: web.Request) -> web.StreamResponse:
        operator, rollout_id = await self._live(request)
        await read(request, schema.Nothing)
        await operator.resume(rollout_id, actor=actor(request))
        return answer(await self._rollout(rollout_id))

    async def promote(self, request: web.Request) -> web.StreamResponse:
        operator, rollout_id = await self._live(request)
        wanted = await read(request, schema.PromoteRollout)
        await operator.promote(rollout_id, gate=wanted.gate, everything=wanted.everything, actor=actor(request))
        return answer(await self._rollout(rollout_id))

    async def abort(self, request: web.Request) -> web.StreamResponse:
        operator, rollout_id = await self._live(request)
        wanted = await read(request, schema.AbortRollout)
        warning = await operator.abort(rollout_id, revert=wanted.revert, actor=actor(request))
        view = await self._rollout(rollout_id)
        return answer(schema.AbortView(**view.model_dump(), warning=warning))

    # -- the daemon ------------------------------------------------------------------------------------

    async def events(self, request: web.Request) -> web.StreamResponse:
        service = request.query.get("service")
        if service is not None:
            self._named(service)
        entries = await self.journal.recent(limit(request), service)
        return answer(schema.EventList(events=[views.event_view(entry) for entry in entries]))

    async def healthz(self, request: web.Request) -> web.StreamResponse:
        lines = [line for op in self.operators.values() for line in op.engine.trouble.ails()]
        ok = not lines
        # Without a token only whether it is well: the lines name paths and addresses.
        trouble = [] if request.get(guarding.STRANGER) else lines
        view = schema.HealthView(
            ok=ok,
            version=trafficd.__version__,
            services=len(self.operators),
            started_at=self.started_at,
            trouble=trouble,
        )
        return answer(view, 200 if ok else 503)

    async def reload(self, request: web.Request) -> web.StreamResponse:
        await read(request, schema.Nothing)
        try:
            self._upkeep.reload()
        except ConfigError as error:
            raise InvalidError(str(error)) from error
        return answer(schema.Reloading(), 202)

    @property
    def _upkeep(self) -> Upkeep:
        if self.upkeep is None:
            raise ConflictError("this daemon has no configuration of its own")
        return self.upkeep

    async def plan(self, request: web.Request) -> web.StreamResponse:
        try:
            return answer(views.preview_view(await self._upkeep.preview()))
        except ConfigError as error:
            raise InvalidError(str(error)) from error

    async def caddyfile(self, request: web.Request) -> web.StreamResponse:
        name = self._operator(request).state.name
        return answer(schema.SnippetView(service=name, snippet=self._upkeep.caddyfile(name)))

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        document = openapi(self.endpoints(), trafficd.__version__)
        return web.Response(body=orjson.dumps(document), content_type="application/json")

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of the API."""
        service, rollout = "/v1/services/{service}", "/v1/rollouts/{rollout}"
        upstream = service + "/upstreams/{upstream}"
        asked, changed = (404,), (400, 404, 409, 422, 503)
        view = schema.RolloutView
        return [
            Endpoint("GET", "/v1/services", "All services and their state", self.services, schema.ServiceList),
            Endpoint("GET", service, "One service and its state", self.service, schema.ServiceView, problems=asked),
            Endpoint("POST", service + "/upstreams", "Add an upstream", self.add_upstream, schema.UpstreamView,
                     schema.AddUpstream, 201, changed),
            Endpoint("DELETE", upstream, "Remove an upstream", self.remove_upstream, schema.ServiceView,
                     schema.RemoveUpstream, problems=changed, query={"force": {"enum": ["1", "true"]}}),
            Endpoint("POST", upstream + "/drain", "Take an upstream out of traffic", self.drain, schema.DrainView,
                     schema.Drain, problems=changed),
            Endpoint("POST", upstream + "/ready", "Put an upstream into traffic, after its gate", self.ready,
                     schema.UpstreamView, schema.Ready, problems=(*changed, 504)),
            Endpoint("POST", service + "/rollouts", "Begin a rollout, or queue it", self.start_rollout,
                     schema.StartedView, schema.StartRollout, 201, changed),
            Endpoint("POST", service + "/rollback", "Begin a rollout back", self.rollback, schema.StartedView,
                     schema.Nothing, 201, changed),
            Endpoint("PUT", service + "/canary", "Set the canary's share", self.canary, schema.ServiceView,
                     schema.Canary, problems=changed),
            Endpoint("POST", service + "/hold", "Let requests wait", self.hold, schema.ServiceView, schema.Nothing,
                     problems=changed),
            Endpoint("POST", service + "/release", "Let waiting requests go", self.release, schema.ServiceView,
                     schema.Nothing, problems=changed),
            Endpoint("POST", service + "/freeze", "Let no rollout begin", self.freeze, schema.ServiceView,
                     schema.FreezeService, problems=changed),
            Endpoint("POST", service + "/thaw", "Let rollouts begin again", self.thaw, schema.ServiceView,
                     schema.Nothing, problems=changed),
            Endpoint("GET", "/v1/rollouts", "The newest rollouts", self.rollouts, schema.RolloutList,
                     problems=(404, 422), query=NEWEST),
            Endpoint("GET", rollout, "One rollout", self.rollout, view, problems=asked),
            Endpoint("GET", rollout + "/events", "A rollout's events as they happen", self.rollout_events,
                     problems=(400, 404), media="text/event-stream"),
            Endpoint("POST", rollout + "/pause", "Begin no further upstream", self.pause, view, schema.Nothing,
                     problems=changed),
            Endpoint("POST", rollout + "/resume", "Go on", self.resume, view, schema.Nothing, problems=changed),
            Endpoint("POST", rollout + "/promote", "Go on at a gate, or give the new version all traffic",
                     self.promote, view, schema.PromoteRollout, problems=changed),
            Endpoint("POST", rollout + "/abort", "All traffic to the old version, at once", self.abort,
                     schema.AbortView, schema.AbortRollout, problems=changed),
            Endpoint("GET", "/v1/events", "The newest events of the journal", self.events, schema.EventList,
                     problems=(404, 422), query=NEWEST),
            Endpoint("POST", service + "/maintenance", "Let Caddy answer by itself, or end that", self.maintenance,
                     schema.ServiceView, schema.Maintain, problems=changed),
            Endpoint("POST", service + "/leave", "Let Caddy go on with plain upstreams", self.leave,
                     schema.ServiceView, schema.Nothing, problems=changed),
            Endpoint("POST", service + "/join", "Steer the service again", self.join,
                     schema.ServiceView, schema.Nothing, problems=changed),
            Endpoint("GET", service + "/caddyfile", "The snippet for a Caddyfile", self.caddyfile, schema.SnippetView,
                     problems=(404, 409)),
            Endpoint("GET", "/v1/plan", "What would be written into Caddy's configuration", self.plan,
                     schema.PreviewView, problems=(409, 422, 503)),
            Endpoint("POST", "/v1/reload", "Take up a changed configuration", self.reload, schema.Reloading,
                     schema.Nothing, 202, (409, 422)),
            Endpoint("GET", "/healthz", "Is the daemon well?", self.healthz, schema.HealthView, ill=503),
            Endpoint("GET", "/openapi.json", "This document", self.openapi),
            *VersionApi(self._operator, self._view).endpoints(),
            *SiteApi(self.operators, self.sites).endpoints(),
            *self._verifications.endpoints(),
            *ForecastApi(self.operators, self.access_log).endpoints(),
            *ReportApi(self.operators, self.journal, self._owner, self.shelf, self.verifier).endpoints(),
        ]  # fmt: skip


def _started(view: schema.RolloutView) -> schema.StartedView:
    return schema.StartedView(**view.model_dump())


def _created(view: schema.StartedView) -> web.Response:
    return answer(view, 201, {"Location": f"/v1/rollouts/{view.id}"})


def build(
    operators: Mapping[str, Operator],
    journal: SqliteJournal,
    guard: guarding.Guard | None,
    upkeep: Upkeep | None = None,
    sites: Sites | None = None,
    verifier: Verifier | None = None,
    access_log: Path | None = None,
    shelf: Shelf | None = None,
) -> web.Application:
    """The application, ready for a runner."""
    api = Api(operators, journal, upkeep, sites, verifier, access_log, shelf)
    app = web.Application(
        middlewares=[problems, guarding.middleware(guard), idempotency.middleware(journal), problems],
        client_max_size=BODY_LIMIT,
    )
    app[OPEN] = set()
    app.on_shutdown.append(cut_streams)
    for endpoint in api.endpoints():
        app.router.add_route(endpoint.method, endpoint.path, endpoint.handler)
    return app
