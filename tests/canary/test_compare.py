"""Answers become arms, bad ones and a verdict; a past log is judged as it would have been then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from proxy.accessline import Answer, Cut
from tests.proxy import logfile
from trafficd.canary.compare import Arms, Comparison, Settings, compare, resume
from trafficd.canary.errors import Errors
from trafficd.canary.replay import against_itself
from trafficd.cli import main
from trafficd.config.canary import CanarySection
from trafficd.core.judge import Judge, Verdict

OLD, NEW, ELSEWHERE = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"
ARMS = Arms(frozenset({NEW}), frozenset({OLD}))
BEGAN = 1_700_000_000.0


def answer(at: float, upstream: str | None = OLD, **changes: object) -> Answer:
    told = Answer(
        BEGAN + at,
        "web",
        upstream,
        200,
        0.02,
        0.01,
        Cut.NO,
        0,
        f"192.0.2.{int(at * 997) % 250}",
        "GET",
        "/a/b",
        "",
        True,
    )
    return told._replace(**changes)  # type: ignore[arg-type]


def traffic(
    seconds: float, *, share: float = 0.25, bad: float = 0.0, slow: float = 1.0, base: float = 0.0, seed: int = 1
) -> Iterator[Answer]:
    """200 answers a second; so much of the canary's are 500 beside `base`, and its times are `slow` times as long."""
    chance = random.Random(seed)
    for number in range(int(seconds * 200)):
        canary = chance.random() < share
        status = 500 if chance.random() < (bad if canary else base) else 200
        time = chance.expovariate(100) * (slow if canary else 1)
        client = f"10.{chance.randrange(200)}.{chance.randrange(200)}.1"
        yield answer(number / 200, NEW if canary else OLD, status=status, latency=time, client=client)


def before(count: int = 500) -> list[Answer]:
    chance = random.Random(9)
    return [answer(-10 + number / 100, latency=chance.expovariate(100)) for number in range(count)]


def judged(answers: Iterator[Answer], settings: Settings | None = None) -> Comparison:
    comparison = Comparison(ARMS, BEGAN, settings or Settings(), before())
    for one in answers:
        comparison.take(one)
    return comparison


def test_an_answer_belongs_to_whoever_gave_it() -> None:
    assert ARMS.of(answer(0, NEW)) == "canary"
    assert ARMS.of(answer(0, OLD)) == "stable"
    assert ARMS.of(answer(0, ELSEWHERE)) is None
    assert ARMS.of(answer(0, None)) is None
    assert ARMS.of(answer(0, NEW, stratum="testers")) is None, "a tester is no user"


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({"status": 500}, True),
        ({"status": 502, "latency": None}, True),
        ({"status": 504, "latency": None}, True),
        ({"status": 200, "duration": 0.0, "cut": Cut.UPSTREAM}, True),
        ({"status": 200, "duration": 0.0, "cut": Cut.UNKNOWN}, True),
        ({"status": 200, "duration": 0.0, "cut": Cut.CLIENT}, False),
        ({"status": 499, "latency": None}, False),
        ({"status": 404}, False),
        ({"status": 200}, False),
    ],
)
def test_what_is_an_error(changes: dict[str, object], bad: bool) -> None:
    assert _is_error(Settings(), changes) == bad


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({"status": 500}, False),
        ({"status": 503}, True),
        ({"status": 404}, True),
        ({"status": 200, "duration": 0.0, "cut": Cut.UPSTREAM}, False),
        ({"latency": 2.1}, True),
        ({"latency": 1.9, "duration": 30.0}, False),  # it had begun
        ({"latency": 2.1, "duration": 0.0, "cut": Cut.CLIENT}, True),
        ({"status": 499, "latency": None, "duration": 2.1, "answered": False}, True),
        ({"status": 499, "latency": None, "duration": 1.9, "answered": False}, False),
        # It may have waited for a slot.
        ({"status": 499, "latency": None, "duration": 2.1, "answered": False, "retries": 3}, False),
    ],
)
def test_a_service_says_itself_what_an_error_is(changes: dict[str, object], bad: bool) -> None:
    section = CanarySection.model_validate({"errors": [503, "4xx"], "answer_within": "2s"})
    if changes.get("status") == 499:
        section = CanarySection.model_validate({"errors": ["503"], "answer_within": "2s"})
    assert _is_error(Settings(errors=Errors.of(section)), changes) == bad


def _is_error(settings: Settings, changes: dict[str, object]) -> bool:
    comparison = Comparison(ARMS, BEGAN, settings)
    for upstream in (OLD, NEW):
        comparison.take(answer(0.5, upstream, **changes))
    comparison.pass_time(BEGAN + 5)
    errors = comparison.analysis.metrics[0]
    assert (errors.canary.total, errors.stable.total) == (1, 1)
    # Of one client, so the first of both arms counts.
    return errors.canary.bad + errors.stable.bad == 1


def test_the_verdicts() -> None:
    failed = judged(traffic(60, bad=0.05, base=0.005))
    assert failed.analysis.verdict is Verdict.FAIL
    assert failed.analysis.why.startswith("errors: of the canary's requests")
    assert failed.failed_at is not None
    assert BEGAN < failed.failed_at <= BEGAN + 60
    assert judged(traffic(60)).analysis.verdict is Verdict.PASS
    assert judged(traffic(1)).analysis.verdict is Verdict.HOLD
    slow = judged(traffic(120, slow=5.0))
    assert slow.analysis.verdict is Verdict.FAIL
    assert slow.analysis.why.startswith("slower_than_p")
    assert slow.failed_at is not None
    assert slow.failed_at > BEGAN + 30, "its caches may be cold"


def test_both_broken_is_told_by_a_limit_alone() -> None:
    assert judged(traffic(60, bad=0.2, base=0.2)).analysis.verdict is Verdict.PASS, "it is no worse"
    assert judged(traffic(60, bad=0.2, base=0.2), Settings(limit=0.05)).analysis.verdict is Verdict.FAIL


def test_without_answers_from_before_there_is_no_slow() -> None:
    comparison = Comparison(ARMS, BEGAN, before=before(50))
    assert comparison.thresholds is None
    assert [metric.name for metric in comparison.analysis.metrics] == ["errors", "in_flight"]


def test_a_canary_that_answers_nothing_is_told_by_what_is_open() -> None:
    comparison = Comparison(ARMS, BEGAN, before=before())
    for second in range(12):
        for number in range(150):
            comparison.take(answer(second + number / 150))
        if comparison.sample(BEGAN + second + 1, 50 * (second + 1), 2) is Verdict.FAIL:
            break
    assert comparison.analysis.verdict is Verdict.FAIL
    assert comparison.analysis.why.startswith("in_flight")


def test_a_look_at_the_preview_is_not_a_canary_that_hangs() -> None:
    """What is open is counted by address, whoever sent it, so the ends of all of it must be known."""
    comparison = Comparison(ARMS, BEGAN, before=before())
    for second in range(0, 60, 2):  # at every other sample a pinned request is open, for a short while
        for number in range(100):
            comparison.take(answer(second + 0.1 + number / 125))
        comparison.sample(BEGAN + second + 1, 1, 0)
        comparison.take(answer(second + 1.2, NEW, duration=0.4, stratum="preview"))
        for number in range(100):
            comparison.take(answer(second + 1.1 + number / 125))
        comparison.sample(BEGAN + second + 2, 0, 0)
    assert comparison.analysis.verdict is Verdict.HOLD
    open_ones = next(metric for metric in comparison.analysis.metrics if metric.name == "in_flight")
    assert (open_ones.canary.bad, open_ones.stable.bad) == (0, 0)
    assert open_ones.canary.total > 20, "they are counted, and had an end"
    assert comparison.analysis.metrics[0].canary.total == 0, "they are no sample of the users"


def test_the_worst_route_is_where_the_canary_fails_more_than_the_stable_version() -> None:
    comparison = Comparison(ARMS, BEGAN)
    for number in range(100):
        for upstream in (OLD, NEW):
            comparison.take(answer(number / 10, upstream, path="/always/broken", status=500))
            status = 500 if upstream == NEW and number % 4 == 0 else 200
            comparison.take(answer(number / 10, upstream, path="/cart/1", method="POST", status=status))
    assert comparison.worst == ("POST /cart", 100, 25, 100, 0)
    assert Comparison(ARMS, BEGAN).worst is None


def test_what_strangers_ask_for_cannot_steer_the_terminal_of_who_reads_of_it() -> None:
    comparison = Comparison(ARMS, BEGAN)
    comparison.take(answer(0.0, NEW, path="/\x9b31m\u202e<é>/x", status=500))
    assert comparison.worst is not None
    assert comparison.worst.name == "GET /?31m?<é>"


# -- strata ------------------------------------------------------------------------------------------------

LOAD = Arms(frozenset({NEW}), frozenset({OLD}), frozenset({"verify"}))


def load(seconds: float, **settings: float) -> Iterator[Answer]:
    """The same traffic, of a load generator: all of it from one address."""
    return (one._replace(stratum="verify", client="127.0.0.1") for one in traffic(seconds, **settings))  # type: ignore[arg-type]


def test_a_named_stratum_is_judged_too_and_another_one_is_not() -> None:
    named, other = Comparison(LOAD, BEGAN), Comparison(ARMS, BEGAN)
    for one in load(30, bad=0.05):
        named.take(one)
        other.take(one)
    assert named.analysis.verdict is Verdict.FAIL
    assert other.analysis.verdict is Verdict.HOLD
    assert other.analysis.metrics[0].canary.total == 0
    good = Comparison(LOAD, BEGAN)
    for one in load(30):
        good.take(one)
    assert good.analysis.verdict is Verdict.PASS


def test_strata_are_not_pooled() -> None:
    """Load with 20 % errors goes to the canary half of the time, users with none hardly ever: in one tick of both the
    canary looks bad, and each by itself says that it is as good."""
    for seed in range(2):
        comparison = Comparison(LOAD, BEGAN)
        users, synthetic = traffic(30, share=0.02, seed=seed), load(30, share=0.5, bad=0.2, base=0.2, seed=seed + 50)
        for pair in zip(users, synthetic, strict=True):
            for one in pair:
                comparison.take(one)
        assert comparison.analysis.verdict is not Verdict.FAIL, comparison.analysis
        errors = comparison.analysis.metrics[0]
        pooled = Judge()
        pooled.tick(*errors.canary, *errors.stable)
        assert pooled.failed


def test_evidence_of_both_strata_counts() -> None:
    def evidence(*kinds: Iterator[Answer]) -> float:
        comparison = Comparison(LOAD, BEGAN)
        for group in zip(*kinds, strict=True):
            for one in group:
                comparison.take(one)
        comparison.pass_time(BEGAN + 70)
        return comparison.analysis.errors

    def users() -> Iterator[Answer]:
        return traffic(4, bad=0.05, base=0.01, seed=4)

    def synthetic() -> Iterator[Answer]:
        return load(4, bad=0.05, base=0.01, seed=6)

    alone = evidence(users()), evidence(synthetic())
    assert min(alone) > 1
    assert evidence(users(), synthetic()) > max(alone)


def test_a_stratum_that_is_not_judged_does_not_seem_to_hang() -> None:
    """What is open is counted over all strata, so their ends are counted as well."""
    comparison = Comparison(ARMS, BEGAN, before=before())
    for second in range(20):
        for number in range(150):
            comparison.take(answer(second + number / 150))
        for number in range(50):  # testers, each of them answered within half a second
            end = second + number / 50
            comparison.take(answer(end, NEW, stratum="testers", duration=0.5, latency=0.5))
        comparison.sample(BEGAN + second + 1, 25, 2)
    hanging = next(one for one in comparison.analysis.metrics if one.name == "in_flight")
    assert hanging.canary.total > 500
    assert hanging.canary.bad == 0
    assert comparison.analysis.verdict is Verdict.HOLD


def test_a_step_wants_a_proof_of_its_own() -> None:
    comparison = judged(traffic(60))
    before_it = comparison.analysis.verdict
    comparison.begin_step()
    assert (before_it, comparison.analysis.verdict) == (Verdict.PASS, Verdict.HOLD)


def test_a_comparison_goes_on_in_another_process() -> None:
    """What was answered before a daemon was killed counts, and what is slow stays what it was."""
    known = [*before(), *traffic(40, bad=0.02, slow=1.5)]
    lived = Comparison(ARMS, BEGAN, before=before())
    for one in known[500:]:
        lived.take(one)
    resumed = resume(known, ARMS, BEGAN, Settings())
    assert resumed.analysis == lived.analysis
    assert resumed.thresholds == lived.thresholds
    assert resumed.analysis.metrics[0].canary.total > 1_000
    late = resume(known[500:], ARMS, BEGAN, Settings())
    assert late.thresholds is not None, "nothing is left from before: then by the stable version of now"


def test_a_log_without_the_canary_has_nothing_to_compare() -> None:
    assert compare(before(), ARMS, Settings()) is None


@pytest.mark.slow
def test_the_stable_version_is_not_told_apart_from_itself() -> None:
    answers = list(traffic(60, share=0.0, base=0.02))
    alarms = against_itself(answers, frozenset({OLD}), Settings(), share=0.1, runs=20, seed=3)
    assert (alarms.runs, alarms.failed) == (20, 0)


# -- the command line --------------------------------------------------------------------------------------


def write(path: Path, answers: Iterator[Answer]) -> Path:
    lines = [
        logfile.line(
            ts=one.at,
            status=one.status,
            duration=one.duration,
            latency=(one.latency or 0) * 1000,
            answered=one.upstream,
            upstream=one.upstream,
            request={"remote_port": "1", "client_ip": one.client, "method": one.method, "uri": one.path},
            stratum=one.stratum,
        )
        for one in answers
    ]
    path.write_bytes(b"".join(lines) + b"not a line of ours\n")
    return path


def judge(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["judge", *arguments])


def test_a_past_canary_is_judged_again(tmp_path: Path) -> None:
    log = write(tmp_path / "access.log", traffic(60, bad=0.1))
    failed = judge(str(log), "--canary", NEW)
    assert failed.exit_code == 1, failed.output
    assert failed.stdout.startswith("FAIL after ")
    assert "worst route: GET /a" in failed.stdout
    assert "1 lines were none of ours" in failed.stdout
    view = orjson.loads(judge(str(log), "--canary", NEW, "--json").stdout)
    assert (view["verdict"], view["metrics"][0]["name"]) == ("FAIL", "errors")
    good = judge(str(write(tmp_path / "good.log", traffic(60))), "--canary", NEW)
    assert (good.exit_code, good.stdout[:4]) == (0, "PASS")
    assert judge(str(log), "--canary", NEW, "--error", "503", "--error", "truncated").stdout[:4] == "PASS"
    slow = write(tmp_path / "slow.log", traffic(20, slow=5.0))
    assert judge(str(slow), "--canary", NEW, "--answer-within", "50ms").stdout.startswith("FAIL after")


def test_a_stratum_of_a_past_log_is_judged_where_it_is_named(tmp_path: Path) -> None:
    log = str(write(tmp_path / "access.log", load(60, bad=0.1)))
    nobody = judge(log, "--canary", NEW)
    assert nobody.exit_code == 2
    assert "no users: name their stratum with --stratum" in nobody.stderr
    assert judge(log, "--aa").exit_code == 2
    failed = judge(log, "--canary", NEW, "--stratum", "verify")
    assert (failed.exit_code, failed.stdout[:4]) == (1, "FAIL"), failed.output
    assert judge(log, "--aa", "--runs", "2", "--stratum", "verify").exit_code == 0


def test_the_stable_arm_against_itself(tmp_path: Path) -> None:
    log = write(tmp_path / "access.log", traffic(20))
    told = judge(str(log), "--aa", "--runs", "3")
    assert (told.exit_code, told.stdout[:12]) == (0, "0 of 3 split"), told.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["LOG"], "--canary ADDR"),
        (["LOG", "--canary", "10.9.9.9:81"], "answered nothing in this log; who did: 10.0.0.1:80, 10.0.0.2:80"),
        (["LOG", "--canary", "nonsense"], "--canary"),
        (["LOG", "--canary", NEW, "--service", "shop"], "no request of the service shop"),
        (["/no/such", "--canary", NEW], "cannot be read"),
        (["EMPTY", "--canary", NEW], "is it the file that caddy.access_log names"),
        (["LOG", "--canary", NEW, "--alpha", "0"], "--alpha"),
        (["LOG", "--canary", NEW, "--alpha", "5e-324"], "--alpha"),
        (["LOG", "--canary", NEW, "--error", "200"], "--error: '200' is no kind of error"),
        (["LOG", "--canary", NEW, "--answer-within", "soon"], "--answer-within"),
    ],
)
def test_what_cannot_be_judged(tmp_path: Path, arguments: list[str], says: str) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    places = {"LOG": str(write(tmp_path / "access.log", traffic(1))), "EMPTY": str(empty)}
    refused = judge(*(places.get(one, one) for one in arguments))
    assert refused.exit_code == 2, refused.output
    assert says in refused.stderr
