"""Compares what the real engines did in a simulation with the ownership model: every observed step must be one that it allows.

What can be seen of a run: records that come to be, QEMUs that pause, run, die or are destroyed, steers that the edge takes, agents
that die and start. Everything else (messages, answers, what an agent knows) is hidden. So the projection keeps all states in which
the model can be after what was seen so far; each event must be possible in at least one of them, after any number of hidden steps.
Where it is in none, the run has left the model: the engines do something that was never explored.

A run has many moves among many hosts, the model one from S to T: roles are given to hosts as they turn up, and when a move has
ended the model starts anew where it stands (`_renewed`), with the owner as S. Requests of an ended move that are still under way
are forgotten there: a run whose late steer takes effect a move later deviates, and should be looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import msgspec

from architect.model.ownership import RecordKind
from architect.testing.ownership.model import ABORT, RUN, Bounds, Message, Record, Rules, S, State, T, initial
from architect.testing.ownership.surroundings import faults, steps
from architect.testing.sim_events import EventKind, SimEvent

Seen = tuple[str | int, ...]
ANYTHING = Bounds(moves=1, kills=None, deaths=None, losses=None)
ELSEWHERE = "X"
"""A host that has no part in the present move."""
STATES_MAX = 20_000


class Place(msgspec.Struct, frozen=True):
    """A state of the model, the hosts in its roles, and how many records came before its first."""

    state: State
    source: str
    target: str = ""
    shift: int = 0


class Deviation(msgspec.Struct, frozen=True):
    """The first event that the model does not allow, and the states in which it might have been before."""

    event: SimEvent
    index: int
    before: tuple[Place, ...]

    def __str__(self) -> str:
        places = "\n".join(f"    {place}" for place in self.before[:5])
        return f"event {self.index}, {self.event}, is not allowed in any of {len(self.before)} states:\n{places}"


def compare(events: Iterable[SimEvent], vm: str, first_host: str) -> Deviation | None:
    """The first of a run's events that the model does not allow for this VM, created at `first_host`; None if all are.

    Events before the edge knows the VM are its creation. A host that ends for good, or freezes, ends the comparison.
    """
    places: tuple[Place, ...] = ()
    for index, event in enumerate(events):
        if event.vm not in ("", vm):
            continue
        if event.kind in (EventKind.GONE, EventKind.FREEZE):
            return None
        if not places:
            if event.kind is EventKind.STEER:
                places = (Place(initial(ANYTHING), first_host),)
            continue
        if (seen := _seen(event)) is None:
            continue
        after = _fewest(dict.fromkeys(found for place in places for found in _after(place, seen)))
        if not after:
            return Deviation(event, index, places)
        places = after
    return None


def _seen(event: SimEvent) -> Seen | None:
    """An event in words of the model, but for hosts and terms, which are the run's; None for what it does not know."""
    party, _, host = event.party.partition(" ")
    match event.kind:
        case EventKind.RECORD_CREATED if event.record is not None:
            kind = {RecordKind.RUN: RUN, RecordKind.ABORT: ABORT}.get(event.record.kind, "end")
            return ("record", kind, event.record.host)
        case EventKind.STEER:
            return ("steer", event.term, event.to)
        case EventKind.PAUSE | EventKind.RESUME | EventKind.DESTROY | EventKind.CRASH if party == "qemu":
            return (event.kind.value, host)
        case EventKind.CRASH | EventKind.RESTART if party == "agent":
            return (f"agent-{event.kind.value}", host)
        case _:
            return None


def _fewest(places: Iterable[Place]) -> tuple[Place, ...]:
    """The places without those that hidden steps lead to from another one anyway."""
    kept: dict[Place, None] = dict.fromkeys(places)
    for place in list(kept):
        if place in kept:
            for state in _hidden(place.state)[1:]:
                kept.pop(msgspec.structs.replace(place, state=state), None)
    return tuple(kept)


def _after(place: Place, seen: Seen) -> Iterator[Place]:
    """The places after an event, hidden steps before it included."""
    host = str(seen[-1])
    if _changes_nothing(place, seen):
        yield place
        if seen[0] not in ("agent-crash", EventKind.DESTROY.value):
            return  # the other two may be of the target of a move that nobody has seen yet
    for start in _starts(place, host):
        if not start.target and host != start.source:
            start = msgspec.structs.replace(start, target=host)
        roles = {start.source: S, start.target: T}
        if host not in roles:
            continue
        wanted: Seen = (*seen[:-1], roles[host])
        if wanted[0] == "steer":
            wanted = ("steer", int(seen[1]) - start.shift, roles[host])
        for state in _allowed(start.state).get(wanted, ()):
            yield msgspec.structs.replace(start, state=state)


def _starts(place: Place, host: str) -> Iterator[Place]:
    """The place as it is, and, if a move has ended in it, as the start of the next one, with `host` as its target."""
    yield place
    for owner, shift, fresh in _next_moves(place.state):
        source = place.source if owner == S else place.target
        yield Place(fresh, source, host if host != source else "", place.shift + shift)


def _changes_nothing(place: Place, seen: Seen) -> bool:
    """Whether the event says nothing new: an edge told again, a host without a part, an agent that starts and was not down."""
    word, host = seen[0], str(seen[-1])
    role = {place.source: S, place.target: T}.get(host) if host else None
    if word == "steer":
        return role is not None and place.state.edge[:2] == (int(seen[1]) - place.shift, role)
    if word == EventKind.DESTROY.value:
        return role is None  # what a target of an earlier move had left
    if word in ("agent-crash", "agent-restart"):
        agent = {S: place.state.s, T: place.state.t}.get(role or "", "off")
        return agent in ("off", "gone", "over", "lost") or (word == "agent-restart" and agent != "down")
    return False


@functools.lru_cache(maxsize=STATES_MAX)
def _next_moves(state: State) -> tuple[tuple[str, int, State], ...]:
    return tuple(dict.fromkeys(start for here in _hidden(state) for start in _renewed(here)))


def _renewed(state: State) -> Iterator[tuple[str, int, State]]:
    """The state as the start of another move, if it can be one: its owner as S, its newest record as the first."""
    shift = len(state.log) - 1
    if state.s == "run" and not state.plan and state.tq in ("none", "dead", "halted") and state.log[-1][1] == S:
        late: frozenset[Message] = frozenset()
        if state.prepare and state.base == len(state.log):
            late = frozenset({("create", ABORT, S, 2)})  # an agent that was killed as the target may still write it
        fresh = _start(state, S, shift, state.sq)
        yield S, shift, fresh._replace(net=fresh.net | late)
    if state.t == "runs" and state.s in ("gone", "over") and state.log[-1] == (RUN, T):
        yield T, shift, _start(state, T, shift, state.tq)


def _start(state: State, owner: str, shift: int, qemu: str) -> State:
    def role(name: object) -> str:
        return S if name == owner else ("" if name == "" else ELSEWHERE)

    edge = (state.edge[0] - shift, role(state.edge[1]), role(state.edge[2]))
    log: tuple[Record, ...] = ((RUN, S),)
    return initial(ANYTHING)._replace(sq=qemu, log=log, edge=edge)


def observable(before: State, after: State) -> Seen:
    """What can be seen of a step from outside; () if nothing."""
    if len(after.log) > len(before.log):
        return ("record", *after.log[-1])
    if after.edge != before.edge:
        return ("steer", *after.edge[:2])
    for host, was, became in ((S, before.sq, after.sq), (T, before.tq, after.tq)):
        if was != became and (word := _word(was, became)):
            return (word, host)
    for host, was, became in ((S, before.s, after.s), (T, before.t, after.t)):
        if "down" in (was, became) and was != became:
            return ("agent-crash" if became == "down" else "agent-restart", host)
    return ()


def _word(was: str, became: str) -> str:
    """What a QEMU's change is called; "" for what is not seen."""
    if became == "none":
        return EventKind.DESTROY.value if was not in ("none", "dead") else ""
    return {"running": EventKind.RESUME.value, "paused": EventKind.PAUSE.value, "dead": EventKind.CRASH.value}.get(became, "")


@functools.lru_cache(maxsize=STATES_MAX)
def _steps(state: State) -> tuple[tuple[Seen, State], ...]:
    found = [(observable(state, after), after) for ways in (steps(state, Rules()), faults(state)) for _, after in ways]
    if state.t in ("wait", "undo") and state.tq == "halted":
        found.append(((), state._replace(tq="none")))  # it had not been started
    if state.t == "runs" and state.tq == "running" and state.prepare:
        # A page that can never come: the run's memory process was killed, and memory is no part of the model.
        found.append(((EventKind.DESTROY.value, T), state._replace(t="lost", tq="none", prepare=False)))
    return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=STATES_MAX)
def _hidden(state: State) -> tuple[State, ...]:
    """All states that hidden steps lead to, the state itself first."""
    found = {state: None}
    for here in (ordered := [state]):
        for seen, after in _steps(here):
            if not seen and after not in found:
                found[after] = None
                ordered.append(after)
    return tuple(found)


@functools.lru_cache(maxsize=STATES_MAX)
def _allowed(state: State) -> dict[Seen, tuple[State, ...]]:
    """The states after each event that may come next."""
    allowed: dict[Seen, dict[State, None]] = {}
    for here in _hidden(state):
        for seen, after in _steps(here):
            if seen:
                allowed.setdefault(seen, {})[after] = None
        if here.t in ("gone", "lost"):
            allowed.setdefault(("agent-crash", T), {})[here] = None
    return {seen: tuple(states) for seen, states in allowed.items()}
