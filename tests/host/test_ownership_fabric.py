"""Who owns a VM, in a real fabric: given back by a target whose machine died, paused by a host that reaches nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from architect.testing.sample_images import busybox_image
from tests.host.fabric_rig import FabricRig, fabric
from tests.host.fault_rig import TICKS, FaultRig

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]

SOURCE, TARGET = "aws-1", "gcp-1"


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
        with faults.held(name, SOURCE, TARGET, "target-claimed", mode) as move:
            faults.kill(faults.qemu(TARGET, vm))
            if is_agent_killed:
                faults.kill(faults.agent(TARGET))
        status, words = move.outcome()
        print(f"{mode}: exit {status}: {words[-300:]}")
        assert faults.assert_lives(name, vm) == SOURCE
        flow.sendall(b"after\n")
        assert flow.recv(100) == b"after\n", "the flow that was open before the move goes on"
    assert status != 0 and ("before it ran" in words or is_agent_killed), words
    assert rig.inspect(name)["term"] == 3, "record 2 is the target's, record 3 gave the VM back"
    faults.assert_moves(name, TARGET)
    faults.assert_lives(name, vm)
    rig.remove(name)
