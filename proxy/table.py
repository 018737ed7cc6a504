"""The slot table: from weights to the address in every slot, near to the table that is there now. Pure.

What holds of every table, the first first:
1. An address has its exact share of the slots, rounded down or up. Nobody has a weight: `NOBODY` everywhere.
2. Against a previous table of the same length as few slots change as rule 1 allows: only slots of addresses
   that have too many change, and exactly so many of them. So when one weight rises and the others keep
   their proportions, that address keeps every slot it had. When one of equals is drained, or comes back,
   only its own slots move; among unequal ones rule 1 may ask, rarely, for another move.
3. Equal neighbours (the last slot and the first are neighbours) are as few as possible, and every address
   is spread evenly. Without a previous table the first is exact; with one both are best effort, because
   rule 2 leaves few slots to choose from.

The same arguments give the same table, in whatever order the weights come.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import pairwise

from proxy.model import NOBODY, Table

_REACH = 8  # how many holes and seats on either side a repair looks at
_TRIES = 20_000  # how many swaps a repair may try in all: a bound on the time


def build(weights: Mapping[str, int], slots: int, previous: Table | None = None) -> Table:
    """The table for these weights. A previous table of another length is not looked at.

    Raises `ValueError` for less than one slot and for a negative weight.
    """
    if slots < 1:
        raise ValueError(f"a table has at least one slot, not {slots}")
    if any(weight < 0 for weight in weights.values()):
        raise ValueError("a weight must not be negative")
    if previous is None or len(previous) != slots:
        return tuple(_spread(_counts(weights, slots, {})))
    return _moved(previous, _counts(weights, slots, Counter(previous)))


def shares(table: Table) -> dict[str, int]:
    """How many slots each address has."""
    return {address: count for address, count in Counter(table).items() if address != NOBODY}


def _counts(weights: Mapping[str, int], slots: int, held: Mapping[str, int]) -> dict[str, int]:
    """Slots per address. What rounding down leaves over goes first to those who would lose a slot without
    it (each such slot is a change saved, any other saves none), then to the largest remainders."""
    total = sum(weights.values())
    if not total:
        return {NOBODY: slots}
    counts = {address: weight * slots // total for address, weight in weights.items()}
    remainders = {address: weight * slots % total for address, weight in weights.items()}

    def urgency(address: str) -> tuple[bool, int, str]:
        return held.get(address, 0) <= counts[address], -remainders[address], address

    over = slots - sum(counts.values())
    for address in sorted((a for a in weights if remainders[a]), key=urgency)[:over]:
        counts[address] += 1
    return {address: count for address, count in counts.items() if count}


def _spread(counts: Mapping[str, int]) -> list[str]:
    """A cycle with these counts, evenly spread and with the fewest equal neighbours possible."""
    size = sum(counts.values())
    names = sorted(counts, key=lambda address: (-counts[address], address))
    if 2 * counts[names[0]] <= size:
        return [names[index] for index in _interleaved([counts[name] for name in names])]
    # More than half is one address. The others stand alone if they are at least two slots apart.
    cycle = names[:1] * size
    if len(names) > 1:
        others = _spread({name: counts[name] for name in names[1:]})
        for number, name in enumerate(others):
            cycle[number * size // len(others)] = name
    return cycle


def _interleaved(counts: list[int]) -> Iterator[int]:
    """A cycle of indices without equal neighbours. `counts`: largest first, none above half of the sum.

    Each index's k-th turn has a window, the k-th of as many equal parts of the cycle as it has turns. Of
    the turns whose window is open, the one whose window closes first is taken.
    """
    size = sum(counts)
    left, opens, closes = counts.copy(), [0] * len(counts), [-(-size // count) for count in counts]
    waiting, last = list(range(len(counts))), -1
    for slot in range(size):
        index = _pressing(left, size - slot, last)
        if index is None:
            index = min(
                (i for i in waiting if i != last),
                key=lambda i: (0, closes[i], i) if opens[i] <= slot else (1, opens[i], i),
            )
        yield index
        last = index
        left[index] -= 1
        if not left[index]:
            waiting.remove(index)
        turn, count = counts[index] - left[index], counts[index]
        opens[index], closes[index] = turn * size // count, -(-(turn + 1) * size // count)


def _pressing(left: list[int], slots: int, last: int) -> int | None:
    """The index that must come now, if one must: later its turns would not fit without touching.

    Index 0 is in the first slot of the cycle, so it may not be in the last. While every index has at most
    half of the remaining slots that it can touch, rounded up, there is a way to the end; two indices are
    never pressing at once, and the last one taken never is. So whatever else chooses, no neighbours are
    equal. (The windows seem to see to that alone: by trial of all counts up to a sum of 47.)
    """
    if last < 0 or left[0] > (slots - 1) // 2:
        return 0
    most = max(left)
    return left.index(most, 1) if most > slots // 2 else None


def _moved(previous: Table, counts: Mapping[str, int]) -> Table:
    held = Counter(previous)
    gains = {address: count - held[address] for address, count in counts.items() if count > held[address]}
    if not gains:
        return previous
    holes = _vacated(previous, counts, gains)
    table = list(previous)
    for slot, address in zip(holes, _spread(gains), strict=True):
        table[slot] = address
    _repair(table, previous, holes)
    return tuple(table)


def _vacated(previous: Table, counts: Mapping[str, int], gains: Collection[str]) -> list[int]:
    """The slots that change hands: of those who stay, first the slots that part equal neighbours."""
    taken = {slot for slot, address in enumerate(previous) if address not in counts}
    marks = {slot for slot, address in enumerate(previous) if address in gains}
    for pool in (_doubles(previous), range(len(previous))):
        have = Counter(previous[slot] for slot in range(len(previous)) if slot not in taken)
        seats: dict[str, list[int]] = {}
        for slot in pool:
            if slot not in taken and have[previous[slot]] > counts[previous[slot]]:
                seats.setdefault(previous[slot], []).append(slot)
        wanted = {a: min(have[a] - counts[a], len(slots)) for a, slots in seats.items()}
        taken |= set(_evenly(seats, wanted, sorted(marks | taken)))
    return sorted(taken)


def _doubles(table: Table) -> list[int]:
    """Every second slot of each run of equal ones: without these no neighbours would be equal, but for a
    cycle of odd length that is one single run."""
    size = len(table)
    start = next((slot for slot in range(size) if table[slot] != table[slot - 1]), 0)
    found, second = [], False
    for step in range(start + 1, start + size):
        second = not second and table[step % size] == table[step % size - 1]
        if second:
            found.append(step % size)
    return sorted(found)


def _evenly(seats: Mapping[str, list[int]], wanted: Mapping[str, int], marks: list[int]) -> Iterator[int]:
    """So many seats of each address, in turn, and far from each other and from the marks. `seats` is used up.

    As in `_interleaved` an address is asked again when its next window opens; of those that may be asked
    the one with a seat nearest to the ideal place gives it.
    """
    number = sum(wanted.values())
    given = dict.fromkeys(wanted, 0)
    pool = sorted(slot for slots in seats.values() for slot in slots)
    for turn, ideal in enumerate(_ideals(pool, marks, number)):
        asked = [address for address in wanted if given[address] * number <= turn * wanted[address]]
        _, at, address = min((*_nearest(seats[address], ideal), address) for address in asked)
        given[address] += 1
        yield seats[address].pop(at)


def _nearest(slots: list[int], ideal: int) -> tuple[int, int]:
    """How far the nearest of the slots is, and its index."""
    at = bisect_left(slots, ideal)
    if at == len(slots) or (at and ideal - slots[at - 1] <= slots[at] - ideal):
        at -= 1
    return abs(slots[at] - ideal), at


def _ideals(pool: list[int], marks: list[int], number: int) -> Iterator[int]:
    """So many of the pool: in each stretch between two marks its proportion, at equal distances."""
    if not marks and number:
        yield pool[0]
        marks, pool, number = pool[:1], pool[1:], number - 1
    if not number:
        return
    cuts = [bisect_left(pool, mark) for mark in marks]
    stretches = [pool[low:high] for low, high in pairwise(cuts)]
    stretches.append(pool[cuts[-1] :] + pool[: cuts[0]])  # past the end of the cycle
    seen = done = 0
    for stretch in stretches:
        seen += len(stretch)
        share = seen * number // len(pool) - done
        done += share
        for turn in range(1, share + 1):
            yield stretch[turn * (len(stretch) + 1) // (share + 1) - 1]


def _repair(table: list[str], previous: Table, holes: list[int]) -> None:
    """Swap while that leaves fewer equal neighbours. A changed slot may be swapped with another changed slot,
    or with one that its former owner kept: neither way more slots change."""
    size, tries = len(table), 0
    seats: dict[str, list[int]] = {}
    for slot, address in enumerate(previous):
        seats.setdefault(address, []).append(slot)

    def gain(one: int, other: int) -> int:
        borders = (one, (one + 1) % size, other, (other + 1) % size)
        before = sum(table[slot] == table[slot - 1] for slot in borders)
        table[one], table[other] = table[other], table[one]
        after = sum(table[slot] == table[slot - 1] for slot in borders)
        table[one], table[other] = table[other], table[one]
        return before - after

    for hole in holes:
        if table[hole] not in (table[hole - 1], table[(hole + 1) % size]) or tries > _TRIES:
            continue
        # An earlier swap may have given a hole back to its owner: it is not for other owners' holes.
        others = [slot for slot in _around(holes, hole) if table[slot] != previous[slot]]
        others += _around(seats[previous[hole]], hole)
        others = [slot for slot in others if table[slot] != table[hole]]
        tries += len(others)
        best = max(others, key=partial(gain, hole), default=hole)
        if gain(hole, best) > 0:
            table[hole], table[best] = table[best], table[hole]


def _around(slots: list[int], slot: int) -> list[int]:
    at = bisect_left(slots, slot)
    return slots[max(0, at - _REACH) : at + _REACH + 1]
