"""Moving a VM: refusals, followers, and every way in which control plane and hosts may vanish meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sqlite3
from pathlib import Path

import msgspec
import pytest

from architect.control import move_vm
from architect.control.database import Database, sqlite_url
from architect.control.end_vm import remove_vm, stop_vm
from architect.control.evacuate import set_draining
from architect.control.move_vm import MoveWish, migrate_vm
from architect.control.records import MigrationRecord
from architect.control.views import MigrationView, event_views
from architect.errors import (
    CapacityError,
    ConflictError,
    IncompatibleError,
    LostError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from architect.model.compression import Compression
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName
from architect.model.sizes import MIB
from architect.model.vm_state import VmState
from architect.testing.fake_agent import FakeAgent
from architect.testing.virtual_time import InlineExecutor
from architect.wire.agent_messages import MigrateVm
from tests.control.rig import Rig, ended, id_of, rig, simulate

HELD = (HandoverState.PREPARING, HandoverState.PRECOPY, HandoverState.SWITCHOVER, HandoverState.COMMITTED, HandoverState.DONE)


async def begin(one: Rig, held: HandoverState | None = None, wish: MoveWish | None = None) -> asyncio.Event:
    """Run `web` on aws-1 and begin its move to gcp-1, held before it enters a state."""
    gate = asyncio.Event()
    if held is not None:
        one.world.hold[held] = gate
    await one.run("web", host="aws-1")
    await migrate_vm(one.control.fabric, wish if wish is not None else MoveWish("web", "gcp-1"))
    return gate


def raise_term(one: Rig) -> FakeAgent:
    """Aborted moves have brought `web` on aws-1 to term 5. The host's agent."""
    source, vm = one.world.agents[HostName("aws-1")], id_of(one, "web")
    source.vms[vm] = dataclasses.replace(source.vms[vm], term=5)
    return source


def test_a_move_ends_with_the_vm_at_the_target_and_its_numbers(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.run("web", host="aws-1")
            view = await one.migrate("web", "gcp-1")
            assert (view.source, view.target, view.outcome, view.rounds) == ("aws-1", "gcp-1", "done", 3)
            assert (view.downtime_ms, view.bytes_by_source.peer, [phase.name for phase in view.phases]) == (
                21.5, 4096, ["preparing", "precopy"],
            )  # fmt: skip
            assert (one.view("web").host, one.view("web").term, one.view("web").state) == ("gcp-1", 2, VmState.RUNNING)
            assert [(span.name, span.side.value) for span in view.spans] == [
                ("plan", "control"), ("order", "control"), ("bulk", "source"), ("memory-scan", "source"),
            ]  # fmt: skip
            assert view.spans[1].end_s == pytest.approx(0.0, abs=0.01), "the hosts' clocks are a thousand seconds ahead"
            ended = next(event for event in await event_views(one.control.fabric, 0) if event.kind == "migration-done")
            assert [span.name for span in ended.spans] == ["plan", "order", "bulk"]
            states = [event.message for event in one.control.fabric.book.events if event.kind.value == "migration-state"]
            assert states == ["preparing", "precopy", "switchover", "committed"]

    simulate(test())


def test_a_vm_that_moves_shows_so_and_refuses_a_second_move(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1", "azure-1") as one:
            gate = await begin(one, HandoverState.PRECOPY)
            assert one.view("web").state is VmState.MIGRATING
            with pytest.raises(ConflictError, match="is moving already, aws-1 to gcp-1"):
                await one.migrate("web", "azure-1")
            gate.set()
            await one.until_state("web", VmState.RUNNING)

    simulate(test())


def test_targets_that_cannot_take_it_are_refused_by_kind(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.host("small-1", 100)
            await one.run("web", host="aws-1")
            for target, error in (("nope", NotFoundError), ("aws-1", ConflictError), ("small-1", CapacityError)):
                with pytest.raises(error):
                    await one.migrate("web", target)
            await set_draining(one.control.fabric, "gcp-1", draining=True)
            with pytest.raises(ConflictError, match="is draining"):
                await one.migrate("web", "gcp-1")
            await set_draining(one.control.fabric, "gcp-1", draining=False)
            await one.disconnect("gcp-1")
            with pytest.raises(UnavailableError, match="host gcp-1"):
                await one.migrate("web", "gcp-1")
            assert one.control.fabric.book.moves == {}

    simulate(test())


def test_a_vm_that_is_over_lost_or_unknown_does_not_move(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            with pytest.raises(NotFoundError):
                await one.migrate("web", "gcp-1")
            await one.run("web", host="aws-1")
            await one.run("old", host="aws-1")
            await stop_vm(one.control.fabric, "old", 1)
            with pytest.raises(ConflictError, match="is stopped"):
                await one.migrate("old", "gcp-1")
            await one.world.lose_host("aws-1")
            await one.until_state("web", VmState.LOST)
            with pytest.raises(LostError):
                await one.migrate("web", "gcp-1")

    simulate(test())


def test_a_target_that_refuses_gives_its_own_error_and_the_vm_runs_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            one.world.refuse_move[_host("gcp-1")] = IncompatibleError("host gcp-1", "has another TSC", "choose another")
            await one.run("web", host="aws-1")
            with pytest.raises(IncompatibleError, match="another TSC"):
                await one.migrate("web", "gcp-1")
            assert (one.view("web").state, one.view("web").host) == (VmState.RUNNING, "aws-1")
            assert one.kinds()[-1] == "migration-failed"

    simulate(test())


@pytest.mark.parametrize(("limit", "compression"), [(None, Compression.OFF), (0, Compression.AUTO), (5 << 20, Compression.ZSTD)])
def test_the_source_is_told_limit_and_compression_also_by_the_next_control_plane(
    tmp_path: Path, limit: int | None, compression: Compression
) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            wish = MoveWish("web", "gcp-1", bandwidth_bytes_s=limit, compression=compression)
            gate = await begin(one, HandoverState.PRECOPY, wish)
            await one.restart()
            (record,) = one.control.fabric.book.moves.values()
            assert (record.bandwidth_bytes_s, record.compression) == (limit, compression)
            asked = [message for message in one.world.requests if isinstance(message, MigrateVm)]
            assert {(one.bandwidth_bytes_s, one.compression) for one in asked} == {(limit, compression)}
            gate.set()
            await one.until(lambda: one.control.fabric.book.moves[record.id].state.is_terminal)

    simulate(test())


def test_a_limit_under_which_nothing_would_move_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.run("web", host="aws-1")
            for limit in (1, (1 << 20) - 1, (1 << 40) + 1):
                with pytest.raises(UsageError, match="--bandwidth"):
                    await migrate_vm(one.control.fabric, MoveWish("web", "gcp-1", bandwidth_bytes_s=limit))

    simulate(test())


@pytest.mark.parametrize(("version", "lacks"), [("1", ("bandwidth_bytes_s", "compression")), ("2", ("compression",))])
def test_a_database_of_a_version_before_is_brought_up_to_this_one(tmp_path: Path, version: str, lacks: tuple[str, ...]) -> None:
    Database(sqlite_url(tmp_path), InlineExecutor()).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "control.db")) as older:
        for column in lacks:
            older.execute(f"ALTER TABLE migrations DROP COLUMN {column}")
        older.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", [version])
        older.execute(
            "INSERT INTO migrations (id, vm, vm_name, source, target, mode, verify, cause, source_term, started_at_s, state,"
            " reason, report) VALUES ('mig-1', 'vm-1', 'web', 'a', 'b', 'auto', 0, 'user', 1, 0.0, 'done', '', 'null')"
        )
        older.commit()
    for _ in range(2):
        database = Database(sqlite_url(tmp_path), InlineExecutor())
        (move,) = database.read_all(MigrationRecord)
        assert (move.vm_name, move.bandwidth_bytes_s, move.compression) == ("web", None, Compression.AUTO)
        database.close()


@pytest.mark.parametrize("held", HELD)
def test_a_control_plane_that_dies_in_any_state_joins_the_move_again(tmp_path: Path, held: HandoverState) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            gate = await begin(one, held)
            await asyncio.sleep(2)
            await one.restart()
            (record,) = one.control.fabric.book.moves.values()
            assert not record.state.is_terminal
            await asyncio.sleep(2)
            gate.set()
            await one.until(lambda: one.control.fabric.book.moves[record.id].state.is_terminal)
            after = one.control.fabric.book.moves[record.id]
            assert (after.state, len(one.world.moves)) == (HandoverState.DONE, 1)
            assert (one.view("web").host, one.view("web").term) == ("gcp-1", 2)
            (whole,) = await one.control.fabric.book.read_moves([record.id])
            assert after.report is None and whole.report is not None and whole.report.downtime_ms == 21.5

    simulate(test())


@pytest.mark.parametrize("held", HELD)
def test_a_move_that_ends_while_no_control_plane_is_there_is_found_ended(tmp_path: Path, held: HandoverState) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            gate = await begin(one, held)
            await asyncio.sleep(2)
            await one.kill()
            gate.set()
            await asyncio.sleep(2)
            one.start()
            for agent in one.world.agents.values():
                await one.connect(agent)
            (record,) = one.control.fabric.book.moves.values()
            await one.until(lambda: one.control.fabric.book.moves[record.id].state is HandoverState.DONE)
            assert one.view("web").host == "gcp-1"

    simulate(test())


@pytest.mark.parametrize("held", HELD[:4])
def test_a_source_that_vanishes_before_the_commit_loses_the_vm_and_fails_the_move(tmp_path: Path, held: HandoverState) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await begin(one, held)
            await asyncio.sleep(2)
            await one.world.lose_host("aws-1")
            await one.until_state("web", VmState.LOST)
            (record,) = one.control.fabric.book.moves.values()
            assert record.state is HandoverState.FAILED
            assert "aws-1 fell silent" in record.reason and "aws-1 vanished" in one.view("web").reason

    simulate(test())


def test_a_source_that_vanishes_after_the_commit_takes_nothing_with_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await begin(one, HandoverState.DONE)
            await one.until(lambda: one.world.running_at(id_of(one, "web")) == ["gcp-1"])
            await one.world.lose_host("aws-1")
            await one.until_state("web", VmState.RUNNING)
            (record,) = one.control.fabric.book.moves.values()
            assert (record.state, one.view("web").host) == (HandoverState.DONE, "gcp-1")

    simulate(test())


def test_a_connection_that_breaks_during_a_move_is_taken_up_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            gate = await begin(one, HandoverState.PRECOPY)
            await asyncio.sleep(1)
            source = await one.disconnect("aws-1")
            await asyncio.sleep(3)
            assert one.view("web").state is VmState.MIGRATING
            await one.connect(source)
            gate.set()
            await one.until_state("web", VmState.RUNNING)
            assert one.view("web").host == "gcp-1"

    simulate(test())


def test_a_move_whose_source_is_cut_off_from_here_only_is_seen_to_its_end_by_the_target(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            gate = await begin(one, HandoverState.SWITCHOVER)
            await asyncio.sleep(1)
            await one.disconnect("aws-1")
            await asyncio.sleep(60)
            assert one.view("web").state is VmState.MIGRATING
            gate.set()
            await one.until_state("web", VmState.RUNNING)
            assert (one.view("web").host, one.kinds()[-1]) == ("gcp-1", "migration-done")

    simulate(test())


def test_a_move_after_an_abort_is_not_done_while_it_copies_though_its_source_falls_silent(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.run("web", host="aws-1")
            raise_term(one)  # no report has shown it yet
            gate = one.world.hold[HandoverState.SWITCHOVER] = asyncio.Event()
            await migrate_vm(one.control.fabric, MoveWish("web", "gcp-1"))
            await asyncio.sleep(2)
            (record,) = one.control.fabric.book.moves.values()
            assert (record.source_term, record.state) == (1, HandoverState.PRECOPY)
            await one.disconnect("aws-1")
            await asyncio.sleep(20)
            assert one.control.fabric.book.moves[record.id].state is not HandoverState.DONE
            assert one.view("web").host == "aws-1"
            gate.set()

    simulate(test())


def test_a_move_begins_by_the_term_that_its_source_shows(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.run("web", host="aws-1")
            await raise_term(one).report()
            await asyncio.sleep(1)
            await one.migrate("web", "gcp-1")
            (record,) = one.control.fabric.book.moves.values()
            assert (record.source_term, one.view("web").term) == (5, 6)

    simulate(test())


def test_what_an_older_look_concluded_is_not_written_over_a_newer_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.run("web", host="aws-1")
            await one.migrate("web", "gcp-1")
            (record,) = one.control.fabric.book.moves.values()
            kinds = one.kinds()
            for state in (HandoverState.PREPARING, HandoverState.COMMITTED, HandoverState.FAILED):
                await move_vm._write(one.control.fabric, msgspec.structs.replace(record, state=state))
            assert one.control.fabric.book.moves[record.id] == record and one.kinds() == kinds

    simulate(test())


def test_a_source_that_was_given_up_and_comes_back_is_believed(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            gate = await begin(one, HandoverState.PREPARING)
            await asyncio.sleep(1)
            source = await one.disconnect("aws-1")
            await one.until_state("web", VmState.LOST)
            await one.connect(source)
            await one.until_state("web", VmState.RUNNING)
            gate.set()
            await one.until(lambda: one.view("web").host == "gcp-1")
            assert one.view("web").state is VmState.RUNNING

    simulate(test())


def test_a_forced_removal_during_a_move_clears_it_where_it_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            gate = await begin(one, HandoverState.COMMITTED)
            removing = asyncio.create_task(remove_vm(one.control.fabric, "web", force=True))
            await asyncio.sleep(1)
            gate.set()
            await removing
            await one.until(lambda: not one.control.fabric.book.vms)
            assert all(not agent.vms for agent in one.world.agents.values())

    simulate(test())


def test_followers_hear_the_states_and_then_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.run("web", host="aws-1", memory_bytes=256 * MIB)
            _, follower = await migrate_vm(one.control.fabric, MoveWish("web", "gcp-1"))
            heard = [item async for item in follower.follow()]
            lines = [item.progress for item in heard[:-1]]
            assert "precopy, 40%" in lines and isinstance(heard[-1], MigrationView) and heard[-1].outcome == "done"
            with pytest.raises(ConflictError):
                await ended((await migrate_vm(one.control.fabric, MoveWish("web", "gcp-1")))[1])

    simulate(test())


def _host(name: str) -> HostName:
    return HostName(name)
