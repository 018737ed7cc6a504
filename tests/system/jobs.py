"""Queue workers for the tests: one process each, that trafficd's programs start, quiet, end and look at.

    python -I -S jobs.py DIRECTORY ACTION

with the action "run" for the worker itself, and TRAFFICD_ACTION's for the rest. In DIRECTORY there are, for each
worker, NAME.pid (pid and version) and NAME.beat, which a worker that takes jobs touches; `log`, a line for everything
that was done; and `slow`, a number of seconds that a swap takes, where it exists. Of a version that begins with "bad"
a worker takes no jobs. Only the standard library, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_FRESH = 1.5  # s since the last beat of a worker that is well; the machine may be busy


def work(directory: Path, name: str, version: str) -> None:
    """Take jobs until TERM. USR1: take no more."""
    taking = not version.startswith("bad")

    def quiet(number: int, frame: object) -> None:
        nonlocal taking
        taking = False

    signal.signal(signal.SIGUSR1, quiet)
    (directory / f"{name}.pid").write_text(f"{os.getpid()} {version}\n")
    while True:
        if taking:
            (directory / f"{name}.beat").touch()
        time.sleep(0.05)


def running(directory: Path, name: str) -> tuple[int, str]:
    """The pid and version of a worker, 0 and "" when there is none."""
    with contextlib.suppress(OSError, ValueError):
        pid, version = (directory / f"{name}.pid").read_text().split()
        if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return int(pid), version
    return 0, ""


def start(directory: Path, name: str, version: str) -> None:
    argv = [sys.executable, "-I", "-S", __file__, str(directory), "run", name, version]
    null = subprocess.DEVNULL
    process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, start_new_session=True)
    process.returncode = 0  # it outlives us on purpose
    while running(directory, name) != (process.pid, version):
        time.sleep(0.005)


def stop(directory: Path, name: str) -> None:
    pid, _ = running(directory, name)
    if pid:
        os.kill(pid, signal.SIGTERM)
    while running(directory, name)[0]:
        time.sleep(0.005)
    (directory / f"{name}.beat").unlink(missing_ok=True)


def probe(directory: Path, name: str, wanted: str) -> str:
    """Why a worker is not well; empty when it is."""
    pid, version = running(directory, name)
    if version != wanted:
        return f"{name} runs {version or 'nothing'}, not {wanted}"
    with contextlib.suppress(OSError):
        if time.time() - (directory / f"{name}.beat").stat().st_mtime < _FRESH:
            return ""
    return f"{name} (process {pid}) takes no jobs"


def main() -> None:
    directory, action = Path(sys.argv[1]), sys.argv[2]
    if action == "run":
        work(directory, sys.argv[3], sys.argv[4])
    action = os.environ["TRAFFICD_ACTION"]
    name, version = os.environ.get("TRAFFICD_UPSTREAM", ""), os.environ["TRAFFICD_VERSION"]
    assert not os.environ.get("TRAFFICD_DIAL"), "a worker has no address"
    if action == "probe":
        said = probe(directory, name, version)
        print(said)
        sys.exit(bool(said))
    with (directory / "log").open("a") as log:
        log.write(f"{action} {name} {version}\n")
    match action:
        case "before_swap":
            os.kill(running(directory, name)[0], signal.SIGUSR1)
        case "swap":
            with contextlib.suppress(OSError):
                time.sleep(float((directory / "slow").read_text()))
            stop(directory, name)
            start(directory, name, version)


if __name__ == "__main__":
    main()
