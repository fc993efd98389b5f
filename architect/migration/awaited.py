"""Whom an action waits for, in words: an action that is late names the process or host that has not answered, not only itself."""

from __future__ import annotations

from architect.errors import UnavailableError
from architect.migration.source_steps import Action
from architect.migration.target_engine import TargetAction
from architect.model.ids import HostName

_QEMU, _MEMORY, _GUEST = "QEMU of vm {vm} on host {host}", "the memory process of vm {vm} on host {host}", "the guest of vm {vm}"
_PEER, _EDGE, _LOG, _HERE = "host {peer}", "the edge", "the ownership log", "the network of host {host}"
_BOTH_QEMUS = "QEMU of vm {vm} on host {host}, or the one on host {peer} to which it copies"

OF_SOURCE: dict[Action, str] = {
    **dict.fromkeys(
        (
            Action.CONNECT, Action.COMPARE_CLOCKS, Action.PREPARE, Action.SEND_BASE, Action.START_TARGET, Action.SEND_LOG,
            Action.HOLD, Action.SEND_CUT, Action.ASK_WHETHER_RUNNING, Action.AWAIT_FILLED, Action.ASK_STATUS, Action.RELEASE,
            Action.ABORT_TARGET,
        ),
        _PEER,
    ),
    **dict.fromkeys((Action.START_MIRROR, Action.END_DISK), _BOTH_QEMUS),
    **dict.fromkeys(
        (Action.POLL_MIRROR, Action.PAUSE, Action.SAVE_STATE, Action.DESTROY, Action.RESUME, Action.CANCEL_MIRROR), _QEMU
    ),
    **dict.fromkeys(
        (
            Action.OPEN_MEMORY, Action.BULK, Action.ROUND, Action.CUT_MEMORY, Action.FULL_HASH, Action.SERVE_MEMORY,
            Action.ABORT_MEMORY,
        ),
        _MEMORY,
    ),
    **dict.fromkeys((Action.HOOK_SUSPEND, Action.HOOK_RESUME, Action.SYNC_CLOCK), _GUEST),
    **dict.fromkeys((Action.STEER, Action.SETTLE, Action.STEER_BACK, Action.STEER_ALONE), _EDGE),
    **dict.fromkeys((Action.FORWARD, Action.DRAIN, Action.RELAY_REST, Action.WAIT_QUIET, Action.SET_LOCAL), _HERE),
    Action.WRITE_ABORT: _LOG,
}  # fmt: skip

OF_TARGET: dict[TargetAction, str] = {
    **dict.fromkeys(
        (
            TargetAction.STOP_EXPORT, TargetAction.ATTACH_DISK, TargetAction.LOAD, TargetAction.RESUME, TargetAction.WAIT_DISK,
            TargetAction.DESTROY,
        ),
        _QEMU,
    ),
    **dict.fromkeys(
        (TargetAction.APPLY_CUT, TargetAction.FULL_HASH, TargetAction.WAIT_MEMORY, TargetAction.ABORT_MEMORY), _MEMORY
    ),
    **dict.fromkeys((TargetAction.CREATE_RECORD, TargetAction.GIVE_BACK), _LOG),
    TargetAction.APPEND_LOG: "the disk of host {host}",
    TargetAction.RELAY: _HERE,
}  # fmt: skip


def late(action: Action | TargetAction, bound_s: float, vm: str, host: HostName, peer: HostName) -> UnavailableError:
    """That the action of `host`, in the move of the VM of that name with `peer`, was late."""
    party = OF_SOURCE[action] if isinstance(action, Action) else OF_TARGET[action]
    cause = f"{action.value} took longer than {bound_s:g} s, waiting for {party.format(vm=vm, host=host, peer=peer)}"
    return UnavailableError(f"vm {vm}", cause, "try the move again, or to another host")
