"""The database: SQLite in a file (or PostgreSQL by URL), through SQLAlchemy, written by one thread in the order of the commits.

A commit is durable before anybody acts on it: SQLite runs in WAL mode with `synchronous=FULL`. A slow disk delays the use case that
waits, not the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Engine, StaticPool, create_engine, delete, event, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from architect.control.records import EventRecord, HostRecord, MigrationRecord, VmRecord
from architect.control.schema import (
    SCHEMA_VERSION,
    UPGRADES,
    EventRow,
    MetaRow,
    MigrationRow,
    Record,
    Table,
    record_of,
    row_of,
    row_type,
)
from architect.errors import HostError, IncompatibleError
from architect.model.ids import MigrationId

CACHE_KIB = 256
"""What SQLite keeps of the file; its own choice is 2 MiB, which a hundred moves fill, and what is read often is in the book."""
ROWS_AT_ONCE = 100

ResultT = TypeVar("ResultT")
RecordT = TypeVar("RecordT", VmRecord, HostRecord, MigrationRecord, EventRecord)


class Deletion(msgspec.Struct, frozen=True):
    """The record of type `kind` with this key goes."""

    kind: Any
    key: str


class Counter(msgspec.Struct, frozen=True):
    """A named number takes this value."""

    name: str
    value: int


class EventsUpTo(msgspec.Struct, frozen=True):
    """Events up to this sequence number go."""

    sequence: int


Write = Record | Deletion | Counter | EventsUpTo


class Database:
    """One open database; close it in the end.

    :param url: an SQLAlchemy URL.
    :param executor: runs the statements, one at a time; tests pass one that runs them at once.

    Raises:
        HostError: it cannot be opened or written.
        IncompatibleError: another version of Architect made it.
    """

    def __init__(self, url: str, executor: Executor | None = None) -> None:
        self._name = f"database {url}"
        self._executor = executor or ThreadPoolExecutor(1, "database")
        try:
            self._engine = _open(url)
            Table.metadata.create_all(self._engine)
            with Session(self._engine) as session:
                self._check_version(session)
        except SQLAlchemyError as error:
            raise self._failure(error) from error

    async def commit(self, writes: Sequence[Write]) -> None:
        """Write all or nothing, durably. Once begun it is not undone by cancellation.

        Raises:
            HostError: the database refused; nothing was written.
        """
        await self._in_thread(lambda: self._commit(writes))

    def read_all(self, kind: type[RecordT]) -> Iterable[RecordT]:
        """All records of a type, one after the other, for the start of the process.

        Raises:
            HostError: the database refused, or holds what is no record.
        """
        with self._refusals(), Session(self._engine) as session:
            for row in session.scalars(select(row_type(kind)).execution_options(yield_per=ROWS_AT_ONCE)):
                yield record_of(row, kind)

    async def read_moves(self, wanted: Collection[MigrationId]) -> list[MigrationRecord]:
        """The moves of these ids, in no order, as far as there are any.

        Raises:
            HostError: the database refused, or holds what is no record.
        """
        return await self._in_thread(lambda: self._read_moves(wanted))

    def read_counters(self) -> dict[str, int]:
        """All counters."""
        with Session(self._engine) as session:
            rows = session.scalars(select(MetaRow).where(MetaRow.name != "schema_version"))
            return {row.name: int(row.value) for row in rows}

    def close(self) -> None:
        """Wait for what is being written, and close."""
        self._executor.shutdown()
        self._engine.dispose()

    def _read_moves(self, wanted: Collection[MigrationId]) -> list[MigrationRecord]:
        with self._refusals(), Session(self._engine) as session:
            rows = session.scalars(select(MigrationRow).where(MigrationRow.id.in_(wanted)))
            return [record_of(row, MigrationRecord) for row in rows]

    def _commit(self, writes: Sequence[Write]) -> None:
        with self._refusals(), Session(self._engine) as session, session.begin():
            for write in writes:
                match write:
                    case Deletion(kind, key):
                        table: Any = row_type(kind)
                        session.execute(delete(table).where(table.id == key))
                    case Counter(name, value):
                        session.merge(MetaRow(name=name, value=str(value)))
                    case EventsUpTo(sequence):
                        session.execute(delete(EventRow).where(EventRow.sequence <= sequence))
                    case record:
                        session.merge(row_of(record))

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def _check_version(self, session: Session) -> None:
        row = session.get(MetaRow, "schema_version")
        if row is None:
            session.add(MetaRow(name="schema_version", value=str(SCHEMA_VERSION)))
            session.commit()
        elif row.value in UPGRADES:
            for statement in UPGRADES[row.value]:
                session.execute(text(statement))
            row.value = str(SCHEMA_VERSION)
            session.commit()
        elif row.value != str(SCHEMA_VERSION):
            raise IncompatibleError(
                self._name,
                f"has schema version {row.value}, this is version {SCHEMA_VERSION}",
                "use the Architect that made it, or another --state-dir",
            )

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """What the database refuses inside is the host's fault."""
        try:
            yield
        except (SQLAlchemyError, msgspec.ValidationError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> HostError:
        cause = str(getattr(error, "orig", None) or error)
        return HostError(self._name, cause, "see that the disk has room and the file belongs to this user")


def sqlite_url(state_dir: Path) -> str:
    """The URL of the embedded database in a state directory."""
    return f"sqlite:///{state_dir / 'control.db'}"


def _open(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url)
    engine = create_engine(url, connect_args={"check_same_thread": False}, poolclass=StaticPool)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000", f"cache_size=-{CACHE_KIB}"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
