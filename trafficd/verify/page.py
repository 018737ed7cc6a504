"""The page for people: what the load generator makes of its report, with the steps of the rollout as marks."""

from __future__ import annotations

from trafficd.verify.conduct import Evidence
from trafficd.verify.record import Verification


def page(record: Verification, evidence: Evidence) -> str | None:
    """One self-contained HTML document; None where nothing was measured."""
    return None
