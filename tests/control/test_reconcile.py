"""The reconciler: the reports are the truth, whatever the record says and whoever died."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from architect.control.remove_host import remove_host
from architect.control.rooms import HostState, host_state
from architect.errors import ArchitectError, ConflictError, NotFoundError, UnavailableError
from architect.model.endpoints import Publish
from architect.model.ids import HostName
from architect.model.vm_state import VmState
from tests.control.rig import id_of, rig, simulate

AWS, GCP = HostName("aws-1"), HostName("gcp-1")


def test_a_vm_that_ends_by_itself_shows_its_exit_code(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("job")
            await one.world.agents[AWS].end_vm(id_of(one, "job"), VmState.EXITED, 3)
            await one.until_state("job", VmState.EXITED)
            assert (one.view("job").exit_code, one.kinds()[-1]) == (3, "vm-exited")

    simulate(test())


def test_a_host_that_vanishes_loses_its_vms_with_a_reason(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("web")
            await one.world.lose_host(AWS)
            await asyncio.sleep(3)
            assert one.view("web").state is VmState.RUNNING
            await one.until_state("web", VmState.LOST)
            assert one.view("web").reason == "host aws-1 vanished without notice; no checkpoint exists"
            assert host_state(one.control.fabric, one.control.fabric.book.hosts[AWS]) is HostState.LOST
            assert {"host-lost", "vm-lost"} <= set(one.kinds())

    simulate(test())


class FakeInstances:
    """A provider: which hosts it still has, and whether it answers; `asked` counts the questions."""

    def __init__(self, *hosts: str, failure: ArchitectError | None = None) -> None:
        self.hosts = set(hosts)
        self.failure = failure
        self.asked = 0

    async def exists(self, host: HostName) -> bool:
        """As the port says."""
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return host in self.hosts


def test_a_silent_host_whose_provider_says_that_it_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, instances=FakeInstances()) as one:
            await one.run("web")
            await one.world.lose_host(AWS)
            await asyncio.sleep(one.control.fabric.config.host_lost_after_s + 2)
            assert one.view("web").state is VmState.LOST
            reason = "host aws-1 vanished without notice (its provider has it no more); no checkpoint exists"
            assert one.view("web").reason == reason

    simulate(test())


@pytest.mark.parametrize(
    "instances",
    [FakeInstances(AWS), FakeInstances(failure=UnavailableError("provider", "is away", "wait"))],
    ids=["it is there", "no answer"],
)
def test_a_silent_host_is_waited_for_while_its_provider_has_it_or_says_nothing(tmp_path: Path, instances: FakeInstances) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, instances=instances) as one:
            await one.run("web")
            await one.world.lose_host(AWS)
            gone_after_s = one.control.fabric.config.host_gone_after_s
            await asyncio.sleep(gone_after_s - 2)
            assert one.view("web").state is VmState.RUNNING
            assert 5 < instances.asked < gone_after_s, "now and then, not at every look"
            await one.until_state("web", VmState.LOST)

    simulate(test())


def test_a_provider_is_not_asked_about_a_host_that_is_heard_of_and_what_it_said_of_one_that_is_back_is_forgotten(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, instances=(instances := FakeInstances())) as one:
            await one.run("web")
            await asyncio.sleep(20)
            assert instances.asked == 0
            agent = await one.disconnect(AWS)
            await one.until(lambda: AWS in one.control.fabric.destroyed)
            await one.connect(agent)
            await one.until(lambda: not one.control.fabric.destroyed)

    simulate(test())


def test_a_host_that_is_silent_for_a_while_loses_nothing_and_the_vm_says_why_it_is_not_seen(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("web")
            agent = await one.disconnect(AWS)
            await asyncio.sleep(one.control.fabric.config.host_gone_after_s - 2)
            view = one.view("web")
            assert (view.state, view.reason) == (VmState.RUNNING, "host aws-1 is silent; it may run there all the same")
            assert host_state(one.control.fabric, one.control.fabric.book.hosts[AWS]) is HostState.LOST
            await one.connect(agent)
            await one.until(lambda: one.view("web").reason == "")
            assert "vm-lost" not in one.kinds()

    simulate(test())


def test_a_host_that_comes_back_with_the_vm_makes_it_run_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("web")
            agent = await one.disconnect(AWS)
            await one.until_state("web", VmState.LOST)
            await one.connect(agent)
            await one.until_state("web", VmState.RUNNING)
            assert (one.view("web").reason, one.kinds()[-1]) == ("", "vm-running")

    simulate(test())


def test_a_host_that_comes_back_without_the_vm_loses_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("web")
            agent = await one.disconnect(AWS)
            agent.vms.clear()
            await one.connect(agent)
            await one.until_state("web", VmState.LOST)
            assert "has it no longer" in one.view("web").reason

    simulate(test())


def test_of_two_hosts_that_report_a_vm_the_higher_term_owns_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            await one.run("web", host=AWS)
            vm = one.world.agents[AWS].vms[id_of(one, "web")]
            one.world.agents[GCP].vms[vm.request.id] = replace(vm, term=5)
            await one.world.agents[GCP].report()
            await one.until(lambda: one.view("web").host == GCP)
            await one.world.agents[AWS].report()
            await asyncio.sleep(3)
            assert (one.view("web").host, one.view("web").term) == (GCP, 5)

    simulate(test())


def test_an_old_copy_that_comes_back_is_not_taken_for_the_vm(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            await one.run("web", host=AWS)
            old = replace(one.world.agents[AWS].vms[id_of(one, "web")])
            await one.migrate("web", GCP)
            await one.world.lose_host(GCP)
            await one.until_state("web", VmState.LOST)
            one.world.agents[AWS].vms[old.request.id] = old
            await asyncio.sleep(5)
            assert one.view("web").state is VmState.LOST

    simulate(test())


def test_a_restart_of_the_control_plane_loses_no_vm(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            await one.run("web", host=AWS, publish=(Publish(8080, 80),))
            before = one.view("web")
            await one.kill()
            await asyncio.sleep(60)
            one.start()
            await asyncio.sleep(1)
            assert one.view("web") == before
            for agent in one.world.agents.values():
                await one.connect(agent)
            await asyncio.sleep(10)
            assert one.view("web") == before
            assert "vm-lost" not in one.kinds()

    simulate(test())


def test_vms_that_nobody_knows_are_adopted_with_their_ports(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path / "old", AWS) as one:
            await one.run("web", publish=(Publish(8080, 80),))
            await one.kill()
            one.edge.vms.clear()
            one.state_dir = tmp_path / "new"
            one.state_dir.mkdir()
            one.start()
            await one.connect(one.world.agents[AWS])
            await one.until(lambda: "vm-adopted" in one.kinds())
            assert one.view("web").state is VmState.RUNNING

    (tmp_path / "old").mkdir()
    simulate(test())


def test_an_edge_that_comes_back_empty_is_told_everything_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("web", publish=(Publish(8080, 80),))
            one.cut_edge()
            one.edge.vms.clear()
            await one.until(lambda: not one.control.fabric.edge.is_connected)
            one.edge_is_up = True
            await one.until(lambda: id_of(one, "web") in one.edge.vms)

    simulate(test())


def test_an_agent_that_hangs_is_cut_off_and_counts_as_lost(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path) as one:
            agent = one.world.add_host("aws-1")
            await agent.connect(one.connection_of(agent), 1e6)
            await asyncio.sleep(7)
            assert not one.control.fabric.fleet.is_here(AWS)
            assert host_state(one.control.fabric, one.control.fabric.book.hosts[AWS]) is HostState.LOST

    simulate(test())


def test_a_host_that_is_removed_by_force_loses_its_vms(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("web")
            await one.disconnect(AWS)
            await remove_host(one.control.fabric, AWS, force=True)
            await one.until_state("web", VmState.LOST)
            assert AWS not in one.control.fabric.book.hosts

    simulate(test())


def test_a_host_is_removed_only_when_nothing_runs_there(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("web")
            with pytest.raises(ConflictError, match="has vm web"):
                await remove_host(one.control.fabric, AWS)
            await one.world.lose_host(AWS)
            await one.until_state("web", VmState.LOST)
            await remove_host(one.control.fabric, AWS)
            with pytest.raises(NotFoundError):
                await remove_host(one.control.fabric, AWS)
            assert one.view("web").state is VmState.LOST

    simulate(test())
