"""The process of an image, before and after the user's words for one VM are added.

docker's rules: arguments given for the VM replace the image's cmd and keep its entrypoint; environment entries replace those of
the same name and follow the others. The user's name was resolved to numbers in the image's own passwd and group files.
"""

from __future__ import annotations

import re
import signal

import msgspec

from architect.errors import InvalidImageError, UsageError
from architect.model.image import ProcessConfig

DEFAULT_STOP_SIGNAL = "SIGTERM"
_REAL_TIME = re.compile(r"SIGRT(?:MIN(?:\+\d{1,2})?|MAX(?:-\d{1,2})?)")


class ImageProcess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the image alone says of its process."""

    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    stop_signal: str


def process_config(image: ImageProcess, args: tuple[str, ...], env: tuple[str, ...], thing: str) -> ProcessConfig:
    """The process of one VM.

    Raises:
        InvalidImageError: neither the image nor `args` say what to run.
        UsageError: an entry of `env` is not K=V.
    """
    command = (*image.entrypoint, *(args or image.cmd))
    if not command:
        raise InvalidImageError(
            thing, "it has no entrypoint and no cmd, so there is nothing to run", "name a command after the image: -- COMMAND"
        )
    return ProcessConfig(
        args=command,
        env=merge_environment(image.env, env),
        cwd=image.cwd,
        uid=image.uid,
        gid=image.gid,
        groups=image.groups,
        stop_signal=image.stop_signal,
    )


def merge_environment(base: tuple[str, ...], added: tuple[str, ...]) -> tuple[str, ...]:
    """`base` with the entries of `added` replacing those of the same name.

    Raises:
        UsageError: an entry of `added` is not K=V.
    """
    merged: dict[str, str] = {}
    for entry in base:
        name, _, value = entry.partition("=")
        merged[name] = value
    for entry in added:
        name, equals, value = entry.partition("=")
        if not name or not equals or "\0" in entry:
            raise UsageError(f"--env {entry}", "not K=V", "write for example --env DEBUG=1")
        merged[name] = value
    return tuple(f"{name}={value}" for name, value in merged.items())


def stop_signal_name(text: str | None, thing: str) -> str:
    """`SIGNAME` of what the image writes: a name with or without SIG, or a number; SIGTERM of nothing.

    Raises:
        InvalidImageError: there is no such signal.
    """
    name = (text or DEFAULT_STOP_SIGNAL).strip().upper()
    try:
        if name.isascii() and name.isdigit():
            return signal.Signals(int(name)).name
        name = name if name.startswith("SIG") else f"SIG{name}"
        return name if _REAL_TIME.fullmatch(name) else signal.Signals[name].name
    except (KeyError, ValueError):
        raise InvalidImageError(thing, f"its stop signal {text!r} does not exist", "mend STOPSIGNAL of the image") from None
