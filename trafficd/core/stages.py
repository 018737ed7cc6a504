"""The stages of a rollout whose new version runs beside the old one: which share it gets, and when it gets more. Pure.

A stage lasts its minimum time. Then a judged one goes on with a PASS, and only with that; without a verdict at its
deadline it does what `on_inconclusive` says. A gate goes on when somebody promotes it. Whoever promotes where no gate
waits gives the new version all traffic at once. A FAIL is not decided here: it aborts, first in line, whatever waits;
but nothing ever goes on over one.

Nor does anything go on while a new instance is down: who has its share does not tell how it would do with more. Where
all of them are down, or one for as long as a gate may take, the rollout is given up.

A share that somebody has set to 0 by hand is theirs to give again (`trafficd canary`, a promote): no PASS of before,
and no deadline, moves traffic to what was taken out of it on purpose.

Invariant: the share only grows by itself, a version with a FAIL never gets more, and nobody flips to what is down.
"""

from __future__ import annotations

from trafficd.core import events as ev
from trafficd.core.judge import Verdict
from trafficd.core.model import Finding, Health, Inconclusive, Rollout, Service, Stage, Wait, World
from trafficd.core.routing import instances

_PERSON = "`trafficd promote` goes on, `trafficd abort` gives up"
_WITHDRAWN = "its share was set to 0 by hand"


def stage_of(rollout: Rollout) -> Stage | None:
    """The stage that a rollout is in, if any."""
    stages = rollout.policy.stages
    return None if rollout.stage is None or rollout.stage >= len(stages) else stages[rollout.stage]


def next_event(service: Service, rollout: Rollout, world: World, now: float) -> ev.Event | None:
    """What is to be journalled next about the stages; None while one lasts, and after the last."""
    if (gone := _gone(service, rollout, world, now)) is not None:
        return ev.FailureNoted(rollout.service, rollout.id, gone)
    if not_up(service, rollout.version, world):
        return None
    if rollout.stage is None:
        return _begin(service, rollout, 0)
    stage, number = stage_of(rollout), rollout.stage
    last = len(rollout.policy.stages) - 1
    if stage is None or _failed(rollout, world):
        return None
    if rollout.promoted and number < last:
        return _begin(service, rollout, last)
    outcome = _outcome(service, rollout, stage, world, now)
    if isinstance(outcome, str):
        return ev.FailureNoted(rollout.service, rollout.id, outcome)
    if not outcome:
        return None
    return _begin(service, rollout, number + 1) if number < last else None


def over(service: Service, rollout: Rollout, world: World, now: float) -> bool:
    """Whether the last stage has had its time, and its verdict where it wants one, with all new instances up."""
    if not_up(service, rollout.version, world):
        return False
    stage = stage_of(rollout)
    if stage is None or rollout.stage != len(rollout.policy.stages) - 1:
        return not rollout.policy.stages
    return _outcome(service, rollout, stage, world, now) is True


def waits_for_person(rollout: Rollout, now: float) -> bool:
    """Whether a promote lets the stage go on, and does not end all stages."""
    stage = stage_of(rollout)
    if stage is None or rollout.stage is None or rollout.passed >= rollout.stage or rollout.promoted:
        return False
    return stage.gate or (rollout.policy.on_inconclusive is Inconclusive.HOLD and _late(rollout, stage, now))


def _begin(service: Service, rollout: Rollout, number: int) -> ev.StageStarted:
    """A share that somebody has set above that of the stage stays as it is."""
    percent = max(rollout.policy.stages[number].percent, service.shares.get(rollout.version, 0.0))
    return ev.StageStarted(rollout.service, rollout.id, number, percent)


def _began(rollout: Rollout) -> float:
    """When the stage began, had nobody paused it: a pause takes nothing of its time."""
    return rollout.stage_at + rollout.stage_idle


def _outcome(service: Service, rollout: Rollout, stage: Stage, world: World, now: float) -> bool | str:
    """Whether the stage is over; or, in words, why the rollout is."""
    finding, withdrawn = finding_of(rollout, world), _withdrawn(service, rollout, stage)
    if _failed(rollout, world):
        return False
    if rollout.passed >= (rollout.stage or 0):
        return True
    if now - _began(rollout) < stage.min_time:
        return False
    if rollout.promoted:
        return True
    if stage.gate:
        return False
    if not withdrawn and (not stage.judged or (finding is not None and finding.verdict is Verdict.PASS)):
        return True
    if not _late(rollout, stage, now) or rollout.policy.on_inconclusive is Inconclusive.HOLD:
        return False
    if rollout.policy.on_inconclusive is Inconclusive.PROMOTE:
        return not withdrawn
    why = _WITHDRAWN if withdrawn else _why(finding, world)
    return f"no verdict at {_share(service, rollout, stage)} within {stage.max_time:g} s: {why}"


def _withdrawn(service: Service, rollout: Rollout, stage: Stage) -> bool:
    """Whether somebody has taken away all that the stage gives."""
    return stage.percent > 0 and service.shares.get(rollout.version) == 0


def _share(service: Service, rollout: Rollout, stage: Stage) -> str:
    """What the version has now: somebody may have set another share than the stage's."""
    return f"{service.shares.get(rollout.version, stage.percent):g} %"


def not_up(service: Service, version: str, world: World) -> list[str]:
    """Where a version beside the stable one should be up, and is not, as far as it takes part."""
    return [dial for key, dial in instances(service, version) if not world.up(key)]


def _gone(service: Service, rollout: Rollout, world: World, now: float) -> str | None:
    """Why the new version is none to go on with, in words: its instances are down."""
    found = dict(instances(service, rollout.version))
    since = {
        dial: world.down_since.get(key, now) for key, dial in found.items() if world.health.get(key) is Health.DOWN
    }
    # Where the old ones look dead as well, it may be that nobody can be seen.
    others = any(world.up(u.id) for u in service.upstreams.values() if u.serving and service.regular(u))
    if since and len(since) == len(found) and others:
        return f"all new instances are down: {', '.join(since)}"
    late = [dial for dial, at in since.items() if now - at >= rollout.policy.healthy_deadline]
    if late:
        return f"{', '.join(late)} is down for {rollout.policy.healthy_deadline:g} s (healthy_deadline)"
    return None


def _failed(rollout: Rollout, world: World) -> bool:
    """A FAIL of an earlier stage counts too: it is latched, and its abort is on its way."""
    finding = world.finding
    return finding is not None and finding.rollout == rollout.id and finding.verdict is Verdict.FAIL


def finding_of(rollout: Rollout, world: World) -> Finding | None:
    """What the judge says of this stage; None while it says nothing of it yet."""
    finding = world.finding
    if finding is None or (finding.rollout, finding.stage) != (rollout.id, rollout.stage):
        return None
    return finding


def _late(rollout: Rollout, stage: Stage, now: float) -> bool:
    return stage.judged and stage.max_time is not None and now - _began(rollout) >= stage.max_time


def _why(finding: Finding | None, world: World) -> str:
    if not world.judged:
        return "nothing is judged, because caddy.access_log is not set, or `trafficd plan` says why not"
    return finding.why if finding is not None else "no answers were read"


def wait(service: Service, rollout: Rollout, world: World, now: float) -> Wait | None:
    """What the stage waits for."""
    if not rollout.policy.beside:
        return None
    stage, down = stage_of(rollout), not_up(service, rollout.version, world)
    if down and (stage is not None or all(task.done for task in rollout.forward.values())):
        found = instances(service, rollout.version)
        first = min(world.down_since.get(key, now) for key, dial in found if dial in down)
        what = f"{', '.join(down)} to be up again: nothing goes on before ({rollout.version} is down there)"
        return Wait(None, what, first, first + rollout.policy.healthy_deadline)
    if stage is None:
        return None
    since, percent = _began(rollout), _share(service, rollout, stage)
    finding = finding_of(rollout, world)
    said = f" ({finding.verdict}: {finding.why})" if finding is not None and stage.judged else ""
    if waits_for_person(rollout, now):
        return Wait(None, f"somebody at {percent}: {_PERSON}{said}", since)
    if _withdrawn(service, rollout, stage):
        what = (
            f"somebody: {_WITHDRAWN}; `trafficd canary {service.name} PERCENT` gives it one again, `trafficd promote` "
            "all traffic, `trafficd abort` gives up"
        )
        ends = stage.max_time is not None and rollout.policy.on_inconclusive is not Inconclusive.PROMOTE
        return Wait(None, what, since, since + (stage.max_time or 0.0) if ends else None)
    if now - since < stage.min_time or not stage.judged:
        what = f"{stage.min_time:g} s at {percent} to pass{said}"
        return Wait(None, what, since, since + stage.min_time, since + stage.min_time)
    until = None if stage.max_time is None else since + stage.max_time
    what = f"a verdict at {percent}: {_why(finding, world)}. `trafficd promote` gives it all traffic without one"
    return Wait(None, what, since, until)
