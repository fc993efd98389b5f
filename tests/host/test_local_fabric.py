"""The local provider on this kernel: real namespaces, real metadata servers, real processes; the agents are stand-ins."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from architect.clouds.local import client
from architect.clouds.local.layout import HOSTS_MAX, FabricLayout, state_folder
from architect.clouds.local.network import ensure_internet, remove_network
from architect.clouds.local.options import Commands, LocalOptions
from architect.clouds.local.record import read_record
from architect.clouds.providers import open_notice_source
from architect.errors import ArchitectError, NotFoundError, UnavailableError, UsageError
from architect.model.notice import Notice
from architect.runtime.clock import SystemClock
from architect.runtime.namespaces import create_namespace, namespace_names, namespace_path, run_in_namespace
from architect.runtime.processes import ProcessIdentity, command_line, identify_process, is_alive, processes_where
from tests.clouds import stand_in
from tests.leftovers import find
from tests.machine import Machine, reaches

pytestmark = pytest.mark.host("root", "kernel", "namespaces", "tun", "userfaultfd", "pagemap_scan", "bpf", "qemu")

STAND_IN = (sys.executable, stand_in.__file__)
ROOT = Path(__file__).parents[2]
_CLONE_NEWNS = 0x20000
_libc = ctypes.CDLL(None, use_errno=True)
OPTIONS = LocalOptions(
    memory_bytes=1 << 30,
    commands=Commands(
        supervisor=(sys.executable, "-m", "architect.clouds.local.supervisor"),
        control=(*STAND_IN, "control"),
        edge=(*STAND_IN, "edge"),
        agent=(*STAND_IN, "agent"),
    ),
    ready_timeout_s=60,
)
PATIENCE_S = 120
METADATA_URL = "http://169.254.169.254"


def told(line: str) -> None:
    """Progress, for nobody."""


class Fabric:
    """A fabric of stand-ins, as the command line would use it."""

    def __init__(self, machine: Machine, state_dir: Path) -> None:
        self.machine = machine
        self.state_dir = state_dir
        self.folder = state_folder(state_dir)

    def run(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of a coroutine, on the machine."""

        async def bounded() -> Any:
            async with asyncio.timeout(PATIENCE_S):
                return await make()

        return self.machine.run(lambda: asyncio.run(bounded()))

    def up(self, hosts: int = 3) -> Any:
        """`architect up`."""
        return self.run(lambda: client.up(hosts, self.state_dir, told, OPTIONS))

    def down(self) -> Any:
        """`architect down`."""
        return self.run(lambda: client.down(self.state_dir, told))

    def status(self) -> Any:
        """What the supervisor says."""
        return self.run(lambda: client.status(self.state_dir))

    def host(self, name: str) -> Any:
        """One host of it."""
        return next(host for host in self.status()["hosts"] if host["name"] == name)

    def names(self) -> list[str]:
        """The hosts that there are."""
        return [host["name"] for host in self.status()["hosts"]]

    def namespace(self, host: str) -> Path:
        """A host's namespace."""
        return namespace_path(FabricLayout(self.folder.fabric, 0).host_namespace(host))

    def vm(self, host: str) -> ProcessIdentity:
        """What the host's agent left behind itself."""
        pid = int((self.folder.host(host) / "state" / "vm.pid").read_text())
        identity = identify_process(pid)
        assert identity is not None
        return identity

    def wait_gone(self, host: str) -> None:
        """Wait until the supervisor knows the host no more."""

        async def gone() -> None:
            while any(known["name"] == host for known in (await client.status(self.state_dir))["hosts"]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

        self.run(gone)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's cache is not for tests."""
    monkeypatch.setenv("ARCHITECT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fabric(machine_namespace: Machine, state_dir: Path) -> Any:
    """A fabric that is not up yet, and is down afterwards."""
    made = Fabric(machine_namespace, state_dir)
    try:
        yield made
    finally:
        made.down()
    assert namespace_names(f"arc-{made.folder.fabric}-") == []
    assert processes_where(lambda process: str(state_dir) in " ".join(command_line(process))) == []


def first_notice(fabric: Fabric, host: Any, *, want: bool) -> Notice | None:
    """The notice as an agent in the host reads it; with `want`, waits for one."""

    async def watch() -> Notice | None:
        source = open_notice_source(host["provider"], METADATA_URL, host["instance"], SystemClock())
        async with contextlib.aclosing(source.watch()) as changes:
            async for notice in changes:
                if notice is not None or not want:
                    return notice
        return None

    async def bounded() -> Notice | None:
        async with asyncio.timeout(PATIENCE_S):
            return await watch()

    return run_in_namespace(fabric.namespace(host["name"]), lambda: asyncio.run(bounded()))


def test_up_makes_hosts_that_reach_each_other_and_down_leaves_nothing(fabric: Fabric) -> None:
    made = fabric.up()
    assert made["hosts"] == ["aws-1", "gcp-1", "azure-1"]
    assert made["state_dir"] == str(fabric.state_dir)
    outside = made["outside"]["address"]
    hosts = fabric.status()["hosts"]
    addresses = [host["address"] for host in hosts] + made["edge"]["addresses"] + [outside]
    assert len({address.rpartition(".")[0] for address in addresses[:3]}) == 3
    for host in hosts:
        for address in addresses:
            assert reaches(fabric.namespace(host["name"]), address), (host["name"], address)
    for address in addresses:
        assert reaches(fabric.machine.path, address), address
    edge = namespace_path(fabric.status()["edge_namespace"])
    assert all(reaches(edge, address) for address in addresses)
    assert fabric.down()["killed"] > 0
    assert fabric.down()["killed"] == 0
    assert sorted(path.name for path in fabric.state_dir.iterdir()) == ["logs", "up.lock"]


def test_up_again_changes_nothing_and_more_hosts_are_added(fabric: Fabric) -> None:
    fabric.up(1)
    before = fabric.status()
    assert fabric.up(1)["hosts"] == ["aws-1"]
    assert fabric.status() == before
    assert fabric.up(2)["hosts"] == ["aws-1", "gcp-1"]
    assert fabric.host("aws-1") == before["hosts"][0]


def test_processes_carry_their_names_and_are_started_again(fabric: Fabric) -> None:
    fabric.up(1)
    before = fabric.status()
    vm = fabric.vm("aws-1")
    for pid in (before["control_pid"], before["edge_pid"], before["hosts"][0]["agent_pid"]):
        os.kill(pid, signal.SIGKILL)
    fabric.up(1)
    after = fabric.status()
    assert {after["control_pid"], after["edge_pid"]}.isdisjoint({before["control_pid"], before["edge_pid"], 0})
    assert after["hosts"][0]["agent_pid"] not in (0, before["hosts"][0]["agent_pid"])
    assert is_alive(vm), "an agent that is killed takes no VM with it"


def test_a_notice_is_seen_in_the_host_and_at_its_deadline_all_of_it_is_gone(fabric: Fabric) -> None:
    fabric.up()
    for name in ("aws-1", "gcp-1", "azure-1"):
        host = fabric.host(name)
        assert first_notice(fabric, host, want=False) is None
        vm = fabric.vm(name)
        hidden = hide_in(fabric.namespace(name))
        answer = fabric.run(lambda name=name: client.preempt(fabric.state_dir, name, 600))  # type: ignore[misc]
        assert answer["notice"]["kind"] == "preemption"
        notice = first_notice(fabric, host, want=True)
        assert notice is not None
        if name != "gcp-1":
            assert notice.deadline[:19] == answer["notice"]["deadline"][:19]
        sooner = fabric.run(lambda name=name: client.preempt(fabric.state_dir, name, 1))  # type: ignore[misc]
        assert sooner["notice"]["id"] == answer["notice"]["id"]
        fabric.wait_gone(name)
        assert not is_alive(vm) and not is_alive(hidden)
        assert not fabric.namespace(name).exists() and not fabric.folder.host(name).exists()
        assert not reaches(fabric.machine.path, host["address"])
    assert fabric.names() == []


def test_azure_takes_a_host_early_when_its_guest_says_so(fabric: Fabric) -> None:
    fabric.up()
    host = fabric.host("azure-1")
    fabric.run(lambda: client.preempt(fabric.state_dir, "azure-1", 3000))
    notice = first_notice(fabric, host, want=True)
    assert notice is not None

    async def acknowledge() -> None:
        await open_notice_source("azure", METADATA_URL, host["instance"], SystemClock()).acknowledge(notice.id)

    run_in_namespace(fabric.namespace("azure-1"), lambda: asyncio.run(acknowledge()))
    fabric.wait_gone("azure-1")
    assert fabric.names() == ["aws-1", "gcp-1"]


def test_kill_takes_a_host_at_once_and_numbers_are_not_used_again(fabric: Fabric) -> None:
    fabric.up(1)
    vm = fabric.vm("aws-1")
    agent = fabric.host("aws-1")["agent_pid"]
    assert fabric.run(lambda: client.kill(fabric.state_dir, "aws-1")) == {"host": "aws-1", "destroyed": True}
    assert not is_alive(vm) and identify_process(agent) is None
    with pytest.raises(NotFoundError):
        fabric.run(lambda: client.kill(fabric.state_dir, "aws-1"))
    with pytest.raises(NotFoundError):
        fabric.run(lambda: client.preempt(fabric.state_dir, "aws-1", 5))
    with pytest.raises(UsageError):
        fabric.run(lambda: client.add_host(fabric.state_dir, "oci"))
    with pytest.raises(UsageError):
        fabric.run(lambda: client.add_host(fabric.state_dir, "aws", "No Name"))
    assert fabric.run(lambda: client.add_host(fabric.state_dir, "aws"))["name"] == "aws-2"
    for is_new in (True, False):
        spare = fabric.run(lambda: client.add_host(fabric.state_dir, "gcp", "spare"))
        assert (spare["name"], spare["is_new"]) == ("spare", is_new)
    assert fabric.run(lambda: client.remove_host(fabric.state_dir, "spare")) == {"host": "spare", "removed": True}
    assert fabric.names() == ["aws-2"]


def test_a_killed_supervisor_takes_nothing_with_it_and_its_successor_keeps_deadlines(fabric: Fabric) -> None:
    fabric.up(2)
    fabric.run(lambda: client.preempt(fabric.state_dir, "gcp-1", 3000))
    before = fabric.status()
    vms = [fabric.vm("aws-1"), fabric.vm("gcp-1")]
    os.kill(before["supervisor_pid"], signal.SIGKILL)
    assert all(is_alive(vm) for vm in vms)
    with pytest.raises(UnavailableError):
        fabric.status()
    assert fabric.up(2)["hosts"] == ["aws-1", "gcp-1"]
    after = fabric.status()
    assert after["supervisor_pid"] != before["supervisor_pid"]
    assert {**after, "supervisor_pid": 0} == {**before, "supervisor_pid": 0}, "everything was adopted as it was"
    notice = first_notice(fabric, fabric.host("gcp-1"), want=True)
    assert notice is not None
    os.kill(after["hosts"][0]["agent_pid"], signal.SIGKILL)
    fabric.up(2)
    assert fabric.host("aws-1")["agent_pid"] not in (0, after["hosts"][0]["agent_pid"]), "the adopted are kept, too"
    assert all(is_alive(vm) for vm in vms)
    record = read_record(fabric.folder.record)
    kept = record.hosts["gcp-1"].notice if record is not None else None
    assert kept is not None and kept.deadline == before["hosts"][1]["notice"]["deadline"]


def test_up_repairs_a_fabric_that_is_half_dead(fabric: Fabric) -> None:
    fabric.up(2)
    before = fabric.status()
    gone = fabric.vm("gcp-1")
    os.kill(before["supervisor_pid"], signal.SIGKILL)
    os.kill(before["edge_pid"], signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", fabric.namespace("gcp-1").name], check=True)
    assert fabric.up(2)["hosts"] == ["aws-1", "gcp-1"]
    after = fabric.status()
    assert after["hosts"][0] == before["hosts"][0]
    assert after["hosts"][1]["instance"] != before["hosts"][1]["instance"]
    assert not is_alive(gone), "what was in the namespace went with it, though nothing names it any more"
    assert reaches(fabric.machine.path, after["hosts"][1]["address"])
    assert after["edge_pid"] not in (0, before["edge_pid"])


def test_a_fabric_whose_namespaces_cannot_be_seen_is_not_cleared_away(fabric: Fabric) -> None:
    """As in a unit with mounts of its own: the names of the network namespaces are not there, and all that lives in them is."""
    fabric.up(2)
    vm = fabric.vm("aws-1")
    os.kill(fabric.status()["supervisor_pid"], signal.SIGKILL)

    def up_from_elsewhere() -> None:
        assert _libc.unshare(_CLONE_NEWNS) == 0
        assert _libc.mount(b"tmpfs", b"/run/netns", b"tmpfs", 0, None) == 0
        asyncio.run(client.up(2, fabric.state_dir, told, OPTIONS))

    with pytest.raises(ArchitectError, match="cannot be seen from here"):
        fabric.machine.run(up_from_elsewhere)
    assert is_alive(vm)
    fabric.up(2)
    assert is_alive(vm) and fabric.names() == ["aws-1", "gcp-1"]


def test_down_clears_a_fabric_whose_supervisor_and_record_are_lost(fabric: Fabric) -> None:
    fabric.up(2)
    vm = fabric.vm("aws-1")
    os.kill(fabric.status()["supervisor_pid"], signal.SIGKILL)
    fabric.folder.record.unlink()
    assert fabric.down()["killed"] > 0
    assert not is_alive(vm)


def test_a_folder_that_is_somebody_elses_is_left_alone(machine_namespace: Machine, state_dir: Path) -> None:
    """`hosts` and `ca` are plain names: whoever types the wrong --state-dir must not lose theirs."""
    treasure = state_dir / "hosts" / "mine.txt"
    treasure.parent.mkdir()
    treasure.write_text("precious")
    for call in (lambda: client.down(state_dir, told), lambda: client.up(1, state_dir, told, OPTIONS)):
        with pytest.raises(UsageError, match=r"no `architect up` has made it, and its hosts would be .*--state-dir"):
            machine_namespace.run(lambda call=call: asyncio.run(call()))  # type: ignore[misc]
    assert [str(path.relative_to(state_dir)) for path in state_dir.rglob("*")] == ["hosts", "hosts/mine.txt"]


def test_down_where_nothing_ever_was_makes_nothing(machine_namespace: Machine, state_dir: Path) -> None:
    assert machine_namespace.run(lambda: asyncio.run(client.down(state_dir, told)))["killed"] == 0
    assert list(state_dir.iterdir()) == []


@pytest.mark.parametrize("hosts", [-1, HOSTS_MAX + 1])
def test_as_many_hosts_as_there_cannot_be_are_refused_at_once(state_dir: Path, hosts: int) -> None:
    with pytest.raises(UsageError, match=f"0 to {HOSTS_MAX}"):
        asyncio.run(client.up(hosts, state_dir, told, OPTIONS))
    assert list(state_dir.iterdir()) == []


def test_what_cannot_get_ready_is_named_and_nothing_is_left(machine_namespace: Machine, state_dir: Path) -> None:
    broken = LocalOptions(
        memory_bytes=1 << 30,
        commands=Commands(
            supervisor=OPTIONS.commands.supervisor,
            control=OPTIONS.commands.control,
            edge=(sys.executable, "-c", "import sys; sys.exit('edge: the map is torn')"),
            agent=OPTIONS.commands.agent,
        ),
    )
    with pytest.raises(UnavailableError, match="the map is torn"):
        machine_namespace.run(lambda: asyncio.run(client.up(1, state_dir, told, broken)))
    assert namespace_names(f"arc-{state_folder(state_dir).fabric}-") == []
    assert sorted(path.name for path in state_dir.iterdir()) == ["logs", "up.lock"]


def test_a_state_folder_may_have_a_long_name(machine_namespace: Machine, state_dir: Path) -> None:
    fabric = Fabric(machine_namespace, state_dir / ("a folder with a long name, " * 4).strip())
    try:
        fabric.up(1)
        assert fabric.names() == ["aws-1"]
    finally:
        fabric.down()


def test_two_fabrics_live_side_by_side(machine_namespace: Machine, state_dir: Path) -> None:
    first, second = Fabric(machine_namespace, state_dir / "1"), Fabric(machine_namespace, state_dir / "2")
    try:
        addresses = [fabric.up(1)["outside"]["address"] for fabric in (first, second)]
        assert addresses[0] != addresses[1]
        first.down()
        assert second.names() == ["aws-1"]
        assert reaches(machine_namespace.path, second.host("aws-1")["address"])
        assert first.up(1)["outside"]["address"] == addresses[0], "its addresses were free again"
    finally:
        first.down()
        second.down()


def test_the_machine_keeps_its_own_links_and_routes(machine_namespace: Machine) -> None:
    def links_after() -> list[str]:
        layout = FabricLayout("00beef", 3)
        create_namespace(layout.internet_namespace)
        ensure_internet(layout)
        made = [name for _, name in socket.if_nameindex()]
        remove_network("00beef")
        return made

    assert machine_namespace.run(links_after) == ["lo", "arc00beefm"]
    assert machine_namespace.run(socket.if_nameindex) == [(1, "lo")]


def test_the_guard_finds_what_a_run_leaves_behind() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True, env={})
    try:
        assert any(f"process {child.pid}:" in line for line in find())
    finally:
        child.kill()
        child.wait()


INTERRUPTED_CONFTEST = """
from xdist.workermanage import NodeManager
from tests.conftest import *
NodeManager.EXIT_TIMEOUT = 0.5  # a worker in the middle of a test is given ten seconds, and has not ended then either
"""
INTERRUPTED_TEST = """
import pathlib, subprocess, sys, time
import pytest
HERE = pathlib.Path(__file__).parent
@pytest.fixture
def fabric():
    yield
    (HERE / "is-down").touch()
def test_it(fabric):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True, env={})
    (HERE / "new").write_text(str(child.pid))
    (HERE / "new").rename(HERE / "pid")
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_an_interrupted_run_ends_what_it_has_started(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    (tmp_path / "conftest.py").write_text(INTERRUPTED_CONFTEST)
    (tmp_path / "test_it.py").write_text(INTERRUPTED_TEST)
    words = ["-q", "-p", "no:cacheprovider", "--assert", "plain", "--rootdir", str(tmp_path), "-n", str(workers), str(tmp_path)]
    call = [sys.executable, "-m", "pytest", *words]
    run = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end_s = time.monotonic() + PATIENCE_S
    while not (tmp_path / "pid").exists():
        assert run.poll() is None and time.monotonic() < end_s, run.communicate()[0]
        time.sleep(0.05)
    child = identify_process(int((tmp_path / "pid").read_text()))
    assert child is not None and is_alive(child)
    run.send_signal(number)
    out, _ = run.communicate(timeout=PATIENCE_S)
    assert not is_alive(child), out
    assert f"process {child.pid}:" in out
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert workers or (tmp_path / "is-down").exists(), "a worker is killed, and what its fixtures hold with it"


def hide_in(namespace: Path) -> ProcessIdentity:
    """Start a process in a namespace that nobody knows: orphaned, in its own session, without marks, ignoring SIGTERM."""
    script = (
        "import subprocess, sys; quiet = subprocess.DEVNULL; command = [sys.executable, '-c', sys.argv[1]];"
        "print(subprocess.Popen(command, start_new_session=True, env={}, stdout=quiet, stderr=quiet).pid)"
    )
    command = [sys.executable, "-c", script, stand_in.HOLD]
    child = run_in_namespace(namespace, lambda: subprocess.run(command, env={}, capture_output=True, check=True, timeout=60))
    identity = identify_process(int(child.stdout))
    assert identity is not None
    return identity
