"""A move whose VM is to be stopped or removed: its source is asked to give it up; nobody waits for a copy that nobody wants.

Before its cut the source undoes it, at once; after that it goes on to its end, and the VM is stopped where it then is. Which of the
two only the source knows; it is told again whenever it is asked for the move again, and the move ends as it tells.
"""

from __future__ import annotations

import logging

from architect.control.fabric import Fabric
from architect.control.records import Desired, MigrationRecord
from architect.errors import ArchitectError
from architect.model.handover_state import BEFORE_COMMIT
from architect.wire.agent_messages import GiveUpMove

GIVE_UP_TIMEOUT_S = 5.0
_WHY = {Desired.STOPPED: "it is to be stopped", Desired.REMOVED: "it is to be removed"}

_log = logging.getLogger(__name__)


def why_unwanted(fabric: Fabric, record: MigrationRecord) -> str:
    """Why nobody wants the move any more; "" if it is wanted, or past what can be given up as far as is known."""
    vm = fabric.book.vms.get(record.vm)
    return "" if vm is None or record.state not in BEFORE_COMMIT else _WHY.get(vm.desired, "")


async def ask_to_give_up(fabric: Fabric, record: MigrationRecord, why: str) -> bool:
    """Ask the source to give the move up; whether it has heard."""
    try:
        await fabric.fleet.call(record.source, GiveUpMove(record.id, record.vm, why), timeout_s=GIVE_UP_TIMEOUT_S)
    except ArchitectError as error:
        _log.info("%s is not given up yet: %s", record.id, error)
        return False
    return True
