"""Slow start: what is put back into traffic gets its full weight over a time, in even steps.

A cold instance (empty caches, no connections, code not compiled yet) that gets its whole share at once answers slowly
just when it comes back. Of one that stands alone, or among others as cold, nothing changes: weights are relative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trafficd.core.model import FULL


class Warming:
    """When each address came into traffic; `duration` (s) is how long it then takes to its full weight, 0: no time.

    Times are seconds since the epoch. Lost with the daemon: what has traffic when it starts is taken for warm.
    """

    def __init__(self, duration: float) -> None:
        self._duration = duration
        self._since: dict[str, float] = {}

    def warm(self, shares: Mapping[str, int]) -> None:
        """Take what has traffic for warm."""
        self._since |= {dial: 0.0 for dial, share in shares.items() if share}

    def seen(self, now: float, weights: Mapping[str, int]) -> None:
        """These are the weights from now on."""
        self._since = {dial: self._since.get(dial, now) for dial, weight in weights.items() if weight}

    def warmth(self, now: float, dials: Iterable[str]) -> dict[str, int]:
        """How far those are that are not warm yet, from 1 to `FULL`; empty where all are alike."""
        if not self._duration:
            return {}
        found = {dial: self._of(now, dial) for dial in dials}
        return found if len(set(found.values())) > 1 else {}

    def _of(self, now: float, dial: str) -> int:
        since = self._since.get(dial)
        age = 0.0 if since is None else now - since
        return max(1, min(FULL, int(FULL * age / self._duration)))

    def pause(self, now: float) -> float | None:
        """How long (s) until the next step; None where all that has traffic is warm."""
        if not self._duration or all(now - since >= self._duration for since in self._since.values()):
            return None
        return max(0.05, self._duration / FULL)
