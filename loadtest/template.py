"""Requests that differ from each other: {{seq}}, {{uuid}} and {{random:LOW:HIGH}} within text. No clock and no I/O."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable

from loadtest.model import PlanError

PLACE = re.compile(rb"\{\{(.*?)\}\}", re.DOTALL)
QUOTED_PLACE = re.compile(rb"%7B%7B(.*?)%7D%7D")  # the same within a request target
KNOWN = "{{seq}}, {{uuid}} and {{random:LOW:HIGH}}"
_RANDOM = re.compile(rb"random:(-?[0-9]+):(-?[0-9]+)")


class Template:
    """Bytes with places to fill in."""

    def __init__(self, text: bytes, chance: random.Random, place: re.Pattern[bytes] = PLACE) -> None:
        """Raises PlanError for a place that nothing is known to fill."""
        pieces = place.split(text)  # text and the insides of the braces, in turn
        self.fixed = len(pieces) == 1
        self._pieces = [
            _filler(piece, chance) if number % 2 else piece
            for number, piece in enumerate(pieces)
            if number % 2 or piece
        ]

    def fill(self, seq: int) -> bytes:
        return b"".join(piece if isinstance(piece, bytes) else piece(seq) for piece in self._pieces)


def check(text: str) -> None:
    """Raises PlanError for a place that nothing is known to fill, or that is left open."""
    Template(text.encode(), random.Random(0))
    if "{{" in PLACE.sub(b"", text.encode()).decode():
        raise PlanError(f"template: a {{{{ is not closed; known are {KNOWN}")


def _filler(inside: bytes, chance: random.Random) -> Callable[[int], bytes]:
    name = inside.strip()
    if name == b"seq":
        return lambda seq: b"%d" % seq
    if name == b"uuid":
        return lambda seq: str(uuid.UUID(int=chance.getrandbits(128), version=4)).encode()
    bounds = _RANDOM.fullmatch(name)
    if bounds is None:
        raise PlanError(f"template: {{{{{inside.decode(errors='replace')}}}}} is none of {KNOWN}")
    low, high = int(bounds[1]), int(bounds[2])
    if low > high:
        raise PlanError(f"template: {{{{{inside.decode()}}}}}: the lower bound comes first")
    return lambda seq: b"%d" % chance.randint(low, high)
