"""Running a VM: the request is checked, placed and written down; then the edge takes its ports, and the host makes it.

::

    wish → [name, ports, numbers, host chosen: one change of the book] → DefineVm at the edge → RunVm at the host → running
                                                      └────── any failure: all of it undone, the event tells why ──────┘

What is written down counts against the host's room at once. The work goes on without its client and over a restart of the control
plane, which finds a VM that is still `creating` and asks the edge and the host the same again; both know the id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from architect.control.book import Change
from architect.control.fabric import Fabric
from architect.control.fleet import DisconnectedError
from architect.control.followers import Follower, Progress
from architect.control.numbering import next_numbers
from architect.control.records import Desired, EventKind, VmRecord
from architect.control.rooms import host_state, room_at, rooms
from architect.control.sightings import note_answer
from architect.control.views import vm_view
from architect.control.vm_names import error_by_name
from architect.errors import ArchitectError, CapacityError, ConflictError, UnavailableError, UsageError
from architect.model.endpoints import Publish
from architect.model.ids import HostName, VmId, check_name, vm_id
from architect.model.sizes import MIB, format_size
from architect.model.vm_spec import DEFAULT_DISK_BYTES, DEFAULT_MEMORY_BYTES, VmRequest
from architect.model.vm_state import VmState
from architect.policy.placement import NoRoom, place
from architect.wire.agent_messages import Progress as AgentProgress
from architect.wire.agent_messages import RunVm, VmStatus
from architect.wire.edge_messages import DefineVm, Endpoints

MEMORY_BYTES_MIN = 64 * MIB
DISK_BYTES_MIN = 16 * MIB
DISK_BYTES_MAX = 64 << 40
CPUS_MAX = 64
PUBLISH_MAX = 256
WORDS_MAX = 4096
WORD_BYTES_MAX = 128 << 10
WORDS_BYTES_MAX = 512 << 10
CREATE_TIMEOUT_S = 1800.0


class RunWish(msgspec.Struct, frozen=True):
    """What a user asks for; "" and None leave it to us."""

    image: str
    name: str = ""
    cpus: int = 1
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    disk_bytes: int = DEFAULT_DISK_BYTES
    publish: tuple[Publish, ...] = ()
    env: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    host: str = ""
    host_fsync: bool = False


async def run_vm(fabric: Fabric, wish: RunWish) -> tuple[VmRecord, Follower]:
    """Accept a wish; the VM is being created when this returns, and the follower tells how it goes and ends in a `VmView`.

    Raises:
        UsageError: a value is out of its bounds.
        NotFoundError: `host` does not exist.
        ConflictError: the name or a port is taken.
        CapacityError: no host, or not the one asked for, has room.
    """
    check_wish(wish)
    async with fabric.book.change() as change:
        record = _new_record(fabric, wish, change)
        change.put(record)
        change.say(EventKind.VM_CREATING, f"image {wish.image}, {format_size(wish.memory_bytes)}", vm=record)
    return record, fabric.followers.follow(record.id)


def check_wish(wish: RunWish) -> None:
    """Refuse what cannot be a VM.

    Raises:
        UsageError: names the field.
    """
    if wish.name:
        check_name(wish.name, "--name")
    _check(bool(wish.image.strip()), "image", "is empty", "name one, for example oci:./image")
    _check(1 <= wish.cpus <= CPUS_MAX, f"--cpus {wish.cpus}", f"is not in 1..{CPUS_MAX}", "ask for fewer or more")
    _check(
        wish.memory_bytes >= MEMORY_BYTES_MIN and wish.memory_bytes % MIB == 0,
        f"--memory {wish.memory_bytes}",
        f"is less than {format_size(MEMORY_BYTES_MIN)} or no whole number of MiB",
        "write for example 256M",
    )
    _check(
        DISK_BYTES_MIN <= wish.disk_bytes <= DISK_BYTES_MAX and wish.disk_bytes % MIB == 0,
        f"--disk {wish.disk_bytes}",
        f"is not in {format_size(DISK_BYTES_MIN)}..{format_size(DISK_BYTES_MAX)}, or no whole number of MiB",
        "write for example 4G",
    )
    ports = [(publish.public_port, publish.protocol) for publish in wish.publish]
    _check(len(set(ports)) == len(ports), "--publish", "a public port is given twice", "give each port once")
    _check(len(ports) <= PUBLISH_MAX, "--publish", f"over {PUBLISH_MAX} ports", "publish fewer")
    for publish in wish.publish:
        text = f"--publish {publish.public_port}:{publish.guest_port}"
        in_range = 1 <= publish.public_port <= 65535 and 1 <= publish.guest_port <= 65535
        _check(in_range, text, "a port is not in 1..65535", "write for example 8080:80")
    for word in wish.env:
        key, equals, _ = word.partition("=")
        _check(bool(key and equals), f"--env {word}", "is not KEY=VALUE", "write for example --env MODE=fast")
    _check_words(wish.env + wish.args)


def _check_words(words: Sequence[str]) -> None:
    sizes = [len(word.encode(errors="surrogatepass")) for word in words]
    fits = len(words) <= WORDS_MAX and sum(sizes) <= WORDS_BYTES_MAX and all(size <= WORD_BYTES_MAX for size in sizes)
    _check(fits, "command and environment", "are too long", f"keep them under {format_size(WORDS_BYTES_MAX)}, put more in a file")
    _check(not any("\0" in word for word in words), "command and environment", "contain a NUL character", "remove it")


def _check(is_good: bool, thing: str, cause: str, next_step: str) -> None:
    if not is_good:
        raise UsageError(thing, cause, next_step)


def _new_record(fabric: Fabric, wish: RunWish, change: Change) -> VmRecord:
    book = fabric.book
    identity = vm_id(fabric.entropy.random_bytes(6))
    name = wish.name or f"{_stem(wish.image)}-{identity[-4:]}"
    living = [vm for vm in book.vms.values() if not vm.is_tombstone]
    if any(vm.request.name == name or vm.id == name for vm in living):
        raise ConflictError(f"vm {name}", "exists already", f"choose another name, or `architect rm {name}`")
    _refuse_taken_ports(wish.publish, [vm for vm in living if vm.at_edge or not vm.state.is_terminal])
    numbers = next_numbers(
        fabric.config.inner_network,
        book.counters.get("vni", 0),
        book.counters.get("address", 0),
        {vm.request.vni for vm in book.vms.values()},
        {vm.request.address for vm in book.vms.values()},
    )
    change.count("vni", numbers.vni)
    change.count("address", numbers.address_index)
    request = VmRequest(
        id=identity,
        name=name,
        vni=numbers.vni,
        image=wish.image,
        address=numbers.address,
        cpus=wish.cpus,
        memory_bytes=wish.memory_bytes,
        disk_bytes=wish.disk_bytes,
        publish=wish.publish,
        env=wish.env,
        args=wish.args,
        host_fsync=wish.host_fsync,
    )
    return VmRecord(request, change.now_s, host=_choose_host(fabric, wish, name), at_edge=True)


def _refuse_taken_ports(publish: tuple[Publish, ...], vms: Sequence[VmRecord]) -> None:
    taken = {(port.public_port, port.protocol): vm.request.name for vm in vms for port in vm.request.publish}
    for port in publish:
        if (owner := taken.get((port.public_port, port.protocol))) is not None:
            raise ConflictError(
                f"port {port.public_port}/{port.protocol.value}",
                f"is taken by vm {owner}",
                f"choose another, or `architect rm {owner}`",
            )


def _choose_host(fabric: Fabric, wish: RunWish, name: str) -> HostName:
    thing = f"vm {name}"
    if not wish.host:
        placement = place(wish.memory_bytes, rooms(fabric))
        if isinstance(placement, NoRoom):
            raise CapacityError(thing, placement.reason, "add a host with `architect host add`, or ask for less with --memory")
        return placement.host
    host = fabric.book.find_host(wish.host)
    room = room_at(fabric, host)
    if room.closed:
        step = "choose another host, or none" if host_state(fabric, host) != "lost" else "choose a host that is there"
        raise UnavailableError(f"host {host.name}", f"{room.closed} and takes no vm", step)
    placement = place(wish.memory_bytes, [room])
    if isinstance(placement, NoRoom):
        raise CapacityError(thing, placement.reason, "choose another host, or none, or ask for less with --memory")
    return placement.host


def _stem(image: str) -> str:
    """A name for a VM from its image: `oci:/x/Web_App:v1` gives `web-app`."""
    last = image.removeprefix("oci:").removeprefix("docker-archive:").rstrip("/").rsplit("/", 1)[-1]
    last = last.partition("@")[0].partition(":")[0]
    for suffix in (".tar", ".tar.gz", ".tgz"):
        last = last.removesuffix(suffix)
    clean = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in last.lower()).strip("-")
    return clean[:40].strip("-") or "vm"


async def create_vm(fabric: Fabric, vm: VmId) -> None:
    """Carry out a creation that was written down; ends in a running VM, or in nothing. Run as a job, again after a restart."""
    record = fabric.book.vms[vm]
    try:
        async with asyncio.timeout(CREATE_TIMEOUT_S):
            await _define(fabric, vm)
            await _make(fabric, vm)
    except TimeoutError:
        failure: ArchitectError = UnavailableError(
            f"vm {record.request.name}", f"was not created in {CREATE_TIMEOUT_S:.0f} s", f"see host {record.host}, and run it again"
        )
        await _undo(fabric, vm, failure)
    except ArchitectError as error:
        await _undo(fabric, vm, error)


async def _define(fabric: Fabric, vm: VmId) -> None:
    request = fabric.book.vms[vm].request
    answer = await fabric.edge.call(DefineVm(vm, request.vni, request.address, request.publish))
    endpoints = answer.endpoints if isinstance(answer, Endpoints) else ()
    async with fabric.book.change() as change:
        change.put(msgspec.structs.replace(fabric.book.vms[vm], endpoints=endpoints))


async def _make(fabric: Fabric, vm: VmId) -> None:
    """Ask the host until it has answered; a connection that breaks is waited for, as long as the host is not lost."""
    seen = fabric.bell.count
    while (record := fabric.book.vms[vm]).desired is not Desired.REMOVED:
        try:
            async for message, _ in fabric.fleet.stream(record.host, RunVm(record.request)):
                match message:
                    case AgentProgress(text):
                        fabric.followers.say(vm, Progress(text))
                    case VmStatus(observation):
                        await note_answer(fabric, record.host, observation)
            fabric.followers.finish(vm, vm_view(fabric, fabric.book.vms[vm]))
            return
        except DisconnectedError as error:
            if fabric.fleet.is_lost(record.host):
                raise UnavailableError(
                    f"host {record.host}", f"vanished while vm {record.request.name} was being created", "run it again"
                ) from error
            seen = await fabric.bell.wait_rung(seen, 1.0)
    raise ConflictError(f"vm {record.request.name}", "was removed while it was being created", "run it again if you want it")


async def _undo(fabric: Fabric, vm: VmId, failure: ArchitectError) -> None:
    """Leave a tombstone, which the reconciler clears from host and edge; tell why."""
    record = fabric.book.vms[vm]
    failure = error_by_name(failure, vm, record.request.name)
    async with fabric.book.change() as change:
        change.put(msgspec.structs.replace(record, desired=Desired.REMOVED, state=VmState.STOPPED, reason=str(failure)))
        change.say(EventKind.VM_CREATION_FAILED, str(failure), vm=record)
    fabric.followers.finish(vm, failure)
