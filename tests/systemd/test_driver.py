"""What the driver tells `action.sh`, and what it makes of the answer; no systemd is needed for that."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from trafficd.config.systemd import SystemdSection
from trafficd.errors import TrafficdError
from trafficd.ports import Explains, Outcome, Swap
from trafficd.swap.process import CommandRunner, Ended, NotBegunError
from trafficd.swap.systemd.driver import SystemdDriver

FIRST, SPARE = "127.0.0.1:8080", "127.0.0.1:9080"
BY_FILE = SystemdSection(unit="web@{port}", version_file="/etc/web/{port}.env")
BY_NAME = SystemdSection(unit="web-{version}@{port}", scope="user")


@dataclass
class Scripted:
    """Answers every run as it is told to, and keeps what it was asked."""

    answer: Ended | TrafficdError = field(default_factory=lambda: Ended("exit 0", ""))
    where: str = " on web1"
    asked: list[list[str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    async def run(
        self, name: str, slot: str, argv: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> Ended:
        self.names.append(name)
        self.asked.append(list(argv[4:]))
        assert "systemctl" in environment["TRAFFICD_SYSTEMD"]
        if isinstance(self.answer, TrafficdError):
            raise self.answer
        return self.answer


async def ready(swap: Swap) -> Outcome:
    return Outcome(ok=True, output="fetched\n")


async def unready(swap: Swap) -> Outcome:
    return Outcome(False, "no such release")


def driver(section: SystemdSection, runner: Scripted | CommandRunner, **more: object) -> SystemdDriver:
    given = {"prepare": ready, "routed": True, "listed": ["a"], "now": lambda: 5.0, **more}
    return SystemdDriver(
        "web",
        section,
        lambda upstream: runner,
        lambda upstream: [FIRST, SPARE],
        lambda upstream, dial: "v2",
        **given,  # type: ignore[arg-type]
    )


SWAP = Swap("swap", "web", "a", "v2", "v1", FIRST, FIRST, "r1", 60.0, 5.0)


async def test_a_swap_in_place() -> None:
    runner = Scripted()
    assert (await driver(BY_FILE, runner)(SWAP)).ok
    assert runner.asked == [["swap", "--system", "web@8080.service", "", "", "/etc/web/8080.env", "v2"]]
    runner = Scripted()
    assert (await driver(BY_NAME, runner)(SWAP)).ok
    assert runner.asked == [["swap", "--user", "web-v2@8080.service", "web-v1@8080.service", "", "", "v2"]]


async def test_a_swap_beside() -> None:
    runner = Scripted()
    asked = driver(BY_FILE, runner)
    assert (await asked(replace(SWAP, dial=SPARE))).ok
    assert (await asked(replace(SWAP, action="retire", version="v1", previous_version=None, previous_dial=""))).ok
    assert runner.asked == [
        ["swap", "--system", "web@9080.service", "web@8080.service", "yes", "/etc/web/9080.env", "v2"],
        ["retire", "--system", "web@8080.service", "", "", "", ""],
    ]
    assert len(set(runner.names)) == 2


async def test_prepare_looks_at_every_place() -> None:
    runner = Scripted(Ended("exit 0", "said\n"))
    done = await driver(BY_FILE, runner)(replace(SWAP, action="prepare", dial=None, previous_dial=""))
    assert (done.ok, done.output) == (True, "fetched\nsaid\nsaid\n")
    assert [one[0] + " " + one[2] for one in runner.asked] == ["check web@8080.service", "check web@9080.service"]
    assert len(set(runner.names)) == 2
    done = await driver(BY_FILE, runner, prepare=unready)(replace(SWAP, action="prepare", dial=None))
    assert (done.ok, done.reason) == (False, "no such release")
    assert len(runner.asked) == 2, "no unit is looked for then"


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        (BY_FILE, {"dial": None}, "spare_dial"),
        (BY_NAME, {"version": "a/b"}, "cannot be in the name"),
        (BY_NAME, {"previous_version": None}, "is not known"),
        (BY_NAME, {"action": "prepare", "previous_version": None}, "is not known"),
        (BY_NAME, {"action": "retire", "version": ""}, "is not known"),
        (SystemdSection(unit="web", version_file="/f"), {"upstream": "added"}, "unit of another one"),
    ],
)
async def test_what_is_not_even_begun(section: SystemdSection, changes: dict[str, str], said: str) -> None:
    runner = Scripted()
    done = await driver(section, runner)(replace(SWAP, **changes))  # type: ignore[arg-type]
    assert (done.ok, done.begun, runner.asked) == (False, False, [])
    assert said in done.reason


@pytest.mark.parametrize(
    ("answer", "reason", "begun"),
    [
        (Ended("exit 1", "lines\nit did not start\n"), "web@8080.service on web1: it did not start", True),
        (Ended("exit 3", "there is no such unit\n"), "web@8080.service on web1: there is no such unit", False),
        (Ended("exit 2", ""), "the swap of web@8080.service on web1 exited with status 2", True),
        (
            Ended("timeout", "x\n"),
            "the swap of web@8080.service on web1 did not end within 60 s and was ended: x",
            True,
        ),
        (NotBegunError("no way there"), "no way there", False),
        (TrafficdError("it is UNKNOWN"), "it is UNKNOWN", True),
    ],
)
async def test_failures(answer: Ended | TrafficdError, reason: str, begun: bool) -> None:
    done = await driver(BY_FILE, Scripted(answer))(SWAP)
    assert (done.ok, done.reason, done.begun) == (False, reason, begun)


async def test_explains() -> None:
    runner = Scripted(Ended("exit 0", "boom\nit is failed; it said: boom\n"))
    asked = driver(BY_NAME, runner)
    assert isinstance(asked, Explains)
    said = await asked.explain("web", "a", FIRST)
    assert said is not None
    assert said.reason == "web-v2@8080.service on web1: it is failed; it said: boom"
    assert said.output.startswith("boom\n")
    runner.answer = TrafficdError("gone")
    assert await asked.explain("web", "a", FIRST) is None


async def test_a_host_without_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = await driver(BY_FILE, CommandRunner(tmp_path / "commands"))(replace(SWAP, since=0.0))
    assert (done.ok, done.begun) == (False, False)
    assert "there is no systemctl" in done.reason


def test_the_script_is_plain_sh() -> None:
    script = Path(__file__).parents[2] / "trafficd" / "swap" / "systemd" / "action.sh"
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n", str(script)], check=True)
