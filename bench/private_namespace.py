"""Where a benchmark runs: in a network namespace and a folder of its own, both gone after it, also after Ctrl-C and SIGTERM."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from architect.runtime.cancellation import check_cancelled
from architect.runtime.namespaces import enter_namespace, run_in_thread, temporary_namespace
from bench.qemu_network import loopback_up

STATUS_NOT_ROOT = 9
STATUS_INTERRUPTED = 130


def run_alone(measure: Callable[[Path], Awaitable[None]], write: Callable[[], None] = lambda: None, root: str = "/tmp") -> int:
    """Measure with a scratch folder below `root`, then write what was measured, also if interrupted; the exit status."""
    if os.geteuid() != 0:
        print("bench: needs root (network namespaces, userfaultfd, BPF); run it as root", file=sys.stderr)
        return STATUS_NOT_ROOT
    scratch = Path(tempfile.mkdtemp(prefix="archbench", dir=root))
    try:
        with temporary_namespace(f"archbench-{os.getpid()}") as namespace:
            enter_namespace(namespace)  # for good: whatever the benchmark starts lives in there
            run_in_thread(loopback_up)
            asyncio.run(_until_told(measure, scratch))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: interrupted", file=sys.stderr)
        return STATUS_INTERRUPTED
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        write()
    return 0


async def _until_told(measure: Callable[[Path], Awaitable[None]], scratch: Path) -> None:
    measuring = asyncio.current_task()
    assert measuring is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    await measure(scratch)
    check_cancelled()
