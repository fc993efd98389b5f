"""What the control plane keeps of moves that have ended: little in memory, everything in the database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from architect.control.handover_track import with_report, with_state
from architect.control.records import MigrationRecord, MoveCause
from architect.control.views import event_views, migration_view
from architect.model.handover_span import Side, Span
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ids import HostName, MigrationId, VmId
from architect.testing.fake_agent import FakeWorld
from architect.wire.agent_messages import MigrationReport
from tests.control.rig import Rig, rig, simulate
from tests.kept_memory import counting_memory, kept_bytes

WARM_UP_MOVES, COUNTED_MOVES = 4, 6
KEPT_BYTES_MAX = 2048
"""Of a move that has ended: its record without the report, and a dozen events. The report has some 20 KiB."""

SPANS = tuple(Span(f"step-{number}", Side.TARGET, number + 0.1, number + 0.3, f"of-{number // 4}") for number in range(70))


async def move_to_and_fro(one: Rig, count: int) -> None:
    for _ in range(count):
        await one.migrate("web", "gcp-1" if one.view("web").host == "aws-1" else "aws-1")


def tell_much(world: FakeWorld) -> None:
    """The hosts report as many steps of a move as real ones."""
    world.spans = SPANS


def test_moves_that_have_ended_cost_the_control_plane_little_memory(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            tell_much(one.world)
            await one.run("web", host="aws-1")
            await move_to_and_fro(one, WARM_UP_MOVES)
            before = kept_bytes()
            await move_to_and_fro(one, COUNTED_MOVES)
            await asyncio.sleep(2)
            assert (kept_bytes() - before) / COUNTED_MOVES < KEPT_BYTES_MAX

    with counting_memory():
        simulate(test())


def test_a_move_that_has_ended_is_told_whole_also_by_a_control_plane_that_was_restarted(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            tell_much(one.world)
            await one.run("web", host="aws-1")
            told = await one.migrate("web", "gcp-1")
            for _ in range(2):
                book = one.control.fabric.book
                (held,) = book.moves.values()
                (whole,) = await book.read_moves([held.id])
                assert (held.report, held.state) == (None, HandoverState.DONE)
                assert migration_view(whole) == told and len(told.spans) > len(SPANS)
                (ended,) = [event for event in await event_views(one.control.fabric, 0) if event.kind == "migration-done"]
                assert ended.spans == tuple(span for span in told.spans if not span.parent)
                await one.restart()

    simulate(test())


def test_a_move_under_way_is_told_with_its_latest_report_and_one_that_is_unknown_not_at_all(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.run("web", host="aws-1")
            gate = one.world.hold[HandoverState.SWITCHOVER] = asyncio.Event()
            moving = asyncio.create_task(one.migrate("web", "gcp-1"))
            book = one.control.fabric.book
            await one.until(lambda: [move.state for move in book.moves.values()] == [HandoverState.PRECOPY])
            (held,) = book.moves.values()
            assert await book.read_moves([held.id, type(held.id)("mig-unknown")]) == [held]
            assert held.report is not None
            gate.set()
            await moving

    simulate(test())


def test_figures_of_a_move_whose_source_did_not_live_to_tell_its_end_say_so_and_name_no_pause() -> None:
    early = MigrationReport(
        MigrationId("mig-1"), VmId("vm-1"), HostName("a"), HostName("b"), MigrationMode.PRECOPY, HandoverState.PRECOPY, total_s=0.5
    )
    record = MigrationRecord(
        id=early.id, vm=early.vm, vm_name="web", source=early.source, target=early.target, mode=early.mode, cause=MoveCause.USER,
        source_term=1, started_at_s=100.0, verify=False, state=HandoverState.PRECOPY, report=early,
    )  # fmt: skip
    whole = msgspec.structs.replace(early, state=HandoverState.DONE, total_s=2.0, downtime_ms=40.0)
    forgetful = msgspec.structs.replace(whole, downtime_ms=None)

    settled = migration_view(with_state(record, HandoverState.DONE, 107.0))
    told = migration_view(with_report(record, whole, 107.0))
    committed = with_report(record, msgspec.structs.replace(whole, state=HandoverState.POSTCOPY), 103.0)
    told_by_another = migration_view(with_report(committed, forgetful, 107.0))

    assert (settled.outcome, settled.downtime_ms, settled.total_s, settled.is_complete) == ("done", None, 7.0, False)
    assert (told.outcome, told.downtime_ms, told.total_s, told.is_complete) == ("done", 40.0, 2.0, True)
    assert told_by_another == told, "an agent that was started again did not see the pause"
