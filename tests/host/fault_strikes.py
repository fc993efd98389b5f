"""What hits a fabric in the fault matrix: each victim of `fault_table` as a block in which it is hit, and after which it is healed.

Processes are killed with SIGKILL; who supervises them starts them again. Links are cut in the router between the hosts, slowed by a
token bucket, or change bytes by a BPF program behind which checksums are right. The store is a directory that becomes a loop of
links. The disk of a host's VMs is a file system of its own, filled to the last block. A frozen host's processes are all stopped,
and its packets are dropped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from architect.clouds.local.layout import MIGRATION_PORT, StateFolder
from architect.conduit import links
from architect.conduit.bpf_object import BpfObject, detach
from architect.runtime.namespaces import namespace_path, run_in_namespace
from architect.runtime.processes import ProcessIdentity, processes_where
from tests.host.fault_rig import FaultRig, is_inside
from tests.host.fault_table import Victim

PROGRAMS = Path(__file__).parent / "programs"
SLOW_RATE = "60mbit"
STARTED_S = 60.0
LOOK_S = 0.002
FILLER = "filler"


class Scene(msgspec.Struct):
    """Where a fault strikes: two hosts, and the VMs that move between them."""

    faults: FaultRig
    source: str
    target: str
    vms: list[str]

    @property
    def fabric(self) -> str:
        return self.faults.fabric

    def in_router(self, *calls: str) -> None:
        """Run commands in the namespace between the hosts."""
        for call in calls:
            run_in_namespace(
                namespace_path(f"arc-{self.fabric}-internet"),
                lambda: subprocess.run(call.split(), check=True, capture_output=True),  # noqa: B023 run at once
            )

    def router_link(self, host: str) -> str:
        """The router's end of the host's link."""
        slot = int(self.faults.address(host).split(".")[2]) % 32
        return f"arc{self.fabric}h{slot}r"


@contextlib.contextmanager
def strike(victim: Victim, scene: Scene) -> Iterator[None]:
    """The victim is hit when the block begins; what heals by itself does so as soon as it can, the rest when the block ends."""
    with STRIKES[victim](scene):
        yield


@contextlib.contextmanager
def _killed(find: Callable[[Scene], list[ProcessIdentity]], scene: Scene) -> Iterator[None]:
    victims = find(scene)
    for process in victims:
        os.kill(process.pid, signal.SIGKILL)
    for process in victims:
        scene.faults.wait_gone(process)
    yield


def _killing(find: Callable[[Scene], list[ProcessIdentity]]) -> Callable[[Scene], contextlib.AbstractContextManager[None]]:
    return lambda scene: _killed(find, scene)


@contextlib.contextmanager
def _killed_at_target(find: Callable[[FaultRig, str, str], list[ProcessIdentity]], scene: Scene) -> Iterator[None]:
    """As `_killed`; of a VM that has none at the target, because it is only about to be started there, as soon as it has."""
    awaited = {vm for vm in scene.vms if not find(scene.faults, scene.target, vm)}
    ends_s = time.monotonic() + STARTED_S

    def kill_what_starts() -> None:
        while awaited and time.monotonic() < ends_s:
            for vm in list(awaited):
                for process in find(scene.faults, scene.target, vm):
                    awaited.discard(vm)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
            time.sleep(LOOK_S)

    looking = threading.Thread(target=kill_what_starts)
    with _killed(lambda scene: [process for vm in scene.vms for process in find(scene.faults, scene.target, vm)], scene):
        looking.start()
        try:
            yield
        finally:
            looking.join()
    assert not awaited, f"nothing was started at {scene.target} for {awaited}"


def _killing_at_target(
    find: Callable[[FaultRig, str, str], list[ProcessIdentity]],
) -> Callable[[Scene], contextlib.AbstractContextManager[None]]:
    return lambda scene: _killed_at_target(find, scene)


def _qemus(scene: Scene, host: str) -> list[ProcessIdentity]:
    return [process for vm in scene.vms for process in scene.faults.qemus(host, vm)]


def _memories(scene: Scene, host: str) -> list[ProcessIdentity]:
    return [process for vm in scene.vms for process in scene.faults.memories(host, vm)]


def _pair(scene: Scene, host: str) -> list[ProcessIdentity]:
    return [scene.faults.agent(host), *_memories(scene, host)]


@contextlib.contextmanager
def cut(scene: Scene) -> Iterator[None]:
    """No packet passes between the two hosts; both reach everybody else."""
    with scene.faults.cut(scene.source, scene.target):
        yield


@contextlib.contextmanager
def agents_reset(scene: Scene) -> Iterator[None]:
    """Packets between the two agents are answered by resets."""
    one, other = scene.faults.address(scene.source), scene.faults.address(scene.target)
    rule = f"FORWARD -p tcp -s {one} -d {other} --dport {MIGRATION_PORT} -j REJECT --reject-with tcp-reset"
    scene.in_router(f"iptables -w -I {rule}")
    try:
        yield
    finally:
        scene.in_router(f"iptables -w -D {rule}")


@contextlib.contextmanager
def _slow(scene: Scene) -> Iterator[None]:
    ends = [scene.router_link(host) for host in (scene.source, scene.target)]
    scene.in_router(*(f"tc qdisc replace dev {end} root tbf rate {SLOW_RATE} burst 64k latency 200ms" for end in ends))
    try:
        yield
    finally:
        scene.in_router(*(f"tc qdisc del dev {end} root" for end in ends))


@contextlib.contextmanager
def _corrupt(scene: Scene) -> Iterator[None]:
    folder = scene.faults.rig.state_dir
    file = folder / "corrupt.bpf.o"
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    call = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", include, "-c", "-o", str(file)]
    subprocess.run([*call, str(PROGRAMS / "corrupt.bpf.c")], check=True, capture_output=True)
    program = BpfObject(str(file), folder)
    ends = [scene.router_link(host) for host in (scene.source, scene.target)]

    def of_each(work: Callable[[int], None]) -> None:
        def inside() -> None:
            for end in ends:
                index = links.link_index(end)
                assert index is not None, end
                work(index)

        run_in_namespace(namespace_path(f"arc-{scene.fabric}-internet"), inside)

    try:
        of_each(lambda index: program.attach("corrupt", index))
        yield
    finally:
        of_each(detach)
        program.close()


@contextlib.contextmanager
def _store_away(scene: Scene) -> Iterator[None]:
    store = StateFolder(scene.faults.rig.state_dir).ownership
    away = store.with_name("ownership-away")
    store.rename(away)
    store.symlink_to(store.name)  # every look into it ends in ELOOP
    try:
        yield
    finally:
        store.unlink()
        away.rename(store)


@contextlib.contextmanager
def _disk_full(scene: Scene) -> Iterator[None]:
    filler = StateFolder(scene.faults.rig.state_dir).host(scene.target) / "state" / "vms" / FILLER
    with filler.open("wb") as file:
        step_bytes = 64 << 20
        while step_bytes >= 4096:
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step_bytes)
            except OSError:
                step_bytes //= 2
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def _frozen(scene: Scene, host: str) -> Iterator[None]:
    namespace = os.stat(namespace_path(scene.faults.namespace(host))).st_ino
    address = scene.faults.address(host)
    rules = [f"FORWARD -s {address} -j DROP", f"FORWARD -d {address} -j DROP"]
    stopped: set[int] = set()

    def fresh() -> list[ProcessIdentity]:
        return [p for p in processes_where(lambda p: is_inside(p, namespace)) if p.pid not in stopped]

    scene.in_router(*(f"iptables -w -I {rule}" for rule in rules))
    try:
        while found := fresh():  # somebody may have forked meanwhile
            for process in found:
                stopped.add(process.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        scene.in_router(*(f"iptables -w -D {rule}" for rule in rules))


STRIKES: dict[Victim, Callable[[Scene], contextlib.AbstractContextManager[None]]] = {
    Victim.SOURCE_QEMU: _killing(lambda scene: _qemus(scene, scene.source)),
    Victim.TARGET_QEMU: _killing_at_target(FaultRig.qemus),
    Victim.SOURCE_MEMORY: _killing(lambda scene: _memories(scene, scene.source)),
    Victim.TARGET_MEMORY: _killing_at_target(FaultRig.memories),
    Victim.SOURCE_AGENT: _killing(lambda scene: [scene.faults.agent(scene.source)]),
    Victim.TARGET_AGENT: _killing(lambda scene: [scene.faults.agent(scene.target)]),
    Victim.SOURCE_PAIR: _killing(lambda scene: _pair(scene, scene.source)),
    Victim.TARGET_PAIR: _killing(lambda scene: _pair(scene, scene.target)),
    Victim.CONTROL: _killing(lambda scene: scene.faults.rig.processes("architect control")[:1]),
    Victim.EDGE: _killing(lambda scene: scene.faults.rig.processes("architect edge")[:1]),
    Victim.LINK_CUT: cut,
    Victim.LINK_CUT_LONG: cut,
    Victim.LINK_SLOW: _slow,
    Victim.LINK_CORRUPT: _corrupt,
    Victim.STORE_AWAY: _store_away,
    Victim.DISK_FULL: _disk_full,
    Victim.SOURCE_FROZEN: lambda scene: _frozen(scene, scene.source),
    Victim.TARGET_FROZEN: lambda scene: _frozen(scene, scene.target),
}
assert set(STRIKES) == set(Victim)

LASTS_S: dict[Victim, float] = {
    Victim.LINK_CUT: 10.0,
    Victim.LINK_CUT_LONG: 70.0,
    Victim.LINK_CORRUPT: 5.0,
    Victim.STORE_AWAY: 5.0,
    Victim.DISK_FULL: 8.0,
    Victim.SOURCE_FROZEN: 10.0,
    Victim.TARGET_FROZEN: 10.0,
}
"""How long a fault lasts after the handovers go on; a killed process is started again at once."""

UNTIL_ENDED = frozenset({Victim.LINK_SLOW})
"""Faults that last until the moves have ended."""
