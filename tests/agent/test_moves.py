"""The handovers of an agent: what it says of one whose session an agent before it had."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from architect.agent.moves import Moves
from architect.agent.vm_record import VmPhase, VmRecord
from architect.errors import LostError
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ids import MigrationId
from architect.model.vm_state import VmState
from architect.wire.agent_messages import MigrateVm
from tests.migration.handover_values import plan

SPEC = plan().spec
MOVE, NONE = MigrationId("mig-000000000001"), MigrationId("")


def _moves(folder: Path, table: object) -> Moves:
    host: Any = SimpleNamespace(
        clock=None,
        entropy=None,
        facts=SimpleNamespace(name="gcp-1"),
        vms_dir=folder,
        config=SimpleNamespace(name="aws-1", state_dir=str(folder)),
    )
    return Moves(host, cast("Any", table), cast("Any", None))


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        pytest.param({"arrived_by": MOVE, "migration": NONE}, HandoverState.DONE, id="all is here"),
        pytest.param({"arrived_by": MOVE, "migration": MOVE}, None, id="it runs and fills: its source is still needed"),
        pytest.param({"arrived_by": MOVE, "migration": MigrationId("mig-2")}, HandoverState.DONE, id="it moves on"),
        pytest.param({"migration": MOVE, "phase": VmPhase.OVER, "end_state": VmState.LOST}, HandoverState.LOST, id="lost"),
        pytest.param({"migration": MOVE, "phase": VmPhase.INCOMING}, None, id="on its way"),
        pytest.param({}, None, id="another VM"),
    ],
)
def test_a_move_is_done_for_a_source_that_asks_again_only_when_nothing_is_missing(
    tmp_path: Path, record: dict[str, Any], outcome: HandoverState | None
) -> None:
    vm = SimpleNamespace(record=msgspec.structs.replace(VmRecord(SPEC.request, VmPhase.RUNNING, 2, SPEC), **record))
    assert _moves(tmp_path, [vm]).outcome(MOVE) is outcome


def test_a_vm_whose_qemu_has_just_ended_is_refused_for_that_once_its_end_is_known(tmp_path: Path) -> None:
    reason = "QEMU of vm web on host aws-1 was killed by signal 9 (SIGKILL); no checkpoint exists"

    async def check() -> None:
        record = VmRecord(SPEC.request, VmPhase.RUNNING, 2, SPEC)
        parts = SimpleNamespace(machine=SimpleNamespace(is_running=False))
        vm = SimpleNamespace(record=record, parts=parts, paused_because="", ended=asyncio.Event())
        request = MigrateVm(migration=MOVE, vm=SPEC.id, target=plan().target, mode=MigrationMode.AUTO)
        asked = asyncio.create_task(_moves(tmp_path, SimpleNamespace(find=lambda _: vm)).open_handover(request))
        await asyncio.sleep(0)
        assert not asked.done()
        vm.record = msgspec.structs.replace(record, phase=VmPhase.OVER, end_state=VmState.LOST, reason=reason)
        vm.ended.set()
        with pytest.raises(LostError, match="killed by signal 9"):
            await asked

    asyncio.run(check())
