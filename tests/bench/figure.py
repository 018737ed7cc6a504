"""One measured figure, and the bound it is held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`bound`: the most it may be; None where it is only told."""

    what: str
    value: float
    unit: str
    bound: float | None = None

    @property
    def holds(self) -> bool:
        return self.bound is None or self.value <= self.bound

    def text(self) -> str:
        return f"{self.value:.3g} {self.unit}"

    def verdict(self) -> str:
        if self.bound is None:
            return ""
        return f"bound {self.bound:g} {self.unit}: {'holds' if self.holds else 'BROKEN'}"
