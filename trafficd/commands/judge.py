"""`trafficd judge LOG`: a past canary judged again from Caddy's access log, without a daemon."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from pydantic import ValidationError

from proxy.errors import AddressError
from proxy.model import parse_dial
from trafficd import show
from trafficd.canary import replay
from trafficd.canary.compare import Arms, Comparison, Settings, compare
from trafficd.canary.errors import Errors
from trafficd.client import Json
from trafficd.commands.common import NOT_ACHIEVED, exit_status, to_json
from trafficd.config.canary import CanarySection
from trafficd.config.faults import reason
from trafficd.core.analysis import Metric
from trafficd.core.judge import Verdict
from trafficd.errors import ConfigError

_SHARE = 0.05  # of the part that is taken for a canary, where there was none


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--canary", "addresses", multiple=True, metavar="ADDR", help="Who the canary was, host:port; repeatable.")
@click.option("--service", help="Only this service's requests.")
@click.option(
    "--alpha",
    type=click.FloatRange(1e-9, 1, max_open=True),
    default=0.01,
    show_default=True,
    help="False FAILs among canaries that are no worse, at most.",
)
@click.option(
    "--limit",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="A rate of errors that the canary must not exceed, whatever the stable version has.",
)
@click.option("--error", "kinds", multiple=True, help='What an error is: "503", "5xx", "truncated"; repeatable.')
@click.option("--answer-within", "within", metavar="TIME", help="An answer that begins later is an error, too.")
@click.option("--sticky", is_flag=True, help="A cookie or the client's address chose the arm, not chance.")
@click.option("--stratum", "strata", multiple=True, help="Judge these requests too, such as verify's load; repeatable.")
@click.option("--aa", is_flag=True, help="Split the stable arm in two at random, and tell how often that fails.")
@click.option("--runs", type=click.IntRange(1), default=100, show_default=True, help="So many splits, with --aa.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the splits.")
@click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
def judge(
    log: Path,
    addresses: tuple[str, ...],
    service: str | None,
    alpha: float,
    limit: float | None,
    kinds: tuple[str, ...],
    within: str | None,
    sticky: bool,
    strata: tuple[str, ...],
    aa: bool,
    runs: int,
    seed: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Judge a past canary from LOG, the file that caddy.access_log names.

    Exit status 1 when the verdict is FAIL. With --aa the stable version is judged against itself: how often that
    fails is the rate of false alarms with this traffic.
    """
    with exit_status(as_json=as_json):
        if not addresses and not aa:
            raise ConfigError("give --canary ADDR, the address that the new version ran at, or --aa")
        past = replay.load(log, service)
        arms = replay.arms_of(past.answers, _canaries(addresses), frozenset(strata))
        settings = Settings(alpha, limit, _errors(kinds, within), sticky)
        if aa:
            found = _alarms(past, arms, settings, runs, seed)
            click.echo(to_json(found) if as_json else _alarms_text(found))
            return
        comparison = compare(past.answers, arms, settings)
        if comparison is None:
            raise ConfigError(f"--canary {', '.join(sorted(arms.canary))}: {replay.NOTHING}")
        view = _view(comparison, past)
        click.echo(to_json(view) if as_json else "\n".join(_lines(view)))
        if comparison.analysis.verdict is Verdict.FAIL:
            sys.exit(NOT_ACHIEVED)


def _errors(kinds: Sequence[str], within: str | None) -> Errors:
    given = {"errors": list(kinds) or None, "answer_within": within}
    try:
        return Errors.of(CanarySection(**{key: value for key, value in given.items() if value is not None}))
    except ValidationError as error:
        first = error.errors()[0]
        option = "--error" if first["loc"][0] == "errors" else "--answer-within"
        raise ConfigError(f"{option}: {reason(first)}") from error


def _canaries(addresses: Sequence[str]) -> frozenset[str]:
    try:
        return frozenset(map(parse_dial, addresses))
    except AddressError as error:
        raise ConfigError(f"--canary: {error}") from error


def _alarms(past: replay.Past, arms: Arms, settings: Settings, runs: int, seed: int) -> Json:
    stable = arms.stable or frozenset(one.upstream for one in past.answers if one.upstream is not None)
    canaries = sum(one.upstream in arms.canary for one in past.answers)
    share = canaries / len(past.answers) if canaries else _SHARE
    share = min(max(share, 0.01), 0.5)
    alarms = replay.against_itself(
        past.answers, stable, settings, share=share, runs=runs, seed=seed, strata=arms.strata
    )
    return {"runs": alarms.runs, "failed": alarms.failed, "share": alarms.share, "alpha": settings.alpha}


def _alarms_text(found: Json) -> str:
    rate = 100 * found["failed"] / found["runs"]
    return (
        f"{found['failed']} of {found['runs']} splits of the stable version failed against itself ({rate:.3g} %, with "
        f"{100 * found['share']:.3g} % taken for a canary); alpha allows {100 * found['alpha']:.3g} %"
    )


def _view(comparison: Comparison, past: replay.Past) -> Json:
    analysis, failed = comparison.analysis, comparison.failed_at
    worst = comparison.worst
    return {
        "verdict": analysis.verdict.value,
        "why": analysis.why,
        "began_at": comparison.since,
        "failed_after": None if failed is None else failed - comparison.since,
        "needed": analysis.needed,
        "metrics": [_metric(one) for one in analysis.metrics],
        "latency_thresholds": None
        if comparison.thresholds is None
        else {level.metric: level.seconds for level in comparison.thresholds.levels},
        "worst_route": None if worst is None else worst._asdict(),
        "clients_exposed": len(comparison.clients),
        "lines_not_understood": past.bad,
    }


def _metric(one: Metric) -> Json:
    return {
        "name": one.name,
        "evidence": one.evidence,
        "canary": one.canary._asdict(),
        "stable": one.stable._asdict(),
        "proofs": [proof._asdict() for proof in one.proofs],
    }


def _lines(view: Json) -> Iterator[str]:
    after = "" if view["failed_after"] is None else f" after {view['failed_after']:.0f} s"
    yield f"{view['verdict']}{after}: {view['why']}"
    rows = [
        (one["name"], f"{one['evidence']:.3g}", _part(one["canary"]), _part(one["stable"]))
        for one in view["metrics"]
        if one["canary"]["total"] or one["stable"]["total"]
    ]
    yield show.listing(("METRIC", "EVIDENCE", "BAD OF CANARY", "BAD OF STABLE"), rows)
    yield f"errors fail at {view['needed']:.3g}, and so does the mean of all others; {view['clients_exposed']} clients"
    if view["latency_thresholds"] is None:
        yield "not judged by latency: under 100 answers of the stable version came before the canary's first"
    if (worst := view["worst_route"]) is not None:
        yield (
            f"worst route: {worst['name']}: {worst['canary_bad']} of {worst['canary']} bad, of the stable version "
            f"{worst['stable_bad']} of {worst['stable']}"
        )
    if view["lines_not_understood"]:
        yield f"{view['lines_not_understood']} lines were none of ours and are left out"


def _part(counts: Json) -> str:
    return f"{counts['bad']} of {counts['total']}"
