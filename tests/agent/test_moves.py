"""The handovers of an agent: what it says of one whose session an agent before it had."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from architect.agent.moves import Moves
from architect.agent.vm_record import VmPhase, VmRecord
from architect.model.handover_state import HandoverState
from architect.model.ids import MigrationId
from architect.model.vm_state import VmState
from tests.migration.handover_values import plan

MOVE, NONE = MigrationId("mig-000000000001"), MigrationId("")


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
    spec = plan().spec
    vm = SimpleNamespace(record=msgspec.structs.replace(VmRecord(spec.request, VmPhase.RUNNING, 2, spec), **record))
    host: Any = SimpleNamespace(
        clock=None,
        entropy=None,
        facts=SimpleNamespace(name="gcp-1"),
        vms_dir=tmp_path,
        config=SimpleNamespace(name="gcp-1", state_dir=str(tmp_path)),
    )
    assert Moves(host, cast("Any", [vm]), cast("Any", None)).outcome(MOVE) is outcome
