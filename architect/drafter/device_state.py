"""Device state of a stopped VM: saved to bytes, loaded from bytes (docs/protocols/device-state.md).

Saved with `xen-save-devices-state live=false`, which needs no Xen: unlike `migrate` it inactivates no block node, works with jobs
and exports attached, and never makes QEMU resume by itself. Loaded by `migrate-incoming` with `x-ignore-shared`, so that RAM, our
memfd, is left alone. Both ends have `migration.send-configuration=off`, because the saved form has no configuration section.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from architect.drafter.qmp import QmpConnection
from architect.errors import HostError, IncompatibleError, OutcomeUnknownError

STATE_BYTES_MAX = 64 << 20
SAVE_TIMEOUT_S = 10.0
_CAPABILITIES = ("x-ignore-shared", "late-block-activate", "events")
_MAGIC = b"QEVM"


class StateFile:
    """Where one QEMU writes its device state: a memfd in an fd set, made once, so that saving is a single command in the pause."""

    def __init__(self, fdset: int, memory: int, writable: int) -> None:
        self._fdset = fdset
        self._memory = memory
        self._writable = writable

    @classmethod
    async def make(cls, qmp: QmpConnection, vm: str) -> StateFile:
        """Give a file to QEMU."""
        memory = os.memfd_create(f"{vm}-state", os.MFD_CLOEXEC)
        try:
            # An fd set hands out a descriptor only in the very access mode in which QEMU opens the name: write only.
            writable = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                fdset = int((await qmp.execute("add-fd", fd=writable))["fdset-id"])
            except BaseException:
                os.close(writable)
                raise
        except BaseException:
            os.close(memory)
            raise
        return cls(fdset, memory, writable)

    async def save(self, qmp: QmpConnection, vm: str, timeout_s: float) -> bytes:
        """The device state of a VM that is stopped. Changes nothing; may be repeated.

        Raises:
            HostError: QEMU refused, or what it wrote is no device state.
            OutcomeUnknownError: no answer in time; the VM is still stopped.
        """
        # QEMU's descriptor is a duplicate of `writable`: they share the position.
        os.ftruncate(self._memory, 0)
        os.lseek(self._writable, 0, os.SEEK_SET)
        await qmp.execute("xen-save-devices-state", {"filename": f"/dev/fdset/{self._fdset}", "live": False}, timeout_s=timeout_s)
        size_bytes = os.fstat(self._memory).st_size
        state = os.pread(self._memory, size_bytes, 0) if size_bytes <= STATE_BYTES_MAX else b""
        if not state.startswith(_MAGIC):
            raise HostError(f"{vm}: device state", f"QEMU wrote {size_bytes} bytes that are none", "see the VM's qemu.log")
        return state

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        for descriptor in (self._memory, self._writable):
            if descriptor >= 0:
                os.close(descriptor)
        self._memory = self._writable = -1


async def prepare_load(qmp: QmpConnection) -> None:
    """Tell a QEMU that waits for device state how it will come. Once, before `load_device_state`."""
    await qmp.execute("migrate-set-capabilities", {"capabilities": [{"capability": name, "state": True} for name in _CAPABILITIES]})


async def load_device_state(qmp: QmpConnection, vm: str, state: bytes, timeout_s: float) -> None:
    """Load device state into a VM started with `incoming`; it is `paused` afterwards and not activated on disk until it resumes.

    QEMU reads guest memory meanwhile, so each page that it touches must have content already or be served by the memory process.

    Raises:
        IncompatibleError: this QEMU cannot load that state (other layout, other version); the VM is unusable.
        OutcomeUnknownError: it has not loaded within `timeout_s`; the VM is unusable.
        UnavailableError: QEMU ended; its log says why.
    """
    if not state.startswith(_MAGIC) or len(state) > STATE_BYTES_MAX:
        raise IncompatibleError(f"{vm}: device state", f"{len(state)} bytes that are none", "send what save_device_state returned")
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            await qmp.execute("getfd", {"fdname": "device-state"}, fd=theirs.fileno())
        with qmp.listen("MIGRATION") as listener:
            try:
                async with asyncio.timeout(timeout_s):
                    await qmp.execute("migrate-incoming", {"uri": "fd:device-state"}, timeout_s=timeout_s)
                    # A QEMU that refuses the state closes its end early; the event says so, or its death.
                    with contextlib.suppress(ConnectionError):
                        await asyncio.get_running_loop().sock_sendall(ours, state)
                        ours.shutdown(socket.SHUT_WR)
                    while (status := str((await qmp.next_event(listener))["data"].get("status"))) != "completed":
                        if status == "failed":
                            raise IncompatibleError(f"{vm}: device state", "QEMU refused it", "see the VM's qemu.log")
            except TimeoutError as error:
                raise OutcomeUnknownError(
                    f"{vm}: device state", f"not loaded within {timeout_s} s", "end this VM; it may wait for a page that never came"
                ) from error
