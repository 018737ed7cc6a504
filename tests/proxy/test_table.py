"""The slot table: exact shares, fewest changes, fewest equal neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import permutations, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model import NOBODY, Table
from proxy.table import _pressing, build, shares

NAMES = [f"10.0.0.{number}:80" for number in range(12)]
FEW = NAMES[:4]


def some_weights(names: list[str], most: int = 1000) -> st.SearchStrategy[dict[str, int]]:
    """Small weights, where ties and exact shares are common, or any."""
    weight = st.one_of(st.integers(0, 4), st.integers(0, most))
    return st.dictionaries(st.sampled_from(names), weight).filter(lambda weights: sum(weights.values()) > 0)


@st.composite
def rebuilds(draw: st.DrawFn) -> tuple[dict[str, int], Table]:
    """Weights and a previous table: built for other weights, or anything."""
    slots = draw(st.integers(1, 120))
    weights = draw(some_weights(NAMES))
    if draw(st.booleans()):
        return weights, build(draw(some_weights(NAMES)), slots)
    anybody = st.sampled_from([*NAMES, "gone:1", NOBODY])
    return weights, tuple(draw(st.lists(anybody, min_size=slots, max_size=slots)))


@st.composite
def small_rebuilds(draw: st.DrawFn) -> tuple[dict[str, int], Table]:
    slots = draw(st.integers(1, 6))
    seats = st.sampled_from([*FEW, "gone:1"])
    return draw(some_weights(FEW, 9)), tuple(draw(st.lists(seats, min_size=slots, max_size=slots)))


def bounds(weights: Mapping[str, int], slots: int) -> dict[str, tuple[int, int]]:
    """The fewest and the most slots each address may have."""
    total = sum(weights.values())
    return {a: (weight * slots // total, -(-weight * slots // total)) for a, weight in weights.items()}


def fits(table: Table, weights: Mapping[str, int]) -> bool:
    counts, limits = Counter(table), bounds(weights, len(table))
    return counts.keys() <= limits.keys() and all(
        low <= counts[address] <= high for address, (low, high) in limits.items()
    )


def every_table(weights: Mapping[str, int], slots: int) -> Iterator[Table]:
    """All tables that the weights allow, by trial."""
    return (table for table in product(weights, repeat=slots) if fits(table, weights))


def changes(one: Table, other: Table) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def fewest_changes(weights: Mapping[str, int], previous: Table) -> int:
    """By arithmetic: nobody gives a slot but those above the most they may have, or, to make room for those
    below the least they may have, those above their least."""
    held, limits = Counter(previous), bounds(weights, len(previous))
    must_go = sum(max(0, count - limits.get(address, (0, 0))[1]) for address, count in held.items())
    must_come = sum(max(0, low - held[address]) for address, (low, _) in limits.items())
    return max(must_go, must_come)


def equal_neighbours(table: Table) -> int:
    return sum(table[slot] == table[slot - 1] for slot in range(len(table)))


def fewest_equal_neighbours(table: Table) -> int:
    """Of all orders of these slots: each slot of the most frequent address needs another one behind it."""
    return max(0, 2 * max(Counter(table).values()) - len(table))


def positions(table: Table, address: str) -> set[int]:
    return {slot for slot, held in enumerate(table) if held == address}


def of(letters: str) -> Table:
    return tuple(f"{letter}:2" for letter in letters.split())


def gaps(table: Table, address: str) -> list[int]:
    slots = sorted(positions(table, address))
    return [(b - a) % len(table) or len(table) for a, b in zip(slots, slots[1:] + slots[:1], strict=True)]


# Shares


@pytest.mark.parametrize("slots", [0, -1])
def test_a_table_has_slots(slots: int) -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        build({"a:2": 1}, slots)


def test_a_weight_is_not_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        build({"a:2": 3, "b:2": -1}, 10)


@pytest.mark.parametrize("weights", [{}, {"a:2": 0}, {"a:2": 0, "b:2": 0}])
@pytest.mark.parametrize("previous", [None, ("a:2", "b:2", "a:2"), (NOBODY,) * 3])
def test_without_weights_nobody_answers(weights: dict[str, int], previous: Table | None) -> None:
    table = build(weights, 3, previous)
    assert table == (NOBODY,) * 3
    assert shares(table) == {}


def test_shares_leave_nobody_out() -> None:
    assert shares(("a:2", NOBODY, "b:2", "a:2")) == {"a:2": 2, "b:2": 1}


@given(some_weights(NAMES, 10**12), st.integers(1, 150))
def test_each_address_has_its_exact_share_rounded(weights: dict[str, int], slots: int) -> None:
    table = build(weights, slots)
    assert len(table) == slots
    assert fits(table, weights)


@given(rebuilds())
def test_each_address_has_its_share_after_a_change_too(case: tuple[dict[str, int], Table]) -> None:
    weights, previous = case
    assert fits(build(weights, len(previous), previous), weights)


def test_a_huge_weight_is_counted_exactly() -> None:
    huge = 10**30
    assert shares(build({"a:2": huge, "b:2": huge + 1}, 3)) == {"a:2": 1, "b:2": 2}
    assert shares(build({"a:2": 1, "b:2": 48}, 49)) == {"a:2": 1, "b:2": 48}


def test_what_rounding_leaves_goes_to_the_largest_remainders_then_by_address() -> None:
    assert shares(build({"a:2": 10, "b:2": 14, "c:2": 16}, 4)) == {"a:2": 1, "b:2": 1, "c:2": 2}
    assert shares(build({"c:2": 1, "b:2": 1, "a:2": 1}, 4)) == {"a:2": 2, "b:2": 1, "c:2": 1}


def test_more_addresses_than_slots() -> None:
    weights = dict.fromkeys(NAMES, 1)
    table = build(weights, 5)
    assert shares(table) == dict.fromkeys(sorted(NAMES)[:5], 1)
    assert build(weights, 5, table) == table


# Changes


@given(small_rebuilds())
def test_no_allowed_table_is_nearer(case: tuple[dict[str, int], Table]) -> None:
    weights, previous = case
    table = build(weights, len(previous), previous)
    nearest = min(changes(previous, other) for other in every_table(weights, len(previous)))
    assert changes(previous, table) == nearest == fewest_changes(weights, previous)


@given(rebuilds())
def test_as_few_slots_change_as_possible(case: tuple[dict[str, int], Table]) -> None:
    weights, previous = case
    table = build(weights, len(previous), previous)
    assert changes(previous, table) == fewest_changes(weights, previous)


@given(rebuilds())
def test_an_address_gives_or_receives_but_not_both(case: tuple[dict[str, int], Table]) -> None:
    weights, previous = case
    table = build(weights, len(previous), previous)
    for address in {*previous, *table}:
        before, after = positions(previous, address), positions(table, address)
        assert before <= after or after <= before


@given(rebuilds())
def test_the_same_weights_again_change_nothing(case: tuple[dict[str, int], Table]) -> None:
    weights, previous = case
    table = build(weights, len(previous), previous)
    assert build(weights, len(previous), table) == table
    assert build({a: 7 * weight for a, weight in weights.items()}, len(previous), table) == table


@given(some_weights(NAMES), st.integers(1, 60), st.integers(1, 60))
def test_a_table_of_another_length_is_not_looked_at(weights: dict[str, int], slots: int, other: int) -> None:
    previous = build({"gone:1": 1, NAMES[0]: 5}, other)
    if slots != other:
        assert build(weights, slots, previous) == build(weights, slots)


def canary(stables: Mapping[str, int], percent: int) -> dict[str, int]:
    """The canary has so many percent; the stables share the rest in their proportions."""
    whole = sum(stables.values())
    return {a: weight * (100 - percent) for a, weight in stables.items()} | {"canary:2": whole * percent}


@given(
    st.dictionaries(st.sampled_from(NAMES), st.integers(1, 50), min_size=1),
    st.integers(1, 130),
    st.lists(st.integers(0, 100)),
)
def test_a_rising_canary_only_gains(stables: dict[str, int], slots: int, steps: list[int]) -> None:
    table = build(stables, slots)
    for percent in sorted({0, 1, 5, 25, 50, 100, *steps}):
        risen = build(canary(stables, percent), slots, table)
        assert positions(table, "canary:2") <= positions(risen, "canary:2")
        table = risen
    assert set(table) == {"canary:2"}


@given(
    st.dictionaries(st.sampled_from(NAMES), st.integers(1, 50), min_size=1),
    st.integers(1, 130),
    st.lists(st.integers(0, 100), min_size=1),
)
def test_a_falling_canary_only_loses(stables: dict[str, int], slots: int, steps: list[int]) -> None:
    table = build(canary(stables, 100), slots)
    for percent in sorted({*steps, 0}, reverse=True):
        fallen = build(canary(stables, percent), slots, table)
        assert positions(fallen, "canary:2") <= positions(table, "canary:2")
        table = fallen
    assert set(table) <= set(stables)


@given(st.lists(st.sampled_from(NAMES), min_size=2, unique=True), st.integers(1, 130), st.data())
def test_draining_one_of_equals_moves_only_its_slots_and_so_does_its_return(
    names: list[str], slots: int, data: st.DataObject
) -> None:
    table = build(dict.fromkeys(names, 1), slots)
    for _ in range(3):  # what was moved before makes no difference
        drained = data.draw(st.sampled_from(names))
        without = build(dict.fromkeys(names, 1) | {drained: 0}, slots, table)
        moved = {slot for slot in range(slots) if table[slot] != without[slot]}
        assert moved == positions(table, drained)

        table = build(dict.fromkeys(names, 1), slots, without)
        moved = {slot for slot in range(slots) if without[slot] != table[slot]}
        assert moved == positions(table, drained)


@given(rebuilds(), st.data())
def test_an_absent_weight_is_a_weight_of_zero(case: tuple[dict[str, int], Table], data: st.DataObject) -> None:
    weights, previous = case
    drained = data.draw(st.sampled_from(NAMES))
    absent = {address: weight for address, weight in weights.items() if address != drained}
    without = build(absent, len(previous), previous)
    assert drained not in without
    assert build(absent | {drained: 0}, len(previous), previous) == without


def test_among_unequal_weights_a_drain_may_ask_for_one_more_move() -> None:
    """The others' shares, rounded down, already come to more than what the drained one leaves."""
    weights = dict.fromkeys("abchil", 1) | {"j": 3} | dict.fromkeys("defgk", 4)
    table = build(weights, 77)
    rest = weights | {"b": 0}
    without = build(rest, 77, table)
    assert changes(table, without) == fewest_changes(rest, table) == shares(table)["b"] + 1


# Neighbours


@given(st.dictionaries(st.sampled_from(FEW), st.integers(1, 3), min_size=1))
def test_no_other_order_has_fewer_equal_neighbours(counts: dict[str, int]) -> None:
    table = build(counts, sum(counts.values()))
    if len(table) > 8:
        return
    fewest = min(map(equal_neighbours, permutations(table)))
    assert equal_neighbours(table) == fewest == fewest_equal_neighbours(table)


@given(some_weights(NAMES), st.integers(1, 150))
def test_a_new_table_has_the_fewest_equal_neighbours(weights: dict[str, int], slots: int) -> None:
    table = build(weights, slots)
    assert equal_neighbours(table) == fewest_equal_neighbours(table)


@given(st.integers(1, 75), st.integers(0, 1), st.lists(st.integers(1, 20), min_size=1))
def test_an_address_with_half_of_the_slots_never_meets_itself(half: int, odd: int, others: list[int]) -> None:
    """The tightest case: one order of this address alone is possible."""
    rest, weights = half + odd, {"half:2": half}
    for name, weight in zip(NAMES, others, strict=False):
        weights[name] = min(weight, rest, half)
        rest -= weights[name]
        if not rest:
            break
    slots = sum(weights.values())
    if 2 * half <= slots:
        assert equal_neighbours(build(weights, slots)) == 0


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.data())
def test_any_choice_leads_to_the_end_when_the_pressing_come_first(counts: list[int], data: st.DataObject) -> None:
    left = sorted(counts, reverse=True)
    left[0] = min(left[0], sum(left[1:]))
    left.sort(reverse=True)
    cycle: list[int] = []
    while slots := sum(left):
        index = _pressing(left, slots, cycle[-1] if cycle else -1)
        if index is None:
            free = [i for i, turns in enumerate(left) if turns and i != cycle[-1]]
            index = data.draw(st.sampled_from(free))
        left[index] -= 1
        cycle.append(index)
    assert min(left) == 0
    assert all(cycle[slot] != cycle[slot - 1] for slot in range(len(cycle)))


@pytest.mark.parametrize("weights", [dict.fromkeys(NAMES, 1), {"a:2": 5, "b:2": 5}, {"a:2": 6, "b:2": 3, "c:2": 3}])
def test_everything_from_nobody_is_as_good_as_new(weights: dict[str, int]) -> None:
    assert build(weights, 120, (NOBODY,) * 120) == build(weights, 120)


@given(some_weights(NAMES), st.integers(2, 150))
def test_nobody_waits_two_of_its_turns(weights: dict[str, int], slots: int) -> None:
    """But where one address is in the way of the others (about half of the table or more)."""
    table = build(weights, slots)
    counts = shares(table)
    if 3 * max(counts.values()) <= slots:
        for address, count in counts.items():
            assert max(gaps(table, address)) * count <= 2 * slots + count


@pytest.mark.parametrize("stables", [1, 2, 3, 5])
def test_a_canary_of_five_in_a_hundred_is_every_twentieth_slot(stables: int) -> None:
    others = dict.fromkeys([f"stable{number}:2" for number in range(stables)], 1)
    fresh = build(canary(others, 5), 100)
    risen = build(canary(others, 5), 100, build(canary(others, 1), 100, build(others, 100)))
    for table in (fresh, risen):
        assert shares(table)["canary:2"] == 5
        assert all(15 <= gap <= 25 for gap in gaps(table, "canary:2"))


def test_a_canary_among_equals_meets_nobody_twice() -> None:
    stables = dict.fromkeys(NAMES[:5], 1)
    table = build(stables, 100)
    for percent in (1, 5, 10, 25):
        table = build(canary(stables, percent), 100, table)
        assert equal_neighbours(table) == 0


def test_slots_that_part_equal_neighbours_are_given_first() -> None:
    table = build({"a:2": 4, "b:2": 2, "c:2": 2}, 8, of("b a b a a a a a"))
    assert table == of("b a b a c a c a")
    table = build({"a:2": 9, "b:2": 9, "c:2": 2}, 20, of("a b a b a b a b a a b b a b a b a b a b"))
    assert [table[slot] for slot in (9, 11)] == ["c:2", "c:2"]
    assert equal_neighbours(table) == 0


def test_who_receives_is_swapped_where_it_would_meet_itself() -> None:
    assert build({"a:2": 3, "b:2": 4}, 4, of("y a y c")) == of("b a b a")
    assert build({"a:2": 3, "b:2": 3}, 6, of("x b a x a b")) == of("a b a b a b")


def test_those_who_give_slots_take_turns() -> None:
    """Every fourth slot of a table of two would always be the same one's."""
    stables = {"a:2": 1, "b:2": 1}
    table = build(canary(stables, 25), 100, build(stables, 100))
    for address in stables:
        assert shares(table)[address] in (37, 38)
        assert len([slot for slot in positions(table, address) if slot < 50]) in range(17, 21)


@pytest.mark.parametrize("number", range(3, 11))
def test_replacing_one_by_one_keeps_a_good_order(number: int) -> None:
    """As in a rolling deploy: each is drained, then another takes its place."""
    table = build(dict.fromkeys(NAMES[:number], 1), 100)
    for turn in range(number):
        live = dict.fromkeys([*NAMES[turn + 1 : number], *(f"new{done}:2" for done in range(turn))], 1)
        drained = build(live, 100, table)
        table = build(live | {f"new{turn}:2": 1}, 100, drained)
        assert equal_neighbours(table) <= 5


# Determinism


@given(rebuilds(), st.randoms(use_true_random=False))
def test_the_order_of_the_weights_does_not_matter(case: tuple[dict[str, int], Table], random: Random) -> None:
    weights, previous = case
    shuffled = list(weights.items())
    random.shuffle(shuffled)
    assert build(dict(shuffled), len(previous)) == build(weights, len(previous))
    assert build(dict(shuffled), len(previous), previous) == build(weights, len(previous), previous)


def test_examples() -> None:
    assert build({"a:2": 1}, 3) == ("a:2",) * 3
    assert build({"b:2": 1, "a:2": 1}, 4) == ("a:2", "b:2", "a:2", "b:2")
    assert build({"a:2": 2, "b:2": 1, "c:2": 1}, 8) == of("a b a c a b a c")
    assert build({"a:2": 3, "b:2": 1}, 8) == of("b a a a b a a a")
    assert build({"a:2": 1, "b:2": 1}, 4, ("a:2", "c:2", "a:2", "c:2")) == ("a:2", "b:2", "a:2", "b:2")


def test_a_full_table_of_the_largest_size() -> None:
    weights = {f"10.0.1.{number}:80": number for number in range(1, 51)}
    table = build(weights, 10_000)
    assert fits(table, weights)
    assert equal_neighbours(table) == 0
    heavier = weights | {"10.0.1.50:80": 5_000}
    changed = build(heavier, 10_000, table)
    assert fits(changed, heavier)
    assert changes(table, changed) == fewest_changes(heavier, table)
