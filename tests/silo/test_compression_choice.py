"""When a stream is compressed, told by a model of a pipe: a link with a buffer before it, and a processor that works and packs."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.model.compression import Compression
from architect.silo.compression_choice import CompressionChoice, FrameCost, Phase

FRAME_BYTES = 256 << 10
BUFFER_BYTES = 1 << 20
MB = 1e6
FAST = 2000 * MB
"""Bytes per second that a processor reads, hashes and encrypts."""


class Pipe(msgspec.Struct):
    """What a stream sends through. Rates are bytes per second; `reader`: what the peer takes, as far as it is not the link;
    `unpack`: what it inflates."""

    link: float
    pack: float = 400 * MB
    ratio: float = 0.35
    work: float = FAST
    reader: float = 1e12
    unpack: float = 1e12
    queued: float = 0.0
    now_s: float = 0.0

    def _pass(self, duration_s: float, reader: float) -> tuple[float, float]:
        """Time passes; returns how long the link was busy, and what it carried."""
        rate = min(self.link, reader)
        carried = min(self.queued, rate * duration_s)
        self.queued -= carried
        self.now_s += duration_s
        return (carried / rate if self.link <= reader else 0.0), carried

    def send(self, *, packed: bool) -> FrameCost:
        """Send a frame; what it cost."""
        began_s = self.now_s
        pack_s = FRAME_BYTES / self.pack if packed else 0.0
        wire = int(FRAME_BYTES * min(self.ratio, 1.0)) if packed else FRAME_BYTES
        reader = min(self.reader, self.unpack * self.ratio) if packed else self.reader
        busy_s, carried = self._pass(FRAME_BYTES / self.work + pack_s, reader)
        waits_s = max(self.queued + wire - BUFFER_BYTES, 0.0) / min(self.link, reader)
        more_s, more = self._pass(waits_s, reader)
        self.queued += wire
        duration_s = self.now_s - began_s
        return FrameCost(FRAME_BYTES, wire, duration_s, busy_s + more_s, FRAME_BYTES / self.work, pack_s, int(carried + more))


class Stream:
    """A stream that does what its choice says."""

    def __init__(self, pipe: Pipe, wish: Compression = Compression.AUTO) -> None:
        self.pipe, self.choice = pipe, CompressionChoice(wish)
        self.packed_frames = self.turns = 0
        self.phases: set[Phase] = set()

    def run(self, frames: int) -> float:
        """Send frames; how long that took."""
        began_s = self.pipe.now_s
        for _ in range(frames):
            before = self.choice.phase
            packed = self.choice.packs(FRAME_BYTES)
            self.packed_frames += packed
            self.choice.took(self.pipe.send(packed=packed), packed=packed)
            self.phases.add(self.choice.phase)
            self.turns += (before is Phase.PACKED) is not (self.choice.phase is Phase.PACKED)
        return self.pipe.now_s - began_s


rates = st.floats(2 * MB, 3000 * MB)


@settings(max_examples=60, deadline=None)
@given(link=rates, slower=st.floats(0.05, 1.0), ratio=st.floats(0.01, 1.1), work=st.floats(20 * MB, 3000 * MB))
def test_a_link_that_is_as_fast_as_the_compressor_is_never_compressed_for(
    link: float, slower: float, ratio: float, work: float
) -> None:
    stream = Stream(Pipe(link, pack=link * slower, ratio=ratio, work=work))
    stream.run(1000)
    assert Phase.PACKED not in stream.phases


@settings(max_examples=60, deadline=None)
@given(link=st.floats(1 * MB, 60 * MB), ratio=st.floats(0.02, 0.6))
def test_on_a_slow_link_data_that_shrinks_is_compressed_in_less_than_a_second(link: float, ratio: float) -> None:
    stream = Stream(Pipe(link, ratio=ratio))
    stream.run(4 + int(1.0 * link / FRAME_BYTES))
    assert Phase.PACKED in stream.phases
    assert stream.run(1000) < 0.85 * 1000 * FRAME_BYTES / link


@settings(max_examples=40, deadline=None)
@given(link=st.floats(1 * MB, 300 * MB), ratio=st.floats(0.95, 1.1))
def test_data_that_does_not_shrink_costs_a_frame_now_and_then(link: float, ratio: float) -> None:
    stream = Stream(Pipe(link, ratio=ratio))
    stream.run(1000)
    assert Phase.PACKED not in stream.phases
    assert stream.packed_frames <= 1000 * 0.02


@settings(max_examples=60, deadline=None)
@given(link=rates, pack=st.floats(50 * MB, 1500 * MB), ratio=st.floats(0.02, 1.1), work=st.floats(100 * MB, 3000 * MB))
def test_on_any_link_it_is_hardly_slower_than_the_better_of_always_and_never(
    link: float, pack: float, ratio: float, work: float
) -> None:
    took = {wish: Stream(Pipe(link, pack, ratio, work), wish).run(1500) for wish in Compression}
    assert took[Compression.AUTO] <= 1.3 * min(took.values()) + 0.5  # it goes for what is clearly better only
    assert took[Compression.AUTO] <= 1.03 * took[Compression.OFF] + 0.1


@settings(max_examples=30, deadline=None)
@given(link=rates, reader=st.floats(20 * MB, 500 * MB))
def test_a_peer_that_reads_slowly_is_no_slow_link(link: float, reader: float) -> None:
    stream = Stream(Pipe(max(link, reader * 1.01), reader=reader))
    stream.run(1000)
    assert stream.packed_frames == 0


def test_a_peer_that_inflates_slowly_ends_it() -> None:
    pipe = Pipe(150 * MB, pack=1500 * MB, unpack=100 * MB)
    took = {wish: Stream(msgspec.structs.replace(pipe), wish).run(8000) for wish in Compression}
    assert took[Compression.ZSTD] > 1.3 * took[Compression.OFF]
    assert took[Compression.AUTO] < 1.05 * took[Compression.OFF]


@pytest.mark.parametrize("ratio", [0.9, 1.0])
def test_it_stops_when_what_comes_no_longer_shrinks(ratio: float) -> None:
    stream = Stream(Pipe(12 * MB))
    stream.run(200)
    assert _phase(stream) is Phase.PACKED
    stream.pipe.ratio = ratio + 0.05
    stream.run(20)
    assert _phase(stream) is Phase.PLAIN


def test_it_stops_when_the_link_becomes_fast_and_begins_again_when_it_is_slow() -> None:
    stream = Stream(Pipe(12 * MB, pack=300 * MB))
    stream.run(400)
    assert _phase(stream) is Phase.PACKED
    stream.pipe.link = 1200 * MB
    stream.run(2000)
    assert _phase(stream) is Phase.PLAIN
    stream.pipe.link = 12 * MB
    stream.run(400)
    assert _phase(stream) is Phase.PACKED


def _phase(stream: Stream) -> Phase:
    return stream.choice.phase


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.5, 2.0), min_size=20, max_size=60), st.floats(0.05, 0.9))
def test_a_link_that_swings_about_the_threshold_is_not_followed_at_every_turn(swings: list[float], ratio: float) -> None:
    stream = Stream(Pipe(280 * MB, pack=300 * MB, ratio=ratio))
    windows = 0.0
    for swing in swings:
        stream.pipe.link = 280 * MB * swing
        windows += stream.run(100) / 0.1
    assert stream.turns <= 4 + windows / 4


def test_data_that_shrinks_in_turns_is_given_up_for_longer_each_time() -> None:
    stream = Stream(Pipe(12 * MB))
    for number in range(200):
        stream.pipe.ratio = 0.2 if number % 2 else 1.0
        stream.run(6)
    assert stream.turns < 100


def test_off_never_compresses_and_zstd_always() -> None:
    for wish, expected in ((Compression.OFF, 0), (Compression.ZSTD, 500)):
        stream = Stream(Pipe(12 * MB), wish)
        stream.run(500)
        assert stream.packed_frames == expected


def test_a_trial_waits_for_a_frame_that_tells() -> None:
    stream = Stream(Pipe(12 * MB))
    while stream.choice.phase is not Phase.TRIAL:
        stream.run(1)
    assert not stream.choice.packs(4096)
    stream.choice.took(FrameCost(4096, 4096, 0.001, 0.001, 0.0, 0.0, 4096), packed=False)
    assert stream.choice.phase is Phase.TRIAL and stream.choice.packs(FRAME_BYTES)
