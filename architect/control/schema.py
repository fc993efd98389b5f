"""The control plane's tables, and how records become rows. Only portable types, so that SQLite and PostgreSQL take them alike.

What is looked up or shown in a list has its own column; nested values (request, endpoints, facts, report) are JSON text, encoded
and checked by msgspec. `SCHEMA_VERSION` is kept in `meta`; a database of another version is refused by name.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import BigInteger, Boolean, Float, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from architect.control.records import EventRecord, HostRecord, MigrationRecord, VmRecord

SCHEMA_VERSION = 3
_TO_2 = "ALTER TABLE migrations ADD COLUMN bandwidth_bytes_s BIGINT"
_TO_3 = "ALTER TABLE migrations ADD COLUMN compression VARCHAR(16) DEFAULT 'auto' NOT NULL"
UPGRADES = {"1": (_TO_2, _TO_3), "2": (_TO_3,)}
"""What makes a database of an older version one of this; others are refused."""

Record = VmRecord | HostRecord | MigrationRecord | EventRecord


class Table(DeclarativeBase):
    """The base of all tables."""


class MetaRow(Table):
    """Single values: the schema's version, the counters for VNIs and addresses."""

    __tablename__ = "meta"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class VmRow(Table):
    """A VM."""

    __tablename__ = "vms"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    request: Mapped[str] = mapped_column(Text)
    created_at_s: Mapped[float] = mapped_column(Float)
    desired: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    host: Mapped[str] = mapped_column(String(64), index=True)
    term: Mapped[int] = mapped_column(Integer)
    reason: Mapped[str] = mapped_column(Text)
    exit_code: Mapped[int | None] = mapped_column(Integer)
    endpoints: Mapped[str] = mapped_column(Text)
    at_edge: Mapped[bool] = mapped_column(Boolean)
    stop_grace_s: Mapped[float] = mapped_column(Float)
    restarts: Mapped[int] = mapped_column(Integer)


class HostRow(Table):
    """A host."""

    __tablename__ = "hosts"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    facts: Mapped[str] = mapped_column(Text)
    draining: Mapped[bool] = mapped_column(Boolean)
    notice: Mapped[str] = mapped_column(Text)
    acknowledged: Mapped[str] = mapped_column(Text)


class MigrationRow(Table):
    """A move."""

    __tablename__ = "migrations"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    vm: Mapped[str] = mapped_column(String(32), index=True)
    vm_name: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(64))
    mode: Mapped[str] = mapped_column(String(16))
    verify: Mapped[bool] = mapped_column(Boolean)
    cause: Mapped[str] = mapped_column(String(16))
    source_term: Mapped[int] = mapped_column(Integer)
    started_at_s: Mapped[float] = mapped_column(Float, index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    deadline_at_s: Mapped[float | None] = mapped_column(Float)
    ended_at_s: Mapped[float | None] = mapped_column(Float)
    reason: Mapped[str] = mapped_column(Text)
    report: Mapped[str] = mapped_column(Text)
    bandwidth_bytes_s: Mapped[int | None] = mapped_column(BigInteger)
    compression: Mapped[str] = mapped_column(String(16))


class EventRow(Table):
    """An event."""

    __tablename__ = "events"
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    time_s: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(32))
    vm: Mapped[str] = mapped_column(String(64))
    vm_id: Mapped[str] = mapped_column(String(32))
    host: Mapped[str] = mapped_column(String(64))
    migration: Mapped[str] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(Text)


_NESTED = {"request", "endpoints", "facts", "notice", "report"}
_ROWS: dict[type[Any], type[Table]] = {
    VmRecord: VmRow,
    HostRecord: HostRow,
    MigrationRecord: MigrationRow,
    EventRecord: EventRow,
}
_LEARNED = {kind: msgspec.json.Decoder(kind) for kind in _ROWS}
"""msgspec knows what `convert` is asked for: two threads that read rows and taught it that could end the process (framing.py)."""


def row_of(record: Record) -> Table:
    """The row that stores a record. A tombstone gives its name free by taking the VM's id for one."""
    values = {name: _column(name, getattr(record, name)) for name in record.__struct_fields__}
    match record:
        case VmRecord():
            values |= {"id": record.id, "name": record.id if record.is_tombstone else record.request.name}
        case HostRecord():
            values["id"] = record.name
        case _:
            pass
    return _ROWS[type(record)](**values)


def record_of(row: Table, kind: type[Any]) -> Any:
    """The record of type `kind` in a row.

    Raises:
        msgspec.ValidationError: the row does not hold one (another version wrote it).
    """
    values: dict[str, Any] = {}
    for name in kind.__struct_fields__:
        value = getattr(row, name)
        values[name] = msgspec.json.decode(value) if name in _NESTED else value
    return msgspec.convert(values, kind)


def row_type(kind: type[Any]) -> type[Table]:
    """The table for records of type `kind`."""
    return _ROWS[kind]


def _column(name: str, value: Any) -> Any:
    return msgspec.json.encode(value).decode() if name in _NESTED else value
