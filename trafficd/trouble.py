"""What keeps a service's engine from acting, in words: shown in the status, and logged when it begins."""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger("trafficd.engine")


@dataclass
class Trouble:
    """Empty texts where nothing is in the way."""

    service: str
    proxy: str = ""  # the routing cannot be written
    caddy: str = ""  # Caddy cannot be reached, or the service is not in its configuration
    sites: str = ""  # a site of the service cannot be put back
    counts: str = ""  # what is open cannot be counted
    unlogged: str = ""  # its answers are not in the access log, though they are to be
    blind: str = ""  # a canary has traffic, and its answers cannot be read
    metrics: str = ""  # a canary's metrics from outside that are not known, a line each
    outliers: str = ""  # an upstream answers badly, and is not ejected
    report: str = ""  # the report of a rollout that is judged cannot be written
    retired: str = ""  # instances that should be gone could not be stopped, a line each
    journal: str = ""
    bug: str = ""

    def ails(self) -> list[str]:
        """What is wrong. That answers are not logged may be how the owner of Caddy's configuration wants it."""
        return [line for line in self.lines() if line != self.unlogged]

    def lines(self) -> list[str]:
        """Whatever should be known."""
        traffic = (self.proxy, self.caddy, self.sites, self.counts)
        judging = (self.unlogged, self.blind, *self.metrics.splitlines(), self.outliers, self.report)
        known = (*traffic, *judging, *self.retired.splitlines(), self.journal, self.bug)
        return [line for line in known if line]

    def say(self, kind: str, text: str) -> None:
        """Take note of a trouble of this kind; empty when there is none any more."""
        if getattr(self, kind) != text:
            setattr(self, kind, text)
            if text:
                log.error("%s: %s", self.service, text)
