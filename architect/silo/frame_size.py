"""Frame size: how many pages of a bulk copy go into one frame.

A frame costs the interpreter the same whatever it carries (docs/protocols/memory-process.md), so long ones are cheaper. On a slow
link they would be long in time, too: a copy is stopped, and limited, between frames only.
"""

from __future__ import annotations

from architect.silo.stream_messages import FRAME_PAGES, FRAME_PAGES_MAX

QUICK_S = 0.010
SLOW_S = 0.040


class FrameSize:
    """`pages` is the length of the next frame."""

    def __init__(self) -> None:
        self.pages = FRAME_PAGES

    def took(self, pages: int, duration_s: float) -> None:
        """A frame of `pages` has been sent in that time."""
        if duration_s > SLOW_S:
            self.pages = max(pages // 2, FRAME_PAGES)
        elif duration_s < QUICK_S and pages == self.pages:
            self.pages = min(pages * 2, FRAME_PAGES_MAX)
