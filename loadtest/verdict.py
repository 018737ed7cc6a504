"""Did the run pass? Pure.

It fails on any error kind, any 5xx answer, any condition of the user's that holds, and where not all was counted. A 4xx
alone is no failure. A condition on something that was not measured holds: unknown is not zero.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loadtest.model import ErrorKind, PlanError, Report

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([a-z0-9_.]+)\s*(>=|<=|==|!=|>|<)\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|%|)\s*")
_TIME = re.compile(
    r"(?:(response|service|lag|dns|dial|tls|write|wait|read)\.)?(min|mean|p10|p25|p50|p75|p90|p95|p99|p999|max)"
)
_DISTRIBUTIONS = ("response", "service", "lag")
_STATUS = re.compile(r"[1-9](xx|[0-9][0-9])")
_COUNTS = ("lost", "sent", "answered", "skipped", "planned", "idle_closed", "resent", "redirected")
_INVALID = "invalid"  # 1 for a run that missed its schedule because of the generator
_LOST = "errors"  # another name of "lost": what the report calls so
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "": 1.0}


@dataclass(frozen=True)
class Condition:
    """`NAME OP NUMBER[UNIT]`: fail when it holds. A time without a unit is in ms; % is of what was sent."""

    text: str
    name: str
    op: str
    limit: float
    unit: str

    def holds(self, report: Report) -> bool:
        value = self._value(report)
        return value is None or _OPERATORS[self.op](value, self.limit * _MILLISECONDS.get(self.unit, 1.0))

    def _value(self, report: Report) -> float | None:
        """What the report says for `name`; None when it was not measured."""
        if (time := _TIME.fullmatch(self.name)) is not None:
            name = time[1] or "response"
            latency = getattr(report, name) if name in _DISTRIBUTIONS else report.phases.get(name)
            return None if latency is None else float(getattr(latency, time[2]))
        if self.name == "rps":
            return report.rps
        count = self._count(report)
        if self.unit != "%":
            return count
        return 100 * count / report.sent if report.sent else None

    def _count(self, report: Report) -> int:
        if self.name in _COUNTS:
            return int(getattr(report, self.name))
        if self.name == _INVALID:
            return int(not report.self.valid)
        if self.name == _LOST:
            return report.lost
        if _STATUS.fullmatch(self.name):
            return count_status(report, self.name)
        return report.errors.get(ErrorKind(self.name), 0)


@dataclass(frozen=True)
class Verdict:
    reasons: tuple[str, ...]  # why it failed; empty when it passed

    @property
    def passed(self) -> bool:
        return not self.reasons

    @property
    def exit_status(self) -> int:
        return 0 if self.passed else 1


def count_status(report: Report, pattern: str) -> int:
    """Answers with a status such as "404" or "5xx"."""
    prefix = pattern.rstrip("x")
    return sum(count for status, count in report.status.items() if str(status).startswith(prefix))


def parse_condition(text: str) -> Condition:
    """Raises PlanError."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise PlanError(f"condition {text!r} is not like 'lost>0', '5xx>0.1%' or 'p99>50ms'")
    name, op, number, unit = match.groups()
    is_time = _TIME.fullmatch(name) is not None
    is_count = name in (*_COUNTS, _INVALID, _LOST, *ErrorKind) or _STATUS.fullmatch(name) is not None
    if not (is_time or is_count or name == "rps"):
        known = "lost, invalid, 5xx, 404, a kind of error, rps, p99, service.max"
        raise PlanError(f"condition {text!r}: nothing measured is called {name!r}; known are the likes of {known}")
    if (unit in ("us", "ms", "s") and not is_time) or (unit == "%" and not is_count):
        raise PlanError(f"condition {text!r}: {name} is not measured in {unit}")
    return Condition(text.strip(), name, op, float(number), unit)


def judge(report: Report, fail_if: Iterable[Condition] = ()) -> Verdict:
    reasons = [f"{count} {kind}" for kind, count in report.errors.items() if count]
    if server_errors := count_status(report, "5xx"):
        reasons.append(f"{server_errors} answers 5xx")
    reasons += report.self.faults
    reasons += [condition.text for condition in fail_if if condition.holds(report)]
    return Verdict(tuple(reasons))
