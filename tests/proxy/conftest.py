"""A real Caddy for the tests of this package."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.proxy.caddy import RealCaddy


@pytest.fixture
async def caddy(tmp_path: Path) -> AsyncIterator[RealCaddy]:
    """A fresh Caddy that serves nothing yet."""
    real = RealCaddy(tmp_path)
    await real.start()
    yield real
    await real.aclose()
