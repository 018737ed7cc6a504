"""The report of a rollout goes on while it is judged, and until its last answers are in the log."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.accessline import Answer, Cut
from tests.trafficd.conftest import Begin, begin
from tests.trafficd.home import Home
from tests.trafficd.test_strategies import SPARES, at_stage, with_spares
from trafficd.canary.chronicle import Chronicle, Tenure, tenures
from trafficd.canary.compare import Arms, Comparison
from trafficd.core.judged import Judged, judged
from trafficd.core.model import Direction, Phase, Policy, Rollout, StepKey, StepKind, StepRecord, Task
from trafficd.report.course import RESTARTED, Record

__all__ = ["begin"]  # the fixture
STEPS = [{"percent": 20, "gate": True}, {"percent": 50, "gate": True}]
OLD = "10.0.0.1:80"


def answer(dial: str, began: float, ended: float, **changes: object) -> Answer:
    told = Answer(ended, "web", dial, 500, ended - began, 0.01, Cut.NO, 0, "192.0.2.1", "GET", "/", "", True)
    return told._replace(**changes)  # type: ignore[arg-type]


# -- whose an address is -------------------------------------------------------------------------------------


def rollout(*, new: str, ended_at: float | None = None, swapped_back: float | None = None) -> Rollout:
    steps = (StepKind.DRAIN, StepKind.SWAP, StepKind.GATE, StepKind.ADMIT)
    task = Task("a", Direction.FORWARD, steps, OLD, "v1", new, "v2", cursor=4)
    records = [StepRecord(StepKey("a", Direction.FORWARD, StepKind.ADMIT), 100.0, 100.1, True)]
    if swapped_back is not None:
        records.append(StepRecord(StepKey("a", Direction.REVERT, StepKind.SWAP), swapped_back))
    return Rollout(
        "r1", "web", "v2", "rolling", Policy(), ("a",), {}, 90.0, forward={"a": task}, steps=tuple(records),
        ended_at=ended_at, phase=Phase.RUNNING,
    )  # fmt: skip


def test_an_address_is_the_new_versions_from_its_admission_to_what_comes_after() -> None:
    assert tenures(rollout(new=SPARES[0]), None) == {SPARES[0]: Tenure(100.0)}
    assert tenures(rollout(new=OLD, swapped_back=120.0, ended_at=150.0), None) == {OLD: Tenure(100.0, 120.0)}
    back_elsewhere = rollout(new=SPARES[0], swapped_back=120.0, ended_at=150.0)
    assert tenures(back_elsewhere, None) == {SPARES[0]: Tenure(100.0, 150.0)}


def test_a_canary_that_was_there_before_is_the_new_versions_from_the_begin_on() -> None:
    found = Judged({"10.0.0.9:80": "v2"}, frozenset({OLD}), ("r1", 5.0), "r1")
    assert tenures(rollout(new=SPARES[0]), found) == {SPARES[0]: Tenure(100.0), "10.0.0.9:80": Tenure(90.0)}


def test_what_is_asked_on_the_edge_belongs_to_what_begins_there() -> None:
    tenure = Tenure(100.0, 120.0)
    assert [tenure.covers(at) for at in (99.9, 100.0, 119.9, 120.0)] == [False, True, True, False]


# -- a whole rollout -----------------------------------------------------------------------------------------


class Judge:
    """What the analyst does with a chronicle."""

    def __init__(self, home: Home) -> None:
        self.home, self.chronicle = home, Chronicle(home.shelf, home.operators)
        self.comparison: Comparison | None = None

    @property
    def wanted(self) -> dict[str, Judged]:
        found = judged(self.home.engine.state)
        return {} if found is None else {"web": found}

    def reads(self) -> bool:
        return self.chronicle.open

    async def turn(self, *answers: Answer, after: float = 0.0) -> None:
        now, wanted = time.time() + after, self.wanted
        await self.chronicle.turn(wanted, now)
        for one in answers:
            self.chronicle.take(one)
        for name, found in wanted.items():
            if self.comparison is None:
                self.comparison = Comparison(Arms(frozenset(found.canary), found.stable), now)
            self.chronicle.judged(name, found, self.comparison, now)

    async def written(self, rollout: str) -> None:
        """Turn until all is on disk: a turn begins no write while one is under way."""
        async with asyncio.timeout(30):
            for turns in itertools.count(1):
                await self.turn(after=6.0 * turns)
                await asyncio.sleep(0.05)
                if not self.home.shelf.open[rollout].changed and not self.chronicle.writing:
                    return

    async def record(self, rollout: str) -> Record:
        found = await self.home.shelf.record(rollout)
        assert found is not None
        return found


@pytest.fixture
async def beside(begin: Begin) -> Home:
    return await begin(web=with_spares())


async def test_a_report_begins_with_the_first_share_and_is_kept_after_the_end(beside: Home) -> None:
    judge = Judge(beside)
    await judge.turn()
    assert not judge.reads()
    name = await beside.deploy(strategy="canary", steps=STEPS)
    await at_stage(beside, name, 0)
    began = time.time()
    stranger = answer("10.0.0.9:80", began, began + 0.1)
    early = answer(SPARES[0], began - 3600, began + 0.1)
    pinned = answer(SPARES[0], began, began + 0.1, stratum="preview")
    await judge.turn(stranger, early, pinned, answer(OLD, began, began + 0.1), answer(SPARES[0], began, began + 0.2))
    assert judge.reads()
    await beside.post(f"/v1/rollouts/{name}/promote", {"gate": 0})
    await at_stage(beside, name, 1)
    began = time.time()
    await judge.turn(answer(SPARES[1], began, began + 0.1, client="192.0.2.2"))
    await beside.post(f"/v1/rollouts/{name}/abort")
    await beside.ended(name)
    late = answer(SPARES[1], began + 0.01, time.time(), client="192.0.2.3")
    await judge.turn(late)
    assert judge.reads(), "what is open may still end"
    await judge.turn(after=10)
    assert not judge.reads()
    await judge.chronicle.aclose()
    await judge.turn(after=10)
    assert beside.shelf.open == {}, "it is on disk"
    record = await judge.record(name)
    assert [(one.percent, one.exposure.requests) for one in record.stages] == [(20, 1), (50, 2)]
    assert (record.exposure.requests, record.exposure.clients, record.exposure.bad) == (3, 3, 3)
    assert record.end is not None
    assert record.stages[0].end == record.stages[1].begin


async def test_after_a_kill_it_goes_on_with_what_is_in_the_file_and_the_log(beside: Home) -> None:
    judge = Judge(beside)
    name = await beside.deploy(strategy="canary", steps=STEPS)
    await at_stage(beside, name, 0)
    began = time.time()
    seen = [answer(SPARES[0], began, began + 0.1), answer(SPARES[1], began, began + 0.2)]
    await judge.turn(*seen)
    await judge.written(name)
    beside.shelf.open.clear()  # as if the process had been killed
    judge = Judge(beside)
    await judge.turn(*seen, answer(SPARES[0], began, began + 0.3))
    record = await judge.record(name)
    assert record.exposure.requests == 3
    assert [gap.why for gap in record.gaps] == [RESTARTED]
    await judge.chronicle.aclose()


async def test_after_a_restart_in_a_revert_the_last_answers_are_still_counted(beside: Home) -> None:
    judge = Judge(beside)
    name = await beside.deploy(strategy="canary", steps=STEPS)
    await at_stage(beside, name, 0)
    began = time.time()
    await judge.turn(answer(SPARES[0], began, began + 0.1))
    await judge.chronicle.aclose()
    beside.driver.wait = asyncio.Event()
    await beside.post(f"/v1/rollouts/{name}/abort")
    beside.shelf.open.clear()
    beside.engine.parts = replace(beside.engine.parts, judged=True)
    judge = Judge(beside)
    assert judge.wanted == {}
    await judge.turn(answer(SPARES[0], began + 0.05, began + 0.5))
    assert (await judge.record(name)).exposure.requests == 2
    beside.driver.wait.set()
    await beside.ended(name)
    await judge.chronicle.aclose()


async def test_a_disk_that_takes_nothing_is_said_once_and_disturbs_nobody(beside: Home, tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("no directory")
    judge = Judge(beside)
    name = await beside.deploy(strategy="canary", steps=STEPS)
    await at_stage(beside, name, 0)
    await judge.turn()
    await beside.until(lambda: beside.engine.trouble.report)
    assert f"the report of {name} cannot be written" in beside.engine.trouble.report
    assert any("cannot be written" in line for line in (await beside.get("/healthz")).json["trouble"])
    await judge.turn()
    assert (await judge.record(name)).points, "it goes on"
    (tmp_path / "reports").unlink()
    await judge.written(name)
    assert not beside.engine.trouble.report
    assert (tmp_path / "reports" / f"{name}.json").exists()
    await judge.chronicle.aclose()


async def test_a_bug_in_it_leaves_the_judge_alone(beside: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(beside)
    name = await beside.deploy(strategy="canary", steps=STEPS)
    await at_stage(beside, name, 0)
    await judge.turn()
    monkeypatch.setattr(beside.shelf.open[name], "leave", None)
    monkeypatch.setattr(beside.shelf.open[name], "enter", None)
    await judge.turn()
    assert "please report" in beside.engine.trouble.report
    assert not judge.reads()
    await judge.chronicle.aclose()
