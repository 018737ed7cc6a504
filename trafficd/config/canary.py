"""`[services.NAME.canary]`: the stages that a new version goes through beside the old one, and what is done about its
answers; and what a strategy makes of a policy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from trafficd.config import metrics
from trafficd.config.faults import Clash, Section
from trafficd.config.metrics import MetricSection
from trafficd.config.values import Positive, Seconds
from trafficd.core.model import Inconclusive, Order, Policy, Stage

STRATEGIES = ("rolling", "canary", "blue_green", "rainbow", "hold")
BESIDE = ("canary", "blue_green", "rainbow")  # the new version beside the old one
DEFAULT_STEPS = (1.0, 5.0, 25.0, 50.0, 100.0)
TRUNCATED = "truncated"
DEFAULT_ERRORS = ("5xx", TRUNCATED)


def _error_kind(text: str) -> str:
    if not re.fullmatch(rf"[45]\d\d|[45]xx|{TRUNCATED}", text):
        raise ValueError(f'{text[:80]!r} is no kind of error; write a status (503), a class ("5xx"), or "{TRUNCATED}"')
    return text


Part = Annotated[float, Field(ge=1e-9, lt=1)]
Stratum = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,40}$")]  # longer ones are cut in the log
ErrorKind = Annotated[
    str, BeforeValidator(lambda value: str(value) if type(value) is int else value), AfterValidator(_error_kind)
]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class StepSection(Section):
    """One step; a number in its place is `percent`. Times that are left out are those of the section."""

    percent: Percent
    min_time: Seconds | None = None
    max_time: Positive | None = None
    gate: bool = False


def _parsed(value: object) -> object:
    """A list, or its text: "1, 5:gate, 100" as it is written on a command line, or JSON as it stands in the journal."""
    if isinstance(value, str):
        text = value.strip()
        try:
            value = json.loads(text) if text.startswith("[") else [_written(part) for part in text.split(",")]
        except ValueError:
            raise ValueError(f'{text[:80]!r} is no list of steps; write "1, 5, 25:gate, 100"') from None
    if isinstance(value, list | tuple):
        return [_step(step) for step in value]
    return value


def _step(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"percent": value}
    if not isinstance(value, dict | StepSection):
        raise ValueError(f"{value!r} is no step; write a percentage, or {{percent = 5, gate = true}}")
    return value


def _written(part: str) -> dict[str, object]:
    number, colon, mark = part.strip().removesuffix("%").partition(":")
    if colon and mark.strip() != "gate":
        raise ValueError(part)
    return {"percent": float(number.strip().removesuffix("%")), "gate": bool(colon)}


def _rising(steps: tuple[StepSection, ...]) -> tuple[StepSection, ...]:
    """Shares that only grow; 0 is for a preview that a gate ends. All traffic is where they end in any case."""
    if not steps:
        raise ValueError("give at least one step, such as [5, 50, 100]")
    percents = [step.percent for step in steps]
    if any(later <= earlier for earlier, later in pairwise(percents)):
        raise ValueError(f"each step must be larger than the one before: {', '.join(f'{p:g}' for p in percents)}")
    if percents[0] == 0 and not steps[0].gate:
        raise ValueError("a step of 0 % is a preview, and needs gate = true: nothing could be judged")
    return steps if percents[-1] == 100 else (*steps, StepSection(percent=100))


Steps = Annotated[
    tuple[StepSection, ...],
    BeforeValidator(_parsed, json_schema_input_type=list[float | StepSection] | str),
    AfterValidator(_rising),
]


def plain(steps: Sequence[StepSection]) -> str:
    """As text, for the journal."""
    return json.dumps([step.model_dump(exclude_none=True) for step in steps])


class CanarySection(Section):
    """`alpha`, `limit` and `on_fail` are about its answers, where `caddy.access_log` tells them."""

    steps: Steps | None = None  # None: DEFAULT_STEPS, as far as the slots can show them
    step_min_time: Seconds = 60.0
    step_max_time: Positive = 900.0
    on_inconclusive: Inconclusive = Inconclusive.ABORT
    alpha: Part = 0.01
    limit: Part | None = None
    errors: list[ErrorKind] = Field(default_factory=lambda: list(DEFAULT_ERRORS), min_length=1)
    answer_within: Positive | None = None  # s; None: an answer may begin when it likes
    on_fail: Literal["abort", "report"] = "abort"
    strata: list[Stratum] = Field(default_factory=list)  # judged beside the users, which have no name
    metrics: list[MetricSection] = Field(default_factory=list)

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        yield from metrics.twice(given)


def too_fine(steps: Sequence[StepSection], slots: int) -> str | None:
    """The first step that is less than one of so many slots, in words; None where there is none."""
    least = 100 / slots
    small = next((step.percent for step in steps if 0 < step.percent < least), None)
    return None if small is None else f"{small:g} % is less than one of {slots} slots ({least:g} %); raise `slots`"


@dataclass(frozen=True)
class Terms:
    """What a strategy needs beside the policy; `try_duration` (s) is how long requests may wait at the proxy."""

    slots: int
    try_duration: float
    steps: tuple[StepSection, ...] | None
    min_time: float
    max_time: float
    on_inconclusive: Inconclusive
    keep_old: float
    checks: bool  # there are preview checks
    percent: float | None = None  # rainbow


def shaped(policy: Policy, strategy: str, terms: Terms) -> Policy:
    """The policy as this strategy goes about it. Raises `ValueError`, in words, where that cannot be done."""
    match strategy:
        case "rolling":
            return policy
        case "hold":
            return replace(
                policy,
                order=Order.STOP_FIRST,
                min_ready=0,
                hold_for=terms.try_duration,
                # Requests wait: one good probe lets them go, and then it is watched for as long as others are gated.
                min_healthy_time=0.0,
                watch_time=max(policy.watch_time, policy.min_healthy_time),
            )
        case _:
            beside = replace(
                policy,
                order=Order.START_FIRST,
                beside=True,
                on_inconclusive=terms.on_inconclusive,
                checks=terms.checks,
            )
            stages = _stages(strategy, terms, policy.watch_time)
            keeps = strategy == "rainbow"
            return replace(beside, stages=stages, keeps=keeps, keep_old=terms.keep_old, watch_time=0.0)


def _stages(strategy: str, terms: Terms, bake: float) -> tuple[Stage, ...]:
    """`bake`: s that a version with all traffic is watched before it is the stable one."""
    if strategy == "rainbow":
        if terms.percent is None:
            raise ValueError('percent: rainbow needs the share that the version is to have and keep ("percent": 10)')
        return (Stage(_fine(terms.percent, terms.slots)),)
    if strategy == "blue_green":
        steps = terms.steps or (StepSection(percent=100),)
        if between := [step.percent for step in steps if 0 < step.percent < 100]:
            raise ValueError(f"steps: blue_green flips at once, and {between[0]:g} % is between; use strategy canary")
        return tuple(Stage(step.percent, step.min_time or bake, gate=step.gate) for step in steps)
    wanted = terms.steps or tuple(StepSection(percent=p) for p in DEFAULT_STEPS if p * terms.slots >= 100)
    if terms.steps is not None and (small := too_fine(terms.steps, terms.slots)):
        raise ValueError(f"steps: {small}")
    return tuple(_stage(step, terms, bake) for step in wanted)


def _stage(step: StepSection, terms: Terms, bake: float) -> Stage:
    """Who has all traffic has nobody beside it to be judged by."""
    if step.percent == 100:
        return Stage(100, bake if step.min_time is None else step.min_time, gate=step.gate)
    least = terms.min_time if step.min_time is None else step.min_time
    most = terms.max_time if step.max_time is None else step.max_time
    return Stage(step.percent, least, max(least, most), judged=not step.gate, gate=step.gate)


def _fine(percent: float, slots: int) -> float:
    if small := too_fine((StepSection(percent=percent),), slots):
        raise ValueError(f"percent: {small}")
    return percent
