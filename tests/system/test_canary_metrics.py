"""A canary behind a real Caddy that answers everything 200 and sells nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.canary.arms import Instance, users
from tests.system.ask import until
from tests.system.conftest import QUICK, Raise
from tests.system.test_canary import beside, share

# What a shop would ask its orders: of 20 visits of the canary in a window 1 came to an order, of 180 others 90.
COUNT = """#!/bin/sh
test "$TRAFFICD_METRIC $TRAFFICD_CANARY_VERSION" = "conversion v2" || exit 1
case "$TRAFFICD_STABLE" in *:*,*:*) ;; *) exit 1 ;; esac
echo '{"canary": {"good": 1, "bad": 19}, "stable": {"good": 90, "bad": 90}}'
"""


@pytest.mark.slow
async def test_a_canary_that_sells_nothing_loses_its_traffic(raise_stage: Raise, tmp_path: Path) -> None:
    program = tmp_path / "count-orders"
    program.write_text(COUNT)
    program.chmod(0o755)
    metric = f'[[services.web.canary.metrics]]\nname = "conversion"\ncommand = ["{program}"]\ninterval = "500ms"\n'
    log, instance = tmp_path / "access.log", Instance()
    async with (
        beside(raise_stage, instance, log, QUICK + metric) as stage,
        users(stage.public, count=20, rate=50) as answers,
    ):
        await share(stage, 25)
        view = await until(stage, lambda view: view["canary_percent"] == 0, 30)
        assert view["analysis"]["verdict"] == "FAIL"
        assert view["analysis"]["why"].startswith("conversion: of the canary's requests ")
        shown = {one["name"]: one for one in view["analysis"]["metrics"]}
        assert shown["conversion"]["canary_bad"] == shown["conversion"]["canary_total"] * 19 / 20 > 0
        assert shown["errors"]["canary_bad"] == 0
        assert set(answers) == {"200"}
