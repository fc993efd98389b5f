"""How long each action of a source, and of a target, may take before it counts as failed, and how long its questions may be."""

from __future__ import annotations

from architect.migration.handover_plan import HandoverLimits, HandoverPlan
from architect.migration.source_steps import Action, SourceStep
from architect.migration.target_engine import TargetAction, TargetState
from architect.runtime.part_size import PartBounds


def action_bound_s(action: Action, step: SourceStep, plan: HandoverPlan) -> float:
    """The bound of an action in a step."""
    limits = plan.limits
    if step in (SourceStep.LAST_ROUND, SourceStep.CUT):
        return limits.pause_timeout_s
    match action:
        case Action.SEND_BASE | Action.BULK | Action.ROUND | Action.SEND_LOG:
            return limits.transfer_timeout_s + _limited_s(plan)
        case Action.START_TARGET:
            return limits.start_timeout_s + 1.0
        case Action.SERVE_MEMORY | Action.AWAIT_FILLED:
            return limits.fill_timeout_s + _limited_s(plan)
        case Action.SEND_CUT:
            return limits.commit_timeout_s + verify_bound_s(plan) + 2.0
        case Action.FULL_HASH:
            return limits.machine_timeout_s + verify_bound_s(plan)
        case Action.WRITE_ABORT:
            return limits.record_timeout_s * 2
        case Action.ASK_WHETHER_RUNNING | Action.ASK_STATUS:
            return limits.call_timeout_s * 4 + limits.record_timeout_s
        case Action.HOOK_SUSPEND | Action.HOOK_RESUME | Action.SYNC_CLOCK:
            return limits.hook_timeout_s
        case _:
            return max(limits.machine_timeout_s, limits.call_timeout_s * 2)


def target_bound_s(action: TargetAction, state: TargetState, limits: HandoverLimits) -> float:
    """The bound of an action of the target. What may need the source is bounded by that (`source_watch`): a QEMU that is told to
    run answers once it has what it needs for that, or to refuse."""
    match action:
        case TargetAction.WAIT_MEMORY | TargetAction.WAIT_DISK:
            return limits.fill_timeout_s
        case TargetAction.RESUME if state.needs_source:
            return limits.unreached_s_max
        case TargetAction.CREATE_RECORD | TargetAction.GIVE_BACK:
            return limits.record_timeout_s
        case TargetAction.RELAY:
            return limits.machine_timeout_s + limits.call_timeout_s
        case TargetAction.FULL_HASH:
            return limits.machine_timeout_s + state.request.spec.machine.memory_bytes / limits.verify_bytes_per_s
        case _:
            return limits.machine_timeout_s


def part_bounds(bytes_max: int) -> PartBounds:
    """Bytes of a base disk or an output log in one question to the target's agent, which is answered before the next is asked.

    On a slow or shared link a long one would hold up what is asked behind it on the same connection (whether the target is alive,
    or the abort) until that counts as unanswered.
    """
    return PartBounds(first=256 << 10, least=32 << 10, most=bytes_max, quick_s=0.1, slow_s=0.5)


def verify_bound_s(plan: HandoverPlan) -> float:
    """How long one side may hash all memory, if it does."""
    return plan.spec.machine.memory_bytes / plan.limits.verify_bytes_per_s if plan.verify else 0.0


def _limited_s(plan: HandoverPlan) -> float:
    """How long all memory takes under the bandwidth limit."""
    return plan.spec.machine.memory_bytes / plan.bandwidth.bytes_per_s if plan.bandwidth is not None else 0.0
