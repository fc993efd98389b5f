"""What several parties of the ownership model do alike: ask the store, steer, know their term."""

from __future__ import annotations

from collections.abc import Iterator

from architect.testing.ownership.model import ABORT, END, Budget, Message, Record, State, Step

Log = tuple[Record, ...]
Answer = tuple[str | int, ...]


def create(log: Log, kind: str, host: str, term: int) -> tuple[Log, Answer]:
    """The store's answer to a create-only request: the record of that number, or the newest where the number is out of turn."""
    if term <= len(log):
        return log, (*log[term - 1], term)
    if term == len(log) + 1 and log[-1][0] != END:
        return (*log, (kind, host)), (kind, host, term)
    return log, newest(log)


def newest(log: Log) -> Answer:
    """The newest record, as the store answers it."""
    return (*log[-1], len(log))


def own_term(state: State, host: str) -> int:
    """The newest term by which the host owns the VM; 0 if there is none."""
    return max((term for term, record in enumerate(state.log, 1) if record[1] == host and record[0] != END), default=0)


def steer(state: State, host: str, wanted: tuple[int, str, str]) -> Iterator[Step]:
    """Tell the edge where the VM is. The request may arrive at any time, or never: then it is sent again."""
    message: Message = ("steer", *wanted)
    if state.edge != wanted and message not in state.net and state.isolated != host and wanted[0] >= state.edge[0]:
        yield f"{host} steers to {wanted[1]} by term {wanted[0]}", state._replace(net=state.net | {message})


def late(state: State, message: Message) -> Iterator[Step]:
    """A request to the store whose author stops waiting: it may arrive at any time, or never."""
    if state.left.losses != 0 and message not in state.net:
        after = state._replace(net=state.net | {message}, left=spent(state, "losses"))
        yield f"request {words(message[1:])} is late", after


def spent(state: State, what: str) -> Budget:
    """The budget with one fault less."""
    amount = getattr(state.left, what)
    return state.left if amount is None else state.left._replace(**{what: amount - 1})


def words(answer: Answer) -> str:
    """A record for people."""
    kind, host, term = answer[:3]
    return f"{term}: {'keep' if kind == ABORT else kind} {host}"
