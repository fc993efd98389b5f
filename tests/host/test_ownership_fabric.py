"""Who owns a VM, in a real fabric: given back by a target whose machine died, paused by a host that reaches nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from architect.clouds.local.layout import StateFolder
from architect.migration.ownership_directory import DirectoryOwnershipLog
from architect.model.ids import HostName, VmId
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.testing.sample_images import busybox_image
from tests.host.fabric_rig import FabricRig, fabric
from tests.host.fault_rig import TICKS, FaultRig

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]

SOURCE, TARGET = "aws-1", "gcp-1"
LEASE_S = 15.0


@pytest.fixture(scope="module")
def rig() -> Iterator[FabricRig]:
    with fabric(hosts=2) as made:
        yield made


@pytest.fixture(scope="module")
def faults(rig: FabricRig) -> FaultRig:
    return FaultRig(rig)


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> str:
    return busybox_image(tmp_path_factory.mktemp("images") / "oci")


@pytest.mark.parametrize(("mode", "is_agent_killed"), [("precopy", False), ("precopy", True), ("postcopy", False)])
def test_a_vm_whose_target_machine_dies_before_it_ran_runs_on_at_the_source_with_its_flows(
    rig: FabricRig, faults: FaultRig, busybox: str, mode: str, is_agent_killed: bool
) -> None:
    name = "back"
    vm = rig.run(busybox, name, "--host", SOURCE, "--publish", "7777:7777", *TICKS)["id"]
    with rig.connect(7777) as flow:
        flow.settimeout(60)
        flow.sendall(b"before\n")
        assert flow.recv(100) == b"before\n"
        with faults.held(name, SOURCE, TARGET, "target-resume", mode) as move:
            faults.kill(faults.qemu(TARGET, vm))
            if is_agent_killed:
                faults.kill(faults.agent(TARGET))
        status, words = move.outcome()
        print(f"{mode}: exit {status}: {words[-300:]}")
        rig.wait("it runs at the source", lambda: (faults.state(name), rig.inspect(name)["host"]) == ("running", SOURCE))
        flow.sendall(b"after\n")
        assert flow.recv(100) == b"after\n", "the flow that was open before the move goes on"
    assert status != 0 and ("before it ran" in words or is_agent_killed), words
    assert faults.assert_lives(name, vm) == SOURCE
    assert rig.inspect(name)["term"] == 3, "record 2 is the target's, record 3 gave the VM back"
    faults.assert_moves(name, TARGET)
    faults.assert_lives(name, vm)
    rig.remove(name)


def stands_still(faults: FaultRig, name: str) -> bool:
    """Whether the VM says nothing for two seconds; what it had said before it was paused may come after that is known."""
    said = len(faults.ticks(name))
    time.sleep(2)
    return len(faults.ticks(name)) == said


def test_a_host_that_reaches_neither_log_nor_edge_pauses_its_vms_and_goes_on_when_it_does(
    rig: FabricRig, faults: FaultRig, busybox: str
) -> None:
    name = "leased"
    vm = rig.run(busybox, name, "--host", SOURCE, "--publish", "7777:7777", *TICKS)["id"]
    with faults.cut_from_log(SOURCE):
        time.sleep(1.5 * LEASE_S)
        before = len(faults.ticks(name))
        rig.wait("it goes on without the log", lambda: len(faults.ticks(name)) > before)
        assert faults.state(name) == "running"
        with faults.cut_from_edge(SOURCE):
            rig.wait("it is paused", lambda: faults.state(name) == "paused", 3 * LEASE_S)
            assert "neither ownership log nor edge" in rig.inspect(name)["reason"]
            rig.wait("nothing more is heard of it", lambda: stands_still(faults, name))
        rig.wait("the edge alone is enough", lambda: faults.state(name) == "running")
    assert faults.assert_lives(name, vm) == SOURCE
    rig.remove(name)


def test_a_host_that_comes_back_to_a_newer_record_destroys_its_copy(rig: FabricRig, faults: FaultRig, busybox: str) -> None:
    name = "taken"
    vm = rig.run(busybox, name, "--host", SOURCE, "--publish", "7777:7777", *TICKS)["id"]
    with faults.cut_from_log(SOURCE), faults.cut_from_edge(SOURCE):
        rig.wait("it is paused", lambda: faults.state(name) == "paused", 3 * LEASE_S)
        log = DirectoryOwnershipLog(StateFolder(rig.state_dir).ownership)
        taken = OwnershipRecord(VmId(vm), 2, RecordKind.RUN, HostName(TARGET), "taker")
        assert asyncio.run(log.create(taken)) == taken
    rig.wait("its copy is destroyed", lambda: not rig.machine_processes(vm))
    rig.command("rm", "--force", name)
