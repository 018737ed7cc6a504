"""The report of a rollout over the API and on the command line; nothing in its page is anybody's markup."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.test_course import said
from tests.trafficd.home import Home
from tests.trafficd.test_cli import in_swap, only_json, trafficd
from trafficd.core import events as ev
from trafficd.core.judge import Verdict
from trafficd.core.model import Phase, Policy, Stage
from trafficd.report.course import Course, Worst
from trafficd.retention import forget
from trafficd.verify.record import Verification, encode
from trafficd.verify.verdict import State

EVIL = "</style></title><script>alert('x')</script><img src=http://evil.example/ onerror=alert(1)>\"&"
BEGAN = 1_700_000_000.0


class Page(HTMLParser):
    """What a browser would see. Raises for what would run or be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag not in ("script", "img", "iframe", "object", "embed", "link", "form", "base", "a", "image", "use")
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name not in ("src", "href", "xlink:href", "style", "background"), name
            assert "url(" not in (value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


async def page(home: Home, rollout: str, **headers: str) -> Page:
    url = f"http://localhost/v1/rollouts/{rollout}/report"
    async with home.session.get(url, headers=headers or {"Accept": "text/html,*/*;q=0.8"}) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        return Page(await response.text())


async def past(home: Home, version: str = "v2", name: str = "r-20260101-000000-00000a") -> str:
    """A canary that failed: in the journal, and its judge's record on the shelf."""
    policy = Policy(beside=True, stages=(Stage(5, judged=True), Stage(100)))
    events: list[ev.Event] = [
        ev.RolloutStarted("web", name, version, "canary", policy, ("a",), {"a": "v1"}, actor="eve", message=EVIL[:100]),
        ev.StageStarted("web", name, 0, 5.0),
        ev.StageStarted("web", name, 1, 100.0),
        ev.AbortRequested("web", name, actor="judge", reason=EVIL),
        ev.RolloutEnded("web", name, Phase.REVERTED, EVIL),
    ]
    for event in events:
        await home.journal.append(event)
    course = Course(name, "web", BEGAN)
    course.anew(BEGAN, BEGAN)
    course.enter(0, 5.0, BEGAN)
    course.take("192.0.2.1", began=BEGAN + 1, ended=BEGAN + 1.5, bad=True)
    course.see(BEGAN + 2, said((9, 3), (90, 1), 20.0), Worst(f"GET /{EVIL}", 9, 3, 90, 1))
    course.enter(1, 100.0, BEGAN + 3)
    course.see(BEGAN + 4, said((20, 13), (90, 1), 4e5, Verdict.FAIL), Worst(f"GET /{EVIL}", 20, 13, 90, 1))
    course.take("192.0.2.2", began=BEGAN + 5, ended=BEGAN + 5.5, bad=True)
    course.close(BEGAN + 6)
    await home.shelf.keep(course)
    return name


# -- judged --------------------------------------------------------------------------------------------------


async def test_a_past_rollout_is_told_from_the_journal_and_its_record(home: Home) -> None:
    name = await past(home)
    await home.restart()
    view = (await home.get(f"/v1/rollouts/{name}/report")).json
    assert (view["state"], view["asked"]["actor"], view["asked"]["strategy"]) == ("reverted", "eve", "canary")
    assert view["asked"]["policy"]["stages"][0]["percent"] == 5
    assert [(one["percent"], one["exposure"]["requests"]) for one in view["stages"]] == [(5, 1), (100, 1)]
    second = view["stages"][1]
    assert second["judge"]["verdict"] == "FAIL"
    assert second["judge"]["metrics"][0]["canary"] == {"total": 11, "bad": 10}
    assert second["end"] is not None
    judge = view["judge"]
    assert (judge["verdict"], view["not_judged"]) == ("FAIL", "")
    assert (judge["failure"]["requests_after"], judge["failure"]["seconds"]) == (1, 1.0)
    assert judge["exposure"]["clients"] == 2
    assert judge["worst_route"]["canary"] == {"total": 20, "bad": 13}
    assert [point["errors"] for point in judge["evidence"]["points"]] == [20.0, 4e5]
    assert [mark["what"] for mark in view["marks"]] == ["begins", "aborted", "ended: reverted"]


async def test_the_page_shows_it_and_runs_nothing_that_users_wrote(home: Home) -> None:
    shown = await page(home, await past(home, EVIL))
    text = "".join(shown.text)
    assert "svg" in shown.tags
    assert "FAIL at 200" in text
    assert "1 requests began on the new version after it, the last one 1.000 s later" in text
    assert f"GET /{EVIL}" in text, "it is there, as text"
    assert text.count(EVIL) >= 3
    assert EVIL[:100] in text


async def test_what_programs_and_people_say_is_text_in_the_page(home: Home) -> None:
    message = "<img src=x onerror=alert(1)>"
    home.driver.fails["v2"] = EVIL
    rollout = await home.deploy(message=message)
    await home.ended(rollout)
    text = "".join((await page(home, rollout)).text)
    assert message in text
    assert EVIL in text


# -- not judged ----------------------------------------------------------------------------------------------


async def test_a_rollout_that_nobody_judged_has_its_steps_and_says_why(home: Home) -> None:
    rollout = await home.deploy(message="the new shop")
    await home.ended(rollout)
    view = (await home.get(f"/v1/rollouts/{rollout}/report")).json
    assert view["judge"] is None
    assert "caddy.access_log is not set" in view["not_judged"]
    assert (view["state"], view["stages"], view["verification"]) == ("succeeded", [], None)
    swaps = [step for step in view["steps"] if step["step"] == "swap"]
    assert [step["upstream"] for step in swaps] == ["a", "b", "c"]
    assert all(step["seconds"] == round(step["ended_at"] - step["started_at"], 3) for step in swaps)
    assert "Not judged" in "".join((await page(home, rollout)).text)


async def test_one_that_is_live_has_a_report_too(home: Home) -> None:
    rollout = await in_swap(home)
    view = (await home.get(f"/v1/rollouts/{rollout}/report")).json
    assert (view["state"], view["ended_at"]) == ("running", None)
    assert view["steps"][-1]["seconds"] is None
    assert "goes on" in "".join((await page(home, rollout)).text)
    assert home.driver.wait is not None
    home.driver.wait.set()
    assert (await home.ended(rollout))["state"] == "succeeded"


async def test_the_verification_it_ran_under_is_in_it(home: Home) -> None:
    one, other = await past(home), await past(home, name="r-20260101-000000-00000b")
    found = Verification("v-1", "web", "v2", "http://127.0.0.1", "report", "eve", BEGAN, State.PASSED, rollout=one)
    await home.journal.keep_verification("v-1", "web", BEGAN, live=False, body=encode(found), page=None)
    assert (await home.get(f"/v1/rollouts/{one}/report")).json["verification"]["id"] == "v-1"
    assert (await home.get(f"/v1/rollouts/{other}/report")).json["verification"] is None
    assert "v-1" in (await page(home, one)).text


async def test_a_damaged_record_is_named_and_the_rest_is_told(home: Home, tmp_path: Path) -> None:
    name = await past(home)
    (tmp_path / "reports" / f"{name}.json").write_bytes(b"{")
    view = (await home.get(f"/v1/rollouts/{name}/report")).json
    assert view["judge"] is None
    assert f"{name}.json cannot be read" in view["not_judged"]
    assert [stage["percent"] for stage in view["stages"]] == [5, 100]


# -- what is asked for ---------------------------------------------------------------------------------------


async def test_unknown_ones_and_unknown_forms_are_refused(home: Home) -> None:
    assert (await home.get("/v1/rollouts/r-20200101-000000-000000/report")).status == 404
    assert (await home.get("/v1/rollouts/..%2Fjournal/report")).status == 404
    rollout = await past(home)
    refused = await home.get(f"/v1/rollouts/{rollout}/report?format=pdf")
    assert (refused.status, "json and html" in refused.detail) == (422, True)


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "*/*", "application/json"),
        ("", "text/html, application/xhtml+xml;q=0.9", "text/html"),
        ("", "application/json, text/html", "application/json"),
        ("?format=html", "application/json", "text/html"),
        ("?format=json", "text/html", "application/json"),
    ],
)
async def test_browsers_get_a_page_and_programs_json(home: Home, query: str, accept: str, kind: str) -> None:
    rollout = await past(home)
    answer = await home.get(f"/v1/rollouts/{rollout}/report{query}", Accept=accept)
    assert (answer.kind, answer.headers["Vary"]) == (kind, "Accept")


async def test_a_report_goes_with_its_rollout(home: Home) -> None:
    old = await past(home)
    await home.ended(await home.deploy("v3"))
    assert await forget(home.engine, home.journal, older_than=-1.0) > 0
    assert await home.shelf.forget(time.time() + 1, []) == 1
    assert (await home.get(f"/v1/rollouts/{old}/report")).status == 404


# -- the command line ----------------------------------------------------------------------------------------


async def test_the_command_line_tells_it_as_text_json_and_page(home: Home, tmp_path: Path) -> None:
    name = await past(home)
    told = await trafficd(home, "report", name)
    assert told.exit_code == 0
    assert told.stdout.startswith(f"REVERTED: web to v2 ({name})")
    assert re.search(r"exposed +2 clients, 2 requests \(2 bad\), for 4\.0 s", told.stdout)
    assert re.search(r"after FAIL +1 requests began on the new version, the last 1\.000 s later", told.stdout)
    assert re.search(r"2: 100 % +errors +4e\+05 +10 of 11 +0 of 0", told.stdout)
    assert only_json(await trafficd(home, "report", "web", "--json"))["id"] == name
    assert only_json(await trafficd(home, "report", "--json"))["id"] == name
    place = tmp_path / "report.html"
    assert (await trafficd(home, "report", name, "--html", str(place))).stdout == ""
    printed = await trafficd(home, "report", name, "--html", "-")
    assert printed.stdout.startswith("<!doctype html>")
    assert "FAIL at 200" in place.read_text()


async def test_the_command_line_says_what_is_wrong(home: Home, tmp_path: Path) -> None:
    none = await trafficd(home, "report")
    assert (none.exit_code, "there has been no rollout" in none.stderr) == (1, True)
    name = await past(home)
    unwritable = await trafficd(home, "report", name, "--html", str(tmp_path / "none" / "report.html"))
    assert (unwritable.exit_code, "cannot be written" in unwritable.stderr) == (2, True)
    assert (await trafficd(home, "report", name, "--html", "-", "--json")).exit_code == 2


async def test_a_failed_deploy_that_was_not_judged_says_nothing_of_a_report(home: Home) -> None:
    home.driver.fails["v2"] = "no such image"
    failed = await trafficd(home, "deploy", "web", "v2")
    assert failed.exit_code == 1
    assert "trafficd report" not in failed.stdout
