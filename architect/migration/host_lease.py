"""A host's lease on the VMs that it runs: how long it may let them run without having heard that they are still its own.

::

    HELD ──(contact)──→ HELD          store or edge has answered a question asked at that time
    HELD ──(time out)─→ EXPIRED       neither has for `length_s`: others may take the VMs over, so they are paused here
    EXPIRED ─(contact)─→ HELD         each VM goes on once the answer has shown that it is still ours

One of the two is enough: whoever takes a VM over writes its next record and makes the edge refuse the old owner before the VM runs.
So a host that reaches either sees it, and an outage of the store alone, of the edge alone or of the control plane stops nothing.

The lease counts from when the question was *asked*, so it is no longer here than it is for whoever answered. Time is
CLOCK_BOOTTIME, which counts while the machine is suspended, or the date where that has gone further: a hypervisor that pauses the
machine stops its clocks, and sets the date right afterwards. A date set forward by hand costs a pause until the next answer, and no
more. What two clocks may run apart (`DRIFT`) is taken off the length. What the VMs of a thawed machine do before its agent runs
cannot be held back from here; the edge refuses it.
"""

from __future__ import annotations

import time
from enum import StrEnum

import msgspec

from architect.model.state_machine import advance

DRIFT = 0.01
"""No two hosts' clocks run further apart than this share; crystals keep within 0.01 %, a guest's clock under load within 0.1 %."""


class LeaseState(StrEnum):
    """Whether the host may let its VMs run."""

    HELD = "held"
    EXPIRED = "expired"


class LeaseEvent(StrEnum):
    """What changes that."""

    CONTACT = "contact"
    TIME_OUT = "time-out"


TRANSITIONS: dict[LeaseState, dict[LeaseEvent, LeaseState]] = {
    LeaseState.HELD: {LeaseEvent.CONTACT: LeaseState.HELD, LeaseEvent.TIME_OUT: LeaseState.EXPIRED},
    LeaseState.EXPIRED: {LeaseEvent.CONTACT: LeaseState.HELD, LeaseEvent.TIME_OUT: LeaseState.EXPIRED},
}


class Reading(msgspec.Struct, frozen=True):
    """Both clocks at one instant."""

    boot_s: float
    wall_s: float


def read_clocks() -> Reading:
    """Now."""
    return Reading(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def elapsed_s(since: Reading, now: Reading) -> float:
    """How much time may have passed: what the clock says that says more."""
    return max(now.boot_s - since.boot_s, now.wall_s - since.wall_s)


class HostLease(msgspec.Struct, frozen=True):
    """The lease of one host. `contact` is when the newest question was asked that was answered; None before the first."""

    length_s: float
    state: LeaseState = LeaseState.EXPIRED
    contact: Reading | None = None

    @property
    def is_held(self) -> bool:
        """Whether VMs may run."""
        return self.state is LeaseState.HELD


def after_contact(lease: HostLease, asked_at: Reading, now: Reading) -> HostLease:
    """The lease after an answer to what was asked at `asked_at`; one that took longer than the lease renews nothing."""
    if _is_over(lease.length_s, asked_at, now):
        return after_look(lease, now)
    newer = lease.contact is None or asked_at.boot_s > lease.contact.boot_s
    contact = asked_at if newer else lease.contact
    return msgspec.structs.replace(lease, state=advance(TRANSITIONS, lease.state, LeaseEvent.CONTACT), contact=contact)


def after_look(lease: HostLease, now: Reading) -> HostLease:
    """The lease after a look at the clocks."""
    if lease.contact is not None and not _is_over(lease.length_s, lease.contact, now):
        return lease
    return msgspec.structs.replace(lease, state=advance(TRANSITIONS, lease.state, LeaseEvent.TIME_OUT))


def _is_over(length_s: float, since: Reading, now: Reading) -> bool:
    return elapsed_s(since, now) >= length_s * (1 - DRIFT)
