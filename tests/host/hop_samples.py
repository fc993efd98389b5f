"""What a fabric holds between two moves of its VM: memory, open files, map entries, processes, namespaces, taps, files."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from architect.clouds.local.layout import StateFolder
from architect.conduit.libbpf import library
from architect.conduit.pins import fabric_folder
from architect.runtime.namespaces import NAMES
from architect.runtime.processes import ProcessIdentity, command_line, processes_where
from tests.host.fault_rig import FaultRig

_KEY_BYTES_MAX = 256
_HOST_FOLDER = "/hosts/"


class HopSample(msgspec.Struct, frozen=True):
    """After one move: how it went, and what there is. `memory_kib` and `counts` by process or place, and by kind."""

    number: int
    host: str
    total_s: float
    pause_ms: float
    gap_ms: float
    memory_kib: dict[str, int]
    counts: dict[str, int]


def fabric_processes(faults: FaultRig) -> dict[str, list[ProcessIdentity]]:
    """The processes of the fabric by what they are; a host's by its name, too, but not the VM's, which are wherever it is."""
    own = str(faults.rig.state_dir)
    namespaces = {path.stat().st_ino for path in NAMES.iterdir() if f"-{faults.fabric}-" in path.name}
    found: dict[str, list[ProcessIdentity]] = {}

    def is_ours(process: ProcessIdentity) -> bool:
        with contextlib.suppress(OSError):
            return own in " ".join(command_line(process)) or os.stat(f"/proc/{process.pid}/ns/net").st_ino in namespaces
        return False

    for process in processes_where(is_ours):
        found.setdefault(_role(process), []).append(process)
    return found


def memory_of(processes: dict[str, list[ProcessIdentity]]) -> dict[str, int]:
    """Resident and proportional size of each role, in KiB."""
    sizes: dict[str, int] = {}
    for role, process in _each(processes):
        with contextlib.suppress(OSError):  # it ends just now
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Rss:", "Pss:")):
                    name = f"{role} {line[:3].lower()}"
                    sizes[name] = sizes.get(name, 0) + int(line.split()[1])
    return sizes


def counts_of(faults: FaultRig, hosts: tuple[str, ...], processes: dict[str, list[ProcessIdentity]]) -> dict[str, int]:
    """Open files, mappings and threads of each role; processes, namespaces, taps, files of each host, entries of BPF maps."""
    counts: dict[str, int] = {"processes": sum(map(len, processes.values()))}
    for role, process in _each(processes):
        folder = Path(f"/proc/{process.pid}")
        with contextlib.suppress(OSError):
            found = {
                "open files": len(os.listdir(folder / "fd")),
                "mappings": (folder / "maps").read_text().count("\n"),
                "threads": len(os.listdir(folder / "task")),
            }
            for kind, count in found.items():
                counts[f"{role} {kind}"] = counts.get(f"{role} {kind}", 0) + count
    counts["namespaces"] = sum(f"-{faults.fabric}-" in path.name for path in NAMES.iterdir())
    for host in hosts:
        counts[f"{host} taps"] = len(faults.taps(host))
        counts[f"{host} files"] = sum(1 for _ in StateFolder(faults.rig.state_dir).host(host).rglob("*"))
    for node in fabric_folder(faults.fabric).iterdir():
        counts[f"{node.name} BPF entries"] = sum(map(_entries, node.iterdir()))
    return counts


def _role(process: ProcessIdentity) -> str:
    words = command_line(process)
    line = " ".join(words)
    if "qemu-system" in words[0]:
        return "qemu"
    kind = next((word for word in ("agent", "control", "edge", "supervisor", "metadata") if f"architect {word}" in line), "")
    if not kind:
        kind = (
            "memory"
            if _name(process) == "memory_main"
            else next((word for word in words if word.startswith("architect.")), words[0])
        )
    host = line.partition(_HOST_FOLDER)[2].partition("/")[0] if kind != "memory" else ""
    return f"{kind} {host}".strip()


def _name(process: ProcessIdentity) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    return ""


def _each(processes: dict[str, list[ProcessIdentity]]) -> Iterator[tuple[str, ProcessIdentity]]:
    for role, found in processes.items():
        for process in found:
            yield role, process


def _entries(pin: Path) -> int:
    """How many keys a pinned map has: an array's are constant, a table's are what it holds."""
    descriptor = int(library().bpf_obj_get(bytes(pin)))
    if descriptor < 0:
        return 0
    try:
        key = ctypes.create_string_buffer(_KEY_BYTES_MAX)
        following = ctypes.create_string_buffer(_KEY_BYTES_MAX)
        count, previous = 0, None
        while library().bpf_map_get_next_key(descriptor, previous, following) == 0:
            ctypes.memmove(key, following, _KEY_BYTES_MAX)
            count, previous = count + 1, key
        return count
    finally:
        os.close(descriptor)
