"""Taking apart: one host, as if its instance had been destroyed, or a whole fabric, supervised or not.

Everything here blocks, may be repeated, and finishes what an earlier try left. What belongs to a host is found by the namespace
that its processes are in and by the mark that they inherited, not by what somebody remembered to write down.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from architect.clouds.local.layout import FabricLayout, StateFolder, fabric_mark, host_mark, namespace_prefix
from architect.clouds.local.network import remove_namespace, remove_network, unplug_host
from architect.clouds.local.record import HostRecord
from architect.errors import HostError
from architect.runtime.namespaces import (
    NamespaceIdentity,
    current_namespace,
    identify_namespace,
    namespace_names,
    namespace_path,
)
from architect.runtime.processes import (
    ProcessIdentity,
    has_mark,
    identify_process,
    is_inside,
    kill_all,
    network_namespace,
    processes_where,
)

PINS = Path("/sys/fs/bpf/architect")
RUNTIME = Path("/run/architect")


def destroy_host(folder: StateFolder, layout: FabricLayout, host: HostRecord) -> int:
    """Make the host vanish: its cable first, then all processes, links, its namespace, disk and memory. Returns how many it killed.

    Raises:
        HostError: a process of the host does not die, or files cannot be removed; repeat it.
    """
    unplug_host(layout, host.slot)
    name = layout.host_namespace(host.name)
    mark = host_mark(folder.fabric, host.name)
    killed = kill_all(_belonging([name], mark, [mark]), f"host {host.name}")
    remove_namespace(name)
    for root in (PINS, RUNTIME):
        _remove(root / folder.fabric / host.name.replace(".", "_"))  # bpffs reserves names with dots
    _remove(folder.host(host.name))
    return killed


def clear_remains(folder: StateFolder) -> int:
    """End every process of the fabric but its supervisor, and delete its network and pins. Returns how many were killed.

    Files stay: what was committed before a crash can be restored from them.

    Raises:
        HostError: as `destroy_host`.
    """
    fabric = folder.fabric
    names = namespace_names(namespace_prefix(fabric))
    killed = kill_all(_belonging(names, host_mark(fabric, ""), [fabric_mark(fabric)]), f"fabric {fabric}")
    remove_network(fabric)
    for root in (PINS, RUNTIME):
        _remove(root / fabric)
        _remove_if_empty(root)
    return killed


def has_unseen_hosts(folder: StateFolder) -> bool:
    """Whether agents of the fabric run in network namespaces that have no name here, as in a mount namespace that is not theirs."""
    return bool(_nameless(host_mark(folder.fabric, "")))


def demolish(folder: StateFolder) -> int:
    """Take the whole fabric apart; cache and logs stay. Returns how many processes it killed. Its supervisor must have ended.

    Raises:
        HostError: as `destroy_host`.
    """
    killed = clear_remains(folder)
    for path in folder.vanishing:
        _remove(path)
    return killed


def _belonging(names: Collection[str], agents: str, marks: Collection[str]) -> Callable[[ProcessIdentity], bool]:
    """What is in one of the namespaces of these names, or in one that lost its name and has an agent in it, or bears a mark."""
    namespaces = {*_identities(names), *_nameless(agents)}
    return lambda process: is_inside(process, namespaces) or has_mark(process, marks)


def _nameless(agents: str) -> set[NamespaceIdentity]:
    """The namespaces without a name that processes with that mark are in. Nobody else's can be among them: not ours, not init's."""
    known = {*_identities(namespace_names("")), current_namespace()}
    marked = processes_where(lambda process: process.pid != 1 and has_mark(process, [agents]))
    init = identify_process(1)
    found = {network_namespace(process) for process in marked} - known - {network_namespace(init) if init else None}
    return {identity for identity in found if identity is not None}


def _identities(names: Collection[str]) -> set[NamespaceIdentity]:
    found = (identify_namespace(namespace_path(name)) for name in names)
    return {identity for identity in found if identity is not None}


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"folder {path}", str(error), "remove what holds it, then run `architect down` again") from error


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return
