"""Parts take about as long on any link, so that what waits behind one is answered: frames of pages, and parts of files."""

from __future__ import annotations

import pytest

from architect.migration.action_bounds import part_bounds
from architect.model.sizes import PAGE_BYTES
from architect.runtime.part_size import PartBounds, PartSize
from architect.silo.source_session import FRAME_BOUNDS
from architect.silo.stream_messages import FRAME_PAGES, FRAME_PAGES_MAX

PART_BOUNDS = part_bounds(2 << 20)
BOUNDS = [pytest.param(PART_BOUNDS, id="parts"), pytest.param(FRAME_BOUNDS, id="frames")]


def _parts(bounds: PartBounds, per_s: float, total: int, round_trip_s: float = 0.0) -> list[tuple[int, float]]:
    """The size and duration of each part of a transfer."""
    size, parts = PartSize(bounds), []
    while total > 0:
        part = min(size.next, total)
        parts.append((part, round_trip_s + part / per_s))
        size.took(*parts[-1])
        total -= part
    return parts


def test_parts_grow_to_the_largest_on_a_quick_link() -> None:
    assert len(_parts(PART_BOUNDS, 100e6, 64 << 20, 0.01)) < 64 / 2 + 5


def test_on_a_slow_link_no_part_but_the_first_takes_long() -> None:
    first, *others = _parts(PART_BOUNDS, 200e3, 8 << 20, 0.05)
    assert first[1] < 2.0
    assert max(duration_s for _, duration_s in others) < PART_BOUNDS.slow_s + 0.1


def test_frames_on_a_quick_link_grow_to_the_longest() -> None:
    sizes = [pages for pages, _ in _parts(FRAME_BOUNDS, 400e6 / PAGE_BYTES, 4 * FRAME_PAGES_MAX)]
    assert sizes[:4] == [FRAME_PAGES, 2 * FRAME_PAGES, FRAME_PAGES_MAX, FRAME_PAGES_MAX]


def test_frames_on_a_slow_link_stay_short() -> None:
    assert {pages for pages, _ in _parts(FRAME_BOUNDS, 1e6 / PAGE_BYTES, 20 * FRAME_PAGES)} == {FRAME_PAGES}


@pytest.mark.parametrize("bounds", BOUNDS)
def test_parts_shrink_when_a_link_becomes_slow_and_grow_again_when_it_recovers(bounds: PartBounds) -> None:
    size = PartSize(bounds)
    for _ in range(20):
        size.took(size.next, 0.0)
    assert size.next == bounds.most
    size.took(size.next, bounds.slow_s * 2)
    assert size.next == bounds.most // 2
    size.took(size.next, 1e6)
    assert size.next == bounds.least
    size.took(size.next, (bounds.quick_s + bounds.slow_s) / 2)
    assert size.next == bounds.least
    size.took(size.next, 0.0)
    assert size.next == 2 * bounds.least


def test_parts_are_never_larger_than_a_limit_below_the_least() -> None:
    small = PartSize(part_bounds(1000))
    assert small.next == 1000
    for duration_s in (0.0, 1e6):
        small.took(1000, duration_s)
        assert small.next == 1000


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_short_part_that_was_quick_tells_nothing_of_longer_ones(bounds: PartBounds) -> None:
    size = PartSize(bounds)
    size.took(3, 0.0)
    assert size.next == bounds.first
