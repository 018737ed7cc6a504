"""The page of a verification lists what was lost, with what was going on then."""

from __future__ import annotations

from dataclasses import replace

from loadtest.model import ErrorKind, Plan, RequestSpec
from tests.verify.reports import report
from trafficd.verify.page import page
from trafficd.verify.phases import Begun, Stage
from trafficd.verify.record import CUT, Lost, Verification
from trafficd.verify.verdict import Sockets, State

START = 1_700_000_000.0
PLAN = Plan((RequestSpec("http://127.0.0.1/"),))
PASSED = Verification(
    id="v-1",
    service="web",
    version="v2",
    address="http://127.0.0.1",
    on_fail="report",
    actor="",
    started_at=START,
    state=State.PASSED,
    stages=(Begun(Stage.WARM_UP, START), Begun(Stage.ROLLOUT, START + 5), Begun(Stage.COOL_DOWN, START + 20)),
)
GOOD = report({0: {200: 100}})


def test_each_loss_is_listed_with_its_phase_and_upstream() -> None:
    losses = (
        Lost(START + 1.25, "dropped", "GET /in-the-warm-up", None, "warm-up"),
        Lost(START + 7.5, "truncated", "POST /<orders>", "web-2", "swap web-2", "v1", 3, "connection closed"),
        Lost(START + 8.0, CUT, "WebSocket /ws", "web-2", "swap web-2", detail="no close frame"),
    )
    sockets = Sockets(opened=4, cut=1, closed=2, failed=0)
    record = replace(PASSED, state=State.FAILED, reasons=("2 lost",), losses=losses, sockets=sockets)
    bad = report({0: {200: 99}}, errors={ErrorKind.TRUNCATED: 1})
    text = page(record, PLAN, GOOD, bad)
    assert "streams that were cut: 1" in text
    for cell in (
        "1.250 s",
        "7.500 s",
        "POST /&lt;orders&gt;",
        "swap web-2",
        "web-2",
        "v1",
        "WebSocket /ws",
        "no close frame",
    ):
        assert f">{cell}<" in text, cell
    assert "POST /<orders>" not in text
    assert "WebSockets" in text
    assert "Could not be opened" in text


def test_without_a_loss_or_a_websocket_nothing_is_listed() -> None:
    text = page(PASSED, PLAN, GOOD, GOOD)
    assert "Upstream in work" not in text
    assert "WebSockets" not in text
    assert "passed" in text
