"""Refuses what would pin guest memory, because pinned pages are written without the dirty log seeing it.

Dirty tracking write-protects page tables. A device that pins pages (O_DIRECT reads, vhost, VFIO, RDMA, io_uring's registered
buffers) fills them by DMA after they were protected: the page changes, nothing is recorded, and the copy at the target or in the
epoch stays stale (256 stale pages in one test with O_DIRECT, DESIGN §3). Balloon and friends punch holes, which the log does not
see either. So these are refused where a command line is made and where a node or device is added at run time.

Source: Linux, Documentation/core-api/pin_user_pages.rst; ioctl PAGEMAP_SCAN in Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from architect.errors import IncompatibleError

_REFUSED_WORDS = (
    "vhost", "vfio", "vdpa", "rdma", "ivshmem", "virtio-balloon", "virtio-mem", "virtio-pmem", "nvme://", "io_uring", "aio=native",
    "cache=none", "cache=directsync", "cache.direct=on", "direct=on", "free-page-reporting=on",
)  # fmt: skip
_ALLOWED = re.compile(r"\bvhost=off\b")
_REFUSED_OPTIONS = frozenset(["-drive", "-hda", "-hdb", "-cdrom", "-virtfs", "-fsdev"])
_REFUSED_AIO = ("native", "io_uring")


class PinnedMemoryError(IncompatibleError):
    """Something that would write guest memory behind the dirty log."""

    code = "pinned-memory"


def check_command(command: Sequence[str]) -> None:
    """Pass a QEMU command line on which no device pins guest memory.

    Raises:
        PinnedMemoryError: names the argument that would.
    """
    previous = ""
    for argument in command:
        if argument in _REFUSED_OPTIONS:
            raise _refusal(argument)
        if previous == "-blockdev":
            check_arguments(_parse_node(argument))
        elif previous not in ("-append", "-name"):
            _check_text(argument)
        previous = argument


def check_arguments(value: Any) -> None:
    """Pass the arguments of a QMP command, or a node's options, that pin no guest memory.

    Raises:
        PinnedMemoryError: names the option that would.
    """
    match value:
        case Mapping():
            for key, item in value.items():
                if key in ("direct", "cache.direct") and item not in (False, "off"):
                    raise _refusal(f"{key}={item}")
                if key == "aio" and item in _REFUSED_AIO:
                    raise _refusal(f"aio={item}")
                if key in ("driver", "type", "qom-type"):
                    _check_text(str(item))
                if key == "vhost" and item not in (False, "off"):
                    raise _refusal(f"vhost={item}")
                check_arguments(item)
        case list() | tuple():
            for item in value:
                check_arguments(item)


def _parse_node(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise _refusal(text) from None  # the key=value form has too many spellings to be checked


def _check_text(text: str) -> None:
    lowered = _ALLOWED.sub("", text.lower())
    for word in _REFUSED_WORDS:
        if word in lowered:
            raise _refusal(text)


def _refusal(what: str) -> PinnedMemoryError:
    return PinnedMemoryError(
        f"QEMU option {what}",
        "it pins guest memory, whose writes the dirty log would miss",
        "use buffered, threaded I/O without it",
    )
