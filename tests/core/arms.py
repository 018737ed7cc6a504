"""Simulated traffic of a canary and the stable version beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from trafficd.core.judge import Judge, Verdict
from trafficd.core.ticks import LONGEST, NONE_BAD, Arm, Request, Tick, Ticks

ERROR = frozenset({"errors"})
FINE: frozenset[str] = frozenset()
SHARES = (0.01, 0.05, 0.25, 0.5, 0.8)


def binomial(random: Random, total: int, part: float) -> int:
    """How many of `total` happen: by the gaps between them, which is quick where they are rare."""
    if part >= 1:
        return total
    if part <= 0:
        return 0
    happened, at, log_rest = 0, 0, math.log1p(-part)
    while True:
        at += int(math.log(1 - random.random()) / log_rest) + 1
        if at > total:
            return happened
        happened += 1


def seconds_until(
    verdict: Verdict,
    random: Random,
    canary: tuple[int, float],
    stable: tuple[int, float],
    at_most: int = 1000,
    judge: Judge | None = None,
) -> int:
    """Ticks of 1 s until a judge says so, or `at_most`; each arm is (requests a second, part of bad ones)."""
    judge = judge or Judge()
    for second in range(1, at_most):
        bad = binomial(random, *canary), binomial(random, *stable)
        if judge.tick(canary[0], bad[0], stable[0], bad[1]) is verdict:
            return second
    return at_most


def arrivals(random: Random, mean: float) -> int:
    """How many come in a second, where each comes by itself: Poisson, and for many its normal approximation."""
    if mean > 50:
        return max(0, round(random.gauss(mean, math.sqrt(mean))))
    count, at = 0, random.expovariate(1.0)
    while at < mean:
        count += 1
        at += random.expovariate(1.0)
    return count


def seconds_in_ticks(
    verdict: Verdict, random: Random, rates: tuple[float, float], bad: tuple[float, float], judge: Judge, at_most: int
) -> int:
    """Seconds until `judge` says so, or `at_most`, however thin the traffic is: ticks close as `core.ticks` says, at
    the end of a second. The canary goes first: requests a second, and parts of bad ones."""
    open_tick, began = [0, 0, 0, 0], 0
    for second in range(1, at_most):
        for arm, (rate, part) in enumerate(zip(rates, bad, strict=True)):
            count = arrivals(random, rate)
            open_tick[2 * arm] += count
            open_tick[2 * arm + 1] += binomial(random, count, part)
        if not (open_tick[0] and open_tick[2]) and second - began < LONGEST:
            continue
        if judge.tick(*open_tick) is verdict:
            return second
        open_tick, began = [0, 0, 0, 0], second
    return at_most


@dataclass
class Same:
    """Two arms with the same version: the share goes up, the rate of errors jumps, and clients try again at once."""

    random: Random
    seconds: int
    rate: int
    base: float
    clients: int
    sticky: bool = False

    def ticks(self) -> Iterator[Tick]:
        ticks = Ticks(0.0, self.sticky)
        jump = self.random.randrange(self.seconds)
        for second in range(self.seconds):
            share = SHARES[second * len(SHARES) // self.seconds]
            error_rate = min(5 * self.base, 0.5) if jump <= second < jump + 60 else self.base
            for number in range(self.rate):
                at = second + number / self.rate
                client = self.random.randrange(self.clients)
                for bad in self._tries(error_rate):
                    request = Request(at, self._arm(client, share), str(client), ERROR if bad else FINE)
                    if closed := ticks.add(request):
                        yield closed
        if last := ticks.close(self.seconds + 60.0):
            yield last

    def _tries(self, error_rate: float) -> Iterator[bool]:
        """A request; where it fails, up to ten more, of which most fail too."""
        bad = self.random.random() < error_rate
        yield bad
        for _ in range(10):
            if not bad:
                return
            bad = self.random.random() < 0.8
            yield bad

    def _arm(self, client: int, share: float) -> Arm:
        drawn = Random(client * 7919 + self.seconds).random() if self.sticky else self.random.random()
        return Arm.CANARY if drawn < share else Arm.STABLE


def same(seed: int, seconds: int) -> Same:
    random = Random(seed)
    return Same(random, seconds, random.choice((5, 20, 60)), random.uniform(0, 0.05), random.choice((3, 50, 2000)))


def judge_all(ticks: Iterator[Tick], held_back: float = 0.0) -> Judge:
    """A judge that has looked after every tick, until it failed."""
    judge = Judge(held_back=held_back)
    for tick in ticks:
        bad = tick.bad.get("errors", NONE_BAD)
        judge.tick(tick.canary, bad.canary, tick.stable, bad.stable, canary_repeats=bad.canary_repeats)
        if judge.failed:
            break
    return judge
