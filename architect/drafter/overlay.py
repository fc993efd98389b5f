"""A VM's own disk file: a qcow2 overlay that holds what the VM wrote, over a shared read-only raw base.

The file says nothing of its base: the base is named when QEMU opens it, so that the file means the same on every host. Clusters
are 64 KiB, the extent of everything else here.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path

from architect.errors import HostError
from architect.model.sizes import EXTENT_BYTES

TOOL_TIMEOUT_S = 30.0


async def create_overlay(path: Path, size_bytes: int) -> None:
    """Make an empty overlay of that virtual size, replacing what is at `path`. Nothing is left there on failure.

    Raises:
        HostError: qemu-img is missing or failed (no space, no permission).
    """
    path.unlink(missing_ok=True)
    options = f"compat=1.1,cluster_size={EXTENT_BYTES},lazy_refcounts=off"
    try:
        await _qemu_img("create", "-q", "-f", "qcow2", "-o", options, str(path), str(size_bytes))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    path.chmod(0o600)


async def grow_overlay(path: Path, size_bytes: int) -> None:
    """Raise the virtual size of an overlay that no QEMU has open. Idempotent.

    Raises:
        HostError: it is open, would shrink, or qemu-img failed.
    """
    await _qemu_img("resize", "-q", "-f", "qcow2", str(path), str(size_bytes))


def allocated_bytes(path: Path) -> int:
    """What the overlay takes on the host's disk: the most that a move has to send of it."""
    return path.stat().st_blocks * 512


async def _qemu_img(*arguments: str) -> None:
    thing = f"qemu-img {arguments[0]} {arguments[-2]}"
    try:
        process = await asyncio.create_subprocess_exec(
            "qemu-img", *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise HostError(thing, str(error), "install qemu-utils") from error
    try:
        async with asyncio.timeout(TOOL_TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError as error:
        raise HostError(thing, f"not done in {TOOL_TIMEOUT_S} s", "see whether the disk answers") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise HostError(thing, said.decode(errors="replace").strip() or f"status {process.returncode}", "see the disk's space")
