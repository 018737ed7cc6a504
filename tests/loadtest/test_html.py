"""The page: whole, self-contained, and nothing in it but what we put there."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import chart, scale
from loadtest.html import to_html
from loadtest.markup import Markup, tag
from loadtest.model import ErrorKind, Plan, RequestSpec, SelfCheck
from loadtest.scale import Scale
from loadtest.verdict import judge
from tests.loadtest.reports import interval, loss, nothing, report

VOID = {"meta"}
EVIL = "<script>alert(1)</script>\"'&</td>"


class Page(HTMLParser):
    """Complains about elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((name, {key: value or "" for key, value in attributes}))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data.strip())

    def of_class(self, name: str, style: str) -> list[dict[str, str]]:
        return [found for kind, found in self.seen if kind == name and style in found.get("class", "").split()]


def test_page() -> None:
    plan = Plan((RequestSpec("http://h/a"), RequestSpec("http://h/b")), attribute="X-Version")
    measured = report(by_request={0: {200: 90}})
    marks = [(0.5, "warm-up"), (1.25, "swap a")]
    page = Page(to_html(measured, plan=plan, verdict=judge(measured), title="web v2", marks=marks))
    for word in (
        *("web v2", "failed", "Failed: 2 dropped, 3 answers 5xx", "X-Version", "v2", "40 × 200, 3 × 503"),  # noqa: RUF001
        *("GET /b", "none", "warm-up", "swap a", "0.50 s", "22:13:21.200", "Lost requests"),
        *("3.00 %", "16 ms", "Answers a second", "Response time", "Lost requests and 5xx answers"),
    ):
        assert word in page.words
    losses = page.words[page.words.index("Lost requests") :]
    rows = " ".join(filter(None, losses))
    assert "1.200 s 22:13:21.200 dropped 70 7 warm-up gone 1.300 s 22:13:21.300 dropped 71 7 swap a gone" in rows


def test_page_needs_nothing_else() -> None:
    text = to_html(report(), verdict=judge(report()))
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & {name for name, _ in page.seen}
    assert not [key for _, attributes in page.seen for key in attributes if key in ("src", "href") or key[:2] == "on"]
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    policies = [found["content"] for name, found in page.seen if found.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_nothing_breaks_out() -> None:
    measured = report(
        by_attribute={EVIL: {200: 1}},
        examples={ErrorKind.DROPPED: EVIL},
        losses=(loss(1, 1, detail=EVIL),),
        self=SelfCheck(1.0, False, EVIL),
    )
    plan = Plan((RequestSpec("http://h/?" + EVIL), RequestSpec("http://h/b")), attribute=EVIL)
    text = to_html(measured, plan=plan, title=EVIL, marks=[(1, EVIL)])
    page = Page(text)
    assert "script" not in {name for name, _ in page.seen}
    assert page.words.count(EVIL) >= 7


def test_pages_of_little() -> None:
    for measured in (nothing(), report(intervals=(interval(0, {200: 1}),), elapsed=0.01, began_at=0.0)):
        Page(to_html(measured))
    assert "<svg" not in to_html(nothing())
    assert ">none</text>" in to_html(report(intervals=(interval(0, {200: 5}),)))


# the chart


def shapes(page: Page, style: str) -> list[dict[str, str]]:
    return page.of_class("rect", style)


def test_a_single_loss_among_many_is_seen() -> None:
    many = [interval(second, {200: 10_000}) for second in range(600)]
    many[300] = interval(300, {200: 9_999}, {ErrorKind.TIMEOUT: 1})
    many[400] = interval(400, {200: 8_000, 502: 2_000})
    page = Page(chart.draw(report(intervals=tuple(many), elapsed=600)))
    (lost,) = [found for found in shapes(page, "lost") if "bar" in found["class"]]
    assert float(lost["height"]) >= 3
    assert float(lost["width"]) >= 2
    (bad,) = [found for found in shapes(page, "c5xx") if "bar" in found["class"]]
    assert float(bad["height"]) == pytest.approx(90)
    assert float(lost["x"]) < float(bad["x"])


def test_marks_and_losses_are_on_one_axis() -> None:
    measured = report(intervals=(interval(0, {200: 5}), interval(4, {200: 5}, {ErrorKind.DROPPED: 1})), elapsed=5)
    page = Page(chart.draw(measured, [(4, "swap a"), (4, "swap b"), (9, "late")]))
    (lost,) = [found for found in shapes(page, "lost") if "bar" in found["class"]]
    at = [float(found["x1"]) for found in page.of_class("line", "mark")]
    assert at[0] == at[1] == float(lost["x"]) < at[2] <= 1000
    rows = [found["y"] for found in page.of_class("text", "mark")]
    assert rows[0] != rows[1]


def test_a_gap_is_a_gap() -> None:
    measured = report(intervals=(interval(1, {200: 5}), interval(4, {200: 5})), elapsed=4.5)
    found = [(each.begin, each.seconds, sum(each.status.values())) for each in chart.filled(measured)]
    assert found == [(0, 1, 0), (1, 1, 5), (2, 2, 0), (4, 0.5, 5)]
    lines = Page(chart.draw(measured)).of_class("path", "p99")
    assert len(lines) == 2


def test_many_marks_do_not_cover_each_other() -> None:
    marks = [(number / 50, f"phase {number}") for number in range(100)]
    page = Page(chart.draw(report(), marks))
    assert len(page.of_class("line", "mark")) == 100
    boxes: dict[str, float] = {}
    for found in page.of_class("text", "mark"):
        assert float(found["x"]) >= boxes.get(found["y"], 0)
        boxes[found["y"]] = float(found["x"]) + 40
    assert 1 < len(boxes) <= 5


@given(st.floats(1e-3, 1e9), st.floats(1, 1e6))
def test_scales_hold_what_they_are_made_for(low: float, ratio: float) -> None:
    high = low * ratio

    def check(axis: Scale, *values: float) -> None:
        for value in values:
            assert -1e-9 <= axis.place(value) <= 1 + 1e-9
        assert 2 <= len(axis.ticks) <= 11
        places = [axis.place(tick) for tick in axis.ticks]
        assert places == sorted(places)
        assert places[0] >= 0
        assert places[-1] <= 1 + 1e-9

    check(scale.linear(high), 0, low, high)
    check(scale.linear(high, whole=True), 0, low, high)
    if high < 1e9:
        check(scale.fitting(low, high), low, high)
    if 0.1 <= high < 500_000:
        check(scale.times(high), 0, high)


def test_times_on_the_axis() -> None:
    assert [scale.clock(at, 100) for at in (0, 2.5)] == ["0 s", "2.5 s"]
    assert [scale.clock(at, 600) for at in (0, 61)] == ["0:00", "1:01"]
    assert scale.clock(3_723, 10_000) == "1:02:03"
    assert [chart.milliseconds(at) for at in (0, 0.0125, 2.346, 12_345)] == ["0 ms", "12.5 us", "2.35 ms", "12.3 s"]
    assert math.isclose(scale.times(100).place(50), 0.5)


def test_markup_escapes_what_is_not_markup() -> None:
    found = tag("a", "<b>", tag("i", "&"), class_='x"y', stroke_width=1.5, title=None)
    assert found == '<a class="x&quot;y" stroke-width="1.5">&lt;b&gt;<i>&amp;</i></a>'
    assert isinstance(found, Markup)
