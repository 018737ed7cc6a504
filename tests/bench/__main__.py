"""Run every measurement and print a table: what, the figure, the bound it was built to, and whether it holds."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from tests.bench import drain, idle, many, rolling, shift
from tests.bench.figure import Figure


async def measure() -> list[Figure]:
    figures: list[Figure] = []
    for module in (shift, drain, rolling, idle, many):
        print(f"measuring: {module.__doc__.splitlines()[0]}", file=sys.stderr, flush=True)  # type: ignore[union-attr]
        figures += await module.measure()
    return figures


def main() -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure())
    width = max(len(figure.what) for figure in figures)
    for figure in figures:
        print(f"{figure.what:<{width}}  {figure.text():>14}  {figure.verdict()}")
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
