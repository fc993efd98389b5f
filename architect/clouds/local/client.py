"""The local provider as the command line uses it: up, down, and the requests to a fabric's supervisor.

`down` needs no supervisor: it ends the one that runs, if one does, and takes apart what the kernel shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from architect.clouds.local import messages as say
from architect.clouds.local.layout import HOSTS_MAX, NOTICE_S, StateFolder, fabric_mark, state_folder
from architect.clouds.local.options import LocalOptions, default_options
from architect.clouds.local.preflight import check_machine, check_root
from architect.clouds.local.process_table import process_environment
from architect.clouds.local.record import read_record
from architect.errors import ConflictError, HostError, NotFoundError, OutcomeUnknownError, UnavailableError, UsageError
from architect.runtime.logging import last_line
from architect.runtime.processes import ProcessIdentity, SpawnOptions, is_alive, spawn_process, stop_process
from architect.runtime.rpc import Channel, open_channel
from architect.runtime.socket_paths import short_socket_path

Tell = Callable[[str], None]

START_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
LOCK_TIMEOUT_S = 120.0
POLL_S = 0.05


async def up(hosts: int, state_dir: Path, progress: Tell, options: LocalOptions | None = None) -> dict[str, Any]:
    """Have a fabric of at least `hosts` hosts in `state_dir`, everything ready: made, adopted, or repaired. Idempotent.

    Returns `{edge: {addresses}, outside: {address}, hosts: [names], state_dir}`. If a fabric that was not there before cannot be
    brought up, nothing of it is left but its logs. Cancelled, it leaves what is there to the supervisor, or to `down`.

    Raises:
        UsageError: no such number of hosts.
        HostError: this machine cannot; names what is missing.
        UnavailableError: something does not get ready; names it and its log.
    """
    check_wish(hosts, state_dir)
    folder = state_folder(state_dir)
    _make_folder(folder)
    async with _changing(folder):
        was_there = read_record(folder.record) is not None
        try:
            await _ensure_supervisor(folder, options or default_options(hosts), progress)
            async with _supervisor(folder) as channel:
                status = await _ask(channel, say.BringUp(hosts), progress)
        except Exception:
            if not was_there:
                await _take_apart(folder)
            raise
    return {
        "edge": {"addresses": list(status.edge_addresses)},
        "outside": {"address": status.outside_address},
        "hosts": [host.name for host in status.hosts],
        "state_dir": status.state_dir,
    }


def check_wish(hosts: int, state_dir: Path) -> None:
    """Return if `up` can have that; what is made for it beforehand may take minutes.

    Raises: as `up`.
    """
    if not 0 <= hosts <= HOSTS_MAX:
        raise UsageError(f"{hosts} hosts", f"a local fabric has 0 to {HOSTS_MAX}", "give --hosts 3")
    folder = state_folder(state_dir)
    above = next(path for path in (folder.root, *folder.root.parents) if os.path.lexists(path))
    if not os.path.isdir(above):
        raise UsageError(f"state folder {folder.root}", f"{above} is not a folder", "give another one with --state-dir")
    _check_ours(folder)
    check_machine()


async def down(state_dir: Path, progress: Tell) -> dict[str, Any]:
    """Take the fabric apart, whatever state it is in; cache and logs stay. Idempotent.

    Returns `{state_dir, killed}`, `killed` being how many processes had to end.

    Raises:
        HostError: not root, or something does not go away; names it.
        UsageError: the folder holds what no `up` has made.
    """
    check_root()
    folder = state_folder(state_dir)
    _check_ours(folder)
    if not folder.change_lock.exists():
        return {"state_dir": str(folder.root), "killed": await _demolish(folder)}
    async with _changing(folder):
        progress("taking the fabric apart")
        killed = await _take_apart(folder)
    return {"state_dir": str(folder.root), "killed": killed}


async def preempt(state_dir: Path, host: str, notice_s: float | None = None) -> dict[str, Any]:
    """Post a notice for the host, as its cloud does (None: as long as its cloud's); it is destroyed at the deadline.

    Returns the host with its notice.

    Raises:
        NotFoundError: there is no such host. UnavailableError: no fabric runs there.
    """
    async with _supervisor(state_folder(state_dir)) as channel:
        if notice_s is None:
            fabric = await _ask(channel, say.ReadStatus())
            provider = next((known.provider for known in fabric.hosts if known.name == host), "")
            notice_s = NOTICE_S.get(provider, 30.0)
        return _plain(await _ask(channel, say.PreemptHost(host, notice_s)))


async def kill(state_dir: Path, host: str) -> dict[str, Any]:
    """Destroy the host without a word; returns `{host, destroyed}` when nothing of it is left.

    Raises: as `preempt`; HostError: something of it does not go away.
    """
    async with _supervisor(state_folder(state_dir)) as channel:
        await _ask(channel, say.KillHost(host))
    return {"host": host, "destroyed": True}


async def add_host(state_dir: Path, provider: str, name: str | None = None) -> dict[str, Any]:
    """Make another host and wait until its agent is ready; returns the host, and under `is_new` whether it was made now: a name
    that exists with this provider is that host.

    Raises:
        UsageError, ConflictError, CapacityError: no such provider or name, the name is another one's, or no room.
    """
    async with _supervisor(state_folder(state_dir)) as channel:
        added = await _ask(channel, say.AddHost(provider, name or ""))
        return _plain(added.host) | {"is_new": added.is_new}


async def remove_host(state_dir: Path, host: str) -> dict[str, Any]:
    """Stop the host's agent and destroy the host, with what still runs on it; returns `{host, removed}`.

    Raises: as `kill`.
    """
    async with _supervisor(state_folder(state_dir)) as channel:
        await _ask(channel, say.RemoveHost(host))
    return {"host": host, "removed": True}


async def status(state_dir: Path) -> dict[str, Any]:
    """The fabric as its supervisor sees it: hosts with address, namespace, agent's pid and notice.

    Raises:
        UnavailableError: no fabric runs there.
    """
    async with _supervisor(state_folder(state_dir)) as channel:
        return _plain(await _ask(channel, say.ReadStatus()))


@contextlib.asynccontextmanager
async def _supervisor(folder: StateFolder) -> AsyncIterator[Channel]:
    """A connection to the supervisor, for the length of the block."""
    if not os.path.exists(folder.local_socket):  # Path.exists would raise where we may not look
        raise UnavailableError(f"fabric in {folder.root}", "does not run", "start it with `architect up`")
    try:
        with short_socket_path(folder.local_socket) as path:
            channel = await open_channel(path, say.LocalMessage, None, f"supervisor of {folder.root}")
    except OSError as error:
        raise UnavailableError(f"fabric in {folder.root}", str(error.strerror), "start it with `architect up`") from error
    running = asyncio.create_task(channel.run())
    try:
        yield channel
    finally:
        channel.close()
        await asyncio.wait([running], timeout=STOP_TIMEOUT_S)
        running.cancel()


async def _ask(channel: Channel, request: Any, progress: Tell | None = None) -> Any:
    if progress is None:
        timeout_s = None if isinstance(request, say.AddHost) else REQUEST_TIMEOUT_S
        return await channel.call(request, timeout_s=timeout_s)
    answer: Any = None
    async for answer, _ in channel.stream(request):
        if isinstance(answer, say.Progress):
            progress(answer.text)
    return answer


async def _ensure_supervisor(folder: StateFolder, options: LocalOptions, progress: Tell) -> None:
    """A supervisor that takes connections: the one that runs, or a new one in a session of its own."""
    with contextlib.suppress(UnavailableError):
        async with _supervisor(folder) as channel:
            await channel.call(say.ReadStatus(), timeout_s=START_TIMEOUT_S)
            return
    await _end_supervisor(folder)
    folder.options.write_bytes(msgspec.json.format(msgspec.json.encode(options), indent=2))
    log = folder.logs / "supervisor.log"
    progress("starting the supervisor")
    process, child = await asyncio.to_thread(
        spawn_process,
        SpawnOptions(
            arguments=(*options.commands.supervisor, "--state-dir", str(folder.root)),
            folder=folder.root,
            log_path=log,
            environment=process_environment((fabric_mark(folder.fabric),)),
        ),
    )
    await _wait_listening(folder, process, child, log)


async def _wait_listening(folder: StateFolder, process: ProcessIdentity, child: subprocess.Popen[bytes], log: Path) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                if not is_alive(process):
                    child.poll()
                    raise HostError("local supervisor", f"ended at once: {last_line(log)}", f"read {log}")
                with contextlib.suppress(UnavailableError):
                    async with _supervisor(folder):
                        return
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise UnavailableError("local supervisor", f"does not listen after {START_TIMEOUT_S:.0f} s", f"read {log}") from error


async def _take_apart(folder: StateFolder) -> int:
    await _end_supervisor(folder)
    return await _demolish(folder)


async def _demolish(folder: StateFolder) -> int:
    from architect.clouds.local.demolition import demolish  # netlink, which no other command needs

    return await asyncio.to_thread(demolish, folder)


async def _end_supervisor(folder: StateFolder) -> None:
    """End the supervisor that runs, if one does: by request, by SIGTERM, by SIGKILL. What it supervises goes on."""
    record = read_record(folder.record)
    process = None if record is None else record.supervisor
    with contextlib.suppress(UnavailableError, OutcomeUnknownError, NotFoundError):
        async with _supervisor(folder) as channel:
            await channel.call(say.StopSupervisor(), timeout_s=STOP_TIMEOUT_S)
    if process is not None:
        await stop_process(process, STOP_TIMEOUT_S)
    folder.local_socket.unlink(missing_ok=True)


def _check_ours(folder: StateFolder) -> None:
    """`up` and `down` remove folders with plain names (hosts, ca, control): only where an `up` has been, which its lock tells.

    Raises:
        UsageError: something of such a name is there that is not ours.
    """
    if folder.change_lock.exists():
        return
    foreign = [path.name for path in folder.vanishing if os.path.lexists(path)]
    if foreign:
        raise UsageError(
            f"state folder {folder.root}",
            f"no `architect up` has made it, and its {' and '.join(foreign)} would be removed with a fabric",
            "give a fabric's own folder with --state-dir",
        )


def _make_folder(folder: StateFolder) -> None:
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        folder.logs.mkdir(exist_ok=True)
    except OSError as error:
        raise HostError(f"state folder {folder.root}", str(error), "choose another one with --state-dir") from error


@contextlib.asynccontextmanager
async def _changing(folder: StateFolder) -> AsyncIterator[None]:
    """One `up` or `down` of a fabric at a time.

    Raises:
        ConflictError: another one does not end.
    """
    descriptor = os.open(folder.change_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end_s = time.monotonic() + LOCK_TIMEOUT_S
        while not _has_locked(descriptor):  # polled: a thread that waits in flock(2) could not be cancelled
            if time.monotonic() > end_s:
                raise ConflictError(f"fabric in {folder.root}", "is being brought up or down by another command", "wait for that")
            await asyncio.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _has_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _plain(answer: say.HostStatus | say.FabricStatus) -> dict[str, Any]:
    """A message as JSON shows it, without its tags."""
    fields: dict[str, Any] = msgspec.to_builtins(answer)
    for inner in fields.get("hosts", ()):
        del inner["type"]
    del fields["type"]
    return fields
