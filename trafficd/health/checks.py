"""Preview checks: requests that every new instance must answer as configured before it may be given a share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trafficd.health.probe import HttpProbe


@dataclass(frozen=True)
class PreviewChecks:
    """`trafficd.ports.Probe` that makes all of them, in turn; the first that fails says why."""

    probes: Sequence[HttpProbe]

    async def __call__(self, dial: str) -> str | None:
        for probe in self.probes:
            failure = await probe(dial)
            if failure is not None:
                return f"preview check: {failure}"
        return None
