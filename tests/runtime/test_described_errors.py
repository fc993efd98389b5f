"""Errors of any kind, as users are told them."""

from __future__ import annotations

import errno
import os

from architect.errors import ConflictError, HostError, InternalError, described


def test_the_first_of_a_task_group_is_told_and_an_error_of_ours_stays_what_it_is() -> None:
    ours = ConflictError("vm web", "is there already", "name another")

    assert described(ExceptionGroup("both", [ExceptionGroup("inner", [ours]), ValueError("later")]), "request") is ours


def test_what_the_system_refuses_is_the_hosts_and_in_words() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/vms/vm-1/memory")

    told = described(ExceptionGroup("tasks", [full]), "vm web")

    assert isinstance(told, HostError)
    assert (told.thing, told.cause) == ("vm web", "No space left on device: /vms/vm-1/memory")
    assert described(TimeoutError(), "request").cause == "TimeoutError"


def test_anything_else_is_a_defect() -> None:
    told = described(KeyError("what"), "request")

    assert isinstance(told, InternalError)
    assert told.cause == "KeyError: 'what'"
