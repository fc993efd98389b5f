"""Notices: a host learns that it will be taken away."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class NoticeKind(StrEnum):
    """Why the host goes."""

    PREEMPTION = "preemption"
    MAINTENANCE = "maintenance"


class Notice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cloud's word that a host goes. `deadline` is RFC 3339 in UTC; `id` is equal for repeated readings of one notice."""

    id: str
    kind: NoticeKind
    deadline: str
