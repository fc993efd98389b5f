"""NBD's headers: what one side packs the other parses; garbage, and what is cut off or too long, is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.wire import nbd

U16, U32, U64 = st.integers(0, (1 << 16) - 1), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
OPTION = b"IHAVEOPT" + struct.pack(">II", 7, 12)
REQUEST = nbd.pack_request(nbd.Request(nbd.Command.READ, 7, 4096, 512))
REPLY = nbd.pack_reply(nbd.Reply(5, 7))
PARSERS: dict[str, tuple[Callable[[bytes], object], bytes, int]] = {
    "greeting": (nbd.check_greeting, nbd.pack_greeting(), nbd.GREETING_BYTES),
    "flags": (nbd.parse_flags, nbd.pack_choice("")[: nbd.FLAGS_BYTES], nbd.FLAGS_BYTES),
    "option": (nbd.parse_option, OPTION, nbd.OPTION_BYTES),
    "export": (nbd.parse_export, nbd.pack_export(512, has_zeroes=False), nbd.EXPORT_BYTES),
    "request": (nbd.parse_request, REQUEST, nbd.REQUEST_BYTES),
    "reply": (nbd.parse_reply, REPLY, nbd.REPLY_BYTES),
}
"""By what errors call it: the parser, what it takes, and the length of that."""


@given(U16, U64, U64, U32)
def test_a_request_survives_the_round_trip(command: int, cookie: int, offset: int, length: int) -> None:
    request = nbd.Request(command, cookie, offset, length)
    assert nbd.parse_request(nbd.pack_request(request)) == request


@given(U32, U64)
def test_a_reply_survives_the_round_trip(error: int, cookie: int) -> None:
    assert nbd.parse_reply(nbd.pack_reply(nbd.Reply(error, cookie))) == nbd.Reply(error, cookie)


@given(U64, st.booleans())
def test_an_export_survives_the_round_trip(size_bytes: int, has_zeroes: bool) -> None:
    packed = nbd.pack_export(size_bytes, has_zeroes=has_zeroes)
    assert nbd.parse_export(packed[: nbd.EXPORT_BYTES]) == size_bytes
    assert packed[nbd.EXPORT_BYTES :] == bytes(124 if has_zeroes else 0)


@given(st.text(max_size=100))
def test_a_clients_choice_is_its_flags_and_one_option(export: str) -> None:
    choice = nbd.pack_choice(export)
    flags, option, name = choice[:4], choice[4 : 4 + nbd.OPTION_BYTES], choice[4 + nbd.OPTION_BYTES :]
    assert not nbd.parse_flags(flags)
    assert nbd.parse_option(option) == nbd.OptionHeader(nbd.Option.EXPORT_NAME, len(name))
    assert name.decode() == export


def test_a_client_that_says_nothing_of_the_zeroes_gets_them() -> None:
    assert nbd.parse_flags(struct.pack(">I", 1))


@pytest.mark.parametrize("what", PARSERS)
def test_what_is_cut_off_or_longer_than_a_header_is_refused(what: str) -> None:
    parse, data, length = PARSERS[what]
    assert len(data) == length
    parse(data)
    for wrong in (b"", data[:-1], data + b"\0"):
        with pytest.raises(nbd.NbdError, match=f"NBD {what}: has {len(wrong)} bytes instead of {length}"):
            parse(wrong)


@pytest.mark.parametrize("what", ["greeting", "option", "request", "reply"])
def test_a_wrong_magic_number_is_refused(what: str) -> None:
    parse, data, _ = PARSERS[what]
    with pytest.raises(nbd.NbdError, match=f"NBD {what}"):
        parse(bytes([data[0] ^ 0x80]) + data[1:])


@pytest.mark.parametrize("flags", [0, 1, 2])
def test_a_server_without_what_we_build_on_is_refused(flags: int) -> None:
    with pytest.raises(nbd.NbdError, match="offers no fixed newstyle"):
        nbd.check_greeting(struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", flags))


@given(U32)
def test_an_option_with_more_data_than_anyone_needs_is_refused(length: int) -> None:
    data = b"IHAVEOPT" + struct.pack(">II", 3, length)
    if length <= nbd.OPTION_BYTES_MAX:
        assert nbd.parse_option(data) == nbd.OptionHeader(3, length)
    else:
        with pytest.raises(nbd.NbdError, match=f"over {nbd.OPTION_BYTES_MAX}"):
            nbd.parse_option(data)


@given(st.sampled_from(sorted(PARSERS)), st.binary(max_size=40))
def test_garbage_is_refused_or_a_value_and_nothing_else_comes_of_it(what: str, garbage: bytes) -> None:
    parse, _, length = PARSERS[what]
    try:
        parse(garbage)
    except nbd.NbdError as error:
        assert error.thing == f"NBD {what}"
    else:
        assert len(garbage) == length
