"""When a source was last heard: by the kernel's word on connections that stand, whoever reads them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from time import sleep
from typing import cast

import pytest

from architect.silo.source_contact import SourceContact
from architect.silo.stream_connection import StreamConnection


class Connection:
    """A connection whose peer was silent for so long; None: it is closed."""

    def __init__(self, silent_s: float | None) -> None:
        self.value = silent_s

    def silent_s(self) -> float | None:
        return self.value


class Time:
    """A clock."""

    now_s = 1000.0

    def contact(self) -> SourceContact:
        return SourceContact(lambda: self.now_s)


@pytest.fixture
def time() -> Time:
    return Time()


def _add(contact: SourceContact, silent_s: float | None) -> Connection:
    connection = Connection(silent_s)
    contact.add(cast(StreamConnection, connection))
    return connection


def test_a_source_that_was_never_heard_is_silent_from_the_beginning(time: Time) -> None:
    contact = time.contact()
    time.now_s += 7
    assert contact.silent_s() == 7


def test_the_connection_that_was_heard_last_counts(time: Time) -> None:
    contact = time.contact()
    old, young = _add(contact, 0), _add(contact, 0)
    time.now_s += 60
    old.value, young.value = 60, 2
    assert contact.silent_s() == 2


def test_a_new_connection_is_a_sign_of_life_and_the_end_of_one_is_none(time: Time) -> None:
    contact = time.contact()
    first = _add(contact, 0)
    time.now_s += 9
    first.value = 9
    assert contact.silent_s() == 9
    first.value = None
    time.now_s += 9
    assert contact.silent_s() == 18
    _add(contact, 0)
    assert contact.silent_s() == 0


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            yield near, far


def test_the_kernel_tells_for_how_long_a_peer_was_silent_until_the_connection_is_closed(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    near, far = tcp
    connection = StreamConnection(cast(ssl.SSLSocket, near), "peer")
    far.sendall(b"a word")
    near.recv(100)
    first_s = connection.silent_s()
    sleep(0.1)  # the kernel has no other clock
    second_s = connection.silent_s()
    assert first_s is not None and second_s is not None and second_s - first_s > 0.05
    far.sendall(b"another one")
    near.recv(100)
    third_s = connection.silent_s()
    assert third_s is not None and third_s < second_s
    near.close()
    assert connection.silent_s() is None
