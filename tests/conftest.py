"""For all tests: no time limit on single examples, as machines are noisy and figures come from `make bench`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")
