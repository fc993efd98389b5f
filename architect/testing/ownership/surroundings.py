"""What happens around source and target in the ownership model: messages arrive or not, a third host takes over, faults strike."""

from __future__ import annotations

from collections.abc import Iterator

from architect.testing.ownership.model import RUN, Message, N, Rules, S, State, Step, T, owner
from architect.testing.ownership.moves import create, spent, steer, words
from architect.testing.ownership.source import source_steps
from architect.testing.ownership.target import target_steps


def steps(state: State, rules: Rules) -> Iterator[Step]:
    """All that can happen next without a fault."""
    yield from source_steps(state, rules)
    yield from target_steps(state, rules)
    yield from _third_steps(state, rules)
    if state.isolated:
        yield f"{state.isolated} reaches store and edge again", state._replace(isolated="")
    for message in sorted(state.net, key=repr):
        yield from _arrives(state, message, rules)


def _third_steps(state: State, rules: Rules) -> Iterator[Step]:
    """N brings the VM back from a checkpoint: first its record, then the edge refuses the old owner, then it runs."""
    may_try = state.n == "off" and state.left.takeovers > 0 and owner(state) != ""
    if may_try and (state.permit or not rules.takeover_waits_for_expiry):
        left = state.left._replace(takeovers=state.left.takeovers - 1)
        yield f"N takes over by record {len(state.log) + 1}", state._replace(log=(*state.log, (RUN, N)), n="claimed", left=left)
    if state.n == "claimed":
        term = len(state.log)
        yield from steer(state, N, (term, N, ""))
        if state.edge == (term, N, "") or not rules.takeover_fences:
            yield "N lets the VM run", state._replace(n="runs", head=N)


def _arrives(state: State, message: Message, rules: Rules) -> Iterator[Step]:
    arrived = state._replace(net=state.net - {message})
    match message:
        case ("create", str(kind), str(host), int(term)):
            log, _ = create(state.log, kind, host, term)
            yield f"the late request {words(message[1:])} arrives", arrived._replace(log=log)
        case ("cut", int(move)):
            fits = state.t == "wait" and state.tq == "halted" and move == state.left.moves
            is_newest = state.sq != "running" and state.head == S
            loaded = arrived._replace(t="claim", tq="loaded", asked=True, fit=is_newest)
            yield "the cut arrives", loaded if fits else arrived
        case ("answer", int(move), str(word)):
            fits = state.s == "sent" and move == state.left.moves
            step = {"runs": "told", "lost": "resolve-lost"}.get(word, "resolve")
            yield f"S hears that T {word}", arrived._replace(s=step) if fits else arrived
        case ("steer", int(term), str(host), str(previous)):
            is_taken = term >= state.edge[0] or not rules.edge_refuses_old_terms
            sentence = f"the edge {'steers' if is_taken else 'refuses to steer'} to {host} by term {term}"
            yield sentence, arrived._replace(edge=(term, host, previous)) if is_taken else arrived
        case _:
            raise AssertionError(message)
    yield f"{message} is lost", arrived


def faults(state: State) -> Iterator[Step]:
    """What may go wrong."""
    left = state.left
    if left.kills != 0:
        if state.s not in ("down", "gone", "over"):
            yield "S's agent is killed", state._replace(s="down", s_in=(), left=spent(state, "kills"))
        if state.t not in ("off", "down", "lost"):
            step = "gone" if state.t == "gone" else "down"
            killed = state._replace(t=step, t_in=(), asked=False, t_move=False, left=spent(state, "kills"))
            yield "T's agent is killed", killed
    if left.deaths != 0:
        if state.sq in ("running", "paused"):
            yield "S's QEMU is killed", state._replace(sq="dead", left=spent(state, "deaths"))
        if state.tq not in ("none", "dead"):
            # Told to run, and dead before it is known to: nobody can say whether it ran.
            unsure = "nobody knows whether T ran the VM" if state.tq == "loaded" and not state.halted else state.excuse
            yield "T's QEMU is killed", state._replace(tq="dead", excuse=unsure, left=spent(state, "deaths"))
    if left.reboots != 0 and state.t not in ("off", "gone", "lost"):
        yield "T's machine reboots", _rebooted(state)
    if left.isolations > 0 and not state.isolated:
        for host in (S, T):
            isolated = state._replace(isolated=host, left=spent(state, "isolations"))
            yield f"{host} reaches neither store nor edge", isolated
    if left.takeovers > 0 and not state.permit:
        yield "the owner's lease expires, as others see it", state._replace(permit=True)


def _rebooted(state: State) -> State:
    excuse = "T's machine rebooted" if state.prepare else state.excuse
    return state._replace(
        t="down", t_in=(), asked=False, t_move=False, tq="none" if state.tq == "none" else "dead", halted=False, excuse=excuse,
        left=spent(state, "reboots"),
    )  # fmt: skip
