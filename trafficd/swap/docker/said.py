"""What a container says about itself: how it ended, and the end of its log."""

from __future__ import annotations

from trafficd.errors import TrafficdError
from trafficd.ports import Said
from trafficd.swap.docker.definition import Json
from trafficd.swap.docker.engine import Engine

_LINES, _SHOWN = 50, 5  # last lines of its log that are kept, and that are in the reason
_LIMIT = 8_000  # characters


async def said(engine: Engine, inspect: Json) -> Said:
    """In one line for the reason of a step, and at length for its output."""
    name = name_of(inspect)
    try:
        lines = await engine.logs(inspect["Id"], _LINES)
    except TrafficdError as error:
        lines = [f"(its log cannot be read: {error})"]
    shown = " | ".join(filter(None, (_printable(line) for line in lines[-_SHOWN:])))
    ending = f"its last lines: {shown}" if shown else "it wrote nothing"
    return Said(f"container {name} {_state(inspect)}; {ending}", "\n".join([f"container {name}:", *lines])[-_LIMIT:])


def name_of(inspect: Json) -> str:
    return str(inspect.get("Name", "")).lstrip("/")


def is_up(inspect: Json, restarts: int) -> bool:
    """Whether it runs, and was not started again by its Engine since it had been `restarts` times."""
    state = inspect["State"]
    return bool(state.get("Running")) and not state.get("Restarting") and inspect.get("RestartCount", 0) <= restarts


def _state(inspect: Json) -> str:
    state, restarts = inspect["State"], inspect.get("RestartCount", 0)
    again = f" and was restarted {restarts} times" if restarts else ""
    if state.get("Paused"):
        return f"is paused (docker unpause){again}"
    if state.get("Running") and not state.get("Restarting"):
        return f"runs{again}"
    if state.get("OOMKilled"):
        return f"was killed, as it used more memory than its limit{again}"
    error = f" ({state['Error']})" if state.get("Error") else ""
    return f"exited with status {state.get('ExitCode')}{error}{again}"


def _printable(line: str) -> str:
    """Safe for a terminal."""
    return "".join(c if c.isprintable() else " " for c in line).strip()[:200]
