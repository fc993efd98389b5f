"""Notices as they stand in the reports: taken over, withdrawn, and until when a VM should have left."""

from __future__ import annotations

import msgspec

from architect.control.fabric import Fabric
from architect.control.records import EventKind
from architect.model.notice import Notice
from architect.model.times import parse_rfc3339
from architect.policy.evacuation import NOTICE_MARGIN_S

DEADLINE_ASSUMED_S = 30.0


def deadline_at_s(notice: Notice | None, now_s: float) -> float | None:
    """Wall time at which the cloud takes the host; None without a notice.

    A deadline that cannot be read counts as `DEADLINE_ASSUMED_S` from now: the shortest that clouds promise.
    """
    if notice is None:
        return None
    deadline_s = _readable_s(notice)
    return now_s + DEADLINE_ASSUMED_S if deadline_s is None else deadline_s


def leave_by_s(notice: Notice | None, now_s: float) -> float | None:
    """Wall time until which the VMs should have left: the deadline less a margin; None without a notice."""
    deadline_s = deadline_at_s(notice, now_s)
    return None if deadline_s is None else deadline_s - NOTICE_MARGIN_S


def has_readable_deadline(notice: Notice) -> bool:
    """Whether the notice says until when."""
    return _readable_s(notice) is not None


def _readable_s(notice: Notice) -> float | None:
    try:
        return parse_rfc3339(notice.deadline)
    except ValueError:
        return None


async def take_over_notices(fabric: Fabric) -> None:
    """Write down notices that are new in the reports, or not there any more. An agent that has only started withdraws none."""
    changed = [
        (record, notice)
        for host, report in fabric.fleet.reports().items()
        if not isinstance(notice := report.notice, msgspec.UnsetType)
        and (record := fabric.book.hosts.get(host)) is not None
        and record.notice != notice
    ]
    if not changed:
        return
    async with fabric.book.change() as change:
        for before, notice in changed:
            record = fabric.book.hosts.get(before.name)
            if record is None:
                continue
            change.put(msgspec.structs.replace(record, notice=notice))
            if notice is not None:
                change.say(EventKind.NOTICE, f"{notice.kind.value}, until {notice.deadline}", host=record.name)
            else:
                change.say(EventKind.NOTICE_WITHDRAWN, host=record.name)
