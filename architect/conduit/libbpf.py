"""libbpf by ctypes: the few calls of libbpf.so.1 (1.1 or newer) that load an object, reach its maps and attach it to tc.

Everything that can fail raises `BpfError`, which names what this machine lacks: the library, the capability, the kernel. Option
structs carry their own size (`sz`), so a newer libbpf accepts ours. Used by `bpf_object` and `bpf_map` only.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from typing import Any

from architect.errors import HostError

NEEDED = (1, 1)
TC_INGRESS = 1
TC_REPLACE = 1
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class BpfError(HostError):
    """BPF cannot be used here, or the kernel refused a program or a map."""

    code = "bpf"


class TcHook(ctypes.Structure):
    """struct bpf_tc_hook."""

    _fields_ = [("sz", ctypes.c_size_t), ("ifindex", ctypes.c_int), ("attach_point", ctypes.c_int), ("parent", ctypes.c_uint32)]


class TcOptions(ctypes.Structure):
    """struct bpf_tc_opts."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    ]


class BatchOptions(ctypes.Structure):
    """struct bpf_map_batch_opts."""

    _fields_ = [("sz", ctypes.c_size_t), ("elem_flags", ctypes.c_uint64), ("flags", ctypes.c_uint64)]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "libbpf_major_version": (ctypes.c_uint32, []),
    "libbpf_minor_version": (ctypes.c_uint32, []),
    "libbpf_set_print": (ctypes.c_void_p, [ctypes.c_void_p]),
    "libbpf_num_possible_cpus": (ctypes.c_int, []),
    "bpf_object__open_file": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_void_p]),
    "bpf_object__load": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_object__close": (None, [ctypes.c_void_p]),
    "bpf_object__find_program_by_name": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "bpf_object__next_map": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]),
    "bpf_program__fd": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_map__name": (ctypes.c_char_p, [ctypes.c_void_p]),
    "bpf_map__fd": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_map__set_pin_path": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "bpf_obj_get": (ctypes.c_int, [ctypes.c_char_p]),
    "bpf_map_lookup_elem": (ctypes.c_int, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]),
    "bpf_map_update_elem": (ctypes.c_int, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]),
    "bpf_map_delete_elem": (ctypes.c_int, [ctypes.c_int, ctypes.c_void_p]),
    "bpf_map_lookup_batch": (ctypes.c_int, [ctypes.c_int, *[ctypes.c_void_p] * 6]),
    "bpf_tc_hook_create": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_tc_attach": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    "bpf_tc_detach": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
}


class _Log:
    """What libbpf printed last: the verifier's words, for the error."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        libc = ctypes.CDLL(None)

        def keep(level: int, text: bytes, arguments: int) -> int:
            buffer = ctypes.create_string_buffer(4096)
            libc.vsnprintf(buffer, len(buffer), ctypes.c_char_p(text), ctypes.c_void_p(arguments))
            if level == 0:
                self.lines = [*self.lines[-20:], buffer.value.decode(errors="replace").strip()]
            return 0

        self.callback = _PRINT(keep)


_log = _Log()


@functools.cache
def library() -> Any:
    """libbpf with its signatures set.

    Raises:
        BpfError: it is not installed, or older than 1.1.
    """
    try:
        loaded = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BpfError("libbpf.so.1", "not installed", "install the package libbpf1 (libbpf on Fedora, 1.1 or newer)") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    version = (loaded.libbpf_major_version(), loaded.libbpf_minor_version())
    if version < NEEDED:
        raise BpfError("libbpf.so.1", f"version {version[0]}.{version[1]} is too old", "install libbpf 1.1 or newer")
    loaded.libbpf_set_print(_log.callback)
    return loaded


def bpf_error(thing: str, number: int) -> BpfError:
    """The error for a call of libbpf that returned `-number` (or set errno), with the next step that fits it."""
    detail = "; ".join(line for line in _log.lines[-3:] if line)
    _log.lines = []
    cause = os.strerror(number) + (f" ({detail})" if detail else "")
    if number in (errno.EPERM, errno.EACCES):
        return BpfError(thing, cause, "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return BpfError(thing, cause, "use a kernel of version 6.7 or newer with BPF, clsact and VXLAN")
    return BpfError(thing, cause, "see the cause; `architect down` removes what an earlier version left")


def check(result: int, thing: str) -> int:
    """`result` if it is not negative.

    Raises:
        BpfError: it is an error number.
    """
    if result < 0:
        raise bpf_error(thing, -result)
    return result
