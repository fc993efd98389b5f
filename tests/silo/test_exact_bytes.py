"""Bytes of a stream come as many as were asked for, in however many parts, and an end before them is told."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.silo.exact_bytes import fill, receive_exactly


class _Parts(socket.socket):
    """A stream that hands out its bytes in these parts, then ends."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        super().__init__()
        self._parts = [part for part in parts if part]

    def recv_into(self, buffer: memoryview, *_: object) -> int:  # type: ignore[override]
        if not self._parts:
            return 0
        part = self._parts[0]
        count = min(len(part), len(buffer))
        buffer[:count] = part[:count]
        self._parts[0] = part[count:]
        if not self._parts[0]:
            del self._parts[0]
        return count


streams = st.lists(st.binary(max_size=6), max_size=6)


@settings(deadline=None)
@given(streams, st.integers(0, 20))
def test_a_buffer_is_filled_from_any_parts_and_short_only_at_the_end(parts: list[bytes], count: int) -> None:
    whole = b"".join(parts)
    with _Parts(parts) as stream:
        buffer = bytearray(count)
        filled = fill(stream, memoryview(buffer))
        assert filled == min(count, len(whole)) and buffer[:filled] == whole[:filled]
        rest = bytearray(len(whole) - filled)
        assert fill(stream, memoryview(rest)) == len(rest) and rest == whole[filled:], "nothing more was taken than asked for"


@settings(deadline=None)
@given(streams, st.integers(0, 20))
def test_exactly_so_many_bytes_come_or_none(parts: list[bytes], count: int) -> None:
    whole = b"".join(parts)
    with _Parts(parts) as stream:
        if count <= len(whole):
            assert receive_exactly(stream, count) == whole[:count]
        else:
            with pytest.raises(ConnectionResetError):
                receive_exactly(stream, count)
