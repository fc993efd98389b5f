"""Frame size: long frames on quick links, short ones on slow links."""

from __future__ import annotations

from architect.model.sizes import PAGE_BYTES
from architect.silo.frame_size import SLOW_S, FrameSize
from architect.silo.stream_messages import FRAME_PAGES, FRAME_PAGES_MAX


def sizes(bytes_s: float, frames: int) -> list[int]:
    """The frames that a link of that rate gets."""
    size, seen = FrameSize(), []
    for _ in range(frames):
        seen.append(size.pages)
        size.took(size.pages, size.pages * PAGE_BYTES / bytes_s)
    return seen


def test_frames_on_a_quick_link_grow_to_the_longest() -> None:
    assert sizes(400e6, 5) == [FRAME_PAGES, 2 * FRAME_PAGES, FRAME_PAGES_MAX, FRAME_PAGES_MAX, FRAME_PAGES_MAX]


def test_frames_on_a_slow_link_stay_short() -> None:
    assert set(sizes(1e6, 20)) == {FRAME_PAGES}


def test_frames_shrink_when_a_link_becomes_slow_and_grow_again_when_it_recovers() -> None:
    size = FrameSize()
    for _ in range(4):
        size.took(size.pages, 0.001)
    size.took(size.pages, SLOW_S * 2)
    size.took(size.pages, SLOW_S * 2)
    assert size.pages == FRAME_PAGES
    size.took(size.pages, 0.001)
    assert size.pages == 2 * FRAME_PAGES


def test_the_last_frame_of_a_round_which_is_short_says_nothing_about_longer_ones() -> None:
    size = FrameSize()
    size.took(3, 0.0001)
    assert size.pages == FRAME_PAGES
