"""For all tests: Hypothesis without a time limit on single examples (machines are noisy, and figures come from
`make bench`) and with the same examples for everybody: whether a commit is green must not depend on luck. New
examples are looked for with `make fuzz`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile(
    "explore",
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("EXAMPLES", "20000")),
    suppress_health_check=list(HealthCheck),
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


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
