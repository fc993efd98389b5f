"""From one memory to the other: what a sender reads and a receiver writes, frame by frame, and what is refused on the way."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.errors import PeerError
from architect.model.sizes import PAGE_BYTES
from architect.silo.memory_errors import DigestError
from architect.silo.memory_hash import hash_memory
from architect.silo.merkle import HashTree
from architect.silo.page_receiver import PageReceiver
from architect.silo.page_runs import Pages, encode_runs
from architect.silo.page_sender import PageSender
from architect.silo.ram_file import RamFile
from architect.silo.rate_limit import RateLimit
from architect.silo.stream_connection import StreamConnection
from architect.silo.stream_messages import FRAME_PAGES, StreamMessage, Zeros
from architect.silo.stream_messages import Pages as PagesMessage
from architect.silo.tracker import Tracker

COUNT = 256
Frame = tuple[PagesMessage | Zeros, bytearray]


class Wire:
    """Stands for a connection: keeps what is sent."""

    peer = "peer"

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def send(self, message: StreamMessage, body: memoryview | bytes = b"") -> None:
        assert isinstance(message, PagesMessage | Zeros)
        self.frames.append((message, bytearray(body)))


class Installer:
    """Stands for a tracker: what `install_new` does in the page table of a process, done to the file."""

    def __init__(self, ram: RamFile) -> None:
        self._ram = ram

    def install_new(self, pages: Pages, source: int) -> Pages:
        """Write the pages that are absent; the places of the others."""
        is_present = self._ram.present().flags[pages] != 0
        for place in np.flatnonzero(~is_present):
            data = ctypes.string_at(source + int(place) * PAGE_BYTES, PAGE_BYTES)
            os.pwrite(self._ram.descriptor, data, int(pages[place]) * PAGE_BYTES)
        places: Pages = np.flatnonzero(is_present)
        return places


class Move:
    """Two memories, a sender at one and a receiver at the other."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target = RamFile.create(COUNT * PAGE_BYTES), RamFile.create(COUNT * PAGE_BYTES)
        self.wire, self.tree = Wire(), HashTree(COUNT)
        self.sender = PageSender(cast(StreamConnection, self.wire), self.source, self.tree, RateLimit(0))
        self.receiver = PageReceiver(self.target, cast(Tracker, Installer(self.target)), folder)

    def write(self, contents: dict[int, int]) -> None:
        """Write to the source's memory; content 0 is zeros."""
        for page, content in contents.items():
            data = hashlib.shake_128(bytes([content])).digest(PAGE_BYTES) if content else bytes(PAGE_BYTES)
            os.pwrite(self.source.descriptor, data, page * PAGE_BYTES)

    def send(self, pages: set[int]) -> None:
        """Send pages of the source, in frames."""
        numbers = np.array(sorted(pages), np.int64)
        for at in range(0, len(numbers), FRAME_PAGES):
            self.sender.send(numbers[at : at + FRAME_PAGES])

    def deliver(self) -> None:
        """Give the target all that is on the wire."""
        for message, body in self.wire.frames:
            self.receiver.take(message, memoryview(body), "peer")
        self.wire.frames.clear()

    @property
    def roots(self) -> tuple[str, str]:
        """What the source says, and what the target says."""
        return self.tree.root(), self.receiver.tree.root()


@contextmanager
def _move() -> Iterator[Move]:
    with tempfile.TemporaryDirectory() as folder:
        move = Move(Path(folder))
        yield move
        move.source.close()
        move.target.close()


rounds = st.lists(st.dictionaries(st.integers(0, COUNT - 1), st.integers(0, 3), max_size=90), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(rounds)
def test_after_any_rounds_of_writes_both_memories_and_both_roots_are_equal(written: list[dict[int, int]]) -> None:
    with _move() as move:
        for contents in written:
            move.write(contents)
            move.send(set(contents))
            move.deliver()
        size = COUNT * PAGE_BYTES
        assert os.pread(move.target.descriptor, size, 0) == os.pread(move.source.descriptor, size, 0)
        assert move.roots[0] == move.roots[1] == hash_memory(move.source) == hash_memory(move.target)


@settings(max_examples=20, deadline=None)
@given(rounds)
def test_pages_of_zeros_are_no_pages_at_the_target(written: list[dict[int, int]]) -> None:
    with _move() as move:
        for contents in written:
            move.write(contents)
            move.send(set(contents))
            move.deliver()
        last = {page: content for contents in written for page, content in contents.items()}
        assert move.target.present().pages().tolist() == sorted(page for page, content in last.items() if content)


def test_a_page_that_qemu_has_touched_before_it_comes_first_is_written_over() -> None:
    with _move() as move:
        _filled(move)
        os.pwrite(move.target.descriptor, bytes(2 * PAGE_BYTES), 4 * PAGE_BYTES)
        move.deliver()
        assert hash_memory(move.target) == hash_memory(move.source) == move.roots[0] == move.roots[1]


def _filled(move: Move) -> None:
    move.write({page: 1 + page % 200 for page in range(0, COUNT, 2)})
    move.send(set(range(COUNT)))
    assert len([frame for frame in move.wire.frames if isinstance(frame[0], PagesMessage)]) >= COUNT // 2 // FRAME_PAGES


@pytest.mark.parametrize("frame", [0, 1, -1])
def test_a_frame_that_is_lost_shows_in_the_roots(frame: int) -> None:
    with _move() as move:
        _filled(move)
        data = [number for number, (message, _) in enumerate(move.wire.frames) if isinstance(message, PagesMessage)]
        del move.wire.frames[data[frame]]
        move.deliver()
        assert move.roots[0] != move.roots[1]


def test_a_stale_page_shows_in_the_roots() -> None:
    with _move() as move:
        _filled(move)
        move.deliver()
        assert move.roots[0] == move.roots[1]
        move.write({8: 250})
        move.send({8})
        move.wire.frames.clear()
        assert move.roots[0] != move.roots[1]


def _data_frame(move: Move) -> tuple[PagesMessage, bytearray]:
    return next((message, body) for message, body in move.wire.frames if isinstance(message, PagesMessage))


def _refused_and_untouched(move: Move, message: PagesMessage, body: bytearray, error: type[Exception]) -> None:
    with pytest.raises(error):
        move.receiver.take(message, memoryview(body), "peer")
    assert len(move.target.present().pages()) == 0
    assert move.receiver.tree.root() == HashTree(COUNT).root()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 16 * PAGE_BYTES - 1), st.integers(1, 255))
def test_a_byte_that_was_changed_on_the_way_is_refused_before_anything_is_written(at: int, change: int) -> None:
    with _move() as move:
        _filled(move)
        message, body = _data_frame(move)
        body[at] ^= change
        _refused_and_untouched(move, message, body, DigestError)


def test_two_pages_that_changed_places_are_refused() -> None:
    with _move() as move:
        _filled(move)
        message, body = _data_frame(move)
        first, second = bytes(body[:PAGE_BYTES]), bytes(body[PAGE_BYTES : 2 * PAGE_BYTES])
        body[: 2 * PAGE_BYTES] = second + first
        _refused_and_untouched(move, message, body, DigestError)


@pytest.mark.parametrize("length", [0, 1, PAGE_BYTES, -1, -PAGE_BYTES])
def test_a_body_of_another_length_than_its_list_is_refused(length: int) -> None:
    with _move() as move:
        _filled(move)
        message, body = _data_frame(move)
        _refused_and_untouched(move, message, body[:length], PeerError)
        _refused_and_untouched(move, message, body + bytes(PAGE_BYTES), PeerError)


@pytest.mark.parametrize("first", [COUNT, COUNT - 1, (1 << 32) - 1])
def test_pages_outside_the_memory_are_refused(first: int) -> None:
    with _move() as move:
        _filled(move)
        message, body = _data_frame(move)
        runs = first.to_bytes(4, "little") + (len(body) // PAGE_BYTES).to_bytes(4, "little")
        _refused_and_untouched(move, msgspec.structs.replace(message, runs=runs), body, PeerError)
        with pytest.raises(PeerError):
            move.receiver.take(Zeros(runs), memoryview(b""), "peer")


def test_pages_at_another_place_than_they_were_sent_from_show_in_the_roots() -> None:
    with _move() as move:
        _filled(move)
        for number, (message, body) in enumerate(move.wire.frames):
            if isinstance(message, PagesMessage):
                other = np.arange(1, 2 * len(body) // PAGE_BYTES, 2)
                move.wire.frames[number] = (msgspec.structs.replace(message, runs=encode_runs(other)), body)
                break
        move.deliver()
        assert move.roots[0] != move.roots[1]
