"""The steps of the source, as tables: what each does, where it leads, what it leaves to undo.

A step's actions run side by side; all must succeed. `ORDER` is the way of a move that goes well; where it forks, the engine
(`source_engine.py`) decides. `EFFECT_OF` says what an action may have changed as soon as it was begun, and `UNDO` how, and in
which order, that is put back.
"""

from __future__ import annotations

from enum import StrEnum

from architect.model.handover_span import Side
from architect.model.handover_state import HandoverState


class SourceStep(StrEnum):
    """Where the source stands."""

    CONNECT = "connect"
    PREPARE = "prepare"
    SEND_BASE = "base"
    START_TARGET = "start"
    OPEN = "open"
    BULK = "bulk"
    ROUND = "round"
    WAIT = "wait"
    HOOK = "hook"
    HOLD = "hold"
    STEER = "steer"
    SETTLE = "settle"
    FORWARD = "forward"
    DRAIN = "drain"
    PAUSE = "pause"
    LAST_ROUND = "last-round"
    CUT = "cut"
    VERIFY = "verify"
    COMMIT = "commit"
    RESOLVE = "resolve"
    CONFIRM = "confirm"
    QUIET = "quiet"
    SERVE = "serve"
    ASK = "ask"
    RELEASE = "release"
    DESTROY = "destroy"
    UNDO = "undo"
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether the handover has ended."""
        return self in (SourceStep.DONE, SourceStep.FAILED, SourceStep.LOST)


class Action(StrEnum):
    """What the driver performs for the engine."""

    CONNECT = "connect"
    COMPARE_CLOCKS = "compare-clocks"
    PREPARE = "prepare"
    SEND_BASE = "send-base"
    START_TARGET = "start-target"
    OPEN_MEMORY = "open-memory"
    BULK = "bulk"
    START_MIRROR = "start-mirror"
    SEND_LOG = "send-log"
    ROUND = "round"
    POLL_MIRROR = "poll-mirror"
    HOOK_SUSPEND = "hook-suspend"
    HOLD = "hold"
    STEER = "steer"
    SETTLE = "settle"
    FORWARD = "forward"
    DRAIN = "drain"
    PAUSE = "pause"
    RELAY_REST = "relay-rest"
    END_DISK = "end-disk"
    SAVE_STATE = "save-state"
    CUT_MEMORY = "cut-memory"
    FULL_HASH = "full-hash"
    SEND_CUT = "send-cut"
    WRITE_ABORT = "write-abort"
    ASK_WHETHER_RUNNING = "ask-whether-running"
    WAIT_QUIET = "wait-quiet"
    SERVE_MEMORY = "serve-memory"
    AWAIT_FILLED = "await-filled"
    ASK_STATUS = "ask-status"
    RELEASE = "release"
    DESTROY = "destroy"
    SET_LOCAL = "set-local"
    RESUME = "resume"
    SYNC_CLOCK = "sync-clock"
    HOOK_RESUME = "hook-resume"
    STEER_BACK = "steer-back"
    ABORT_TARGET = "abort-target"
    STEER_ALONE = "steer-alone"
    CANCEL_MIRROR = "cancel-mirror"
    ABORT_MEMORY = "abort-memory"


class Effect(StrEnum):
    """What a handover may have changed."""

    TARGET = "target"
    MEMORY = "memory"
    MIRROR = "mirror"
    HOOKED = "hooked"
    STEERED = "steered"
    FORWARDED = "forwarded"
    PAUSED = "paused"
    CUT_SENT = "cut-sent"


EFFECT_OF: dict[Action, Effect] = {
    Action.PREPARE: Effect.TARGET,
    Action.OPEN_MEMORY: Effect.MEMORY,
    Action.START_MIRROR: Effect.MIRROR,
    Action.HOOK_SUSPEND: Effect.HOOKED,
    Action.STEER: Effect.STEERED,
    Action.FORWARD: Effect.FORWARDED,
    Action.PAUSE: Effect.PAUSED,
    Action.SEND_CUT: Effect.CUT_SENT,
}

UNDO: tuple[tuple[Effect, Action], ...] = (
    # Packets first reach the tap here, then the guest runs, then new ones come, then those that waited at the target; after that
    # the target may not speak for the VM any more.
    (Effect.FORWARDED, Action.SET_LOCAL),
    (Effect.PAUSED, Action.RESUME),
    (Effect.STEERED, Action.STEER_BACK),
    (Effect.TARGET, Action.ABORT_TARGET),
    (Effect.STEERED, Action.STEER_ALONE),
    (Effect.PAUSED, Action.SYNC_CLOCK),
    (Effect.HOOKED, Action.HOOK_RESUME),
    (Effect.MIRROR, Action.CANCEL_MIRROR),
    (Effect.MEMORY, Action.ABORT_MEMORY),
)

ORDER: dict[SourceStep, SourceStep] = {
    SourceStep.CONNECT: SourceStep.PREPARE,
    SourceStep.SEND_BASE: SourceStep.START_TARGET,
    SourceStep.START_TARGET: SourceStep.OPEN,
    SourceStep.OPEN: SourceStep.BULK,
    SourceStep.WAIT: SourceStep.ROUND,
    SourceStep.HOOK: SourceStep.HOLD,
    SourceStep.HOLD: SourceStep.STEER,
    SourceStep.STEER: SourceStep.SETTLE,
    SourceStep.SETTLE: SourceStep.FORWARD,
    SourceStep.FORWARD: SourceStep.DRAIN,
    SourceStep.DRAIN: SourceStep.PAUSE,
    SourceStep.PAUSE: SourceStep.LAST_ROUND,
    SourceStep.LAST_ROUND: SourceStep.CUT,
    SourceStep.VERIFY: SourceStep.COMMIT,
    SourceStep.QUIET: SourceStep.RELEASE,
    SourceStep.RELEASE: SourceStep.DESTROY,
}

ACTIONS: dict[SourceStep, tuple[Action, ...]] = {
    SourceStep.CONNECT: (Action.CONNECT,),
    SourceStep.PREPARE: (Action.PREPARE,),
    SourceStep.SEND_BASE: (Action.SEND_BASE,),
    SourceStep.START_TARGET: (Action.START_TARGET, Action.COMPARE_CLOCKS),
    SourceStep.OPEN: (Action.OPEN_MEMORY,),
    SourceStep.BULK: (Action.BULK, Action.START_MIRROR, Action.SEND_LOG),
    SourceStep.ROUND: (Action.ROUND, Action.POLL_MIRROR),
    SourceStep.WAIT: (),
    SourceStep.HOOK: (Action.HOOK_SUSPEND, Action.SEND_LOG),
    SourceStep.HOLD: (Action.HOLD, Action.ROUND),
    SourceStep.STEER: (Action.STEER,),
    SourceStep.SETTLE: (Action.SETTLE,),
    SourceStep.FORWARD: (Action.FORWARD,),
    SourceStep.DRAIN: (Action.DRAIN,),
    SourceStep.PAUSE: (Action.PAUSE,),
    SourceStep.LAST_ROUND: (Action.ROUND, Action.END_DISK, Action.SAVE_STATE, Action.RELAY_REST),
    SourceStep.CUT: (Action.CUT_MEMORY,),
    SourceStep.VERIFY: (Action.FULL_HASH,),
    SourceStep.COMMIT: (Action.SEND_CUT,),
    SourceStep.RESOLVE: (Action.WRITE_ABORT,),
    SourceStep.CONFIRM: (Action.ASK_WHETHER_RUNNING,),
    SourceStep.QUIET: (Action.WAIT_QUIET, Action.COMPARE_CLOCKS),
    SourceStep.SERVE: (Action.SERVE_MEMORY, Action.AWAIT_FILLED, Action.COMPARE_CLOCKS),
    SourceStep.ASK: (Action.ASK_STATUS,),
    SourceStep.RELEASE: (Action.RELEASE,),
    SourceStep.DESTROY: (Action.DESTROY,),
    SourceStep.UNDO: (),
    SourceStep.DONE: (),
    SourceStep.FAILED: (),
    SourceStep.LOST: (),
}

TOLERATED = frozenset(
    (
        Action.COMPARE_CLOCKS, Action.HOOK_SUSPEND, Action.HOOK_RESUME, Action.SYNC_CLOCK, Action.DRAIN, Action.RELAY_REST,
        Action.WAIT_QUIET, Action.RELEASE,
    )
)  # fmt: skip
"""Actions whose failure is noted and passed over: the move is worth more than they are."""

INSISTED = frozenset({Action.SET_LOCAL, Action.RESUME, Action.STEER_BACK})
"""Undo actions that are tried again: without them the VM does not run, or cannot be reached."""

UNTOLD = frozenset({Action.ABORT_TARGET, Action.WRITE_ABORT})
"""Undo actions whose failure is noted, and no part of the reason: the VM runs here, and why the move failed is known already."""

HANDOVER_STATE: dict[SourceStep, HandoverState] = {
    **dict.fromkeys(
        (SourceStep.CONNECT, SourceStep.PREPARE, SourceStep.SEND_BASE, SourceStep.START_TARGET), HandoverState.PREPARING
    ),
    **dict.fromkeys((SourceStep.OPEN, SourceStep.BULK, SourceStep.ROUND, SourceStep.WAIT), HandoverState.PRECOPY),
    **dict.fromkeys(
        (
            SourceStep.HOOK, SourceStep.HOLD, SourceStep.STEER, SourceStep.SETTLE, SourceStep.FORWARD, SourceStep.DRAIN,
            SourceStep.PAUSE, SourceStep.LAST_ROUND, SourceStep.CUT, SourceStep.VERIFY, SourceStep.COMMIT, SourceStep.RESOLVE,
        ),
        HandoverState.SWITCHOVER,
    ),
    **dict.fromkeys((SourceStep.SERVE, SourceStep.ASK), HandoverState.POSTCOPY),
    **dict.fromkeys((SourceStep.CONFIRM, SourceStep.QUIET, SourceStep.RELEASE, SourceStep.DESTROY), HandoverState.COMMITTED),
    SourceStep.DONE: HandoverState.DONE,
    SourceStep.FAILED: HandoverState.FAILED,
    SourceStep.LOST: HandoverState.LOST,
}  # fmt: skip
"""What a step is called outside. UNDO keeps the state in which the failure came; RELEASE and DESTROY may follow POSTCOPY."""

SIDE_OF = dict.fromkeys((Action.HOOK_SUSPEND, Action.HOOK_RESUME, Action.SYNC_CLOCK), Side.GUEST)
"""Who performs an action, if it is not the source."""

STANDING = frozenset(
    (
        SourceStep.STEER,
        SourceStep.SETTLE,
        SourceStep.FORWARD,
        SourceStep.DRAIN,
        SourceStep.PAUSE,
        SourceStep.LAST_ROUND,
        SourceStep.CUT,
        SourceStep.COMMIT,
    )
)
"""Steps that begin while packets wait for the VM: nothing is done beside them that can wait."""

WATCHED = frozenset(
    step
    for step, state in HANDOVER_STATE.items()
    if state in (HandoverState.PREPARING, HandoverState.PRECOPY) and step not in (SourceStep.CONNECT, SourceStep.PREPARE)
) | {SourceStep.DRAIN, SourceStep.SERVE}
"""Steps long enough for the peer to vanish unseen: the driver keeps asking whether it is alive. Before it has answered `Prepare`,
however slow it is with that, it knows nothing of the handover that it could be asked about."""
