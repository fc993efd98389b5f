"""The source's adapters: one VM that leaves this host, as the handover engine sees it (`migration.source_ports`)."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from architect.agent.disk_room import written_bytes
from architect.agent.hosted_vm import HostedVm
from architect.agent.memory_watch import wait_replaced
from architect.agent.move_shared import close_tunnels, connect_unix, listen_tunnel, parts_of
from architect.drafter.block_job import JobGoneError
from architect.drafter.disk_mirror import DiskMirror
from architect.drafter.frozen_file import freeze_overlay
from architect.errors import HostError, OutcomeUnknownError, UnavailableError
from architect.migration.handover_plan import MemoryCut, MemoryProgress, MirrorProgress, RoundStats
from architect.model.compression import Compression
from architect.model.ids import MigrationId
from architect.silo import memory_messages as m
from architect.silo.memory_client import MemoryProcess

_SENDING = ("sending", "serving")


class SourceMachine:
    """`SourceMachinePort` over QEMU and the guest."""

    def __init__(self, vm: HostedVm) -> None:
        self._vm = vm

    async def run_hook(self, name: str) -> None:
        """As the port says."""
        if self._vm.guest is not None:
            await self._vm.guest.run_hook(name)

    async def sync_clock(self) -> None:
        """As the port says."""
        if self._vm.guest is not None:
            await self._vm.guest.sync_clock()

    async def start_mirror(self, path: str) -> None:
        """As the port says."""
        self._vm.mirror_error = ""
        with contextlib.closing(connect_unix(path)) as connection:
            await DiskMirror(parts_of(self._vm).machine).start(connection.fileno())

    async def mirror_progress(self) -> MirrorProgress:
        """As the port says."""
        progress = await DiskMirror(parts_of(self._vm).machine).progress()
        if progress is None:
            raise self._mirror_has_ended()
        status = await parts_of(self._vm).memory.status()
        sent, saved = status.tunnel_bytes_sent, status.tunnel_bytes_saved
        allocated_bytes = await asyncio.to_thread(written_bytes, self._vm.folder.overlay)
        return MirrorProgress(progress.is_ready, progress.done_bytes, progress.total_bytes, sent, saved, allocated_bytes)

    async def finish_mirror(self) -> None:
        """As the port says."""
        try:
            await DiskMirror(parts_of(self._vm).machine).finish()
        except JobGoneError as error:
            raise self._mirror_has_ended() from error

    def _mirror_has_ended(self) -> HostError:
        why = f": {self._vm.mirror_error}" if self._vm.mirror_error else ""
        return HostError(f"disk of vm {self._vm.record.request.name}", f"its mirror has ended early{why}", "see the target's disk")

    async def cancel_mirror(self) -> None:
        """As the port says."""
        if self._vm.parts is not None:
            await DiskMirror(self._vm.parts.machine).cancel()

    async def freeze_disk(self) -> str:
        """As the port says."""
        return str(await freeze_overlay(parts_of(self._vm).machine))

    async def pause(self) -> float:
        """As the port says. A guest that does not stop waits for the mirror's peer, and could not be resumed before it answers."""
        machine = parts_of(self._vm).machine
        try:
            return await machine.pause()
        except OutcomeUnknownError:
            DiskMirror(machine).cut()
            raise

    async def resume(self) -> None:
        """As the port says."""
        await parts_of(self._vm).machine.resume()

    async def save_device_state(self) -> bytes:
        """As the port says."""
        return await parts_of(self._vm).machine.save_device_state()

    async def what_ended(self) -> str:
        """As the port says."""
        return self._vm.what_ended()

    async def destroy(self) -> None:
        """As the port says."""
        await self._vm.destroy()


class OutgoingMemory(msgspec.Struct, frozen=True):
    """What is needed to serve a move again after agent and memory process have died: kept in the VM's folder while it leaves.

    `served`: the tunnel, by name, and the file that is read by it; `is_postcopy`: the cut left pages for later, or was about to.
    """

    options: m.SourceOptions
    served: tuple[str, str] | None = None
    is_postcopy: bool = False


_OUTGOING_DECODER = msgspec.json.Decoder(OutgoingMemory)


class SourceMemory:
    """`SourceMemoryPort` over the memory process.

    :param compression: of the move that is opened; one that was opened before goes on as it was.
    """

    def __init__(self, vm: HostedVm, compression: Compression) -> None:
        self._vm = vm
        self._compression = compression
        self._opened: MemoryProcess | None = None
        self._left: MemoryProcess | None = None
        self._opening = asyncio.Lock()
        self._file = vm.folder.path / "outgoing-memory.json"

    async def open_source(self, session: MigrationId, address: str, port: int, server_name: str, streams: int) -> None:
        """As the port says."""
        memory = parts_of(self._vm).memory
        await close_tunnels(memory)
        options = m.SourceOptions(session, address, port, server_name, streams, compression=self._compression)
        outgoing = OutgoingMemory(options)
        self._note(outgoing)
        self._opened = memory
        await memory.open_source(outgoing.options)

    async def set_bandwidth(self, bytes_per_s: int) -> None:
        """As the port says. A memory process that replaces this one keeps to it, too."""
        if (outgoing := self._outgoing()) is not None:
            options = msgspec.structs.replace(outgoing.options, bandwidth_bytes_s=bytes_per_s)
            self._note(msgspec.structs.replace(outgoing, options=options))
        await parts_of(self._vm).memory.set_bandwidth(bytes_per_s)

    async def bulk(self) -> RoundStats:
        """As the port says."""
        return _stats(await parts_of(self._vm).memory.bulk())

    async def round(self) -> RoundStats:
        """As the port says."""
        return _stats(await parts_of(self._vm).memory.round())

    async def stop_round(self) -> None:
        """As the port says."""
        await parts_of(self._vm).memory.stop_round()

    async def progress(self) -> MemoryProgress:
        """As the port says."""
        status = await parts_of(self._vm).memory.status(scan=True)
        queued = max(status.bytes_sent - status.bytes_acked, 0)
        if status.bytes_saved:  # as much memory waits there as these bytes stand for
            queued = queued * (status.bytes_sent + status.bytes_saved) // status.bytes_sent
        link_bytes = status.bytes_acked + status.tunnel_bytes_sent - status.tunnel_bytes_saved
        link_saved = status.bytes_saved + status.tunnel_bytes_saved
        return MemoryProgress(status.bytes_sent, status.pages_left, queued, link_bytes, status.bytes_saved, link_saved)

    async def cut(self, postcopy: bool) -> MemoryCut:
        """As the port says."""
        if postcopy and (outgoing := self._outgoing()) is not None:
            self._note(msgspec.structs.replace(outgoing, is_postcopy=True))
        cut = await parts_of(self._vm).memory.cut(postcopy=postcopy)
        return MemoryCut(cut.root, cut.pages_missing, cut.bytes_sent, cut.spans, cut.bytes_saved)

    async def full_hash(self) -> str:
        """As the port says."""
        return await parts_of(self._vm).memory.full_hash()

    async def start_serving(self) -> None:
        """As the port says."""
        memory = await self._memory()
        await self._open_again(memory)
        await memory.start_serving()

    async def serve_until_done(self) -> None:
        """As the port says. A memory process that was killed meanwhile is replaced, and goes on where it was; so does one that is
        killed when memory is done, and the disk is not."""
        self._vm.memory_replaced = self._open_again
        while True:
            memory = await self._memory()
            try:
                await self._open_again(memory)
                await memory.serve_until_done()
                return
            except UnavailableError:
                if not memory.is_closed:
                    raise
                await wait_replaced(self._vm.record.request.name, self._vm.parts, memory)

    async def _memory(self) -> MemoryProcess:
        """The VM's memory process. It has all that a post-copy needs of this host: one whose QEMU has ended serves on, also when a
        successor of this agent finds it, who has no parts then.

        Raises:
            UnavailableError: it has ended, too.
        """
        if self._vm.parts is not None:
            return self._vm.parts.memory
        if self._left is None or self._left.is_closed:
            self._left = await MemoryProcess.reattach(self._vm.folder.memory)
        return self._left

    async def _open_again(self, memory: MemoryProcess) -> None:
        """Connect a memory process that replaces the one that has opened the move, be it that of an agent before us."""
        async with self._opening:
            outgoing = self._outgoing()
            if outgoing is None or memory is self._opened:
                return
            if self._opened is not None or (await memory.status()).state not in _SENDING:
                await memory.open_source(outgoing.options, resume=True)
                if outgoing.served is not None:
                    await memory.tunnel_serve(*outgoing.served)
            self._opened = memory

    def _note(self, outgoing: OutgoingMemory) -> None:
        self._vm.folder.keep(self._file.name, outgoing)

    def _outgoing(self) -> OutgoingMemory | None:
        try:
            return _OUTGOING_DECODER.decode(self._file.read_bytes())
        except (OSError, msgspec.DecodeError):
            return None

    async def abort_source(self) -> None:
        """As the port says."""
        self._file.unlink(missing_ok=True)
        self._vm.memory_replaced = None
        if self._vm.parts is not None:
            await close_tunnels(self._vm.parts.memory)
            await self._vm.parts.memory.abort_source()

    async def is_serving(self) -> bool:
        """As the port says. An agent before us may have died after the cut, and before it had the rest served."""
        outgoing = self._outgoing()
        if outgoing is not None and (outgoing.is_postcopy or outgoing.served is not None):
            return True  # whatever the memory process says: it, too, may be another one
        status = await (await self._memory()).status()
        return status.state == "serving" or (status.state == "sending" and status.pages_left > 0)

    async def tunnel_listen(self, name: str) -> str:
        """As the port says."""
        return await listen_tunnel(self._vm, name)

    async def tunnel_serve(self, name: str, path: str) -> None:
        """As the port says."""
        await parts_of(self._vm).memory.tunnel_serve(name, path)
        if (outgoing := self._outgoing()) is not None:
            self._note(msgspec.structs.replace(outgoing, served=(name, path)))


def _stats(stats: m.RoundStats) -> RoundStats:
    return RoundStats(stats.pages, stats.bytes_sent, stats.duration_s, stats.dirty_after, stats.bytes_saved)
