"""What a program that reads hey's output relies on: which lines there are, in which order, with which fields."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"NaN|[0-9]+(?:\.[0-9]+)?")
CSV_ROW = re.compile(r"(?:[0-9]+\.[0-9]{4},){6}[1-5][0-9]{2},[0-9]+\.[0-9]{4}")


def layout(text: str) -> list[str]:
    """The lines of hey's part of a summary, with # for every number and without the bars."""
    lines = [_NUMBERS.sub("#", line).rstrip("■") for line in text.partition("\nRequests:\n")[0].splitlines()]
    while not lines[-1]:
        lines.pop()
    return [re.sub(r" +#", " #", line) for line in lines]


_DETAILS = ("DNS+dialup", "DNS-lookup", "req write", "resp wait", "resp read")
LAYOUT = [
    "",
    "Summary:",
    *(f"  {name}:\t# secs" for name in ("Total", "Slowest", "Fastest", "Average")),
    "  Requests/sec:\t#",
    "  ",
    "  Total data:\t# bytes",
    "  Size/request:\t# bytes",
    "",
    "Response time histogram:",
    *[" # [#]\t|"] * 11,
    "",
    "",
    "Latency distribution:",
    *[" #% in # secs"] * 7,
    "",
    "Details (average, fastest, slowest):",
    *(f"  {name}:\t# secs, # secs, # secs" for name in _DETAILS),
    "",
    "Status code distribution:",
    "  [#]\t# responses",
]
