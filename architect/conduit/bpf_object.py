"""BpfObject: one compiled program file, loaded with its maps pinned (or the pinned ones reused), and attached to tc.

Programs are attached as netlink filters: they stay when the process ends, and work on the pinned maps. A process that starts
again loads the object anew over the same maps and replaces the filters in one step, so no packet passes unfiltered meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

from architect.conduit.bpf_map import BpfMap, KeyT, ValueT, read_counters
from architect.conduit.layout import COUNTERS
from architect.conduit.libbpf import TC_INGRESS, TC_REPLACE, TcHook, TcOptions, bpf_error, check, library
from architect.errors import HostError

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
FILTER_HANDLE = 1
FILTER_PRIORITY = 1


class BpfObject:
    """A loaded object; owns its descriptors until `close`, which detaches nothing.

    :param file: name of the object in `architect/artifacts`.
    :param pins: folder in bpffs for its maps.
    """

    def __init__(self, file: str, pins: Path) -> None:
        self._name = f"BPF program {file}"
        path = ARTIFACTS / file
        if not path.exists():
            raise HostError(self._name, f"{path} is not there", "build it: make -C native")
        handle = library().bpf_object__open_file(bytes(path), None)
        if not handle:
            raise bpf_error(self._name, ctypes.get_errno())
        self._handle = ctypes.c_void_p(handle)
        try:
            self._maps = self._pin_maps(pins)
            check(library().bpf_object__load(self._handle), self._name)
        except BaseException:
            self.close()
            raise

    def _pin_maps(self, pins: Path) -> dict[str, ctypes.c_void_p]:
        """Name each map's pin; loading then reuses what is there, or makes it. Constants of the file stay unpinned."""
        maps: dict[str, ctypes.c_void_p] = {}
        current: Any = None
        while current := library().bpf_object__next_map(self._handle, current):
            name = library().bpf_map__name(current).decode()
            if "." not in name:
                check(library().bpf_map__set_pin_path(current, bytes(pins / name)), self._name)
                maps[name] = ctypes.c_void_p(current)
        return maps

    def map(self, name: str, key: type[KeyT], value: type[ValueT]) -> BpfMap[KeyT, ValueT]:
        """A map of the object, with a descriptor of its own."""
        return BpfMap(os.dup(library().bpf_map__fd(self._maps[name])), name, key, value)

    def counters(self) -> dict[str, int]:
        """The packet counters by name.

        Raises:
            BpfError: the kernel refuses.
        """
        values = read_counters(library().bpf_map__fd(self._maps["counters"]), len(COUNTERS))
        return dict(zip(COUNTERS, values, strict=True))

    def attach(self, program: str, ifindex: int) -> None:
        """Run `program` on what comes in from a link, instead of what ran there before. Idempotent.

        Raises:
            BpfError: the kernel refuses.
        """
        hook = _hook(ifindex)
        created = library().bpf_tc_hook_create(ctypes.byref(hook))
        if created != -errno.EEXIST:
            check(created, f"{self._name} on link {ifindex}")
        found = library().bpf_object__find_program_by_name(self._handle, program.encode())
        assert found, f"{program} is in no BPF object"
        options = _options()
        options.prog_fd, options.flags = library().bpf_program__fd(found), TC_REPLACE
        check(library().bpf_tc_attach(ctypes.byref(hook), ctypes.byref(options)), f"{self._name} on link {ifindex}")

    def close(self) -> None:
        """Give the descriptors back; what is attached and pinned stays. Idempotent."""
        if self._handle:
            library().bpf_object__close(self._handle)
            self._handle = ctypes.c_void_p()


def detach(ifindex: int) -> None:
    """Take our filter off a link. Idempotent; a link without one, or that is gone, is fine."""
    hook, options = _hook(ifindex), _options()
    library().bpf_tc_detach(ctypes.byref(hook), ctypes.byref(options))


def _hook(ifindex: int) -> TcHook:
    return TcHook(sz=ctypes.sizeof(TcHook), ifindex=ifindex, attach_point=TC_INGRESS)


def _options() -> TcOptions:
    return TcOptions(sz=ctypes.sizeof(TcOptions), handle=FILTER_HANDLE, priority=FILTER_PRIORITY)
