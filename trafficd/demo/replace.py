"""The swap command of the demo and the tests: end the instance at an address, start another version there.

    python -m trafficd.demo.replace DIRECTORY [VERSION_PREFIX=OPTIONS ...]

Told by TRAFFICD_UPSTREAM, _DIAL and _VERSION, like any swap command. DIRECTORY keeps a pid file and a log for
each address. `bad=--crash-after 0` starts versions that begin with "bad" with that option.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from proxy.server import start_time

_GRACE = 35.0  # s between TERM and KILL


def stop(pid_file: Path, grace: float = _GRACE) -> None:
    """End the instance that a pid file names, if it is still that very process."""
    try:
        pid, started = pid_file.read_text().split()
    except (OSError, ValueError):
        return
    number = int(pid)
    deadline = time.monotonic() + grace
    sent = 0
    while start_time(number) == started:
        wanted = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        if sent != wanted:
            os.kill(number, wanted)
            sent = wanted
        time.sleep(0.02)
    pid_file.unlink(missing_ok=True)


def start(directory: Path, dial: str, version: str, options: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start an instance of `version` at `dial`."""
    port = dial.rpartition(":")[2]
    with (directory / f"{port}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trafficd.demo.app", port, version, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (directory / f"{port}.pid").write_text(f"{process.pid} {start_time(process.pid)}\n")
    return process


def main() -> None:
    directory = Path(sys.argv[1])
    options = dict(argument.split("=", 1) for argument in sys.argv[2:])
    action = os.environ.get("TRAFFICD_ACTION", "swap")
    version, dial = os.environ["TRAFFICD_VERSION"], os.environ["TRAFFICD_DIAL"]
    stop(directory / f"{dial.rpartition(':')[2]}.pid")
    if action == "swap":
        chosen = next((value for prefix, value in options.items() if version.startswith(prefix)), "")
        started = start(directory, dial, version, chosen.split())
        started.returncode = 0  # it outlives us on purpose


if __name__ == "__main__":
    main()
