"""What people and scripts ask of a service: each request checked against the state, then journalled.

Repeating a request that is already fulfilled changes nothing and succeeds. What is refused says why and
what to do instead.
"""

from __future__ import annotations

from trafficd.operate.rollouts import RolloutRequests
from trafficd.operate.shares import ShareRequests
from trafficd.operate.ties import TieRequests
from trafficd.operate.upstreams import DrainReport, UpstreamRequests

__all__ = ["DrainReport", "Operator"]


class Operator(UpstreamRequests, RolloutRequests, ShareRequests, TieRequests):
    """Everything that can be asked of one service."""
