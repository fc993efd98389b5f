"""The source's steps in the ownership model; `migration.source_engine`, `agent.recovery` and `agent.lease_keeper`, reduced."""

from __future__ import annotations

from collections.abc import Iterator

from architect.testing.ownership.model import ABORT, END, RUN, Message, Rules, S, State, Step, T, owner
from architect.testing.ownership.moves import Answer, create, late, newest, own_term, steer, words


def source_steps(state: State, rules: Rules) -> Iterator[Step]:
    """What S can do next."""
    match state.s:
        case "run":
            yield from _owns(state)
        case "moving":
            yield from steer(state, S, (state.base, T, S))
            if state.edge == (state.base, T, S) and state.sq == "running":
                yield "S pauses the VM", state._replace(s="cut", sq="paused")
            yield "S gives the move up", state._replace(s="undo")
        case "cut":
            if state.sq == "paused":
                message: Message = ("cut", state.left.moves)
                yield "S sends the cut", state._replace(s="sent", sent=True, net=state.net | {message})
            yield "S gives the move up", state._replace(s="undo")
        case "sent":
            yield from _hears_nothing(state, rules)
        case "resolve" | "resolve-lost" | "lone" | "found" | "lapsed":
            yield from _asks_the_log(state)
        case "confirm":
            yield from _confirms(state, rules)
        case "undo":
            yield from _undoes(state)
        case "told":
            yield "S destroys its copy", state._replace(s="gone", sq="none", plan=False, sent=False)
        case "down":
            yield "S's agent starts", _restarted(state)
        case _:
            pass


def _owns(state: State) -> Iterator[Step]:
    """No move is under way, and as far as S knows the VM is its own."""
    if state.sq == "dead":
        yield "S notes that its QEMU ended", state._replace(s="over")
        return
    is_free = state.t in ("off", "gone") and state.tq == "none" and state.n == "off"
    if state.isolated != S and owner(state) == S and is_free and state.left.moves > 0:
        begun = state._replace(
            s="moving", plan=True, sent=False, base=len(state.log), t="wait", tq="halted", prepare=True, halted=True, asked=False,
            fit=False, left=state.left._replace(moves=state.left.moves - 1),
        )  # fmt: skip
        yield "S begins a move to T", begun
    if state.isolated == S:
        yield "S's lease expires: it pauses the VM", state._replace(s="lapsed", sq="paused")
    elif owner(state) != S:
        yield "S reads that the VM is another's: it destroys its copy", state._replace(s="gone", sq="none")
    yield from steer(state, S, (own_term(state, S), S, ""))


def _hears_nothing(state: State, rules: Rules) -> Iterator[Step]:
    """The answer to the cut does not come, or says that it failed, without a word on why."""
    if not rules.source_waits_for_its_record:
        yield "S hears nothing, and goes on", state._replace(s="undo")
    elif not rules.source_reads_back:
        yield "S hears nothing, and takes the VM for lost", state._replace(s="told")
    else:
        yield "S hears nothing, and resolves", state._replace(s="resolve")


def _asks_the_log(state: State) -> Iterator[Step]:
    """S waits for a record; the answer may come late, or never."""
    if state.s_in:
        yield f"S takes in {words(state.s_in)}", _learnt(state._replace(s_in=()), state.s_in)
        return
    if state.isolated == S:
        return
    if state.s in ("found", "lapsed"):
        yield "the store tells S the newest record", state._replace(s_in=newest(state.log))
        if state.s == "lapsed" and state.edge[1] == S:
            yield "the edge tells S that it is the newest", state._replace(s_in=(RUN, S, state.edge[0]))
        return
    term = (own_term(state, S) if state.s == "lone" else state.base) + 1
    log, answer = create(state.log, ABORT, S, term)
    if answer[1] != S:
        answer = newest(log)
    yield f"the store answers S's abort {term}", state._replace(log=log, s_in=answer)
    yield from late(state, ("create", ABORT, S, term))


def _learnt(state: State, answer: Answer) -> State:
    """S knows a record, which may not be the newest any more."""
    kind, host, term = answer
    if kind == END:
        return state._replace(s="told")
    if host == S:
        return state._replace(s="undo")
    if state.s in ("lone", "lapsed"):
        return state._replace(s="told")
    if state.s == "found":
        return state._replace(s="resolve")
    assert isinstance(term, int)
    if state.s == "resolve-lost" or term > state.base + 1 or host != T:
        return state._replace(s="told")
    return state._replace(s="confirm")


def _confirms(state: State, rules: Rules) -> Iterator[Step]:
    """T's record exists. Whether T runs the VM by it, S does not know yet."""
    if not rules.source_asks_before_it_lets_go:
        yield "S lets go by the record alone", state._replace(s="told")
    if state.s_in:
        word, asked = state.s_in[0], state._replace(s_in=())
        step = {"runs": "told", "lost": "told", "failed": "resolve"}.get(str(word))
        yield f"S hears that T {word}", asked._replace(s=step) if step else _learnt(asked, state.s_in)
        return
    if (word := word_of_target(state)) != "":
        yield f"T tells S that it {word}", state._replace(s_in=(word,))
    if state.isolated != S and len(state.log) > state.base + 1:
        yield "the store tells S the newest record", state._replace(s_in=newest(state.log))
    if state.left.expiries > 0:
        left = state.left._replace(expiries=state.left.expiries - 1)
        yield "S has waited for T for too long", state._replace(s="told", left=left, excuse="T was silent for too long")


def word_of_target(state: State) -> str:
    """What T says of the move that it was asked about; "" while it does not know, or is not there."""
    if state.t == "gone":
        return "failed" if state.t_move else ""
    return {"runs": "runs", "lapsed": "runs", "lost": "lost"}.get(state.t, "")


def _undoes(state: State) -> Iterator[Step]:
    """S keeps the VM: it runs, and the edge is told. Without T's word that it has given up it uses up the move's number."""
    if len(state.log) == state.base and state.sq == "running" and state.isolated != S:
        log, _ = create(state.log, ABORT, S, state.base + 1)
        yield f"S uses up number {state.base + 1}", state._replace(log=log)
        yield from late(state, ("create", ABORT, S, state.base + 1))
    yield from steer(state, S, (own_term(state, S), S, ""))
    if state.sq == "paused":
        yield "S lets the VM run", state._replace(sq="running", head=state.head if state.n == "runs" else S, fit=False)
    elif state.sq == "running":
        yield "S keeps the VM", state._replace(s="run", plan=False, sent=False)
    else:
        yield "S has nothing to let run", state._replace(s="over", plan=False, sent=False)


def _restarted(state: State) -> State:
    """What an agent that starts makes of what it finds."""
    if state.plan:
        is_running = state.sq == "running"
        return state._replace(s="found" if is_running else "resolve", sent=not is_running)
    return state._replace(s={"running": "run", "paused": "lone", "dead": "over"}.get(state.sq, "gone"))
