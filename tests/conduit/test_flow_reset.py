"""The packets that make idle ends of a connection notice that it is gone."""

from __future__ import annotations

import socket

from architect.conduit.flow_reset import bare_ack, in_tunnel


def _sum(data: bytes) -> int:
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_a_bare_ack_is_a_whole_tcp_segment_with_right_checksums() -> None:
    packet = bare_ack("203.0.113.10", 8080, "198.51.100.2", 40000)
    ip, tcp = packet[:20], packet[20:]
    assert len(packet) == 40 == int.from_bytes(ip[2:4], "big")
    assert (ip[12:16], ip[16:20]) == (socket.inet_aton("203.0.113.10"), socket.inet_aton("198.51.100.2"))
    assert (int.from_bytes(tcp[:2], "big"), int.from_bytes(tcp[2:4], "big"), tcp[13]) == (8080, 40000, 0x10)
    assert _sum(ip) == 0xFFFF
    assert _sum(ip[12:20] + bytes([0, 6, 0, 20]) + tcp) == 0xFFFF


def test_the_tunnel_header_names_ipv4_and_the_vm() -> None:
    assert in_tunnel(0x010203, b"x") == bytes([0x0C, 0, 0, 1, 1, 2, 3, 0]) + b"x"
