"""From the engine's state to the API's answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from trafficd.api import schema
from trafficd.core import queue, stages
from trafficd.core.analysis import Analysis
from trafficd.core.events import Event
from trafficd.core.machine import fold
from trafficd.core.model import Cut, Freeze, Maintenance, Phase, Rollout, Service, StepRecord, Upstream, Wait
from trafficd.core.place import address
from trafficd.engine import Engine
from trafficd.errors import NotFoundError
from trafficd.ports import Entry
from trafficd.preview import Preview
from trafficd.store.codec import as_dict


def service_view(engine: Engine, in_flight: Mapping[str, int | None]) -> schema.ServiceView:
    """Everything about one service, now."""
    state = engine.state
    waits = [wait_view(wait) for wait in engine.waits] if state.live else []
    waits += [wait_view(wait) for wait in _gates(engine)]
    shares = engine.parts.pool.shares()
    total = sum(shares.values())
    return schema.ServiceView(
        name=state.name,
        stable=state.stable,
        held=state.held,
        maintenance=_maintenance_view(state.maintenance),
        left=state.left,
        canary_percent=state.canary_percent,
        shares=state.parts(),
        pins=dict(state.pins),
        analysis=None if engine.analysis is None else _analysis_view(engine.analysis, current=engine.judging),
        freeze=_freeze_view(state.freeze),
        upstreams=[_upstream_view(engine, upstream, shares, total, in_flight) for upstream in state.upstreams.values()],
        rollout=rollout_view(state.rollout, waits) if state.rollout else None,
        queued=rollout_view(state.pending, queue_waits(state)) if state.pending else None,
        waits=waits,
        panic=engine.panic,
        trouble=engine.trouble.lines(),
    )


def _analysis_view(analysis: Analysis, *, current: bool) -> schema.AnalysisView:
    metrics = [
        schema.MetricView(
            name=one.name,
            evidence=one.evidence,
            canary_total=one.canary.total,
            canary_bad=one.canary.bad,
            stable_total=one.stable.total,
            stable_bad=one.stable.bad,
        )
        for one in analysis.metrics
    ]
    return schema.AnalysisView(
        verdict=analysis.verdict.value, why=analysis.why, current=current, needed=analysis.needed, metrics=metrics
    )


def _gates(engine: Engine) -> Iterator[Wait]:
    """The gates of a `ready` by hand."""
    for upstream in engine.state.upstreams.values():
        gating = upstream.gating
        if gating is not None:
            healthy = engine.parts.min_healthy_time if gating.swapped else 0.0
            what = f"{upstream.id} to be healthy" + (f" for {healthy:g} s without a break" if healthy else "")
            until = gating.since + engine.parts.healthy_deadline
            yield Wait(upstream.id, what, gating.since, until, gating.since + healthy)


def _maintenance_view(maintenance: Maintenance | None) -> schema.MaintenanceView | None:
    if maintenance is None:
        return None
    return schema.MaintenanceView(reason=maintenance.reason, since=maintenance.since)


def _freeze_view(freeze: Freeze | None) -> schema.FreezeView | None:
    if freeze is None or not freeze.holds(time.time()):
        return None
    return schema.FreezeView(reason=freeze.reason, until=freeze.until, actor=freeze.actor)


def _upstream_view(
    engine: Engine, upstream: Upstream, shares: Mapping[str, int], total: int, in_flight: Mapping[str, int | None]
) -> schema.UpstreamView:
    pulse = engine.monitor.pulse(upstream.id)
    up = engine.world().up(upstream.id)
    called = address(upstream.dial) is not None
    weight = shares.get(upstream.serving or upstream.dial, 0)
    return schema.UpstreamView(
        id=upstream.id,
        version=upstream.version,
        dial=address(upstream.dial),
        spare_dial=upstream.spare_dial,
        group=upstream.group,
        ready=upstream.serving is not None and not upstream.drained and not upstream.ejected and up,
        weight=weight if called else None,
        share=_share(weight, total) if called else None,
        in_flight=in_flight.get(upstream.id) if called else None,
        health=pulse.health.value,
        drained=upstream.drained or upstream.serving is None,
        gating=upstream.gating is not None,
        ejected_until=upstream.ejection.until if upstream.ejection is not None and upstream.ejected else None,
        reason=_reason(engine.state, upstream, pulse.reason),
        beside=[
            schema.BesideView(
                dial=one.dial,
                version=one.version,
                weight=shares.get(one.dial, 0),
                share=_share(shares.get(one.dial, 0), total),
                in_flight=in_flight.get(one.key(upstream.id)),
                health=engine.monitor.pulse(one.key(upstream.id)).health.value,
                keep_until=None if one.version in engine.state.parts() else one.keep_until,
                retiring=one.retiring,
            )
            for one in upstream.beside
        ],
    )


def _share(weight: int, total: int) -> float:
    return round(100 * weight / total, 3) if total else 0.0


def _reason(state: Service, upstream: Upstream, probe: str) -> str:
    """Why an upstream has no traffic, in words; empty when it has."""
    if upstream.gating is not None:
        return "at its gate"
    if upstream.drained:
        return "drained by an operator"
    if upstream.serving is None:
        return "out of traffic by a rollout" if address(upstream.dial) else "in the hands of a rollout"
    if probe:
        return probe
    if upstream.ejection is not None and upstream.ejected:
        return f"ejected for {max(upstream.ejection.until - time.time(), 0):.0f} s more: {upstream.ejection.reason}"
    if not state.regular(upstream):
        return f"runs {upstream.version}, the stable version is {state.stable}"
    return ""


def wait_view(wait: Wait) -> schema.WaitView:
    now = time.time()
    return schema.WaitView(
        upstream=wait.upstream,
        what=wait.what,
        since=wait.since,
        at_most=None if wait.until is None else round(max(0.0, wait.until - now), 1),
        expected=None if wait.expected is None else round(max(0.0, wait.expected - now), 1),
    )


def queue_waits(state: Service) -> list[schema.WaitView]:
    """What the pending rollout waits for."""
    return [wait_view(wait) for wait in queue.waits(state, time.time())]


def current_view(engine: Engine, rollout: Rollout) -> schema.RolloutView:
    """A rollout that matters now, with what it waits for."""
    pending = rollout.phase is Phase.PENDING
    waits = [] if pending else engine.decide().waits  # as things are after what was just asked
    return rollout_view(rollout, queue_waits(engine.state) if pending else [wait_view(wait) for wait in waits])


def rollout_view(rollout: Rollout, waits: Sequence[schema.WaitView] = ()) -> schema.RolloutView:
    return schema.RolloutView(
        id=rollout.id,
        service=rollout.service,
        version=rollout.version,
        strategy=rollout.strategy,
        state=rollout.phase.value,
        paused=rollout.paused,
        reason=rollout.reason or (rollout.failure or ""),
        failure=rollout.failure,
        warnings=list(rollout.warnings),
        actor=rollout.actor,
        message=rollout.message,
        queued_at=rollout.queued_at,
        supersedes=rollout.supersedes,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        seconds=round((rollout.ended_at or time.time()) - rollout.started_at, 3),
        previous=dict(rollout.previous),
        upstreams={name: _progress(rollout, name) for name in rollout.upstreams},
        steps=[_step_view(step) for step in rollout.steps],
        stages=[schema.ShareStageView(**vars(stage)) for stage in rollout.policy.stages],
        stage=rollout.stage,
        waits_for_promote=rollout.live and stages.waits_for_person(rollout, time.time()),
        waits=list(waits) if rollout.live else [],
    )


def _progress(rollout: Rollout, name: str) -> str:
    """Where one upstream stands in a rollout, in a word."""
    back, task = rollout.revert.get(name), rollout.forward.get(name)
    current = back or task
    if current is None:
        return "waiting"
    if current.failed is not None:
        return f"failed: {current.failed}"
    if current.done:
        return "reverted" if back else "done"
    return current.step.kind.value


def _step_view(step: StepRecord) -> schema.StepView:
    return schema.StepView(
        upstream=step.key.upstream,
        direction=step.key.direction.value,
        step=step.key.kind.value,
        started_at=step.started_at,
        ended_at=step.ended_at,
        ok=None if step.ended_at is None else step.ok,
        reason=step.reason,
        cut=cut_view(step.cut) if step.cut else None,
        output=step.output,
    )


def cut_view(cut: Cut) -> schema.CutView:
    return schema.CutView(requests=cut.requests, streams=cut.streams)


def past_rollout(entries: Sequence[Entry], rollout_id: str) -> Rollout:
    """An ended rollout, folded from its own part of the journal."""
    if not entries:
        raise NotFoundError(f"there is no rollout {rollout_id!r}")
    state = fold(Service(entries[0].event.service), ((e.at, e.event) for e in entries))
    folded = state.rollout or state.queued  # one that ended before it began is the queued one still
    if folded is None:
        raise NotFoundError(f"there is no rollout {rollout_id!r}")
    return folded


def preview_view(preview: Preview) -> schema.PreviewView:
    return schema.PreviewView(
        admin=preview.admin,
        services=[
            schema.ServicePreviewView(
                service=one.service,
                route=one.route,
                control=one.control,
                present=one.present,
                notes=list(one.notes),
                refused=one.refused,
                cost=one.cost,
            )
            for one in preview.services
        ],
        difference=list(preview.difference),
        cost=preview.cost,
    )


def event_view(entry: Entry) -> schema.EventView:
    event: Event = entry.event
    data = as_dict(event)
    return schema.EventView(
        seq=entry.seq,
        at=entry.at,
        service=event.service,
        rollout=getattr(event, "rollout", None),
        type=str(data.pop("type")),
        data={key: value for key, value in data.items() if key not in ("service", "rollout")},
    )
