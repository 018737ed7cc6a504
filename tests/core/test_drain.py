"""The fold of in-flight samples, where time jumps."""

from __future__ import annotations

from trafficd.core.drain import MIN_SAMPLES, DrainVerdict, DrainWatch, Open

NOTHING = Open(0, 0)


def watch() -> DrainWatch:
    return DrainWatch(since=100.0, quiet=0.1, timeout=3.0)


def test_one_failed_sample_after_a_long_pause_of_the_daemon_is_no_verdict() -> None:
    drain = watch()
    assert drain.sample(100.5, Open(0, 1)) is DrainVerdict.WAITING
    assert drain.sample(116.0, None) is DrainVerdict.WAITING
    assert drain.sample(116.02, Open(0, 1)) is DrainVerdict.TIMED_OUT


def test_a_count_that_stays_unknown_ends_the_drain_after_a_pause_too() -> None:
    drain = watch()
    verdicts = [drain.sample(116.0 + 0.06 * number, None) for number in range(MIN_SAMPLES + 1)]
    assert verdicts == [DrainVerdict.WAITING] * (MIN_SAMPLES - 1) + [DrainVerdict.UNKNOWN] * 2


def test_nothing_open_after_a_pause_still_needs_its_window() -> None:
    drain = watch()
    drain.sample(100.5, NOTHING)
    assert drain.sample(101.0, NOTHING) is DrainVerdict.WAITING, "two samples prove nothing"
    assert drain.sample(101.02, NOTHING) is DrainVerdict.DRAINED
