"""Notices and drains: everything leaves at once, stuck VMs say why, and leave as soon as they can."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from architect.control.evacuate import drain_host, set_draining
from architect.control.rooms import HostState, host_state
from architect.errors import CapacityError, IncompatibleError
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName
from architect.model.notice import Notice, NoticeKind
from architect.model.sizes import MIB
from architect.model.times import rfc3339
from architect.model.vm_state import VmState
from architect.testing.virtual_time import LoopClock
from architect.wire.agent_messages import MigrateVm
from tests.control.rig import Rig, rig, simulate

AWS, GCP, AZURE = HostName("aws-1"), HostName("gcp-1"), HostName("azure-1")


async def give_notice(one: Rig, host: HostName, in_s: float = 30.0, identity: str = "n-1") -> None:
    """The host's cloud says that it goes."""
    agent = one.world.agents[host]
    agent.notice = Notice(identity, NoticeKind.PREEMPTION, rfc3339(LoopClock().wall_s() + in_s))
    await agent.report()


def test_a_notice_moves_all_vms_before_the_deadline_and_is_acknowledged_after(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP, AZURE) as one:
            names = [f"vm-{number}" for number in range(6)]
            for name in names:
                await one.run(name, host=AWS)
            await give_notice(one, AWS)
            agent = one.world.agents[AWS]
            await one.until(lambda: agent.acknowledged == ["n-1"])
            assert {one.view(name).host for name in names} <= {GCP, AZURE}
            assert all(one.view(name).state is VmState.RUNNING for name in names)
            asked = [request for request in one.world.requests if isinstance(request, MigrateVm)]
            assert all(request.deadline_s is not None and 20 < request.deadline_s < 28.6 for request in asked)
            assert host_state(one.control.fabric, one.control.fabric.book.hosts[AWS]) is HostState.LEAVING
            await asyncio.sleep(10)
            assert agent.acknowledged == ["n-1"]

    simulate(test())


def test_a_leaving_host_takes_no_vm_and_a_withdrawn_notice_opens_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await give_notice(one, AWS)
            await one.until(lambda: "notice" in one.kinds())
            with pytest.raises(CapacityError, match="aws-1 is leaving"):
                await one.run("web")
            one.world.agents[AWS].notice = None
            await one.world.agents[AWS].report()
            await one.until(lambda: "notice-withdrawn" in one.kinds())
            assert (await one.run("web")).host == AWS

    simulate(test())


def test_an_agent_that_has_not_heard_its_cloud_yet_withdraws_no_notice(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await give_notice(one, AWS)
            await one.until(lambda: "notice" in one.kinds())
            noticed = one.control.fabric.book.hosts[AWS].notice
            one.world.agents[AWS].notice = msgspec.UNSET
            await one.world.agents[AWS].report()
            await asyncio.sleep(10)
            assert one.control.fabric.book.hosts[AWS].notice == noticed
            assert "notice-withdrawn" not in one.kinds()

    simulate(test())


def test_a_vm_without_a_target_says_why_and_leaves_when_a_host_appears(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, AZURE) as one:
            await one.host("gcp-1", 100)
            await one.run("web", host=AWS)
            await give_notice(one, AZURE, identity="n-2")
            await give_notice(one, AWS, in_s=60)
            await one.until(lambda: bool(one.view("web").reason))
            assert one.view("web").reason == "no host with 256.0 MiB free: azure-1 is leaving, gcp-1 has 100.0 MiB"
            assert one.kinds().count("vm-stuck") == 1
            await one.host("gcp-2", 1024)
            await one.until(lambda: one.view("web").host == "gcp-2")
            assert one.view("web").reason == ""

    simulate(test())


def test_a_vm_without_a_target_is_lost_with_what_was_tried(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.host("gcp-1", 100)
            await one.run("web", host=AWS)
            await give_notice(one, AWS)
            await one.until(lambda: bool(one.view("web").reason))
            await one.world.lose_host(AWS)
            await one.until_state("web", VmState.LOST)
            reason = one.view("web").reason
            assert "taken away before the vm had left" in reason and "gcp-1 has 100.0 MiB" in reason

    simulate(test())


def test_a_host_that_is_silent_past_its_deadline_is_gone_without_more_waiting(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("web", host=AWS)
            await give_notice(one, AWS, in_s=8)
            await one.until(lambda: "notice" in one.kinds())
            await one.world.lose_host(AWS)
            await asyncio.sleep(7)
            assert one.view("web").state is not VmState.LOST
            await asyncio.sleep(3)
            assert one.view("web").state is VmState.LOST

    simulate(test())


def test_a_target_that_refuses_is_followed_by_the_next_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            await one.host("gcp-2", 4096)
            one.world.refuse_move[HostName("gcp-2")] = IncompatibleError("host gcp-2", "has another TSC", "choose another")
            await one.run("web", host=AWS)
            await give_notice(one, AWS)
            await one.until(lambda: one.view("web").host == GCP)
            assert one.kinds().count("migration-failed") == 1

    simulate(test())


def test_a_restart_in_the_middle_of_an_evacuation_finishes_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            one.world.hold[HandoverState.SWITCHOVER] = gate = asyncio.Event()
            for number in range(10):
                await one.run(f"vm-{number}", host=AWS, memory_bytes=64 * MIB)
            await give_notice(one, AWS, 120)
            await one.until(lambda: len(one.world.moves) == 8)
            await one.restart()
            await asyncio.sleep(3)
            assert len(one.world.moves) == 8
            gate.set()
            await one.until(lambda: one.world.agents[AWS].acknowledged == ["n-1"])
            assert len(one.world.moves) == 10
            assert len(one.world.agents[GCP].vms) == 10

    simulate(test())


def test_a_drain_moves_all_away_and_tells_who(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            await one.run("a", host=AWS)
            await one.run("b", host=AWS)
            items = [item async for item in drain_host(one.control.fabric, AWS)]
            assert items[-1].moved == ("a", "b")  # type: ignore[union-attr]
            assert [one.view(name).host for name in "ab"] == [GCP, GCP]
            with pytest.raises(CapacityError, match="aws-1 is draining"):
                await one.run("d", memory_bytes=4096 * MIB)
            await set_draining(one.control.fabric, AWS, draining=False)
            assert (await one.run("e", host=AWS)).host == AWS

    simulate(test())


def test_a_drain_without_room_elsewhere_says_so_and_goes_on_when_there_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS) as one:
            await one.run("web")
            with pytest.raises(CapacityError, match="web cannot leave"):
                _ = [item async for item in drain_host(one.control.fabric, AWS)]
            await one.host("gcp-1")
            await one.until(lambda: one.view("web").host == GCP)

    simulate(test())


def test_a_notice_in_the_middle_of_a_users_move_becomes_its_deadline_and_goes_with_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            one.world.hold[HandoverState.SWITCHOVER] = gate = asyncio.Event()
            await one.run("web", host=AWS)
            moving = asyncio.create_task(one.migrate("web", GCP))
            await one.until(lambda: one.view("web").state is VmState.MIGRATING)

            def deadlines() -> list[float | None]:
                return [request.deadline_s for request in one.world.requests if isinstance(request, MigrateVm)]

            await one.until(lambda: deadlines() == [None])
            await give_notice(one, AWS, in_s=30)
            await one.until(lambda: len(deadlines()) == 2)
            await give_notice(one, AWS, in_s=10, identity="n-2")
            await one.until(lambda: len(deadlines()) == 3)
            one.world.agents[AWS].notice = None
            await one.world.agents[AWS].report()
            await one.until(lambda: len(deadlines()) == 4)
            first, second, third, fourth = deadlines()
            assert first is None and fourth is None
            assert second is not None and third is not None and 20 < second < 30 and 5 < third < 10
            assert len({request.migration for request in one.world.requests if isinstance(request, MigrateVm)}) == 1
            gate.set()
            assert (await moving).outcome == "done"

    simulate(test())


def test_a_failed_move_stops_no_other_and_is_tried_elsewhere_within_the_notice(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            await one.host("gcp-2", 4096)
            for number in range(6):
                await one.run(f"vm-{number}", host=AWS, memory_bytes=64 * MIB)
            one.world.refuse_move[HostName("gcp-2")] = IncompatibleError("host gcp-2", "has another TSC", "choose another")
            await give_notice(one, AWS, in_s=30)
            await one.until(lambda: one.world.agents[AWS].acknowledged == ["n-1"], limit_s=25)
            assert len(one.world.agents[GCP].vms) == 6
            assert one.kinds().count("migration-failed") == 6

    simulate(test())


def test_the_only_target_is_asked_again_soon_after_a_failure(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP) as one:
            await one.run("web", host=AWS)
            one.world.refuse_move[GCP] = IncompatibleError("host gcp-1", "is being patched", "wait")
            await give_notice(one, AWS, in_s=30)
            await one.until(lambda: "migration-failed" in one.kinds())
            del one.world.refuse_move[GCP]
            await one.until(lambda: one.view("web").host == GCP, limit_s=5)

    simulate(test())


def test_two_hosts_preempted_at_once_share_what_room_there_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP, AZURE) as one:
            for host in (AWS, GCP):
                for number in range(4):
                    await one.run(f"{host}-{number}", host=host, memory_bytes=256 * MIB)
            for host in (AWS, GCP):
                await give_notice(one, host, in_s=60, identity=f"n-{host}")
            await one.until(lambda: len(one.world.agents[AZURE].vms) == 8)
            await one.until(lambda: all(one.world.agents[host].acknowledged for host in (AWS, GCP)))

    simulate(test())


def test_a_target_preempted_while_vms_arrive_is_left_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP, memory_mib=1024) as one:
            for number in range(4):
                await one.run(f"vm-{number}", host=AWS, memory_bytes=128 * MIB)
            one.world.hold[HandoverState.SWITCHOVER] = gate = asyncio.Event()
            await give_notice(one, AWS, in_s=60)
            await one.until(lambda: len(one.world.moves) == 4)
            await give_notice(one, GCP, in_s=90, identity="n-2")
            await one.host("azure-1")
            gate.set()
            await one.until(lambda: len(one.world.agents[AZURE].vms) == 4)
            await one.until(lambda: bool(one.world.agents[AWS].acknowledged and one.world.agents[GCP].acknowledged))
            assert all(one.view(f"vm-{number}").state is VmState.RUNNING for number in range(4))

    simulate(test())


def test_a_drain_of_twenty_says_how_it_goes(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, AWS, GCP, AZURE, memory_mib=4096) as one:
            for number in range(20):
                await one.run(f"vm-{number:02}", host=AWS, memory_bytes=128 * MIB)
            items = [item async for item in drain_host(one.control.fabric, AWS)]
            lines = [item.progress for item in items[:-1]]  # type: ignore[union-attr]
            assert len(items[-1].moved) == 20 and not items[-1].left  # type: ignore[union-attr]
            assert lines[0].startswith("20 vms left on aws-1") and any("moving" in line for line in lines)

    simulate(test())
