"""Placement: never more than there is, never where it must not, and always with a reason."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from architect.model.ids import HostName
from architect.model.sizes import MIB
from architect.policy.placement import HostRoom, NoRoom, Placed, place

NAMES = st.sampled_from(["aws-1", "aws-2", "gcp-1", "azure-1"]).map(HostName)
ROOMS = st.lists(
    st.builds(HostRoom, NAMES, st.integers(0, 1 << 40), st.sampled_from(["", "", "is leaving", "is lost"])),
    max_size=4,
    unique_by=lambda room: room.name,
)
REFUSED = st.dictionaries(NAMES, st.just("did not take it"), max_size=2)


@given(st.integers(1, 1 << 40), ROOMS, REFUSED)
def test_the_choice_has_room_is_open_and_not_refused(
    memory_bytes: int, rooms: list[HostRoom], refused: dict[HostName, str]
) -> None:
    able = [room for room in rooms if not room.closed and room.name not in refused and room.memory_free_bytes >= memory_bytes]
    match place(memory_bytes, rooms, refused):
        case Placed(host):
            chosen = next(room for room in able if room.name == host)
            assert chosen.memory_free_bytes == max(room.memory_free_bytes for room in able)
        case NoRoom(reason):
            assert not able
            assert all(room.name in reason for room in rooms)


@given(st.integers(1, 1 << 40), ROOMS.flatmap(lambda rooms: st.tuples(st.just(rooms), st.permutations(rooms))))
def test_the_order_of_the_hosts_does_not_matter(memory_bytes: int, orders: tuple[list[HostRoom], list[HostRoom]]) -> None:
    assert place(memory_bytes, orders[0]) == place(memory_bytes, orders[1])


def test_the_reason_says_what_speaks_against_each_host() -> None:
    rooms = [
        HostRoom(HostName("gcp-1"), 100 * MIB),
        HostRoom(HostName("azure-1"), 900 * MIB, "is leaving"),
        HostRoom(HostName("aws-2"), 800 * MIB),
    ]
    refusal = place(256 * MIB, rooms, {HostName("aws-2"): "has another TSC"})
    assert refusal == NoRoom("no host with 256.0 MiB free: azure-1 is leaving, aws-2 has another TSC, gcp-1 has 100.0 MiB")


def test_without_hosts_the_reason_says_so() -> None:
    assert place(MIB, []) == NoRoom("no host with 1.0 MiB free: there is no host")
