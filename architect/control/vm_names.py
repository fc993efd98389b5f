"""What hosts, edge and ownership log say of a VM, in users' words: they know it by its id, users by its name.

Ids in paths stay: that is what files and folders are called.
"""

from __future__ import annotations

import re

from architect.errors import ArchitectError, remote_error
from architect.model.ids import VmId


def by_name(text: str, vm: VmId | str, name: str) -> str:
    """The text, with the VM's name where its id stands as a word."""
    return re.sub(rf"(?<![\w/-]){re.escape(vm)}(?![\w/-])", lambda _: name, text) if vm and vm in text else text


def error_by_name(error: ArchitectError, vm: VmId, name: str) -> ArchitectError:
    """The same for an error, as another process would have reported it."""
    return remote_error(error.code, *(by_name(text, vm, name) for text in (error.thing, error.cause, error.next_step)))
