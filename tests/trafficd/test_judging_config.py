"""`canary.metrics` and `outliers`: what is refused, where, and what the defaults are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trafficd.config import Amount, Config, ServiceSection, load
from trafficd.config.metrics import MetricSection
from trafficd.errors import ConfigError

Load = Callable[[str], Config]

LOGGED = '[caddy]\naccess_log = "/var/log/caddy/trafficd.log"\n'
WEB = '[services.web]\nupstreams = [{id = "a", dial = "10.0.0.1:80"}]\n'
METRIC = '[[services.web.canary.metrics]]\nname = "conversion"\n'
PLACE = "services.web.canary.metrics.0"
QUERIES = 'canary_good = "g"\ncanary_bad = "b"\nstable_good = "g"\nstable_bad = "b"\n'


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    def load_text(text: str) -> Config:
        path = tmp_path / "trafficd.toml"
        path.write_text(text)
        return load(path)

    return load_text


def faults(loaded: Load, text: str) -> list[str]:
    """The lines of the error, without the first, which counts them."""
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_the_defaults() -> None:
    metric = MetricSection(name="conversion", command=["count"])
    assert (metric.interval, metric.timeout, metric.required, metric.queries) == (10, 5, False, ())
    outliers = ServiceSection().outliers
    assert (outliers.enabled, outliers.alpha, outliers.tolerance, outliers.eject_for) == (False, 0.001, 2, 30)
    assert outliers.max_ejected == Amount(percent=34)
    canary = ServiceSection().canary
    assert (canary.errors, canary.answer_within) == (["5xx", "truncated"], None)


@pytest.mark.parametrize(
    ("keys", "place", "why"),
    [
        ("errors = []", "errors", "at least 1 item"),
        ('errors = ["5xx", "slow"]', "errors.1", "'slow' is no kind of error; write a status (503), a class"),
        ("errors = [200]", "errors.0", "'200' is no kind of error"),
        ("errors = [true]", "errors.0", "valid string"),
        ('answer_within = "0s"', "answer_within", "greater than 0"),
    ],
)
def test_what_is_no_error(loaded: Load, keys: str, place: str, why: str) -> None:
    (fault,) = faults(loaded, WEB + f"[services.web.canary]\n{keys}\n")
    assert fault.startswith(f"services.web.canary.{place}: ")
    assert why in fault


def test_metrics(loaded: Load) -> None:
    text = LOGGED + WEB
    text += METRIC + 'command = ["count", "--json"]\ninterval = "30s"\nrequired = true\n'
    text += METRIC.replace("conversion", "sales") + 'prometheus = "http://[::1]:9090"\n' + QUERIES
    text += METRIC.replace("conversion", "mood") + 'webhook = "https://shop.example/hook?for=trafficd"\n'
    metrics = loaded(text).services["web"].canary.metrics
    assert [(one.name, one.interval, one.required) for one in metrics] == [
        ("conversion", 30, True),
        ("sales", 10, False),
        ("mood", 10, False),
    ]
    assert metrics[1].queries == ("g", "b", "g", "b")


@pytest.mark.parametrize(
    ("keys", "place", "why"),
    [
        ("", "", "give one of command, webhook, prometheus"),
        ('command = ["a"]\nwebhook = "http://x"', ".webhook", "has command already; leave one of them out"),
        ("command = []", ".command", "give the program and its arguments as a list"),
        ('webhook = "shop.example/hook"', ".webhook", "is not like"),
        ('webhook = "http://user:secret@x/"', ".webhook", "a user and password do not fit in"),
        ('webhook = "http://x:99999"', ".webhook", "is not like"),
        ('prometheus = "http://x"\n' + QUERIES.replace("stable_bad", "#"), ".stable_bad", "is needed with prometheus"),
        ('command = ["a"]\ncanary_bad = "b"', ".canary_bad", "is a query for prometheus, which is not given"),
        (
            'prometheus = "http://x"\n' + QUERIES.replace('"b"', '"x[$windows]"', 1),
            ".canary_bad",
            "$windows is nothing that we could put in; there are: $window, $service",
        ),
        ('command = ["a"]\nheaders = {A = "b"}', ".headers", "are for a webhook or prometheus"),
        ('webhook = "http://x"\nheaders = {"A b" = "c"}', ".headers", "characters that a header must not have"),
        ('command = ["a"]\ninterval = "1ms"', ".interval", "greater than or equal to 0.1"),
        ('command = ["a"]\ntimeout = 0', ".timeout", "greater than 0"),
        ('command = ["a"]\ncolour = "red"', ".colour", "no such key"),
    ],
)
def test_a_metric_that_cannot_be_asked(loaded: Load, keys: str, place: str, why: str) -> None:
    (line,) = faults(loaded, f"{LOGGED}{WEB}{METRIC}{keys}\n")
    assert line.startswith(f"{PLACE}{place}: ")
    assert why in line


@pytest.mark.parametrize("name", ["errors", "in_flight", "error_limit", "slower_than_p50", "a b"])
def test_names_that_a_metric_cannot_have(loaded: Load, name: str) -> None:
    (line,) = faults(loaded, LOGGED + WEB + METRIC.replace("conversion", name) + 'command = ["a"]\n')
    assert line.startswith(f"{PLACE}.name: '{name}' is ")


def test_one_name_for_two_and_all_faults_at_once(loaded: Load) -> None:
    lines = faults(loaded, WEB + METRIC + 'command = ["a"]\n' + METRIC)
    assert [line.partition(": ")[0] for line in lines] == [
        "services.web.canary.metrics.1",
        "services.web.canary.metrics",
        "services.web.canary.metrics",
    ]
    assert "two metrics have the name 'conversion'" in lines[1]
    assert "set caddy.access_log" in lines[2]


@pytest.mark.parametrize(
    ("keys", "place", "why"),
    [
        ("alpha = 0", ".alpha", "greater than or equal to"),
        ("alpha = 1", ".alpha", "less than 1"),
        ("tolerance = 0.5", ".tolerance", "greater than or equal to 1"),
        ('eject_for = "soon"', ".eject_for", "is not a duration"),
        ('max_ejected = "0%"', ".max_ejected", "give at least 1"),
    ],
)
def test_outliers_that_cannot_be(loaded: Load, keys: str, place: str, why: str) -> None:
    (line,) = faults(loaded, f"{LOGGED}{WEB}[services.web.outliers]\nenabled = true\n{keys}\n")
    assert line.startswith(f"services.web.outliers{place}: ")
    assert why in line


@pytest.mark.parametrize(
    ("log", "service", "why"),
    [
        ("", "", "nothing is known of the answers without a log: set caddy.access_log"),
        (LOGGED, 'control = "admin"\n', 'not logged with control = "admin"'),
    ],
)
@pytest.mark.parametrize(
    ("judging", "place"),
    [
        ("[services.web.outliers]\nenabled = true\n", "outliers.enabled"),
        (METRIC + 'command = ["a"]\n', "canary.metrics"),
    ],
)
def test_without_a_log_nothing_can_be_judged(
    loaded: Load,
    log: str,
    service: str,
    why: str,
    judging: str,
    place: str,
) -> None:
    (line,) = faults(loaded, log + WEB + service + judging)
    assert line.startswith(f"services.web.{place}: ")
    assert why in line


def test_an_adopted_handler_is_judged(loaded: Load) -> None:
    text = f'{LOGGED}{WEB}route = "adopt"\n[services.web.outliers]\nenabled = true\n{METRIC}command = ["a"]\n'
    assert loaded(text).services["web"].logged


def test_workers_have_no_outliers(loaded: Load) -> None:
    text = '[services.jobs]\nroute = "none"\nupstreams = [{id = "a"}]\nhealth.command = ["true"]\n'
    lines = faults(loaded, LOGGED + text + "[services.jobs.outliers]\nenabled = true\n")
    assert any(line.startswith("services.jobs.outliers: Caddy never sees") for line in lines)
