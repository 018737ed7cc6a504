"""For all tests: Hypothesis without a time limit on single examples (machines are noisy, and figures come from
`make bench`) and with the same examples for everybody: whether a commit is green must not depend on luck. New
examples are looked for with `make fuzz`."""

from __future__ import annotations

import os

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
