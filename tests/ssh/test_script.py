"""What is sent to a shell: hostile values stay values, in every shell there is; and the supervisor, run by each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trafficd.ssh.script import command_line, exports, supervised

SHELLS = [
    pytest.param(argv, id="-".join(argv[:-1]).replace("/", ""), marks=marks)
    for argv, marks in (
        (["/bin/sh", "-s"], ()),
        (["bash", "-s"], pytest.mark.slow),
        (["dash", "-s"], pytest.mark.slow),
        (["busybox", "sh", "-s"], pytest.mark.slow),
    )
    if shutil.which(argv[0])
]
HOSTILE = [
    "",
    " ",
    "a b",
    "'",
    "''",
    "it's",
    '"',
    '"$HOME"',
    "$(touch x)",
    "`touch x`",
    "; touch x",
    "x\ny",
    "ends\n",
    "\n}\ntouch x\n{\n",
    "\\",
    "\\'",
    "*",
    "~",
    "!x",
    "-n",
    "--",
    "é 漢字 \N{PILE OF POO}",
    "\x01\x1b[2J\x7f\r\t",
    "a=b",
    "#x",
    "${IFS}",
]
NONCE = "@nonce"
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


def told(argv: list[str], environment: dict[str, str]) -> list[str]:
    """The arguments and variables that a program gets by way of a real shell."""
    names = list(environment)
    code = f"import os, sys; print(ascii(sys.argv[1:] + [os.environ[n] for n in {names!r}]))"
    line = command_line([sys.executable, "-c", code, *argv])
    script = f"{exports(environment)}\nenvironment\nexec {line}\n"
    done = subprocess.run(["/bin/sh", "-s"], input=script.encode(), capture_output=True, check=True)
    found: list[str] = eval(done.stdout)
    return found


def test_hostile_values_arrive_as_they_are() -> None:
    environment = {f"TRAFFICD_{number}": value for number, value in enumerate(HOSTILE)}
    assert told(HOSTILE, environment) == HOSTILE + HOSTILE


@settings(max_examples=20)
@given(st.lists(ANY, max_size=8), st.lists(ANY, max_size=8))
def test_all_values_arrive_as_they_are(argv: list[str], values: list[str]) -> None:
    assert told(argv, {f"V{number}": value for number, value in enumerate(values)}) == argv + values


@pytest.mark.parametrize("argv", [[], [""], ["-c", "x"], ["a\0b"], ["true", "\ud800"]])
def test_a_command_that_no_shell_can_have(argv: list[str]) -> None:
    with pytest.raises(ValueError, match=r"name|NUL|encoded"):
        command_line(argv)


@pytest.mark.parametrize("name", ["", "A B", "A=B", "1A", "A-B", "A;x", "A\n", "é"])
def test_a_variable_that_no_shell_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a variable"):
        exports({name: "x"})


class Place:
    """A home on this machine, and shells that supervise there."""

    def __init__(self, home: Path, shell: list[str]) -> None:
        self.home, self.shell = home, shell

    def script(self, name: str, argv: list[str], action: str = "run", limit: float = 10.0, **told: str) -> bytes:
        values: dict[str, str | int] = {"nonce": NONCE, "name": name, "slot": "web:a", "limit": int(limit * 100)}
        values |= {"patience": 1000, "grace": 30, "killed_by": 500, "kept": 16_384, "cap": 1 << 20}
        return supervised(action, values, argv, told)

    def say(self, script: bytes) -> str:
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            self.shell, input=script, stdout=subprocess.PIPE, env=environment, start_new_session=True, check=False
        )
        return done.stdout.decode()

    def run(self, name: str, argv: list[str], limit: float = 10.0, **told: str) -> str:
        """How the run ended, and what the command wrote."""
        said = self.say(self.script(name, argv, limit=limit, **told))
        assert said.startswith(f"{NONCE} begin\n{NONCE} end "), said
        return said.removeprefix(f"{NONCE} begin\n{NONCE} end ")


@pytest.fixture(params=SHELLS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path / "a home", request.param)


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_how_a_command_ends_and_what_it_wrote(place: Place) -> None:
    assert place.run("a", sh("echo out; echo err >&2; exit 7")) == "exit 7\nout\nerr\n"
    assert place.run("b", sh("kill -USR1 $$")) == "signal 10\n"
    assert place.run("c", ["echo", "-e", "a program, not a builtin"]).startswith("exit 0\n")


def test_a_run_runs_once_and_is_told_again(place: Place) -> None:
    script = sh(f"echo x >>'{place.home}/count'; wc -l <'{place.home}/count'")
    assert [place.run(name, script).split() for name in ("a", "a", "b", "a")] == [
        ["exit", "0", "1"],
        ["exit", "0", "1"],
        ["exit", "0", "2"],
        ["exit", "0", "1"],
    ]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("/no/such/program", "No such file or directory"),
        ("no-such-program", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("/", "Permission denied"),
        ("cd", "No such file or directory"),  # a builtin is no program
    ],
)
def test_a_program_that_cannot_be_started(place: Place, program: str, why: str) -> None:
    if program == "cd" and shutil.which("cd"):
        pytest.skip("there is a program cd")
    assert place.run("a", [program]) == f"error {why}\n"


def test_hostile_values_reach_the_program(place: Place) -> None:
    code = "import os, sys; print(ascii(sys.argv[1:] + [os.environ['V']]))"
    said = place.run("a", [sys.executable, "-c", code, *HOSTILE], V="\n".join(HOSTILE))
    assert said == f"exit 0\n{[*HOSTILE, chr(10).join(HOSTILE)]!a}\n"
    assert not (place.home / "x").exists()


@pytest.mark.usefixtures("nothing_ignored")
def test_the_command_finds_nothing_unusual(place: Place) -> None:
    script = "ls /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; cat | wc -c; umask"
    word, count, blocked, ignored, stdin, mask = place.run("a", sh(f"umask 022; {script}")).splitlines()
    standard = (1 << 31) - 1
    assert [int(line.split()[1], 16) & standard for line in (blocked, ignored)] == [0, 0]
    assert (word, count.strip(), stdin.strip(), int(mask, 8)) == ("exit 0", "4", "0", 0o022)


def test_at_its_time_the_whole_group_is_ended(place: Place) -> None:
    pids = place.home / "pids"
    script = f"trap '' TERM; echo $$ >>'{pids}'; sleep 60 & echo $! >>'{pids}'; wait; sleep 60"
    assert place.run("a", sh(script), limit=0.3) == "timeout\n"
    assert [pid for pid in pids.read_text().split() if Path(f"/proc/{pid}/root").exists() and alive(int(pid))] == []


def test_what_a_command_leaves_running_goes_on(place: Place) -> None:
    assert place.run("a", sh("sleep 60 & echo $! >left")).startswith("exit 0")
    left = int(Path("left").read_text())
    Path("left").unlink()
    try:
        assert alive(left)
    finally:
        os.kill(left, 9)


def test_a_script_that_was_cut_off_on_the_way_does_nothing(place: Place) -> None:
    script = place.script("a", sh("echo ran"))
    for length in range(0, len(script) - 3, len(script) // 12):
        assert NONCE not in place.say(script[:length])
    assert not place.home.exists()


def test_a_run_that_was_called_off_before_it_began_never_begins(place: Place) -> None:
    assert place.say(place.script("a", ["true"], "end")) == f"{NONCE} begin\n{NONCE} end ended\n"
    assert place.run("a", sh("echo ran")) == "ended\n"


def test_only_the_end_of_much_output_is_kept(place: Place) -> None:
    said = place.run("a", sh("head -c 3000000 /dev/zero | tr '\\0' x; echo end"))
    assert said.endswith("xend\n")
    assert len(said) < 17_000
    assert (place.home / ".trafficd/runs/a/output").stat().st_size <= 16_384


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
