"""How much traffic there is, by the end of the log; what is not known is not none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.proxy import logfile
from trafficd.canary.forecast import forecast
from trafficd.canary.recent import WINDOW, Recent, measure
from trafficd.config import ServiceSection

NOW = 1_800_000_000.0
OLD, NEW = "10.0.0.1:80", "10.0.0.2:80"


def lines(ages: Iterable[float], upstream: str | None = OLD, **changes: object) -> bytes:
    """A line for each request that ended so many seconds before now."""
    return b"".join(
        logfile.line(number, ts=NOW - age, answered=upstream, upstream=upstream, **changes)
        for number, age in enumerate(ages)
    )


def every(gap: float, seconds: float) -> list[float]:
    """From `seconds` ago until now."""
    return [seconds - gap * number for number in range(int(seconds / gap))]


def log(tmp_path: Path, *parts: bytes) -> Path:
    path = tmp_path / "access.log"
    path.write_bytes(b"".join(parts))
    return path


def known(found: Recent | str) -> Recent:
    assert isinstance(found, Recent), found
    return found


def test_the_rate_is_that_of_the_last_minutes(tmp_path: Path) -> None:
    path = log(tmp_path, lines(every(0.1, 900)[:6000]), lines(every(0.5, 300)))
    found = known(measure(path, "web", NOW))
    assert found.seconds == WINDOW
    assert found.rate == pytest.approx(2, rel=0.01)


def test_a_log_that_begins_later_is_measured_from_its_begin(tmp_path: Path) -> None:
    found = known(measure(log(tmp_path, lines(every(0.5, 60))), "web", NOW))
    assert found.seconds == pytest.approx(60)
    assert found.rate == pytest.approx(2, rel=0.02)


def test_what_was_rolled_just_now_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = logfile.Writer(path)
    ages = every(0.5, 300)
    writer.write(lines(ages[:-10]))
    writer.roll()
    writer.write(lines(ages[-10:]))
    writer.close()
    assert known(measure(path, "web", NOW)).rate == pytest.approx(2, rel=0.01)


def test_bad_ones_are_the_stable_versions_and_users_are_those_without_a_stratum(tmp_path: Path) -> None:
    client = {"remote_port": "1", "client_ip": "192.0.2.8", "method": "GET", "uri": "/"}
    path = log(
        tmp_path,
        lines([250], service="shop"),
        lines(every(1, 200)),
        lines(every(10, 200), status=502, request=client),
        lines(every(10, 200), NEW, status=500),
        lines(every(1, 200), stratum="verify"),
        lines(every(1, 200), service="shop"),
        lines(every(1, 200), None),
    )
    found = known(measure(path, "web", NOW, canary=frozenset({NEW})))
    assert (found.requests, found.stable, found.stable_bad, found.clients) == (240, 220, 20, 2)
    assert found.bad == pytest.approx(20 / 220)
    both = known(measure(path, "web", NOW, strata=frozenset({"", "verify"})))
    assert both.requests == 440


def test_nobody_came_is_none_where_the_log_tells_of_others(tmp_path: Path) -> None:
    found = known(measure(log(tmp_path, lines(every(1, 400), service="shop")), "web", NOW))
    assert (found.requests, found.rate, found.bad) == (0, 0, 0)
    long_ago = known(measure(log(tmp_path, lines([900, 800])), "web", NOW))
    assert long_ago.rate == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "writes no access log"), (b"", "no request stands in"), (lines([3, 2, 1]), "begins 3 s ago: too short")],
)
def test_what_is_not_known_is_said(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "access.log"
    if content is not None:
        path.write_bytes(content)
    found = measure(path, "web", NOW)
    assert isinstance(found, str)
    assert why in found


def test_a_log_that_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = measure(tmp_path / "file" / "access.log", "web", NOW)
    assert isinstance(found, str)
    assert "cannot be looked at: Not a directory" in found
    (tmp_path / "access.log").mkdir()
    found = measure(tmp_path / "access.log", "web", NOW)
    assert isinstance(found, str)
    assert "cannot be read" in found


# -- the forecast of a service ------------------------------------------------------------------------------------


def section(**changes: object) -> ServiceSection:
    return ServiceSection.model_validate(changes)


def test_a_service_has_a_forecast_of_its_traffic(tmp_path: Path) -> None:
    path = log(tmp_path, lines(every(0.02, 200)))
    found = forecast("web", section(), path, NOW, within=120)
    assert found.why is None
    assert found.recent is not None
    assert found.outlook is not None
    assert found.recent.rate == pytest.approx(50, rel=0.01)
    assert found.outlook.suggested is not None
    assert any("1 clients only" in note for note in found.notes)
    strict = forecast("web", section(canary={"alpha": 0.0001}), path, NOW, within=120).outlook
    assert strict is not None
    assert (strict.shares[1].worse or 0) > (found.outlook.shares[1].worse or 0)


def test_load_counts_where_it_is_judged(tmp_path: Path) -> None:
    path = log(tmp_path, lines(every(1, 200)), lines(every(0.1, 200), stratum="verify"))
    users = forecast("web", section(), path, NOW)
    assert users.outlook is not None
    assert users.outlook.suggested is None
    assert any('canary.strata = ["verify"]' in note for note in users.notes)
    both = forecast("web", section(canary={"strata": ["verify"]}), path, NOW)
    assert both.recent is not None
    assert both.recent.rate == pytest.approx(11, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "content", "why"),
    [
        ({"control": "admin"}, lines(every(1, 60)), "are not judged"),
        ({}, b"", "not known: no request stands"),
        ({}, lines(every(1, 60), service="shop"), "the log has no request of it in the last 60 s"),
        ({}, lines(every(1, 60), status=500), "every request fails already"),
    ],
)
def test_why_there_is_none(tmp_path: Path, settings: dict[str, object], content: bytes, why: str) -> None:
    found = forecast("web", section(**settings), log(tmp_path, content), NOW)
    assert found.outlook is None
    assert found.why is not None
    assert why in found.why


def test_without_a_log_nothing_is_known() -> None:
    found = forecast("web", section(), None, NOW)
    assert (found.recent, found.outlook) == (None, None)
    assert "set caddy.access_log" in (found.why or "")
