"""What `architect up` asked for, kept in STATE/options.json for the supervisor: commands, memory of a host."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from architect.errors import UsageError
from architect.model.sizes import GIB

HOST_MEMORY_BYTES_MAX = 8 * GIB
_MEMORY_SHARE = 0.6
PACKAGE_ROOT = Path(__file__).resolve().parents[3]


def architect_command() -> tuple[str, ...]:
    """How this installation's `architect` is started so that its own name stands on the command line."""
    script = Path(sys.executable).parent / "architect"
    return (str(script),) if os.access(script, os.X_OK) else (sys.executable, "-m", "architect")


class Commands(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the long-running processes are; `--config FILE` (the supervisor: `--state-dir FOLDER`) is put behind.

    `says_hello`: whether `control` answers `GET /v1/hosts` on its REST socket, so that readiness can ask it who has come.
    """

    supervisor: tuple[str, ...]
    control: tuple[str, ...]
    edge: tuple[str, ...]
    agent: tuple[str, ...]
    says_hello: bool = True


def default_commands() -> Commands:
    """Our own."""
    base = architect_command()
    return Commands((*base, "supervisor"), (*base, "control"), (*base, "edge"), (*base, "agent"))


class LocalOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a local fabric. `memory_bytes` is what the VMs of one host may take together."""

    memory_bytes: int
    commands: Commands
    ready_timeout_s: float = 90.0


_LOCAL_OPTIONS_DECODER = msgspec.json.Decoder(LocalOptions)


def default_options(hosts: int) -> LocalOptions:
    """Options for a fabric of that many hosts on this machine: together they may take 60 % of its memory."""
    return LocalOptions(
        min(int(_machine_memory_bytes() * _MEMORY_SHARE / max(hosts, 1)), HOST_MEMORY_BYTES_MAX), default_commands()
    )


def read_options(path: Path) -> LocalOptions:
    """The options in a file.

    Raises:
        UsageError: there are none.
    """
    try:
        return _LOCAL_OPTIONS_DECODER.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"options {path}", str(error), "run `architect up`, which writes them") from error


def _machine_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
