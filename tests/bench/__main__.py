"""Run every measurement and print a table: what, the figure, the bound it was built to, and whether it holds.

`python -m tests.bench generator idle` runs these parts alone.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from tests.bench import blindness, canary, drain, endurance, fleet, generator, hold, idle, judge, many, rolling, shift
from tests.bench.figure import Figure

PARTS = {
    module.__name__.rpartition(".")[2]: module
    for module in (shift, drain, rolling, fleet, idle, many, generator, endurance, blindness, canary, judge, hold)
}


async def measure(names: list[str]) -> list[Figure]:
    figures: list[Figure] = []
    for name in names:
        module = PARTS[name]
        print(f"measuring: {module.__doc__.splitlines()[0]}", file=sys.stderr, flush=True)  # type: ignore[union-attr]
        figures += await module.measure()
    return figures


def main() -> int:
    names = sys.argv[1:] or list(PARTS)
    if unknown := set(names) - set(PARTS):
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure(names))
    width = max((len(figure.what) for figure in figures), default=0)
    for figure in figures:
        print(f"{figure.what:<{width}}  {figure.text():>18}  {figure.verdict()}")
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
