"""What a target keeps of a handover that is over: enough to answer a source that asks again, nothing of what it worked with.

A source whose connection broke, or whose agent was killed, may ask long after the end; ports, buffers and tasks of the session
would keep the VM's processes' memory with them until then.
"""

from __future__ import annotations

import msgspec

from architect.errors import ConflictError
from architect.migration.target_engine import TargetStep
from architect.model.handover_span import Span
from architect.model.ids import HostName, VmId
from architect.wire.migration_messages import (
    Abort,
    Accepted,
    Alive,
    AskStatus,
    AwaitFilled,
    Release,
    Released,
    TargetRequest,
    TargetStatus,
)


class EndedHandover(msgspec.Struct, frozen=True):
    """A handover that is over. `owns`: the VM was taken over; `spans` are those that the source was not told yet."""

    vm: VmId
    source: HostName
    step: TargetStep
    status: TargetStatus
    owns: bool
    spans: tuple[Span, ...] = ()

    def answer(self, message: TargetRequest) -> Accepted | Released | TargetStatus:
        """What the source is told.

        Raises:
            ConflictError: it asks for what only a handover that goes on can do.
        """
        match message:
            case AskStatus() | AwaitFilled() | Abort():
                return self.status
            case Release() if self.owns:
                return Released(self.spans)
            case Alive():
                return Accepted()
            case _:
                raise ConflictError(f"vm {self.vm}", f"is {self.step.value} at the target", "ask how the handover stands")
