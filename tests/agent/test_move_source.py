"""The memory of a VM that leaves: an agent that did not tell the memory process what to send can tell its successor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from architect.agent.move_source import SourceMachine, SourceMemory
from architect.agent.move_target import TargetMemory
from architect.agent.vm_record import VmFolder
from architect.drafter.qmp import QmpConnection
from architect.errors import HostError
from architect.model.compression import Compression
from architect.model.ids import MigrationId, VmId
from architect.silo import memory_messages as m
from tests.drafter.test_qmp import line, monitor, with_monitor

VM, MOVE = VmId("vm-000000000001"), MigrationId("mig-000000000001")


class _Memory:
    """A memory process: what it was told, and its state."""

    is_closed = False

    def __init__(self, state: str = "idle", pages_left: int = 0) -> None:
        self.told: list[object] = []
        self.bandwidth_bytes_s = 0
        self._status = SimpleNamespace(state=state, pages_left=pages_left)

    async def open_source(self, options: m.SourceOptions, *, resume: bool = False) -> None:
        self.told.append((options.session, "again" if resume else "first"))
        self.bandwidth_bytes_s = options.bandwidth_bytes_s

    async def set_bandwidth(self, bytes_per_s: int) -> None:
        self.bandwidth_bytes_s = bytes_per_s

    async def cut(self, *, postcopy: bool) -> Any:
        return SimpleNamespace(root="", pages_missing=1, bytes_sent=0, bytes_saved=0, spans=())

    async def serve_until_done(self) -> None:
        self.told.append("serve")

    async def tunnel_serve(self, name: str, path: str) -> None:
        self.told.append((name, path))

    async def tunnel_listen(self, name: str, path: str) -> None:
        self.told.append((name, "listen", path))

    async def tunnel_close(self, name: str) -> None:
        pass

    async def abort_source(self) -> None:
        self.told.append("abort")

    async def status(self) -> Any:
        return self._status


def _agent(tmp_path: Path, memory: _Memory) -> SourceMemory:
    """What an agent makes of the VM's folder, with this memory process beside it."""
    return _agent_and_vm(tmp_path, memory)[0]


def _agent_and_vm(tmp_path: Path, memory: _Memory) -> tuple[SourceMemory, Any]:
    folder = VmFolder(tmp_path, VM)
    folder.make()
    record = SimpleNamespace(request=SimpleNamespace(name="web"))
    parts = SimpleNamespace(memory=memory, machine=SimpleNamespace(is_running=True))
    vm: Any = SimpleNamespace(folder=folder, parts=parts, record=record, memory_replaced=None)
    return SourceMemory(vm, Compression.AUTO), vm


async def _cut(agent: SourceMemory) -> None:
    await agent.open_source(MOVE, "10.0.0.2", 7402, "gcp-1", 2)
    await agent.tunnel_serve("disk", "/overlay.qcow2")
    await agent.cut(postcopy=True)


def test_a_successor_of_agent_and_memory_process_opens_the_move_again_and_serves(tmp_path: Path) -> None:
    async def scenario() -> None:
        await _cut(_agent(tmp_path, _Memory()))
        memory = _Memory()
        agent = _agent(tmp_path, memory)
        assert await agent.is_serving()
        await agent.serve_until_done()
        assert memory.told == [(MOVE, "again"), ("disk", "/overlay.qcow2"), "serve"]

    asyncio.run(scenario())


def test_a_successor_keeps_to_the_bandwidth_limit_as_it_was_last(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = _Memory()
        agent = _agent(tmp_path, first)
        await _cut(agent)
        await agent.set_bandwidth(5_000_000)
        memory = _Memory()
        await _agent(tmp_path, memory).serve_until_done()
        assert (memory.bandwidth_bytes_s, first.bandwidth_bytes_s) == (5_000_000, 5_000_000)

    asyncio.run(scenario())


def test_a_successor_of_the_agent_alone_lets_the_memory_process_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        await _cut(_agent(tmp_path, _Memory()))
        memory = _Memory("serving")
        await _agent(tmp_path, memory).serve_until_done()
        assert memory.told == ["serve"]

    asyncio.run(scenario())


def test_a_memory_process_that_is_replaced_when_memory_is_done_carries_the_disk_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        agent, vm = _agent_and_vm(tmp_path, _Memory())
        await _cut(agent)
        await agent.serve_until_done()
        another = _Memory()
        vm.parts.memory = another
        await vm.memory_replaced(another)
        assert another.told == [(MOVE, "again"), ("disk", "/overlay.qcow2")]

    asyncio.run(scenario())


@pytest.mark.parametrize("is_target", [False, True])
def test_a_tunnel_listens_in_the_folder_of_the_memory_process_at_both_ends(tmp_path: Path, is_target: bool) -> None:
    async def scenario() -> None:
        memory = _Memory()
        agent, vm = _agent_and_vm(tmp_path, memory)
        path = await (TargetMemory(cast("Any", None), vm) if is_target else agent).tunnel_listen("disk")
        assert path == str(vm.folder.memory / "disk.sock")
        assert memory.told == [("disk", "listen", path)]

    asyncio.run(scenario())


def test_a_tunnel_of_a_vm_whose_processes_are_gone_is_a_named_error(tmp_path: Path) -> None:
    agent, vm = _agent_and_vm(tmp_path, _Memory())
    vm.parts = None
    with pytest.raises(HostError, match="gone from this host"):
        asyncio.run(agent.tunnel_listen("disk"))


def test_a_move_that_is_undone_leaves_nothing_to_open_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        agent = _agent(tmp_path, _Memory())
        await _cut(agent)
        await agent.abort_source()
        assert [path.name for path in (tmp_path / VM).iterdir()] == []

    asyncio.run(scenario())


def _without_jobs(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """A QEMU whose mirror has ended."""
    answer: dict[str, Any] = {"return": []}
    if request["execute"] == "block-job-cancel":
        answer = {"error": {"class": "DeviceNotActive", "desc": "Block job 'mirror' not found"}}
    writer.write(line({**answer, "id": request["id"]}))


@pytest.mark.parametrize(("error", "words"), [("No space left on device", ": No space left on device"), ("", "")])
def test_a_mirror_that_is_gone_when_it_is_to_end_says_what_ended_it(tmp_path: Path, error: str, words: str) -> None:
    async def use(qmp: QmpConnection) -> None:
        machine = SimpleNamespace(qmp=qmp, name="QEMU of vm web on host aws-1")
        record = SimpleNamespace(request=SimpleNamespace(name="web"))
        vm = cast("Any", SimpleNamespace(parts=SimpleNamespace(machine=machine), record=record, mirror_error=error))
        for ask in (SourceMachine(vm).finish_mirror, SourceMachine(vm).mirror_progress):
            with pytest.raises(HostError) as raised:
                await ask()
            assert str(raised.value) == f"disk of vm web: its mirror has ended early{words}; see the target's disk"

    with_monitor(tmp_path / "qmp", monitor(_without_jobs), use)
