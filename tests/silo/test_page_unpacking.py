"""Packed pages: what is packed comes out as it was, whatever a peer sends stays within bounds, and who takes none is sent none."""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from architect.errors import PeerError
from architect.model.compression import Compression
from architect.model.sizes import PAGE_BYTES
from architect.runtime.certificates import make_ca, make_certificate
from architect.runtime.tls import client_context, san_name, server_context
from architect.silo.data_listener import DataListener
from architect.silo.memory_messages import SourceOptions
from architect.silo.merkle import HashTree, digest_of
from architect.silo.packing import CODEC, LEVEL, PackedError
from architect.silo.page_batch import hash_pages
from architect.silo.page_runs import encode_runs
from architect.silo.page_sender import PageSender
from architect.silo.page_unpacking import PageUnpacking, UnknownCodecError
from architect.silo.ram_file import RamFile
from architect.silo.source_streams import SourceStreams
from architect.silo.stream_connection import PACKED_PROTOCOL, StreamConnection
from architect.silo.stream_messages import FRAME_PAGES_MAX, Hello, PackedPages, Pages

COUNT = 1024
PEER = "peer"


def _frame(pages: int, first: int = 0) -> tuple[PackedPages, bytes, bytes]:
    """Packed, its body, and the pages themselves: half text, half noise."""
    noise = hashlib.shake_128(b"noise").digest(PAGE_BYTES // 2)
    plain = ((b"a page of a guest " * 228)[: PAGE_BYTES // 2] + noise) * pages
    digest = digest_of(hash_pages(memoryview(plain)))
    runs = encode_runs(np.arange(first, first + pages))
    return PackedPages(runs, digest, CODEC), zstandard.ZstdCompressor(level=LEVEL).compress(plain), plain


@pytest.fixture(scope="module")
def unpacking() -> PageUnpacking:
    return PageUnpacking(COUNT, PEER)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, FRAME_PAGES_MAX))
@example(FRAME_PAGES_MAX)
def test_what_was_packed_comes_out_as_it_was(unpacking: PageUnpacking, pages: int) -> None:
    message, body, plain = _frame(pages, first=7)
    found, data = unpacking.plain(message, memoryview(body))
    assert found == Pages(message.runs, message.digest)
    assert data == plain and not data.readonly


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_body_is_refused_or_has_the_right_size(unpacking: PageUnpacking, data: st.DataObject) -> None:
    message, body, plain = _frame(3)
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    del damaged[data.draw(st.integers(0, len(body))) :]
    try:
        _, found = unpacking.plain(message, memoryview(damaged))
    except PackedError:
        return
    assert len(found) == len(plain)  # which bytes these are is for the digest to say


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused(unpacking: PageUnpacking, garbage: bytes) -> None:
    message, _, _ = _frame(1)
    with pytest.raises(PackedError):
        unpacking.plain(message, memoryview(garbage))


@pytest.mark.parametrize("pages", [1, 2, 4, FRAME_PAGES_MAX])
def test_a_body_that_is_longer_or_shorter_than_its_pages_is_refused(unpacking: PageUnpacking, pages: int) -> None:
    message, _, _ = _frame(3)
    _, body, _ = _frame(pages)
    with pytest.raises(PackedError):
        unpacking.plain(message, memoryview(body))


def test_a_gibibyte_in_a_small_frame_is_refused_unseen(unpacking: PageUnpacking) -> None:
    message, _, _ = _frame(1)
    packer = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=1 << 30)
    bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(1 << 10)] + [packer.flush()])
    assert len(bomb) < 1 << 18
    with pytest.raises(PackedError, match=str(1 << 30)):
        unpacking.plain(message, memoryview(bomb))


@pytest.mark.parametrize("claim", ["none", "small"])
def test_a_bomb_that_claims_to_be_small_or_nothing_is_refused(unpacking: PageUnpacking, claim: str) -> None:
    message, _, _ = _frame(16)
    bomb = bytearray(zstandard.ZstdCompressor(level=LEVEL, write_content_size=claim == "small").compress(bytes(64 << 20)))
    if claim == "small":
        size = zstandard.get_frame_parameters(bytes(bomb)).content_size.to_bytes(4, "little")
        at = bytes(bomb).index(size)
        bomb[at : at + 4] = (16 * PAGE_BYTES).to_bytes(4, "little")
    with pytest.raises(PackedError):
        unpacking.plain(message, memoryview(bomb))


def test_two_frames_one_behind_the_other_are_refused(unpacking: PageUnpacking) -> None:
    message, body, _ = _frame(2)
    with pytest.raises(PackedError):
        unpacking.plain(message, memoryview(body + body))


@pytest.mark.parametrize("codec", ["", "lz4", "ZSTD"])
def test_another_codec_is_refused_by_name(unpacking: PageUnpacking, codec: str) -> None:
    message, body, _ = _frame(2)
    with pytest.raises(UnknownCodecError, match=repr(codec)):
        unpacking.plain(msgspec.structs.replace(message, codec=codec), memoryview(body))


@pytest.mark.parametrize(("first", "pages"), [(COUNT - 1, 2), (0, 0), (0, FRAME_PAGES_MAX + 1), (0, COUNT)])
def test_pages_out_of_range_or_too_many_are_refused(unpacking: PageUnpacking, first: int, pages: int) -> None:
    message, body, _ = _frame(2)
    runs = first.to_bytes(4, "little") + pages.to_bytes(4, "little")
    with pytest.raises(PeerError):
        unpacking.plain(msgspec.structs.replace(message, runs=runs), memoryview(body))


class Target:
    """Takes the connections of a source, and keeps what comes."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.frames: dict[str, list[object]] = {"data": [], "demand": []}
        self.ended = threading.Semaphore(0)
        self.listener = DataListener("127.0.0.1", 0, tls, lambda _: "", self._serve)

    def _serve(self, connection: StreamConnection, hello: Hello) -> None:
        try:
            while True:
                message, _ = connection.receive(5.0)
                self.frames[hello.purpose].append(type(message))
        finally:
            connection.close()
            self.ended.release()


class OldServerContext(ssl.SSLContext):
    """Stands for a target of a version without compression: it knows nothing of ALPN."""

    def set_alpn_protocols(self, alpn_protocols: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_ca(folder / "ca")
    for name in ("source", "target"):
        make_certificate(folder / "ca", folder / name, f"agent:{name}")
    return folder


@contextmanager
def _moving(folder: Path, wish: Compression, server: ssl.SSLContext) -> Iterator[tuple[SourceStreams, Target]]:
    ram, target = RamFile.create(COUNT * PAGE_BYTES), Target(server)
    os.pwrite(ram.descriptor, b"x" * (COUNT * PAGE_BYTES), 0)
    options = SourceOptions("session", "127.0.0.1", target.listener.port, san_name("agent:target"), 1, compression=wish)
    streams = SourceStreams(options, ram, HashTree(COUNT), client_context(folder / "source"))
    try:
        streams.open()
        yield streams, target
    finally:
        streams.end()
        for _ in range(2):
            target.ended.acquire(timeout=5)
        target.listener.close()
        ram.close()


def _send(streams: SourceStreams) -> None:
    assert streams.demand is not None
    for sender in (streams.data[0], streams.demand):
        sender.send(np.arange(FRAME_PAGES_MAX))


def test_ends_that_have_agreed_send_packed_pages_but_never_to_a_guest_that_waits(certificates: Path) -> None:
    with _moving(certificates, Compression.ZSTD, server_context(certificates / "target")) as (streams, target):
        _send(streams)
        assert streams.bytes_saved > 250 * PAGE_BYTES
        assert streams.bytes_sent < 270 * PAGE_BYTES
        streams.close()
        assert streams.bytes_saved > 250 * PAGE_BYTES
    assert target.frames == {"data": [PackedPages], "demand": [Pages]}


@pytest.mark.parametrize("wish", [Compression.ZSTD, Compression.AUTO])
def test_an_older_target_is_sent_plain_pages(certificates: Path, wish: Compression) -> None:
    old = OldServerContext(ssl.PROTOCOL_TLS_SERVER)
    old.verify_mode = ssl.CERT_REQUIRED
    old.load_cert_chain(certificates / "target/cert.pem", certificates / "target/cert.key")
    old.load_verify_locations(certificates / "target/ca.pem")
    with _moving(certificates, wish, old) as (streams, target):
        _send(streams)
        assert streams.bytes_saved == 0
    assert target.frames == {"data": [Pages], "demand": [Pages]}


def test_a_source_that_offers_nothing_or_something_else_gets_a_plain_connection(certificates: Path) -> None:
    with _moving(certificates, Compression.OFF, server_context(certificates / "target")) as (streams, target):
        _send(streams)
        assert not streams.data[0].connection.takes_packed
    assert target.frames == {"data": [Pages], "demand": [Pages]}


def test_a_target_that_knows_another_protocol_only_is_sent_plain_pages(certificates: Path) -> None:
    class Newer(OldServerContext):
        """Its ALPN is set before."""

    newer = Newer(ssl.PROTOCOL_TLS_SERVER)
    newer.verify_mode = ssl.CERT_REQUIRED
    newer.load_cert_chain(certificates / "target/cert.pem", certificates / "target/cert.key")
    newer.load_verify_locations(certificates / "target/ca.pem")
    ssl.SSLContext.set_alpn_protocols(newer, [PACKED_PROTOCOL + "-9"])
    with _moving(certificates, Compression.AUTO, newer) as (streams, target):
        _send(streams)
    assert target.frames == {"data": [Pages], "demand": [Pages]}


def test_options_that_say_nothing_of_compression_are_read_by_an_older_memory_process() -> None:
    encoded = msgspec.json.decode(msgspec.json.encode(SourceOptions("session", "127.0.0.1", 1, "target")))
    assert "compression" not in encoded


def test_a_sender_of_demanded_pages_has_no_compressor() -> None:
    with pytest.raises(AssertionError):
        PageSender(None, None, None, None, object(), is_demanded=True)  # type: ignore[arg-type]
