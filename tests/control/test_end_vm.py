"""Stopping and removing: wanted now, true as soon as hosts and edge are there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from architect.control.end_vm import remove_vm, stop_vm
from architect.control.followers import Follower
from architect.control.move_vm import MoveWish, migrate_vm
from architect.errors import ConflictError, LostError, NotFoundError, UnavailableError, UsageError
from architect.model.endpoints import Publish
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName
from architect.model.vm_state import VmState
from architect.testing.fake_agent import MOVE_STEPS
from tests.control.rig import Rig, ended, id_of, rig, simulate

WEB = (Publish(8080, 80),)


async def held_move(one: Rig, state: HandoverState) -> tuple[Follower, asyncio.Event]:
    """Run `web` on aws-1 and move it to gcp-1, until it waits before that state: how the move ends, and what lets it go on."""
    gate = one.world.hold[state] = asyncio.Event()
    await one.run("web", host="aws-1")
    _, follower = await migrate_vm(one.control.fabric, MoveWish("web", "gcp-1"))
    await asyncio.sleep(0.5)
    before = (HandoverState.PLANNED, *MOVE_STEPS)[MOVE_STEPS.index(state)]
    assert [move.report.state for move in one.world.moves.values()] == [before]
    return follower, gate


def test_a_stopped_vm_keeps_its_record_and_frees_its_port(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            await one.run("web", publish=WEB)
            record = await stop_vm(one.control.fabric, "web", 3)
            assert (record.state, record.exit_code) == (VmState.STOPPED, 143)
            assert (await stop_vm(one.control.fabric, "web", 3)).state is VmState.STOPPED
            await one.until(lambda: not one.edge.vms)
            assert (await one.run("next", publish=WEB)).state is VmState.RUNNING

    simulate(test())


def test_a_stop_is_carried_out_when_the_host_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            await one.run("web")
            agent = await one.disconnect("aws-1")
            with pytest.raises(UnavailableError, match="stopped as soon as it is back"):
                await stop_vm(one.control.fabric, "web", 1)
            await one.connect(agent)
            await one.until_state("web", VmState.STOPPED)

    simulate(test())


def test_a_stop_survives_a_restart_of_the_control_plane(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            await one.run("web")
            agent = await one.disconnect("aws-1")
            stopping = asyncio.create_task(stop_vm(one.control.fabric, "web", 1))
            await asyncio.sleep(0.5)
            stopping.cancel()
            await one.kill()
            one.start()
            await one.connect(agent)
            await one.until_state("web", VmState.STOPPED)

    simulate(test())


def test_removing_a_running_vm_needs_force(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            await one.run("web", publish=WEB)
            with pytest.raises(ConflictError, match="is running"):
                await remove_vm(one.control.fabric, "web", force=False)
            await remove_vm(one.control.fabric, "web", force=True)
            assert not one.control.fabric.book.vms and not one.edge.vms and not one.world.agents["aws-1"].vms  # type: ignore[index]
            with pytest.raises(NotFoundError):
                await remove_vm(one.control.fabric, "web", force=True)

    simulate(test())


def test_a_removal_frees_the_name_at_once_and_clears_the_host_when_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.run("web", host="aws-1", publish=WEB)
            old = id_of(one, "web")
            agent = await one.disconnect("aws-1")
            await remove_vm(one.control.fabric, "web", force=True)
            await one.until(lambda: old not in one.edge.vms)
            assert (await one.run("web", publish=WEB)).host == "gcp-1"
            await one.restart()
            await one.until(lambda: old not in agent.vms and old not in one.control.fabric.book.vms)
            assert one.view("web").state is VmState.RUNNING

    simulate(test())


def test_a_removal_waits_for_an_edge_that_is_away(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            await one.run("web", publish=WEB)
            one.cut_edge()
            await one.until(lambda: not one.control.fabric.edge.is_connected)
            await remove_vm(one.control.fabric, "web", force=True)
            assert one.edge.vms
            one.edge_is_up = True
            await one.until(lambda: not one.edge.vms and not one.control.fabric.book.vms)

    simulate(test())


def test_a_lost_vm_cannot_be_stopped_but_removed(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1") as one:
            await one.run("web")
            await one.world.lose_host("aws-1")
            await one.until_state("web", VmState.LOST)
            with pytest.raises(LostError, match="vanished without notice"):
                await stop_vm(one.control.fabric, "web", 1)
            await remove_vm(one.control.fabric, "web", force=False)
            with pytest.raises(NotFoundError):
                one.vm("web")

    simulate(test())


@pytest.mark.parametrize("grace_s", [-1, 1e9, float("nan")])
def test_a_grace_out_of_bounds_is_refused(tmp_path: Path, grace_s: float) -> None:
    async def test() -> None:
        async with rig(tmp_path) as one:
            with pytest.raises(UsageError):
                await stop_vm(one.control.fabric, "web", grace_s)

    simulate(test())


@pytest.mark.parametrize("state", [HandoverState.PREPARING, HandoverState.PRECOPY, HandoverState.SWITCHOVER])
def test_a_stop_gives_up_a_move_that_has_not_cut_and_the_vm_stops_at_its_source(tmp_path: Path, state: HandoverState) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            follower, _ = await held_move(one, state)
            record = await stop_vm(one.control.fabric, "web", 3)
            assert (record.state, record.host) == (VmState.STOPPED, "aws-1")
            move = await ended(follower)
            assert (move.outcome, move.reason) == ("failed", "it is to be stopped")
            assert not one.world.agents[HostName("gcp-1")].vms

    simulate(test())


def test_a_stop_after_the_cut_waits_for_the_move_and_stops_the_vm_at_the_target(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            follower, gate = await held_move(one, HandoverState.COMMITTED)
            stopping = asyncio.create_task(stop_vm(one.control.fabric, "web", 3))
            await asyncio.sleep(5)
            assert not stopping.done()
            gate.set()
            record = await stopping
            assert (record.state, record.host) == (VmState.STOPPED, "gcp-1")
            assert (await ended(follower)).outcome == "done"

    simulate(test())


def test_a_removal_by_force_gives_the_move_up_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            follower, _ = await held_move(one, HandoverState.PRECOPY)
            await remove_vm(one.control.fabric, "web", force=True)
            assert not one.control.fabric.book.vms
            assert not [vm for agent in one.world.agents.values() for vm in agent.vms]
            move = await ended(follower)
            assert (move.outcome, move.reason) == ("failed", "it is to be removed")
            (at_source,) = (each.report for each in one.world.moves.values())
            assert (at_source.state, at_source.reason) == (HandoverState.FAILED, "it is to be removed")

    simulate(test())


def test_a_move_is_given_up_over_a_restart_of_the_control_plane(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await held_move(one, HandoverState.PRECOPY)
            agent = await one.disconnect("aws-1")
            stopping = asyncio.create_task(stop_vm(one.control.fabric, "web", 1))
            await asyncio.sleep(0.5)
            stopping.cancel()
            await one.kill()
            one.start()
            await one.connect(agent)
            await one.until_state("web", VmState.STOPPED)
            assert one.view("web").host == "aws-1"

    simulate(test())
