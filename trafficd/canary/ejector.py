"""Watches the answers of all upstreams outside of rollouts, and takes out of traffic for a while who answers worse than
the others. What is decided, and when, stands in `trafficd.core.outliers`.

A log that cannot be read is no evidence: it is said, and nobody is ejected.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.accessline import Answer
from trafficd.canary.errors import Errors
from trafficd.core.events import UpstreamEjected
from trafficd.core.outliers import Outliers, Rules, ejection, judged
from trafficd.errors import TrafficdError
from trafficd.operate import Operator

log = logging.getLogger("trafficd.canary")


@dataclass
class Ejector:
    """Handed the answers by whoever reads the log; `blind`: why they cannot be read, if they cannot."""

    operators: Mapping[str, Operator]
    blind: str = ""
    _outliers: dict[str, Outliers] = field(init=False)  # by service, of those that want it
    _errors: dict[str, Errors] = field(init=False)
    _ids: dict[str, dict[str, str]] = field(default_factory=dict, init=False)  # of a service's addresses

    def __post_init__(self) -> None:
        self._outliers = {
            name: Outliers(_rules(one), sticky=one.section.affinity != "none")
            for name, one in self.operators.items()
            if one.section.outliers.enabled
        }
        self._errors = {name: Errors.of(self.operators[name].section.canary) for name in self._outliers}

    @property
    def wanted(self) -> bool:
        """Whether the log has to be read for it."""
        return bool(self._outliers)

    def take(self, answer: Answer) -> None:
        """Count one answer. What says of itself that no user asked is left out."""
        outliers = self._outliers.get(answer.service)
        if outliers is None or answer.upstream is None or answer.stratum:
            return
        name = self._ids.get(answer.service, {}).get(answer.upstream)
        if name is not None:
            outliers.take(answer.at, name, answer.client, bad=self._errors[answer.service].met(answer))

    async def turn(self, now: float) -> None:
        """Judge what was taken until now (seconds since the epoch)."""
        for name, outliers in self._outliers.items():
            operator = self.operators[name]
            state = operator.state
            self._ids[name] = {one.serving: one.id for one in state.upstreams.values() if one.serving is not None}
            outliers.close(now)
            outliers.judge(judged(state), now)
            trouble = self.blind and f"nobody looks for outliers: {self.blind}"
            if not self.blind and outliers.suspects():
                trouble = await self._eject(operator, outliers, now)
            operator.engine.trouble.say("outliers", trouble)

    async def _eject(self, operator: Operator, outliers: Outliers, now: float) -> str:
        """Eject the worst of the suspects; what is in the way of that, if anything."""
        suspects, rules, engine = outliers.suspects(), _rules(operator), operator.engine
        decided = ejection(operator.state, engine.world(), suspects, rules, now)
        if not isinstance(decided, UpstreamEjected):
            return decided or ""
        try:
            await operator.eject(decided, lambda state, world: ejection(state, world, suspects, rules, now) == decided)
        except TrafficdError as error:
            return f"{decided.upstream} answers badly and cannot be ejected: {error}"
        seconds = decided.until - now
        log.warning("%s: %s is ejected for %g s: %s", operator.state.name, decided.upstream, seconds, decided.reason)
        outliers.judge(judged(operator.state), now)
        return ""


def _rules(operator: Operator) -> Rules:
    section, upstreams = operator.section.outliers, len(operator.state.upstreams)
    return Rules(
        alpha=section.alpha,
        tolerance=section.tolerance,
        eject_for=section.eject_for,
        most=max(1, section.max_ejected.of(upstreams, up=False)),
        least=operator.section.policy(upstreams).min_ready,
    )
