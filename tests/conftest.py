"""For all tests: Hypothesis without a time limit on single examples (machines are noisy, and figures come from
`make bench`) and with the same examples for everybody: whether a commit is green must not depend on luck. New
examples are looked for with `make fuzz`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from proxy import ports

settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile(
    "explore",
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("EXAMPLES", "20000")),
    suppress_health_check=list(HealthCheck),
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# Daemons under test choose ports of their own from the range that there was, and the other worker from its part of this
# one: what is free for a moment (an instance is replaced, or has not begun) is nobody else's.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
ports.PORTS = range(10_000 + 1_250 * _WORKER, 11_250 + 1_250 * _WORKER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that waits for ever fails a little before its time-out: what the alarm raises may come up in a callback,
    and then an event loop only logs it."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("timeout")
            limit = float(marker.args[0] if marker is not None else item.config.getini("timeout"))
            if limit:
                item.obj = _bounded(item.obj, 0.9 * limit)


def _bounded(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(seconds):
            await test(*args, **kwargs)

    return run


@pytest.fixture
def nothing_ignored() -> Iterator[None]:
    """A shell that runs the tests in its background, or nohup, has these ignored, and so would all that they start."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)}
    for number, handler in kept.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
