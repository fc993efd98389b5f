"""What a fault may leave behind on the hosts of a fabric, looked for after each: nothing of a VM is anywhere but where it runs.

Processes, folders, files of moves, taps, map entries of hosts and edge, mounted names. Waits a little: undoing goes on for a
moment after a move has ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from architect.clouds.local.layout import StateFolder
from architect.conduit.bpf_map import BpfMap
from architect.conduit.layout import U32, EdgeVmEntry, VmPortEntry
from architect.conduit.libbpf import library
from architect.conduit.pins import pin_folder
from architect.runtime.namespaces import namespace_path
from architect.runtime.processes import command_line, processes_where
from tests.host.fault_rig import FaultRig, is_inside

SETTLE_S = 30.0
MOVE_FILES = ("handover.json", "prepare.json", "outgoing-memory.json", "*.new", "*/*.new")


def find_leaks(faults: FaultRig, living: dict[str, str], hosts: Sequence[str]) -> list[str]:
    """What is somewhere without belonging there, a line each; `living` says on which host each VM is."""
    end_s = time.monotonic() + SETTLE_S
    while (leaks := _find(faults, living, hosts)) and time.monotonic() < end_s:
        time.sleep(0.3)
    return leaks


def _find(faults: FaultRig, living: dict[str, str], hosts: Sequence[str]) -> list[str]:
    leaks = []
    for host in hosts:
        here = {vm for vm, place in living.items() if place == host}
        state = StateFolder(faults.rig.state_dir).host(host) / "state"
        leaks += [f"{host}: folder {path.name}" for path in (state / "vms").glob("vm-*") if path.name not in here]
        leaks += [f"{host}: {path}" for vm in here for name in MOVE_FILES for path in (state / "vms" / vm).glob(name)]
        leaks += [f"{host}: no folder of {vm}" for vm in here if not (state / "vms" / vm).is_dir()]
        leaks += [f"{host}: held at {path.name}" for path in (state / "hold").glob("*")]
        leaks += _counted(f"{host}: taps", len(faults.taps(host)), len(here))
        leaks += _counted(f"{host}: map entries", _entries(faults.fabric, host, "ports", VmPortEntry), len(here))
        leaks += _processes(faults, host, here)
    leaks += _counted("edge: map entries", _entries(faults.fabric, "edge-1", "vms", EdgeVmEntry), len(living))
    return leaks


def _processes(faults: FaultRig, host: str, here: set[str]) -> list[str]:
    namespace = os.stat(namespace_path(faults.namespace(host))).st_ino
    lines = [" ".join(command_line(process)[:10]) for process in processes_where(lambda p: is_inside(p, namespace))]
    machines = [line for line in lines if "qemu-system" in line]
    leaks = _counted(f"{host}: QEMUs", len(machines), len(here))
    leaks += [f"{host}: {len(found)} memory processes of {vm}" for vm in here if len(found := faults.memories(host, vm)) != 1]
    every = [process for process in processes_where(lambda p: is_inside(p, namespace)) if _name(process.pid) == "memory_main"]
    return leaks + _counted(f"{host}: memory processes", len(every), len(here))


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _counted(what: str, found: int, wanted: int) -> list[str]:
    return [] if found == wanted else [f"{what}: {found} instead of {wanted}"]


def _entries(fabric: str, node: str, name: str, value: type[Any]) -> int:
    descriptor = library().bpf_obj_get(bytes(pin_folder(fabric, node) / name))
    assert descriptor >= 0, f"no map {name} of {node}"
    table: BpfMap[U32, Any] = BpfMap(descriptor, name, U32, value)
    try:
        return sum(1 for _ in table.entries())
    finally:
        table.close()
