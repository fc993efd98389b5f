"""The ownership protocol, explored in full: nothing wrong within the bounds, and whatever is broken on purpose is found."""

from __future__ import annotations

import pytest

from architect.testing.ownership import Bounds, Rules, explore
from architect.testing.ownership.__main__ import LARGE, SMALL, describe, main

HANDOVER = Bounds(kills=0, deaths=1, losses=1)
TAKEOVER = Bounds(kills=0, deaths=0, losses=0, takeovers=1)
BROKEN = [
    ("source_waits_for_its_record", HANDOVER, "without a record that names it"),
    ("source_reads_back", HANDOVER, "can never run again"),
    ("source_asks_before_it_lets_go", HANDOVER, "can never run again"),
    ("target_reads_back", HANDOVER, "without a record that names it"),
    ("target_hands_back", HANDOVER, "can never run again"),
    ("target_hands_back_only_when_sure", HANDOVER, "older than what the target has shown"),
    ("takeover_fences", TAKEOVER, "the outside sees two copies"),
    ("takeover_waits_for_expiry", TAKEOVER, "lease had not expired"),
    ("edge_refuses_old_terms", TAKEOVER, "older term"),
]


@pytest.mark.parametrize("bounds", SMALL, ids=str)
def test_no_order_of_steps_and_faults_breaks_the_protocol(bounds: Bounds) -> None:
    finding = explore(bounds)
    assert not finding.wrong, describe(bounds, finding)
    assert finding.states > 5000, "it explored something"


@pytest.mark.soak
@pytest.mark.parametrize("bounds", LARGE, ids=str)
def test_no_order_of_more_steps_and_faults_breaks_the_protocol(bounds: Bounds) -> None:
    finding = explore(bounds)
    assert not finding.wrong, describe(bounds, finding)


@pytest.mark.parametrize(("rule", "bounds", "words"), BROKEN, ids=[case[0] for case in BROKEN])
def test_each_rule_that_is_broken_on_purpose_gives_a_counterexample(rule: str, bounds: Bounds, words: str) -> None:
    finding = explore(bounds, Rules(**{rule: False}))
    assert words in finding.wrong
    assert finding.trace, "how it comes about"


def test_every_rule_is_broken_once() -> None:
    assert [case[0] for case in BROKEN] == list(Rules.__struct_fields__)


def test_a_reboot_of_the_target_between_record_and_run_loses_the_vm_and_no_more() -> None:
    finding = explore(Bounds(kills=0, deaths=0, losses=0, reboots=1))
    assert not finding.wrong, "the loss is excused; that nothing else breaks is shown"


def test_the_command_prints_a_counterexample_step_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kills", "0", "--deaths", "0", "--losses", "0", "--break", "source-waits-for-its-record"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG: the source runs again without a record that names it" in printed and "1. S begins a move to T" in printed
    assert main(["--kills", "0", "--deaths", "0", "--losses", "0"]) == 0
    assert "nothing wrong in" in capsys.readouterr().out
