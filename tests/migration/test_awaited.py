"""Whom an action waits for: every action has somebody, and one that is late says who."""

from __future__ import annotations

from architect.migration.awaited import OF_SOURCE, OF_TARGET, late
from architect.migration.source_steps import Action
from architect.migration.target_engine import TargetAction
from architect.model.ids import HostName

HERE, THERE = HostName("aws-1"), HostName("gcp-1")


def test_every_action_waits_for_somebody() -> None:
    assert set(OF_SOURCE) == set(Action)
    assert set(OF_TARGET) == set(TargetAction)


def test_an_action_that_is_late_names_process_vm_and_host() -> None:
    assert (
        late(Action.PAUSE, 10.0, "web", HERE, THERE).cause
        == "pause took longer than 10 s, waiting for QEMU of vm web on host aws-1"
    )
    assert late(Action.PREPARE, 5.0, "web", HERE, THERE).cause == "prepare took longer than 5 s, waiting for host gcp-1"
    words = late(TargetAction.APPLY_CUT, 10.0, "web", THERE, HERE).cause
    assert words == "apply-cut took longer than 10 s, waiting for the memory process of vm web on host gcp-1"


def test_a_mirror_that_is_late_names_both_ends() -> None:
    words = late(Action.START_MIRROR, 10.0, "web", HERE, THERE).cause
    assert words.endswith("waiting for QEMU of vm web on host aws-1, or the one on host gcp-1 to which it copies")
