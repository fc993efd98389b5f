"""Parts take about as long on any link, so that what is asked behind them is answered."""

from __future__ import annotations

from architect.migration.part_size import MIN_BYTES, SLOW_S, PartSize

MAX_BYTES = 2 << 20


def _seconds_of_parts(bytes_per_s: float, round_trip_s: float, total_bytes: int) -> list[float]:
    size, took, left = PartSize(MAX_BYTES), [], total_bytes
    while left > 0:
        part = min(size.bytes, left)
        took.append(round_trip_s + part / bytes_per_s)
        size.took(part, took[-1])
        left -= part
    return took


def test_parts_grow_to_the_largest_on_a_quick_link() -> None:
    assert len(_seconds_of_parts(100e6, 0.01, 64 << 20)) < 64 / 2 + 5


def test_on_a_slow_link_no_part_but_the_first_takes_long() -> None:
    first, *others = _seconds_of_parts(200e3, 0.05, 8 << 20)
    assert first < 2.0
    assert max(others) < SLOW_S + 0.1


def test_parts_do_not_shrink_to_nothing_and_are_never_larger_than_the_limit() -> None:
    size = PartSize(MAX_BYTES)
    size.took(size.bytes, 1e6)
    assert size.bytes == MIN_BYTES
    small = PartSize(1000)
    assert small.bytes == 1000
    small.took(1000, 0.0)
    assert small.bytes == 1000
    small.took(1000, 1e6)
    assert small.bytes == 1000


def test_a_short_part_that_was_quick_tells_nothing_of_longer_ones() -> None:
    size = PartSize(MAX_BYTES)
    before = size.bytes
    size.took(10, 0.0)
    assert size.bytes == before
