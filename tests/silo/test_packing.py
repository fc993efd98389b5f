"""What a stream measures of its frames: one that its bandwidth limit holds up is compressed, one that is slow otherwise is not."""

from __future__ import annotations

from typing import cast

import pytest

from architect.model.compression import Compression
from architect.silo.packing import Packing
from architect.silo.stream_connection import LinkReading, StreamConnection

FRAME = memoryview(b"a page of a guest " * 14_000)
FRAME_S = 0.1
FRAMES = 100


class _Link:
    """Stands for a connection whose network never holds anything up: all that is sent has arrived."""

    def __init__(self) -> None:
        self.acked_bytes = 0

    def link_reading(self) -> LinkReading:
        return LinkReading(self.acked_bytes, 0.0)


class _Clock:
    """Stands until it is told that time passes."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def take(self, share: float) -> None:
        self.now_s += share * FRAME_S


@pytest.mark.parametrize(("limit_share", "is_packed"), [(1.0, True), (0.6, True), (0.4, False), (0.0, False)])
def test_a_stream_is_compressed_that_waits_for_its_limit_most_of_the_time(limit_share: float, *, is_packed: bool) -> None:
    link, clock = _Link(), _Clock()
    packing = Packing(Compression.AUTO, cast("StreamConnection", link), clock.now)
    packed_frames = 0
    for _ in range(FRAMES):
        packing.begin()
        clock.take(1 - limit_share)
        packed = packing.pack(FRAME)
        packed_frames += packed is not None
        wire = FRAME if packed is None else packed
        packing.wait(lambda size: clock.take(limit_share * size / len(FRAME)), len(wire))
        link.acked_bytes += len(wire)
        packing.sent()
    assert (packed_frames > FRAMES // 2) if is_packed else packed_frames == 0
