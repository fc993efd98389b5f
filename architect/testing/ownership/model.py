"""The ownership protocol as a small model: who may do what in a handover, a hand-back and a takeover (docs/protocols/ownership.md).

One VM, four parties: its source S, the target T of a planned handover, a third host N that takes over by force, and the edge;
between them the ownership log and the messages that are under way. Each party is reduced to what decides who runs the VM. An agent
and its QEMU are two things: either can die, and an agent that starts again knows only what was written down. `surroundings.steps`
lists what can happen next; `explorer` tries all of it, `projection` compares the real engines with it.

Waiting costs nothing here: a time-out may strike at any instant, and a lease may expire at any instant, on its holder's clock and
on the others' clock independently. So what is shown does not rest on how long anything takes, nor on any two clocks agreeing.

A record is `(kind, host)`, its term its place in the log. Messages that are under way: `("create", kind, host, term)`: a request to
the store that its author has stopped waiting for; `("cut", move)`, `("answer", move, word)`; `("steer", term, host, previous)`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

Record = tuple[str, str]
Message = tuple[str | int, ...]

RUN, ABORT, END = "run", "abort", "end"
S, T, N = "S", "T", "N"


class Bounds(msgspec.Struct, frozen=True):
    """How much may go wrong, and how often a move is tried. `None`: without bound (when comparing with a run)."""

    moves: int = 1
    kills: int | None = 2
    deaths: int | None = 1
    losses: int | None = 1
    reboots: int = 0
    expiries: int = 0
    takeovers: int = 0
    isolations: int = 0


class Rules(msgspec.Struct, frozen=True):
    """The protocol's rules, each of which can be broken on purpose, to see that the explorer notices."""

    source_waits_for_its_record: bool = True
    source_reads_back: bool = True
    source_asks_before_it_lets_go: bool = True
    target_reads_back: bool = True
    target_hands_back: bool = True
    target_hands_back_only_when_sure: bool = True
    takeover_fences: bool = True
    takeover_waits_for_expiry: bool = True
    edge_refuses_old_terms: bool = True


class Budget(NamedTuple):
    """What may still go wrong."""

    moves: int
    kills: int | None
    deaths: int | None
    losses: int | None
    reboots: int
    expiries: int
    takeovers: int
    isolations: int


class State(NamedTuple):
    """Everything. `s`, `t`, `n`: what the agents do; `sq`, `tq`: their QEMUs; `plan`, `prepare`, `halted` what their hosts have
    written down: a handover away is under way, one to here is, and QEMU was never told to run.

    `base` is the term from which the present move goes; `s_in`, `t_in`: an answer that has not been read yet; `t_move`: T still
    knows how the move ended. `head` is the host whose copy has the VM's newest state, `fit`: the target's copy is as new. `excuse`:
    why a copy that was intact may be given up.
    """

    s: str = "run"
    sq: str = "running"
    plan: bool = False
    sent: bool = False
    s_in: tuple[str | int, ...] = ()
    t: str = "off"
    tq: str = "none"
    prepare: bool = False
    halted: bool = False
    asked: bool = False
    fit: bool = False
    t_move: bool = False
    t_in: tuple[str | int, ...] = ()
    n: str = "off"
    head: str = S
    base: int = 1
    log: tuple[Record, ...] = ((RUN, S),)
    edge: tuple[int, str, str] = (1, S, "")
    net: frozenset[Message] = frozenset()
    isolated: str = ""
    permit: bool = False
    excuse: str = ""
    left: Budget = Budget(1, 2, 1, 1, 0, 0, 0, 0)


Step = tuple[str, State]


def initial(bounds: Bounds) -> State:
    """The VM runs at S by record 1, and the edge knows it."""
    return State(left=Budget(*(getattr(bounds, name) for name in Budget._fields)))


def running(state: State) -> tuple[str, ...]:
    """The hosts whose copy runs."""
    return (
        *((S,) if state.sq == "running" else ()),
        *((T,) if state.tq == "running" else ()),
        *((N,) if state.n == "runs" else ()),
    )


def speaks(state: State, host: str) -> bool:
    """Whether the outside sees what the host's copy does: the edge takes its packets."""
    return host in state.edge[1:]


def intact(state: State) -> tuple[str, ...]:
    """The hosts with a copy from which the VM can go on as if nothing had happened."""
    copies = []
    if state.sq in ("running", "paused") and state.head == S:
        copies.append(S)
    if state.tq in ("running", "paused", "loaded") and (state.head == T or (state.head == S and state.fit)):
        copies.append(T)
    if state.n == "runs":
        copies.append(N)
    return tuple(copies)


def is_owed(state: State) -> bool:
    """Whether the VM must come to run again: its owner has an intact copy, or, once it is handed over, either side has one."""
    if state.excuse or owner(state) == "":
        return False
    return S in intact(state) if owner(state) == S else intact(state) != ()


def owner(state: State) -> str:
    """Who owns the VM; "" if its log has ended."""
    kind, host = state.log[-1]
    return "" if kind == END else host


def is_good(state: State) -> bool:
    """Everything is settled and the VM runs: one copy, at its owner, which the edge knows; nothing is left elsewhere."""
    return is_settled(state) and running(state) == (owner(state),) and state.edge[1:] == (owner(state), "")


def is_settled(state: State) -> bool:
    """No agent is in the middle of something."""
    source = (state.s == "run" and not state.plan) or (state.s in ("gone", "over") and state.sq in ("none", "dead"))
    target = (state.t == "runs" and not state.prepare) or (state.t in ("off", "gone", "lost") and state.tq in ("none", "dead"))
    return source and target and state.n in ("off", "runs")


def fault_of(state: State) -> str:
    """What must never be, in a state; "" if nothing is wrong."""
    copies = running(state)
    if S in copies and T in copies:
        return "two copies run, at the source and at the target"
    if N in copies and len(copies) > 1:
        if not state.permit:
            return "a host took over, though the owner's lease had not expired"
        if any(speaks(state, host) for host in copies if host != N):
            return "the outside sees two copies: the edge takes the packets of one that was taken over"
    return ""


def fault_between(before: State, after: State) -> str:
    """What must never happen, in a step; "" if nothing is wrong."""
    if before.sq != "running" and after.sq == "running":
        if before.sent and not any(host == S and kind != END for kind, host in after.log[before.base :]):
            return "the source runs again without a record that names it"
        if before.head == T:
            return "the source runs again from a state older than what the target has shown"
    if before.tq == "loaded" and after.tq == "running":
        if not (before.fit and before.head in (S, N)):
            return "the target runs from a state that is not the newest"
        if (RUN, T) not in before.log[before.base :]:
            return "the target runs without a record that names it"
    if before.log != after.log[: len(before.log)]:
        return "a record was changed"
    if after.edge[0] < before.edge[0]:
        return "the edge went back to an older term"
    return ""
