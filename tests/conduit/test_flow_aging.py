"""When a flow is over."""

from __future__ import annotations

import pytest

from architect.conduit.flow_aging import FlowTimeouts, is_over
from architect.conduit.layout import FLOW_ANSWERED, FLOW_FIN, FLOW_RESET

TCP, UDP, ICMP = 6, 17, 1


@pytest.mark.parametrize(
    ("protocol", "out_bits", "in_bits", "lives_s"),
    [
        (TCP, 0, FLOW_ANSWERED, 86400),
        (TCP, 0, 0, 120),
        (TCP, FLOW_FIN, FLOW_ANSWERED, 86400),
        (TCP, FLOW_FIN, FLOW_ANSWERED | FLOW_FIN, 120),
        (TCP, FLOW_RESET, FLOW_ANSWERED, 120),
        (TCP, 0, FLOW_ANSWERED | FLOW_RESET, 120),
        (UDP, 0, FLOW_ANSWERED, 180),
        (UDP, 0, 0, 180),
        (ICMP, 0, FLOW_ANSWERED, 30),
    ],
)
def test_a_flow_lives_as_long_as_its_state_allows(protocol: int, out_bits: int, in_bits: int, lives_s: float) -> None:
    assert not is_over(protocol, lives_s - 1, out_bits, in_bits, FlowTimeouts())
    assert is_over(protocol, lives_s + 1, out_bits, in_bits, FlowTimeouts())
