"""A past access log, judged as it would have been then; and its stable arm against itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from proxy.accessline import Answer, BadLineError, Decoder
from trafficd.canary.compare import Arms, Comparison, Settings
from trafficd.core.judge import Verdict
from trafficd.core.ticks import Arm
from trafficd.errors import ConfigError

NOTHING = "only load and testers were answered there, no users: name their stratum with --stratum"

_LONGEST = 1 << 16  # bytes of a line; ours are cut to less than 1,000


class Past(NamedTuple):
    """The answers of a log, in its order; `bad`: lines that are none of ours."""

    answers: list[Answer]
    bad: int


class Alarms(NamedTuple):
    """How often the stable arm, split in two at random, was told apart from itself."""

    runs: int
    failed: int
    share: float  # of the part that was taken for a canary


def load(path: Path, service: str | None = None) -> Past:
    """Raises `ConfigError` when the file cannot be read, or none of it is a log of ours."""
    decoder, answers, bad = Decoder(), [], 0
    try:
        with path.open("rb") as file:
            for line in iter(lambda: file.readline(_LONGEST), b""):  # it may be any file
                try:
                    answer = decoder.decode(line)
                except BadLineError:
                    bad += 1
                    continue
                if answer is not None and service in (None, answer.service):
                    answers.append(answer)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not answers:
        whose = "" if service is None else f" of the service {service}"
        raise ConfigError(f"{path}: has no request{whose}: is it the file that caddy.access_log names?")
    return Past(sorted(answers, key=lambda answer: answer.at), bad)


def arms_of(answers: Sequence[Answer], canary: frozenset[str], strata: frozenset[str] = frozenset()) -> Arms:
    """These addresses, and all others of their services. Raises `ConfigError` where they answered nothing."""
    services = {answer.service for answer in answers if answer.upstream in canary}
    known = {answer.upstream for answer in answers if answer.upstream is not None}
    if strange := canary - known:
        raise ConfigError(
            f"--canary {', '.join(sorted(strange))}: answered nothing in this log; who did: {', '.join(sorted(known))}"
        )
    mine = {answer.upstream for answer in answers if answer.service in services and answer.upstream is not None}
    return Arms(canary, frozenset(mine - canary), strata)


def against_itself(
    answers: Sequence[Answer],
    stable: frozenset[str],
    settings: Settings,
    *,
    share: float,
    runs: int,
    seed: int,
    strata: frozenset[str] = frozenset(),
) -> Alarms:
    """Take so much of the stable arm for a canary, at random, by request (sticky: by client), again and again.

    Raises `ConfigError` where it answered nothing that is judged.
    """
    mine = [answer for answer in answers if Arms(frozenset(), stable, strata).of(answer) is Arm.STABLE]
    if not mine:
        raise ConfigError(NOTHING)
    warm = len(mine) // 10  # what is slow is learned from the first tenth, as it would be before a canary
    failed = sum(_split(mine, warm, settings, share, strata, random.Random(f"{seed} {run}")) for run in range(runs))
    return Alarms(runs, failed, share)


def _split(
    answers: Sequence[Answer],
    warm: int,
    settings: Settings,
    share: float,
    strata: frozenset[str],
    chance: random.Random,
) -> bool:
    arms = Arms(frozenset({"canary"}), frozenset({"stable"}), strata)
    drawn: dict[str, str] = {}

    def arm(answer: Answer) -> str:
        if not settings.sticky:
            return "canary" if chance.random() < share else "stable"
        if answer.client not in drawn:
            drawn[answer.client] = "canary" if chance.random() < share else "stable"
        return drawn[answer.client]

    before = [answer._replace(upstream="stable") for answer in answers[:warm]]
    comparison = Comparison(arms, answers[warm].at, settings, before)
    return any(comparison.take(answer._replace(upstream=arm(answer))) is Verdict.FAIL for answer in answers[warm:])
