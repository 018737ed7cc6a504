"""`trafficd demo`, as its users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "trafficd", "demo", "--fast"]


def test_the_demo_prints_its_contract_and_loses_nothing() -> None:
    done = subprocess.run([*DEMO, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout)
    assert set(verdict) == {"ok", "requests", "lost", "status", "errors", "websockets", "rollouts"}
    assert verdict["ok"] is True
    assert verdict["lost"] == 0
    assert verdict["errors"] == {}
    assert verdict["status"] == {"200": verdict["requests"]}
    assert verdict["requests"] > 1000
    assert verdict["websockets"]["cut"] == 0
    assert verdict["websockets"]["opened"] > 6, "streams of the old version were opened again on the new one"
    (rollout,) = verdict["rollouts"]
    assert (rollout["strategy"], rollout["version"], rollout["state"]) == ("rolling", "v2", "succeeded")


def running(marker: str) -> list[str]:
    """The command lines that name this place, with their pids."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if marker.encode() in line:
                found.append(entry.name)
    return found


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGHUP))]
)
@pytest.mark.slow
def test_interrupted_even_twice_it_ends_everything_that_it_started(number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(prefix="demo-") as place:
        Path(place).chmod(0o755)
        process = subprocess.Popen(
            DEMO, env={**os.environ, "TMPDIR": place}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while not list(Path(place).glob("trafficd-*/state/caddy/caddy.pid")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(3)  # in the middle of its deploy
        assert running(place), "the instances, the daemon and Caddy run"
        process.send_signal(number)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(30) == 130
        assert running(place) == []
        assert list(Path(place).iterdir()) == []
