"""Opening a local fabric: its network and record, found alive or made new, by its one supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

import msgspec

from architect.clouds.local.demolition import clear_remains, has_unseen_hosts
from architect.clouds.local.layout import PROVIDERS, FabricLayout, StateFolder
from architect.clouds.local.network import claim_index, ensure_edge, ensure_internet
from architect.clouds.local.options import LocalOptions
from architect.clouds.local.record import RECORD_VERSION, FabricRecord, PresenceState, RecordStore, read_record
from architect.errors import ConflictError, HostError
from architect.runtime.boot import boot_id
from architect.runtime.namespaces import identify_namespace, namespace_path
from architect.runtime.processes import identify_process


def next_provider(record: FabricRecord, hosts: int) -> str | None:
    """Where the next host goes, so that there are `hosts` and the clouds take turns; None if there are enough."""
    present = [host.provider for host in record.hosts.values() if host.state is PresenceState.PRESENT]
    return min(PROVIDERS, key=present.count) if len(present) < hosts else None


def open_fabric(folder: StateFolder, options: LocalOptions) -> tuple[FabricLayout, RecordStore]:
    """The fabric's network and record: as they are if it lives, otherwise made new after its remains are cleared. Blocks.

    Raises:
        CapacityError: no addresses are free on this machine.
        ConflictError: it lives, and cannot be seen from here: to clear it away would end its VMs.
        HostError: the kernel refuses.
    """
    record = read_record(folder.record)
    is_living = (
        record is not None and identify_namespace(namespace_path(FabricLayout(folder.fabric, 0).internet_namespace)) is not None
    )
    if record is not None and is_living:
        layout = FabricLayout(folder.fabric, record.index)
        ensure_internet(layout)
    else:
        if record is not None and record.boot_id == boot_id() and has_unseen_hosts(folder):
            raise ConflictError(
                f"fabric in {folder.root}",
                "its hosts run, but their network namespaces cannot be seen from here",
                "use the mount namespace that it was started in, or end it with `architect down`",
            )
        clear_remains(folder)
        with claim_index(folder.fabric) as index:
            layout = FabricLayout(folder.fabric, index)
            ensure_internet(layout)
        record = record or FabricRecord(RECORD_VERSION, folder.fabric, index, boot_id(), options.memory_bytes)
        record = msgspec.structs.replace(record, index=index, boot_id=boot_id(), processes={})
    ensure_edge(layout)
    supervisor = identify_process(os.getpid())
    return layout, RecordStore(folder.record, msgspec.structs.replace(record, supervisor=supervisor))


@contextlib.contextmanager
def sole_supervisor(folder: StateFolder) -> Iterator[None]:
    """Hold the fabric's lock while the block runs.

    Raises:
        ConflictError: another supervisor holds it.
        HostError: the state folder cannot be written.
    """
    try:
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"state folder {folder.root}", str(error), "run `architect up`, which makes it") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"fabric in {folder.root}", "has a supervisor already", "use `architect up` to talk to it"
            ) from error
        yield
    finally:
        os.close(descriptor)
