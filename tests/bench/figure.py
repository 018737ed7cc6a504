"""One measured figure, and the bound it is held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`bound`: the most it may be, `least`: the least; None where it is only told."""

    what: str
    value: float
    unit: str
    bound: float | None = None
    least: float | None = None

    @property
    def holds(self) -> bool:
        return (self.bound is None or self.value <= self.bound) and (self.least is None or self.value >= self.least)

    def text(self) -> str:
        return f"{_number(self.value)} {self.unit}"

    def verdict(self) -> str:
        bounds = [f"at least {_number(self.least)}"] if self.least is not None else []
        bounds += [f"bound {_number(self.bound)}"] if self.bound is not None else []
        if not bounds:
            return ""
        return f"{', '.join(bounds)} {self.unit}: {'holds' if self.holds else 'BROKEN'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
