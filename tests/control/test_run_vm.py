"""Running a VM: placement, numbers, ports, and what is left when it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from architect.control.end_vm import remove_vm
from architect.control.run_vm import RunWish, check_wish, run_vm
from architect.errors import (
    CapacityError,
    ConflictError,
    InvalidImageError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from architect.model.endpoints import Publish
from architect.model.sizes import MIB
from architect.model.vm_state import VmState
from tests.control.rig import Rig, ended, rig, simulate

WEB = (Publish(8080, 80),)


def test_a_vm_runs_on_the_host_with_most_free_memory_and_shows_its_endpoints(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            await one.host("gcp-1", 4096)
            vm = await one.run("web", publish=WEB, memory_bytes=256 * MIB)
            assert (vm.state, vm.host, vm.term) == (VmState.RUNNING, "gcp-1", 1)
            assert [(end.port, end.guest_port) for end in vm.endpoints] == [(8080, 80)]
            assert one.kinds()[-2:] == ["vm-creating", "vm-running"]

    simulate(test())


def test_requests_at_the_same_moment_never_get_the_same_room(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1", memory_mib=1024) as one:
            results = await asyncio.gather(
                *(one.run(f"vm-{number}", memory_bytes=512 * MIB) for number in range(6)), return_exceptions=True
            )
            placed = [result for result in results if not isinstance(result, BaseException)]
            refused = [result for result in results if isinstance(result, BaseException)]
            assert len(placed) == 4
            assert all(isinstance(error, CapacityError) for error in refused)
            assert sorted(vm.host for vm in placed) == ["aws-1", "aws-1", "gcp-1", "gcp-1"]
            assert len({one.vm(vm.name).request.address for vm in placed}) == 4

    simulate(test())


def test_without_room_the_error_names_each_host_and_why(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1", memory_mib=100) as one:
            with pytest.raises(CapacityError) as caught:
                await one.run("big", memory_bytes=256 * MIB)
            assert "no host with 256.0 MiB free: aws-1 has 100.0 MiB, gcp-1 has 100.0 MiB" in caught.value.cause
            assert one.control.fabric.book.vms == {}

    simulate(test())


def test_a_taken_name_and_a_taken_port_are_refused_by_who_has_them(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            await one.run("web", publish=WEB)
            with pytest.raises(ConflictError, match="exists already"):
                await one.run("web")
            with pytest.raises(ConflictError, match="taken by vm web"):
                await one.run("other", publish=WEB)

    simulate(test())


def test_a_port_that_the_edge_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            one.edge.foreign_ports.add(8080)
            with pytest.raises(ConflictError, match="is taken"):
                await one.run("web", publish=WEB)
            await nothing_left(one)
            assert one.kinds()[-1] == "vm-creation-failed"
            one.edge.foreign_ports.clear()
            assert (await one.run("web", publish=WEB)).state is VmState.RUNNING

    simulate(test())


def test_a_host_that_refuses_the_image_leaves_nothing_behind(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            one.world.refuse_run = InvalidImageError("image oci:/image", "has no layers", "build it again")
            with pytest.raises(InvalidImageError, match="has no layers"):
                await one.run("web", publish=WEB)
            await nothing_left(one)

    simulate(test())


def test_a_host_that_vanishes_during_creation_fails_it_and_a_copy_that_comes_back_is_removed(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            one.world.run_gate = asyncio.Event()
            _, follower = await run_vm(one.control.fabric, RunWish("oci:/image", name="web"))
            agent = one.world.agents[one.vm("web").host]
            await one.until(lambda: bool(agent.vms))
            await agent.disconnect()
            with pytest.raises(UnavailableError, match="vanished while vm web was being created"):
                await ended(follower)
            with pytest.raises(NotFoundError):
                one.vm("web")
            await one.connect(agent)
            await nothing_left(one)

    simulate(test())


def test_a_connection_that_breaks_during_creation_is_taken_up_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            one.world.run_gate = asyncio.Event()
            _, follower = await run_vm(one.control.fabric, RunWish("oci:/image", name="web"))
            agent = one.world.agents[one.vm("web").host]
            await one.until(lambda: bool(agent.vms))
            await agent.disconnect()
            await asyncio.sleep(1)
            await one.connect(agent)
            one.world.run_gate.set()
            assert (await ended(follower)).state is VmState.RUNNING
            assert len(agent.vms) == 1

    simulate(test())


def test_a_control_plane_that_dies_during_creation_finishes_it_after_its_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            one.world.run_gate = asyncio.Event()
            await run_vm(one.control.fabric, RunWish("oci:/image", name="web", publish=WEB))
            await one.until(lambda: bool(one.world.agents[one.vm("web").host].vms))
            await one.restart()
            assert one.view("web").state is VmState.CREATING
            one.world.run_gate.set()
            await one.until_state("web", VmState.RUNNING)
            assert [end.port for end in one.view("web").endpoints] == [8080]

    simulate(test())


def test_a_vm_can_be_removed_while_it_is_being_created(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            one.world.run_gate = asyncio.Event()
            _, follower = await run_vm(one.control.fabric, RunWish("oci:/image", name="web", publish=WEB))
            await one.until(lambda: bool(one.world.agents[one.vm("web").host].vms))
            removal = asyncio.create_task(remove_vm(one.control.fabric, "web", force=True))
            with pytest.raises(ConflictError, match="was removed"):
                await ended(follower)
            one.world.run_gate.set()
            await removal
            await nothing_left(one)

    simulate(test())


def test_a_host_can_be_asked_for_and_is_refused_if_it_takes_no_vm(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            assert (await one.run("a", host="gcp-1")).host == "gcp-1"
            with pytest.raises(NotFoundError, match="host azure-9"):
                await one.run("b", host="azure-9")
            await one.disconnect("gcp-1")
            with pytest.raises(UnavailableError):
                await one.run("c", host="gcp-1")

    simulate(test())


@pytest.mark.parametrize(
    "wish",
    [
        {"name": "Web"},
        {"cpus": 0},
        {"cpus": 65},
        {"memory_bytes": 1},
        {"memory_bytes": 256 * MIB + 1},
        {"disk_bytes": 1},
        {"publish": (Publish(1, 2), Publish(1, 3))},
        {"env": ("NOVALUE",)},
        {"args": ("a\0b",)},
        {"args": ("x" * (200 << 10),)},
        {"image": " "},
    ],
)
def test_wishes_out_of_bounds_are_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_wish(RunWish(**{"image": "oci:/image", **wish}))


async def nothing_left(one: Rig) -> None:
    """No record, no service, no VM."""
    await one.until(lambda: not one.control.fabric.book.vms)
    assert one.edge.vms == {}
    assert all(not agent.vms for agent in one.world.agents.values())
