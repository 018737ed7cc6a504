"""How an instance is to be asked."""

from __future__ import annotations

import pytest

from tests.draft.world import A, B, Json, caddy, container, machine, proxy, site
from trafficd.draft.containers import Machine, serving
from trafficd.draft.handlers import handlers
from trafficd.draft.health import USUAL, Answers, Health, question, settled

URI = {"active": {"uri": "/healthz"}}


def health(handler: Json, answers: Answers, *machines: Machine) -> Health:
    (one,), _ = handlers(caddy(site(handler, "example.com")))
    servings = [found for dial in one.dials if (found := serving(dial, machines)) is not None]
    asked = question(one, servings)
    assert {path for _, path in answers} <= set(asked.paths), "an answer to what was not asked"
    return settled(one, servings, answers)


def test_as_caddy_asks() -> None:
    found = health(proxy(A, health_checks=URI), {(A, "/healthz"): 200})
    assert (found.path, found.status, found.warnings) == ("/healthz", (), ())


def test_what_caddy_takes_for_healthy_stays_so() -> None:
    found = health(proxy(A, B, health_checks=URI), {(A, "/healthz"): 204, (B, "/healthz"): 200})
    assert (found.status, found.warnings) == ((200, 204), ())
    told = {"active": {"uri": "/healthz", "expect_status": 204}}
    found = health(proxy(A, health_checks=told), {(A, "/healthz"): 200})
    assert found.status == (204,)
    assert "answered 200" in found.warnings[0]


@pytest.mark.parametrize(("answer", "said"), [(503, "answered 503"), ("nothing answers there", "nothing answers")])
def test_an_instance_that_would_get_no_traffic_is_named(answer: int | str, said: str) -> None:
    found = health(proxy(A, B, health_checks=URI), {(A, "/healthz"): 200, (B, "/healthz"): answer})
    assert len(found.warnings) == 1
    assert B in found.warnings[0]
    assert said in found.warnings[0]


@pytest.mark.parametrize(
    ("check", "path"),
    [
        (["CMD-SHELL", "curl -fsS http://localhost:3000/up || exit 1"], "/up"),
        (["CMD", "wget", "-qO-", "http://127.0.0.1:3000/live?deep=1"], "/live?deep=1"),
        (["CMD-SHELL", "curl -f 'http://localhost:3000'"], "/"),
    ],
)
def test_else_as_its_container_asks_itself(check: list[str], path: str) -> None:
    here = machine(container("web", at="0.0.0.0:8080", check=check), hosts=("10.0.0.11",))
    found = health(proxy(A), {(A, path): 200}, here)
    assert (found.path, found.why) == (path, "HEALTHCHECK of container web")


@pytest.mark.parametrize(
    "check",
    [
        ["CMD-SHELL", "curl -f http://localhost:9999/up"],
        ["CMD-SHELL", "pg_isready"],
        ["CMD-SHELL", "python check.py http://localhost:3000/up"],
        ["NONE"],
    ],
    ids=["another port", "no URL", "no known program", "none"],
)
def test_a_check_of_something_else_is_not_taken(check: list[str]) -> None:
    here = machine(container("web", at="0.0.0.0:8080", check=check), hosts=("10.0.0.11",))
    assert health(proxy(A), {(A, "/health"): 200}, here).path == "/health"


def test_else_the_first_usual_path_that_all_answer() -> None:
    answers: dict[tuple[str, str], int | str] = {(dial, path): 404 for dial in (A, B) for path in USUAL}
    answers |= {(A, "/health"): 200, (A, "/up"): 200, (B, "/up"): 200}
    assert health(proxy(A, B), answers).path == "/up"


def test_what_is_only_assumed_is_said_to_be() -> None:
    found = health(proxy(A), {(A, "/healthz"): "no answer within 2 s"})
    assert found.path == "/healthz"
    assert "ASSUMED" in found.why
    assert found.warnings
