"""Machine: one VM as one QEMU process.

A machine outlives the agent that started it: QEMU runs in a session of its own, and a new agent finds it by its run folder
(`reattach`). Files in the run folder: `qmp.sock`, `channel.sock` (the guest channel), `console.log` (the guest's serial line),
`qemu.log` (QEMU's own words), `machine.json` (who the process is).

RAM is a memfd that the caller made and shares with the memory process; the machine never touches it. Guest faults may block QEMU
while memory is still on its way, so every wait here has a deadline and a late answer is `OutcomeUnknownError`, not a failure.

    machine = await Machine.start(options)
    stopped_at_s = await machine.pause()
    state = await machine.save_device_state()
    await machine.quit()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from architect.drafter.device_state import SAVE_TIMEOUT_S, StateFile, load_device_state, prepare_load
from architect.drafter.disk_link import DiskLinks
from architect.drafter.machine_event import MachineEnded, MachineEvent, MachineShutDown, event_time, parse_event
from architect.drafter.machine_launch import InheritedFiles
from architect.drafter.machine_options import MachineOptions, MachineRecord, forget_record, read_record, write_record
from architect.drafter.qemu_process import Jail, QemuProcess, find_process, find_unrecorded, last_line, spawn
from architect.drafter.qmp import COMMAND_TIMEOUT_S, QmpConnection, connect_qmp
from architect.errors import ArchitectError, ConflictError, HostError, IncompatibleError, NotFoundError, UnavailableError
from architect.model.vm_spec import MachineSpec
from architect.runtime.process_end import ending

PAUSE_TIMEOUT_S = 5.0
QUIT_TIMEOUT_S = 5.0
KILL_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 30.0
REATTACH_TIMEOUT_S = 10.0
CONSOLE_BYTES_MAX = 8 << 20
_STANDING = ("paused", "prelaunch", "postmigrate", "io-error")
# What QEMU says when this host's QEMU cannot build the hardware that the spec asks for.
_INCOMPATIBLE = ("support requested feature", "unable to find CPU model", "unsupported machine type", "Machine type", "cpu model")


class MachineStartError(HostError):
    """QEMU ended before its monitor answered. `how`: in words to follow its name."""

    def __init__(self, thing: str, how: str, next_step: str) -> None:
        super().__init__(thing, how, next_step)
        self.how = how


class Machine:
    """A running QEMU under our control, made by `start` or `reattach`.

    `qmp` is its monitor and `disk_links` are its connections to disks elsewhere, both for the modules of the disk.
    """

    def __init__(
        self, record: MachineRecord, run_dir: Path, process: QemuProcess, qmp: QmpConnection, state_file: StateFile
    ) -> None:
        self._record = record
        self._process = process
        self._state_file = state_file
        self._stands = False  # known to be paused: stopped by us and not resumed since
        self.run_dir = run_dir
        self.qmp = qmp
        self.disk_links = DiskLinks(qmp)

    @classmethod
    async def start(cls, options: MachineOptions) -> Machine:
        """Start QEMU and wait until its monitor answers. On failure and on cancellation nothing is left running.

        Raises:
            HostError: QEMU could not be started; or it ended at once (MachineStartError), which carries its last words.
            IncompatibleError: this QEMU cannot build the spec's hardware (CPU model, machine type).
            ConflictError: a machine runs in this run folder.
        """
        if (found := find_machine(options.run_dir)) is not None:
            found.close()
            raise ConflictError(
                f"{options.called}: {options.run_dir}", "a machine runs there", "reattach to it, or destroy it first"
            )
        log = options.run_dir / "qemu.log"
        with InheritedFiles(options) as files:
            jail = Jail(options.uid, options.shim, kvm=options.spec.accelerator == "kvm")
            process = spawn(files.command, jail, files.numbers, options.run_dir, log)
        machine: Machine | None = None
        try:
            fsync = options.disk is not None and options.disk.host_fsync
            record = MachineRecord(options.name, process.identity, options.spec, options.shim is not None, fsync, options.label)
            write_record(options.run_dir, record)
            try:
                machine = await cls._greet(record, options.run_dir, process, options.start_timeout_s)
                if options.incoming:
                    await prepare_load(machine.qmp)
            except ArchitectError as error:
                raise await _start_error(process, options, log) from error
            if options.shim is not None and not process.has_uffd:
                raise HostError(
                    f"{options.called}: {options.shim}", "made no userfaultfd", f"see {log}; let uid {options.uid} read it"
                )
            process.calm()
        except BaseException:
            await asyncio.shield(machine.kill() if machine is not None else _end(process))
            forget_record(options.run_dir)
            raise
        return machine

    @classmethod
    async def reattach(cls, run_dir: Path) -> Machine:
        """Take over the machine that an agent before us started in `run_dir`.

        Raises:
            NotFoundError: none was started there, or it has ended; its qemu.log may say why.
            UnavailableError: it runs, but its monitor does not answer; it may wait for memory. Try again, or kill it.
        """
        record = read_record(run_dir)
        process = find_process(record.process)
        try:
            return await cls._greet(record, run_dir, process, REATTACH_TIMEOUT_S)
        except BaseException:
            process.close()
            raise

    @classmethod
    async def _greet(cls, record: MachineRecord, run_dir: Path, process: QemuProcess, timeout_s: float) -> Machine:
        qmp = await connect_qmp(run_dir / "qmp.sock", record.called, process.pid, timeout_s)
        try:
            return cls(record, run_dir, process, qmp, await StateFile.make(qmp, record.name))
        except BaseException:
            await qmp.close()
            raise

    @property
    def name(self) -> str:
        """What errors call it."""
        return self._record.called

    @property
    def spec(self) -> MachineSpec:
        """The hardware that it was started with."""
        return self._record.spec

    @property
    def host_fsync(self) -> bool:
        """Whether its disk was opened with the classic meaning of a guest's fsync."""
        return self._record.host_fsync

    @property
    def qemu_pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def has_uffd(self) -> bool:
        """Whether the shim was preloaded, so that descriptor UFFD_NUMBER of the process is a userfaultfd."""
        return self._record.has_uffd

    @property
    def qemu_version(self) -> str:
        """`7.2.22`."""
        return self.qmp.qemu_version

    @property
    def is_running(self) -> bool:
        """Whether the process exists; says nothing of the guest."""
        return self._process.is_running

    @property
    def is_ending(self) -> bool:
        """Whether QEMU obeys nobody any more, though the process may exist for a moment longer."""
        return self._process.is_ending

    @property
    def channel_path(self) -> Path:
        """The unix socket at which the guest channel answers; QEMU takes one client at a time and a new one after it."""
        return self.run_dir / "channel.sock"

    async def status(self) -> str:
        """QEMU's run state: `running`, `paused`, `prelaunch`, `inmigrate`, `shutdown`, `io-error`, `internal-error`, ..."""
        return str((await self.qmp.execute("query-status"))["status"])

    async def pause(self, timeout_s: float = PAUSE_TIMEOUT_S) -> float:
        """Stop the guest's CPUs and flush the disks' metadata to the host. Returns when they stopped, by QEMU's clock. Idempotent.

        Raises:
            ConflictError: the guest is over.
            OutcomeUnknownError: QEMU waits for a disk; if that is at a peer that is silent, cutting the link lets it go on
                (`DiskMirror.cancel`). Then ask for the state: it may be paused.
        """
        with self.qmp.listen("STOP") as listener:
            await self.qmp.execute("stop", timeout_s=timeout_s)
            if not listener.empty():
                self._stands = True
                return event_time(await listener.get())
        if (status := await self.status()) not in _STANDING:
            raise ConflictError(f"{self.name}", f"it is in state {status} and cannot be paused", "see its console.log")
        self._stands = True
        return time.time()

    async def resume(self, timeout_s: float = COMMAND_TIMEOUT_S) -> float:
        """Let the guest's CPUs run. Returns when they started, by QEMU's clock. Idempotent.

        Raises:
            QmpRefusedError: the guest is over, or a disk of it cannot be activated.
        """
        self._stands = False
        with self.qmp.listen("RESUME") as listener:
            await self.qmp.execute("cont", timeout_s=timeout_s)
            return event_time(await listener.get()) if not listener.empty() else time.time()

    async def save_device_state(self, timeout_s: float = SAVE_TIMEOUT_S) -> bytes:
        """The device state of the paused guest, a few hundred KiB at most. Changes nothing.

        Raises:
            ConflictError: the guest runs; QEMU would stop it.
            HostError: QEMU refused.
        """
        if not self._stands and (status := await self.status()) not in _STANDING:
            raise ConflictError(f"{self.name}: device state", f"the guest is {status}", "pause it first")
        return await self._state_file.save(self.qmp, self.name, timeout_s)

    async def load_device_state(self, state: bytes, timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Load device state into a machine started with `incoming`; it is paused then. After a failure, `kill` it.

        Raises:
            IncompatibleError: this QEMU cannot load it; carries QEMU's last words.
            OutcomeUnknownError: not within `timeout_s`.
        """
        try:
            await load_device_state(self.qmp, self.name, state, timeout_s)
        except UnavailableError as error:
            if await self._ended_within(1):
                raise IncompatibleError(f"{self.name}: device state", self.last_words(), "move between equal layouts") from error
            raise
        self._stands = True  # -S: a loaded guest never runs by itself

    def events(self) -> AsyncGenerator[MachineEvent, None]:
        """What happens from now on; ends with `MachineEnded`. Close it (`aclosing`) if you stop reading early."""
        listening = contextlib.ExitStack()
        listener = listening.enter_context(self.qmp.listen())

        async def read() -> AsyncGenerator[MachineEvent, None]:
            shutdown = ""
            with listening:
                with contextlib.suppress(UnavailableError):
                    while True:
                        if (event := parse_event(await self.qmp.next_event(listener))) is not None:
                            shutdown = event.reason if isinstance(event, MachineShutDown) else shutdown
                            yield event
                exit_status = await self._process.wait()
                yield MachineEnded(time.time(), exit_status, self.last_words(), shutdown)

        return read()

    async def quit(self, timeout_s: float = QUIT_TIMEOUT_S) -> None:
        """End QEMU in order (disks are flushed and closed); kill it if that takes longer. Idempotent."""
        if self._process.is_running:
            with contextlib.suppress(ArchitectError):
                await self.qmp.execute("quit", timeout_s=timeout_s)
            if await self._ended_within(timeout_s):
                await self._release()
                return
        await self.kill()

    async def kill(self) -> None:
        """End QEMU at once, and wait until it is gone. Idempotent.

        Raises:
            HostError: it is not gone in KILL_TIMEOUT_S; the kernel holds it.
        """
        self._process.kill()
        if not await self._ended_within(KILL_TIMEOUT_S):
            raise HostError(f"{self.name}: QEMU process {self.qemu_pid}", "does not end", "see the kernel's log for a stuck disk")
        await self._release()

    async def detach(self) -> None:
        """Let go of the machine, which runs on. Idempotent."""
        self.disk_links.close()
        self._state_file.close()
        await self.qmp.close()
        self._process.close()

    async def wait_exit(self, timeout_s: float | None = None) -> int | None:
        """Wait until QEMU is gone; its exit status, or None if an earlier agent started it.

        Raises:
            TimeoutError: it still runs.
        """
        return await self._process.wait(timeout_s)

    def last_words(self) -> str:
        """The last line of QEMU's log."""
        return last_line(self.run_dir / "qemu.log")

    def how_it_ended(self) -> str:
        """Its end in words, to follow QEMU's name; "" while it lives. What QEMU said last is told if it ended by itself."""
        if not self.is_ending and self.is_running:
            return ""
        return ending(self._process.exit_status, self.last_words())

    def trim_console(self, bytes_max: int = CONSOLE_BYTES_MAX) -> None:
        """Empty the console's log once it is longer than that. QEMU appends, so it goes on at the start."""
        path = self.run_dir / "console.log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > bytes_max:
                os.truncate(path, 0)

    async def _ended_within(self, timeout_s: float) -> bool:
        try:
            await self._process.wait(timeout_s)
        except TimeoutError:
            return False
        return True

    async def _release(self) -> None:
        self.disk_links.close()
        self._state_file.close()
        await self.qmp.close()
        self._process.close()
        forget_record(self.run_dir)


async def destroy_machine(run_dir: Path) -> None:
    """End the machine that was started in `run_dir`, whether its monitor answers or not. Idempotent.

    Raises:
        HostError: it does not end.
    """
    if (process := find_machine(run_dir)) is not None:
        try:
            process.kill()
            await process.wait(KILL_TIMEOUT_S)
        except TimeoutError as error:
            cause = f"does not end in {KILL_TIMEOUT_S:.0f} s"
            raise HostError(f"QEMU process {process.pid}", cause, "see the kernel's log for a stuck disk") from error
        finally:
            process.close()
    forget_record(run_dir)


def find_machine(run_dir: Path) -> QemuProcess | None:
    """The process of the machine that was started in `run_dir`, None if none runs. The caller closes it."""
    try:
        return find_process(read_record(run_dir).process)
    except NotFoundError:
        return find_unrecorded(run_dir)  # an agent that was killed between the start and the record of it


async def _start_error(process: QemuProcess, options: MachineOptions, log: Path) -> ArchitectError:
    """Why the monitor never answered."""
    thing = f"{options.called}: {options.binary}"
    try:
        status = await process.wait(1.0)
    except TimeoutError:
        return HostError(
            thing, f"its monitor did not answer in {options.start_timeout_s} s", f"see {log}; the host may be overloaded"
        )
    words = last_line(log)
    if any(sign in words for sign in _INCOMPATIBLE):
        return IncompatibleError(thing, words, "run it on a host whose QEMU has this machine type and CPU model")
    return MachineStartError(thing, ending(status, words), f"see {log}")


async def _end(process: QemuProcess) -> None:
    process.kill()
    with contextlib.suppress(TimeoutError):
        await process.wait(KILL_TIMEOUT_S)
    process.close()
