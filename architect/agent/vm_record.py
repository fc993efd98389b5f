"""What an agent writes down of each VM, so that its successor after a `kill -9` knows what it finds.

One folder a VM under the host's state directory; `vm.json` in it is written whole, and flushed, *before* the effect that it
announces. After a crash of the machine it may be the one before, but never empty: the VM's processes are gone then, and who has
it says the ownership log. The phase says what the agent was about::

    CREATING ──→ RUNNING ──→ OVER           run, stop, exit
    INCOMING ──→ RUNNING                    target of a handover
    RUNNING  ──→ OUTGOING ──→ RUNNING       source of a handover that failed
                 OUTGOING ──→ DEPARTED      handed over; what is left here serves post-copy until it is destroyed
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from architect.errors import HostError
from architect.model.ids import MigrationId, VmId
from architect.model.vm_spec import VmRequest, VmSpec
from architect.model.vm_state import VmState
from architect.runtime.whole_file import write_whole
from architect.wire.agent_messages import MigrationReport


class VmPhase(StrEnum):
    """What the agent was doing with the VM when it wrote the record."""

    CREATING = "creating"
    RUNNING = "running"
    INCOMING = "incoming"
    OUTGOING = "outgoing"
    DEPARTED = "departed"
    OVER = "over"


class VmRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM on this host. `spec` is there from the end of CREATING's preparation on; `end_state` when it is OVER."""

    request: VmRequest
    phase: VmPhase
    term: int
    spec: VmSpec | None = None
    end_state: VmState | None = None
    exit_code: int | None = None
    reason: str = ""
    migration: MigrationId = MigrationId("")
    peer: str = ""
    arrived_by: MigrationId = MigrationId("")
    last_move: MigrationReport | None = None
    workload_started: bool = False
    stop_asked: bool = False

    @property
    def id(self) -> VmId:
        """The VM's id."""
        return self.request.id

    @property
    def held_term(self) -> int:
        """The term by which this host has the VM; 0 while it is still to come: `term` is the source's then."""
        return 0 if self.phase is VmPhase.INCOMING else self.term

    @property
    def fills_from(self) -> str:
        """The host at which some of a VM that runs here still is, or may be; empty if all is here."""
        return self.peer if self.phase is VmPhase.RUNNING else ""


_VM_RECORD_DECODER = msgspec.json.Decoder(VmRecord)


class VmFolder:
    """A VM's folder: the paths of all that belongs to it on this host."""

    def __init__(self, root: Path, vm: VmId) -> None:
        self.path = root / vm
        self.record_path = self.path / "vm.json"
        self.overlay = self.path / "overlay.qcow2"
        self.log = self.path / "output.log"
        self.machine = self.path / "qemu"
        self.memory = self.path / "memory"
        self.halted = self.path / "halted"

    def make(self) -> None:
        """Make the folder; others may pass through it (QEMU runs as another user) but not list it. Idempotent.

        Raises:
            HostError: the disk is full or refuses.
        """
        with self._refusals("folder"):
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o711)

    def remove(self) -> None:
        """Delete the folder with all that is in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, record: VmRecord) -> None:
        """Write the record; the next agent finds it, and after a crash of the machine this one or the one before.

        Raises:
            HostError: the disk is full or refuses.
        """
        self._write(self.record_path, record)

    def keep(self, name: str, value: msgspec.Struct) -> None:
        """Write a file of a move under way, whole or not at all: what a successor of this agent needs to end it. It is not flushed:
        a host that dies takes the move with it, and this may be in the pause.

        Raises:
            HostError: the disk is full or refuses.
        """
        self._write(self.path / name, value, is_flushed=False)

    def _write(self, path: Path, value: msgspec.Struct, *, is_flushed: bool = True) -> None:
        with self._refusals("record"):
            write_whole(path, msgspec.json.encode(value), is_flushed=is_flushed)

    def note_halted(self, boot: str) -> None:
        """Note that nobody has told the VM to run since that boot of this host.

        Raises:
            HostError: the disk is full or refuses.
        """
        with self._refusals("folder"):
            self.halted.write_text(boot)

    @contextlib.contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        """What the disk refuses inside is the host's fault, by name."""
        try:
            yield
        except OSError as error:
            raise HostError(f"{what} of {self.path.name}", str(error), "make room on the host's disk") from error

    def read(self) -> VmRecord | None:
        """The record, or None where there is none (the agent died before the first write) or it cannot be read."""
        try:
            return _VM_RECORD_DECODER.decode(self.record_path.read_bytes())
        except (OSError, msgspec.DecodeError):
            return None


def folders(root: Path) -> Iterator[VmFolder]:
    """The folders of all VMs on this host, by id."""
    for path in sorted(root.glob("vm-*")):
        if path.is_dir():
            yield VmFolder(root, VmId(path.name))
