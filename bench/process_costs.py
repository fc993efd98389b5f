"""What our processes cost: CPU time and memory by kind of process, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from architect.runtime.processes import ProcessIdentity, command_line, processes_where

KINDS = ("architect control", "architect edge", "architect agent", "memory", "qemu")


class Cost(msgspec.Struct, frozen=True):
    """Processes of one kind together. `pss_bytes`: their share of the memory that they map, that of shared pages divided."""

    kind: str
    count: int
    cpu_s: float
    pss_bytes: int


def costs(state_dir: Path, vms: tuple[str, ...]) -> tuple[Cost, ...]:
    """The processes of the fabric in `state_dir` now, with the QEMUs of these VMs (ids)."""
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for process in processes_where(lambda process: bool(_kind(process, str(state_dir), vms))):
        if kind := _kind(process, str(state_dir), vms):
            found[kind].append(process.pid)
    return tuple(Cost(kind, len(pids), sum(map(_cpu_s, pids)), sum(map(_pss_bytes, pids))) for kind, pids in found.items())


def _kind(process: ProcessIdentity, state_dir: str, vms: tuple[str, ...]) -> str:
    words = command_line(process)
    line = " ".join(words)
    if "qemu-system" in "".join(words[:1]):
        return "qemu" if any(vm in line for vm in vms) else ""
    if state_dir not in line:
        return ""
    try:
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    except OSError:
        return ""
    named = [kind for kind in KINDS[:3] if kind in line]
    return "memory" if name == "memory_main" else named[0] if named else ""


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
