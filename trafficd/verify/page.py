"""The page for people: what the load generator makes of its report, with the steps of the rollout as marks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loadtest.html import Listing, clock, to_html
from loadtest.model import Plan, Report
from loadtest.verdict import Verdict
from trafficd.verify.record import CUT, Verification


def page(record: Verification, plan: Plan, before: Report, during: Report) -> str:
    """One self-contained HTML document about a verification that has ended.

    Its figures are those from the rollout on; over time the warm-up is shown as well.
    """
    begun = record.stages[0].at
    marks = [(at - begun, text) for at, text in _marks(record)]
    what = f"{record.service} {record.version}" if record.version else f"{record.service}, drain and ready of each"
    return to_html(
        _joined(before, during, begun),
        plan=plan,
        verdict=Verdict(record.reasons),
        title=f"trafficd verify {what}",
        marks=marks,
        listings=[*_sockets(record), *_lost(record, begun)],
    )


def _marks(record: Verification) -> Iterator[tuple[float, str]]:
    yield from ((one.at, one.stage.value.replace("_", "-")) for one in record.stages)
    yield from ((span.begin, span.text) for span in record.spans)


def _sockets(record: Verification) -> Iterator[Listing]:
    """The WebSockets that were held all the time."""
    if (held := record.sockets) is not None:
        counts = (held.opened, held.cut, held.closed, held.failed)
        headings = ("Opened", "Cut", "Closed in good order", "Could not be opened")
        yield Listing("WebSockets", headings, [tuple(f"{count:,}" for count in counts)])


def _lost(record: Verification, begun: float) -> Iterator[Listing]:
    """Each lost request and each stream that was cut, with what was going on then."""
    if not record.losses:
        return
    headings = ("At", "Time (UTC)", "Kind", "Request", "Phase", "Upstream in work", "Who answered", "What happened")
    streams = sum(one.kind == CUT for one in record.losses)
    rows = [
        (f"{one.at - begun:.3f} s", clock(one.at), one.kind, one.request, one.phase, one.upstream or "-",
         one.answered_by or "-", one.detail)
        for one in record.losses
    ]  # fmt: skip
    lost = len(record.losses) - streams
    what = f"Lost requests: {lost:,}" + (f" of {record.lost:,}" if lost < record.lost else "")
    yield Listing(f"{what}, and streams that were cut: {streams:,}" if streams else what, headings, rows)


def _joined(before: Report, during: Report, begun: float) -> Report:
    """The second report, on a time axis that begins with the warm-up."""
    first, second = max(0.0, before.began_at - begun), max(0.0, during.began_at - begun)
    intervals = [replace(one, begin=one.begin + first) for one in before.intervals]
    intervals += [replace(one, begin=one.begin + second) for one in during.intervals]
    # What was planned for a day was stopped with the rollout, so nothing of it was skipped.
    return replace(during, began_at=begun, intervals=tuple(intervals), planned=during.sent)
