"""From the journal of one rollout and what its judge said to one document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from pydantic import TypeAdapter

from trafficd.api import report_schema as to
from trafficd.api.schema import CutView
from trafficd.api.verify_schema import VerificationView
from trafficd.api.views import rollout_view
from trafficd.core import events as ev
from trafficd.core.analysis import Counts
from trafficd.core.model import Policy, Rollout
from trafficd.ports import Entry
from trafficd.report.course import Exposure, Failure, Record, StageRecord, Worst

_SAID = {  # what is told of a rollout beside its steps and stages
    ev.RolloutQueued: "queued",
    ev.RolloutStarted: "begins",
    ev.Superseded: "superseded",
    ev.GatePassed: "goes on at its gate",
    ev.Promoted: "promoted",
    ev.Paused: "paused",
    ev.Resumed: "resumed",
    ev.AbortRequested: "aborted",
    ev.FailureNoted: "failed",
    ev.RevertStarted: "revert begins",
    ev.RolloutEnded: "ended",
}
_ENDS = (ev.AbortRequested, ev.FailureNoted, ev.RevertStarted, ev.RolloutEnded)  # of the last stage


@cache
def _policies() -> TypeAdapter[Policy]:
    return TypeAdapter(Policy)


def report_view(
    rollout: Rollout,
    entries: Sequence[Entry],
    record: Record | None,
    verification: VerificationView | None,
    not_judged: str,
    now: float,
) -> to.ReportView:
    """`entries`: the rollout's own part of the journal. `not_judged`: why there is no record, where there is none."""
    seen = rollout_view(rollout)
    cuts = [step.cut for step in rollout.steps if step.cut is not None]
    ended = rollout.ended_at
    return to.ReportView(
        id=rollout.id,
        service=rollout.service,
        asked=to.AskedView(
            version=rollout.version,
            strategy=rollout.strategy,
            actor=rollout.actor,
            message=rollout.message,
            policy=_policies().dump_python(rollout.policy, mode="json"),
            overrides=dict(rollout.overrides),
        ),
        state=seen.state,
        reason=seen.reason,
        failure=rollout.failure,
        warnings=seen.warnings,
        queued_at=rollout.queued_at,
        started_at=rollout.started_at,
        ended_at=ended,
        seconds=round((now if ended is None else ended) - rollout.started_at, 3),
        previous=seen.previous,
        supersedes=rollout.supersedes,
        upstreams=seen.upstreams,
        steps=[to.TimedStepView(**dict(step), seconds=_seconds(step.started_at, step.ended_at)) for step in seen.steps],
        marks=list(_marks(entries)),
        cut=CutView(requests=sum(cut.requests for cut in cuts), streams=sum(cut.streams for cut in cuts)),
        stages=_stages(entries, record),
        judge=None if record is None or not record.points else _judge(record),
        not_judged="" if record is not None and record.points else not_judged,
        verification=verification,
    )


def _seconds(begin: float, end: float | None) -> float | None:
    return None if end is None else round(max(end - begin, 0.0), 3)


def _marks(entries: Sequence[Entry]) -> Iterator[to.MarkView]:
    for entry in entries:
        event = entry.event
        said = _SAID.get(type(event))
        if said is not None:
            said = f"{said}: {event.state}" if isinstance(event, ev.RolloutEnded) else said
            actor, reason = getattr(event, "actor", ""), getattr(event, "reason", "")
            yield to.MarkView(at=entry.at, what=said, actor=actor, reason=reason)


# -- stages ------------------------------------------------------------------------------------------------


def _stages(entries: Sequence[Entry], record: Record | None) -> list[to.ReportStageView]:
    """As the journal has them, with what the judge said; of a rollout that has none, the judge's."""
    judged = {} if record is None else {stage.number: stage for stage in record.stages}
    begun = [(one.at, one.event) for one in entries if isinstance(one.event, ev.StageStarted)]
    if not begun:
        return [_stage(one.number, one.percent, one.begin, one.end, one) for one in (record.stages if record else ())]
    over = next((one.at for one in entries if isinstance(one.event, _ENDS) and one.at >= begun[-1][0]), None)
    ends = [*(at for at, _ in begun[1:]), over]
    return [
        _stage(event.stage, event.percent, at, end, judged.get(event.stage))
        for (at, event), end in zip(begun, ends, strict=True)
    ]


def _stage(
    number: int, percent: float | None, begin: float, end: float | None, judged: StageRecord | None
) -> to.ReportStageView:
    return to.ReportStageView(
        number=number,
        percent=percent,
        begin=begin,
        end=end,
        seconds=_seconds(begin, end),
        exposure=None if judged is None else _exposure(judged.exposure),
        judge=None
        if judged is None or not judged.metrics
        else to.JudgedStageView(
            verdict=judged.verdict.value,
            why=judged.why,
            metrics=[
                to.JudgedMetricView(
                    name=one.name, evidence=one.evidence, canary=_counts(one.canary), stable=_counts(one.stable)
                )
                for one in judged.metrics
            ],
        ),
    )


def _counts(counts: Counts) -> to.CountsView:
    return to.CountsView(total=counts.total, bad=counts.bad)


def _exposure(found: Exposure) -> to.ExposureView:
    return to.ExposureView(
        clients=found.clients,
        at_least=found.at_least,
        requests=found.requests,
        bad=found.bad,
        first_at=found.first_at,
        last_at=found.last_at,
        seconds=round(found.seconds, 3),
    )


# -- the judge ---------------------------------------------------------------------------------------------


def _judge(record: Record) -> to.JudgeView:
    return to.JudgeView(
        verdict=record.verdict.value,
        why=record.why,
        exposure=_exposure(record.exposure),
        worst_route=None if record.worst is None else _worst(record.worst),
        failure=None if record.failure is None else _failure(record.failure),
        evidence=to.EvidenceView(
            needed=record.needed,
            piece=record.piece,
            points=[
                to.PointView(at=one.at, errors=one.errors, others=one.others, metrics=dict(one.metrics))
                for one in record.points
            ],
            gaps=[to.GapView(since=one.since, until=one.until, why=one.why) for one in record.gaps],
        ),
    )


def _worst(worst: Worst) -> to.WorstRouteView:
    return to.WorstRouteView(
        route=worst.route,
        canary=to.CountsView(total=worst.canary, bad=worst.canary_bad),
        stable=to.CountsView(total=worst.stable, bad=worst.stable_bad),
    )


def _failure(failure: Failure) -> to.FailureView:
    return to.FailureView(
        at=failure.at,
        why=failure.why,
        requests_after=failure.began,
        last_after=failure.last_at,
        seconds=round((failure.last_at or failure.at) - failure.at, 3),
        cut_after=failure.cut,
    )
