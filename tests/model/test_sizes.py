"""Sizes and published ports as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.errors import UsageError
from architect.model.endpoints import Protocol, Publish, parse_publish
from architect.model.ids import check_name
from architect.model.sizes import GIB, MIB, format_size, parse_size, round_up


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("512M", 512 * MIB), ("1g", GIB), ("1.5GiB", 3 * GIB // 2), ("4096", 4096), ("64 KB", 65536)]
)
def test_sizes_with_units_are_bytes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@given(st.text(max_size=12))
def test_any_other_text_is_a_usage_error_or_a_positive_size(text: str) -> None:
    try:
        assert parse_size(text) > 0
    except UsageError as error:
        assert error.thing.startswith("size ")


def test_sizes_read_well_and_round_up() -> None:
    assert format_size(256 * MIB) == "256.0 MiB"
    assert format_size(12) == "12 B"
    assert round_up(1, 4096) == 4096 == round_up(4096, 4096)


def test_publish_is_public_then_guest_then_protocol() -> None:
    assert parse_publish("8080:80") == Publish(8080, 80, Protocol.TCP)
    assert parse_publish("5353:53/udp") == Publish(5353, 53, Protocol.UDP)


@pytest.mark.parametrize("text", ["", "80", "80:", ":80", "0:80", "80:65536", "80:80/sctp", "a:b", "80:80:80", "٣:80"])
def test_publish_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_publish(text)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a b", "a" * 64, "ä"])
def test_names_outside_the_alphabet_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name, "VM")
