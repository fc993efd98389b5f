"""The target's steps in the ownership model; `migration.target_engine` and `agent.recovery`, reduced."""

from __future__ import annotations

from collections.abc import Iterator

from architect.testing.ownership.model import ABORT, RUN, Rules, S, State, Step, T, owner
from architect.testing.ownership.moves import Answer, create, late, newest, own_term, steer, words


def target_steps(state: State, rules: Rules) -> Iterator[Step]:
    """What T can do next."""
    match state.t:
        case "wait":
            yield "T gives the move up", state._replace(t="undo")
        case "claim" | "recover":
            yield from _claims(state, rules)
        case "resume":
            yield from _resumes(state, rules)
        case "issued":
            yield from _issued(state, rules)
        case "handback":
            yield from _hands_back(state)
        case "undo":
            yield from _undoes(state)
        case "undo-lost":
            yield "T notes that the VM is lost", _answered(state, "lost")._replace(t="lost", tq="none", prepare=False)
        case "runs":
            yield from _owns(state, rules)
        case "lapsed" | "lone":
            yield from _asks_the_log(state)
        case "down":
            yield "T's agent starts", _restarted(state)
        case _:
            pass


def _claims(state: State, rules: Rules) -> Iterator[Step]:
    """T creates the record that makes the VM its own; one that starts anew, or whose QEMU is dead, the one that keeps it at S."""
    if state.t_in:
        yield f"T takes in {words(state.t_in)}", _learnt(state, state.t_in)
        return
    if state.t == "recover" and state.tq in ("halted", "none"):
        yield "T finds that nothing was loaded", state._replace(t="undo")
    if state.isolated == T:
        return
    kind, host = (RUN, T) if state.t == "claim" and state.tq == "loaded" else (ABORT, S)
    log, answer = create(state.log, kind, host, state.base + 1)
    yield f"the store answers T's {kind} {state.base + 1}", state._replace(log=log, t_in=answer)
    for sentence, after in late(state, ("create", kind, host, state.base + 1)):
        yield sentence, after if rules.target_reads_back or kind != RUN else after._replace(t="resume")


def _learnt(state: State, answer: Answer) -> State:
    is_ours = answer == (RUN, T, state.base + 1)
    return state._replace(t="resume" if is_ours else "undo", t_in=())


def _resumes(state: State, rules: Rules) -> Iterator[Step]:
    """The record is ours. That QEMU is about to be told to run is written down before it is told."""
    if state.tq in ("loaded", "paused"):
        yield "T notes that the VM may run", state._replace(t="issued", halted=False)
    elif state.tq == "running":
        yield "T finds the VM running", state._replace(t="runs")
    elif rules.target_hands_back and (state.halted or not rules.target_hands_back_only_when_sure):
        yield "T's QEMU ended before it was told to run", state._replace(t="handback")
    else:
        yield "T's QEMU ended, perhaps after it ran", state._replace(t="undo-lost")


def _issued(state: State, rules: Rules) -> Iterator[Step]:
    if state.tq in ("loaded", "paused"):
        yield "T lets the VM run", state._replace(t="runs", tq="running", head=state.head if state.n == "runs" else T)
    else:
        yield "T's QEMU does not answer", state._replace(t="resume")


def _hands_back(state: State) -> Iterator[Step]:
    """The record after ours names S. Whatever record exists there, the VM is not ours any more."""
    if state.t_in:
        yield f"T takes in {words(state.t_in)}", state._replace(t="undo", t_in=())
        return
    if state.isolated == T:
        return
    term = state.base + 2
    log, answer = create(state.log, RUN, S, term)
    yield f"the store answers T's hand-back {term}", state._replace(log=log, t_in=answer)
    yield from late(state, ("create", RUN, S, term))


def _undoes(state: State) -> Iterator[Step]:
    if state.tq != "none":
        yield "T destroys its copy", state._replace(tq="none")
    else:
        yield "T says that the VM does not come", _answered(state, "failed")._replace(t="gone", prepare=False, t_move=True)


def _owns(state: State, rules: Rules) -> Iterator[Step]:
    """T runs the VM."""
    if state.asked:
        yield "T answers the cut", _answered(state, "runs")
    if state.tq == "dead":
        if state.prepare and not rules.target_hands_back_only_when_sure:
            yield "T hands back a VM that has run", state._replace(t="handback")
        yield "T notes that the VM is lost", state._replace(t="undo-lost")
        return
    if state.prepare:
        yield "T has all of the VM", state._replace(prepare=False)
    term = own_term(state, T)
    if state.isolated == T:
        yield "T's lease expires: it pauses the VM", state._replace(t="lapsed", tq="paused")
    elif owner(state) != T:
        yield "T reads that the VM is another's: it destroys its copy", state._replace(t="undo", asked=False)
    yield from steer(state, T, (term, T, S))
    yield from steer(state, T, (term, T, ""))


def _asks_the_log(state: State) -> Iterator[Step]:
    """T holds a paused VM, and asks whether it is its own."""
    if state.t_in:
        known = state._replace(t_in=())
        if state.t_in[1] == T:
            yield f"T takes in {words(state.t_in)}", known._replace(t="resume")
        else:
            yield f"T takes in {words(state.t_in)}", known._replace(t="undo", asked=False)
        return
    if state.isolated == T:
        return
    if state.t == "lapsed":
        yield "the store tells T the newest record", state._replace(t_in=newest(state.log))
        if state.edge[1] == T:
            yield "the edge tells T that it is the newest", state._replace(t_in=(RUN, T, state.edge[0]))
        return
    log, answer = create(state.log, ABORT, T, own_term(state, T) + 1)
    if answer[1] != T:
        answer = newest(log)
    yield "the store answers T's abort", state._replace(log=log, t_in=answer)


def _answered(state: State, word: str) -> State:
    """The cut's answer is under way, if somebody has asked."""
    if not state.asked:
        return state
    return state._replace(asked=False, net=state.net | {("answer", state.left.moves, word)})


def _restarted(state: State) -> State:
    """What an agent that starts makes of what it finds."""
    if state.prepare:
        return state._replace(t="recover")
    return state._replace(t={"running": "runs", "paused": "lone", "dead": "undo-lost"}.get(state.tq, "gone"))
