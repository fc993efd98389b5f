"""The values of one handover: what was asked for, its limits, and what is measured on the way.

Sizes are bytes, times seconds; `*_at_s` are readings of the source's monotonic clock.
"""

from __future__ import annotations

import msgspec

from architect.migration.bandwidth_limit import BandwidthLimit
from architect.model.handover_span import Span
from architect.model.handover_state import MigrationMode
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.sizes import PAGE_BYTES
from architect.model.vm_spec import VmSpec
from architect.wire.agent_messages import HostFacts


class HandoverLimits(msgspec.Struct, frozen=True):
    """Every bound of a handover, in one place.

    `pause_budget_s` is what sending the last dirty pages may take for a cut to be due; `pause_tolerable_s` what `auto` accepts
    before it prefers post-copy when the dirty set does not shrink. Before the host goes, `notice_margin_s` is kept free for cut,
    commit and release where there is time, and `cutover_s_min` is what these need at least. `doubt` is how many times the rest's
    likely time must be there for copying to go on beside the running guest, `hope` how much better than ever seen the link would
    have to be for a move to be given up (`cut_plan`).
    `status_hold_s` is how long pages and blocks are kept for a target that took the VM over and cannot be reached: it may return,
    and nobody else has them. `seen_timeout_s` is how long the destruction of the source's copy is put off for the guest to be seen
    at the target: its work is not to take the CPU from that, where they share one. `leftover_timeout_s` is how long a target that
    is asked to take a VM waits to find what it has of an earlier attempt, and again for the end of that; with what the
    ownership log takes it is `leftovers_timeout_s` at most, less than the source waits for the answer to `Prepare`. A target looks
    every `source_look_s` whether it still reaches its source; of one that it has not heard for `silent_s_min` it tells users, and
    believes the fabric's word that its host is gone for good, which holds for `gone_word_s`. `unreached_s_max` is longer than a
    source keeps anything.
    """

    pause_budget_s: float = 0.010
    pause_tolerable_s: float = 0.250
    shrink_factor: float = 0.8
    round_count_max: int = 30
    poll_interval_s: float = 0.2
    notice_margin_s: float = 3.0
    cutover_s_min: float = 0.5
    doubt: float = 2.0
    hope: float = 1.25
    mirror_stuck_s_max: float = 20.0
    call_timeout_s: float = 5.0
    start_timeout_s: float = 30.0
    transfer_timeout_s: float = 3600.0
    drain_timeout_s: float = 0.25
    hook_timeout_s: float = 2.0
    machine_timeout_s: float = 10.0
    pause_timeout_s: float = 15.0
    commit_timeout_s: float = 20.0
    quiet_timeout_s: float = 2.0
    seen_timeout_s: float = 0.25
    fill_timeout_s: float = 3600.0
    record_timeout_s: float = 3.0
    back_off_s: float = 0.1
    back_off_max_s: float = 2.0
    insist_attempts_max: int = 5
    alive_interval_s: float = 2.0
    silence_max_s: float = 30.0
    status_hold_s: float = 600.0
    part_bytes: int = 2 << 20
    memory_streams: int = 2
    verify_bytes_per_s: float = 100e6
    cleanup_timeout_s: float = 5.0
    leftover_timeout_s: float = 4.0
    leftovers_timeout_s: float = 8.0
    source_look_s: float = 1.0
    silent_s_min: float = 5.0
    gone_word_s: float = 10.0

    @property
    def unreached_s_max(self) -> float:
        """How long a target waits for a source that nobody knows to be gone."""
        return self.status_hold_s + self.silence_max_s


class HandoverPlan(msgspec.Struct, frozen=True):
    """One handover as the source was asked to do it. `term` is the term by which the source owns the VM now, `disk_bytes` what the
    VM's own disk takes."""

    migration: MigrationId
    spec: VmSpec
    term: int
    source: HostFacts
    target: HostFacts
    mode: MigrationMode
    started_at_s: float
    deadline_at_s: float | None = None
    verify: bool = False
    bandwidth: BandwidthLimit | None = None
    disk_bytes: int = 0
    limits: HandoverLimits = HandoverLimits()

    @property
    def vm(self) -> VmId:
        """The VM's id."""
        return self.spec.id

    @property
    def host(self) -> HostName:
        """The source's name."""
        return self.source.name


class RoundStats(msgspec.Struct, frozen=True):
    """One round of memory: what was sent, how long it took, and how many pages the guest has dirtied (or left unsent) since.
    `bytes` crossed the wire; compression kept `bytes_saved` more off it."""

    pages: int
    bytes: int
    duration_s: float
    dirty_after: int
    bytes_saved: int = 0

    @property
    def dirty_bytes(self) -> int:
        """Upper bound of what is left to send."""
        return self.dirty_after * PAGE_BYTES


class MemoryProgress(msgspec.Struct, frozen=True):
    """How far the memory copy is: bytes that crossed the wire, pages not sent yet or written since; `queued_bytes` of those
    sent are still on their way. `link_bytes` is what all the move's connections, those of its disk too, have sent and the peer has
    acknowledged: the rate of the link is taken from it. Compression has kept `bytes_saved` more of memory off the wire, and
    `link_bytes_saved` of all."""

    bytes_sent: int
    pages_left: int
    queued_bytes: int = 0
    link_bytes: int = 0
    bytes_saved: int = 0
    link_bytes_saved: int = 0


class MirrorProgress(msgspec.Struct, frozen=True):
    """How far the disk mirror is. `is_ready`: it follows the guest's writes and can be ended at once. Done and total count clusters
    of zeros, too, which do not travel: resize2fs alone makes 130 MiB of them in a disk of 8 GiB. `sent_bytes` is what was sent,
    `bytes_saved` of it kept off the wire by compression; `allocated_bytes` is what the overlay takes at the source by now: more can
    never be left to send (0: not known)."""

    is_ready: bool
    done_bytes: int
    total_bytes: int
    sent_bytes: int = 0
    bytes_saved: int = 0
    allocated_bytes: int = 0

    @property
    def left_bytes(self) -> int:
        """What it still has to send."""
        if self.is_ready:
            return 0
        left = self.total_bytes - self.done_bytes
        by_share = int(left * self.sent_share)
        if not self.allocated_bytes:
            return by_share
        return min(max(by_share, self.allocated_bytes - self.sent_bytes), left, self.allocated_bytes)

    @property
    def whole_bytes(self) -> int:
        """What a post-copy of the disk sends: all of it again, for the target's fresh overlay takes none of what was mirrored."""
        by_share = int(self.total_bytes * self.sent_share)
        return min(self.total_bytes, self.allocated_bytes) if self.allocated_bytes else by_share

    @property
    def sent_share(self) -> float:
        """Which part of what it has passed had to be sent; all, where nothing tells."""
        return min(self.sent_bytes / self.done_bytes, 1.0) if self.done_bytes and self.sent_bytes else 1.0


class MemoryCut(msgspec.Struct, frozen=True):
    """The memory at the instant of the cut: its Merkle root (hex), what the target lacks, and all bytes sent so far, with what
    compression kept off the wire.

    `spans` is what the memory process spent its time on, by this host's monotonic clock.
    """

    root: str
    pages_missing: int
    bytes_sent: int
    spans: tuple[Span, ...] = ()
    bytes_saved: int = 0
