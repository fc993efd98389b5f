"""VMs that fill: what users hear of a wait, and when a host is told that another one is gone for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from architect.control.remove_host import remove_host
from architect.control.views import host_view
from architect.errors import ConflictError, UnavailableError
from architect.model.ids import HostName
from architect.model.vm_state import VmState
from architect.testing.fake_vm import FakeVm
from architect.wire.agent_messages import SourceGone
from tests.control.rig import Rig, id_of, rig, simulate
from tests.control.test_reconcile import FakeInstances

AWS, GCP = HostName("aws-1"), HostName("gcp-1")
WAIT = "waits for what is still at host aws-1, which has not been reached since noon"


async def _filling(one: Rig) -> FakeVm:
    """A VM that runs at GCP, and whose memory is at AWS."""
    await one.run("web", host=GCP)
    vm = one.world.agents[GCP].vms[id_of(one, "web")]
    vm.fills_from = AWS
    await one.world.agents[GCP].report()
    return vm


def _told(one: Rig) -> list[SourceGone]:
    return [request for request in one.world.requests if isinstance(request, SourceGone)]


def test_a_vm_that_waits_for_its_source_says_so_and_one_event_says_when_it_began_and_one_when_it_was_over(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            vm = await _filling(one)
            before = one.kinds()
            vm.waits_because = WAIT
            await asyncio.sleep(10)
            assert (one.view("web").state, one.view("web").reason) == (VmState.RUNNING, WAIT)
            assert one.kinds()[len(before) :] == ["vm-waits"]
            vm.waits_because = ""
            await asyncio.sleep(10)
            assert one.view("web").reason == "" and one.kinds()[len(before) :] == ["vm-waits", "vm-running"]

    simulate(test())


def test_a_host_is_told_again_and_again_that_a_source_is_gone_as_long_as_it_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP, instances=FakeInstances(GCP)) as one:
            await _filling(one)
            agent = await one.disconnect(AWS)
            await asyncio.sleep(one.control.fabric.config.host_lost_after_s + 2)
            assert _told(one)[0] == SourceGone(AWS, "its provider has it no more"), "seconds after it fell silent"
            await asyncio.sleep(20)
            assert 8 <= len(_told(one)) <= 14
            await one.connect(agent)
            await asyncio.sleep(5)
            told = len(_told(one))
            await asyncio.sleep(20)
            assert len(_told(one)) == told, "it is back"

    simulate(test())


@pytest.mark.parametrize(
    "instances",
    [FakeInstances(AWS, GCP), FakeInstances(failure=UnavailableError("provider", "is away", "wait"))],
    ids=["it is there", "no answer"],
)
def test_silence_does_not_make_a_host_gone_for_good_where_its_provider_can_be_asked(
    tmp_path: Path, instances: FakeInstances
) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP, instances=instances) as one:
            await _filling(one)
            await one.disconnect(AWS)
            await asyncio.sleep(300)
            assert not _told(one)
            instances.hosts, instances.failure = {GCP}, None
            await asyncio.sleep(3)
            assert _told(one), "it is asked on, however long the host is silent"

    simulate(test())


def test_silence_makes_a_host_gone_for_good_where_nobody_can_be_asked(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            await _filling(one)
            await one.disconnect(AWS)
            gone_after_s = one.control.fabric.config.host_gone_after_s
            await asyncio.sleep(gone_after_s - 2)
            assert not _told(one)
            await asyncio.sleep(4)
            assert _told(one)[0] == SourceGone(AWS, f"nothing was heard of it for {gone_after_s:g} s")

    simulate(test())


def test_a_host_that_feeds_a_vm_is_not_removed_whether_its_agent_is_there_or_not_until_it_is_gone_for_good(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            vm = await _filling(one)
            await asyncio.sleep(2)
            for is_there in (True, False):
                if not is_there:
                    await one.disconnect(AWS)
                with pytest.raises(ConflictError, match="has vm web, or some of its memory or disk"):
                    await remove_host(one.control.fabric, AWS)
            assert vm.fills_from == AWS and not _told(one)
            assert host_view(one.control.fabric, one.control.fabric.book.hosts[AWS]).vms == 1
            await asyncio.sleep(one.control.fabric.config.host_gone_after_s + 2)
            await remove_host(one.control.fabric, AWS)

    simulate(test())
