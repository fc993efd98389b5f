"""The parts of a VM: what ended by itself while they were made is named, whatever that broke elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.move_target import TargetMachine
from architect.agent.vm_parts import PartEndedError
from architect.agent.vm_record import VmFolder, VmPhase, VmRecord
from architect.errors import NotFoundError
from architect.runtime.process_end import has_ended
from architect.silo.memory_client import memory_server
from tests.migration.handover_values import plan
from tests.runtime.test_process_end import needs_pidfd_info

PATIENCE_S = 20.0
SPEC = plan().spec


def _target(tmp_path: Path, at_base: Callable[[int], None]) -> HostedVm:
    """A VM that comes to host gcp-1, which lacks its base disk: when that is found out, `at_base` gets its memory process."""
    folder = VmFolder(tmp_path, SPEC.id)
    folder.make()

    def get(digest: str) -> None:
        at_base(int((folder.memory / "memory.pid").read_text().split()[0]))

    config = SimpleNamespace(name="gcp-1", tls_dir=str(tmp_path), vm_uid=0)
    server = memory_server("of-a-test")
    host = SimpleNamespace(config=config, memory_server=server, bases=SimpleNamespace(get=get), changed=lambda: None)
    return HostedVm(cast("Host", host), folder, VmRecord(SPEC.request, VmPhase.INCOMING, 1, SPEC))


def _start(vm: HostedVm) -> None:
    async def start() -> None:
        try:
            await TargetMachine(vm.host, vm, cast("Any", None)).start_incoming(SPEC)
        finally:
            vm.host.memory_server.close()

    asyncio.run(start())


def _kill(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert has_ended(pidfd, PATIENCE_S)
    os.close(pidfd)


@needs_pidfd_info
def test_a_memory_process_that_is_killed_while_the_vm_is_made_is_the_reason_whatever_failed_then(tmp_path: Path) -> None:
    words = "the memory process of vm web on host gcp-1 was killed by signal 9 (SIGKILL)"
    vm = _target(tmp_path, _kill)
    with pytest.raises(PartEndedError) as error:
        _start(vm)
    assert error.value.words == vm.what_ended() == words
    assert isinstance(error.value.__cause__, NotFoundError)


def test_a_start_that_fails_by_itself_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    seen: list[int] = []
    vm = _target(tmp_path, lambda pid: seen.append(os.pidfd_open(pid)))
    with pytest.raises(NotFoundError, match="host gcp-1 lacks it"):
        _start(vm)
    assert vm.what_ended() == ""
    assert has_ended(seen[0], PATIENCE_S), "its memory process was ended"
    os.close(seen[0])
