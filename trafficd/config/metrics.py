"""`[[services.NAME.canary.metrics]]`: what else a canary is judged by, and who is asked for the counts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from trafficd.config import values
from trafficd.config.faults import Clash, Section, doubles, get, items
from trafficd.config.values import Argv, Headers, Name, Positive
from trafficd.core.analysis import ERROR_LIMIT, ERRORS, IN_FLIGHT

SOURCES = ("command", "webhook", "prometheus")
QUERIES = ("canary_good", "canary_bad", "stable_good", "stable_bad")
WORDS = ("window", "service", "metric", "canary", "stable", "canary_version", "stable_version")
"""What may stand after a dollar sign in a query; digits may, too, as they are PromQL's own."""

_OURS = (ERRORS, IN_FLIGHT, ERROR_LIMIT)
_LATENCY = "slower_than_"


def _name(text: str) -> str:
    if text in _OURS or text.startswith(_LATENCY):
        raise ValueError(f"{text!r} is a metric of the access log already ({', '.join(_OURS)}, {_LATENCY}...)")
    return text


def _query(text: str) -> str:
    strange = [word for word in re.findall(r"\$([A-Za-z_]\w*)", text) if word not in WORDS]
    if strange:
        raise ValueError(f"${strange[0]} is nothing that we could put in; there are: ${', $'.join(WORDS)}")
    return text


Query = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(_query)]


class MetricSection(Section):
    """One metric. Of `command`, `webhook` and `prometheus` (with its four queries) there is exactly one."""

    name: Annotated[Name, AfterValidator(_name)]
    command: Argv | None = None
    webhook: Annotated[str, AfterValidator(values.url)] | None = None
    prometheus: Annotated[str, AfterValidator(values.url)] | None = None
    headers: Headers = Field(default_factory=dict)
    canary_good: Query | None = None
    canary_bad: Query | None = None
    stable_good: Query | None = None
    stable_bad: Query | None = None
    interval: Annotated[Positive, Field(ge=0.1)] = 10.0
    timeout: Positive = 5.0
    required: bool = False

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        sources = [key for key in SOURCES if given.get(key) is not None]
        if not sources:
            yield (), f"say who is asked for the counts: give one of {', '.join(SOURCES)}"
        for key in sources[1:]:
            yield (key,), f"a metric has one source, and this one has {sources[0]} already; leave one of them out"
        for key in QUERIES:
            if sources == ["prometheus"] and given.get(key) is None:
                yield (key,), "is needed with prometheus: a query that gives one number"
            if "prometheus" not in sources and given.get(key) is not None:
                yield (key,), "is a query for prometheus, which is not given"
        if given.get("headers") and sources == ["command"]:
            yield ("headers",), "are for a webhook or prometheus, and a command is asked over no HTTP"

    @property
    def queries(self) -> tuple[str, ...]:
        """In the order of `QUERIES`; empty where it is not Prometheus that is asked."""
        found = (self.canary_good, self.canary_bad, self.stable_good, self.stable_bad)
        return tuple(query for query in found if query is not None)


def twice(given: Mapping[str, Any]) -> Iterator[Clash]:
    """Metrics of a `[services.NAME.canary]` that have one name."""
    names = [get(metric, "name") for _, metric in items(given.get("metrics"))]
    for name in doubles(name for name in names if isinstance(name, str)):
        yield ("metrics",), f"two metrics have the name {name!r}"
