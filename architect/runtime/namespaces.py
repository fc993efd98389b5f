"""Network namespaces: named ones that outlive their maker, and code that runs inside one.

A namespace is named by a file under `/run/netns`, as iproute2 does it, so `ip netns exec NAME …` works on ours. Code runs inside
by a thread of its own that enters and then ends: only that thread is moved (setns(2)), what it opens or starts stays inside.
A socket that is still open keeps a namespace alive after its name is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from architect.errors import HostError

NAMES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)

ResultT = TypeVar("ResultT")


class NamespaceIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which namespace it is, whatever its name: device and inode of its file in nsfs."""

    device: int
    inode: int


class _Outcome(Generic[ResultT]):
    def __init__(self) -> None:
        self.values: list[ResultT] = []
        self.error: BaseException | None = None


def run_in_thread(function: Callable[[], ResultT]) -> ResultT:
    """What `function` returns or raises, from a thread that nothing else uses. Blocks."""
    outcome: _Outcome[ResultT] = _Outcome()

    def body() -> None:
        try:
            outcome.values.append(function())
        except BaseException as error:  # it is raised again in the thread that waits
            outcome.error = error

    thread = threading.Thread(target=body, name="in-namespace")
    thread.start()
    thread.join()
    if outcome.error is not None:
        raise outcome.error
    return outcome.values[0]


def run_in_namespace(namespace: Path | None, function: Callable[[], ResultT]) -> ResultT:
    """What `function` returns or raises inside the namespace of that file (`None`: the one that we are in). Blocks.

    Raises:
        HostError: the namespace cannot be entered.
    """
    if namespace is None:
        return function()

    def enter_and_run() -> ResultT:
        enter_namespace(namespace)
        return function()

    return run_in_thread(enter_and_run)


def enter_namespace(namespace: Path) -> None:
    """Move the calling thread for good; only for threads that end soon, and for tests.

    Raises:
        HostError: the namespace cannot be entered.
    """
    try:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"network namespace {namespace.name}", str(error.strerror), "run `architect up` again") from error
    try:
        _check(_libc.setns(descriptor, _CLONE_NEWNET), f"network namespace {namespace.name}", "cannot be entered")
    finally:
        os.close(descriptor)


def namespace_path(name: str) -> Path:
    """The file that names a namespace."""
    return NAMES / name


def create_namespace(name: str) -> Path:
    """Make a namespace of that name, unless it exists, and return its file. Its loopback is down. Idempotent.

    Raises:
        HostError: the kernel refuses (not root, no namespaces).
    """
    path = namespace_path(name)
    if identify_namespace(path) is not None:
        return path
    try:
        NAMES.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o444)
    except OSError as error:
        raise HostError(f"network namespace {name}", str(error), "run as root") from error

    def unshare_and_pin() -> None:
        thing = f"network namespace {name}"
        _check(_libc.unshare(_CLONE_NEWNET), thing, "cannot be made")
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _check(_libc.mount(source.encode(), bytes(path), None, _MS_BIND, None), thing, "cannot be named")

    try:
        run_in_thread(unshare_and_pin)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def delete_namespace(name: str) -> None:
    """Take the name away; the namespace goes with the last process and socket in it. Idempotent."""
    path = namespace_path(name)
    while _libc.umount2(bytes(path), _MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def identify_namespace(path: Path) -> NamespaceIdentity | None:
    """The identity of the namespace behind a file, or None if there is none (the file is gone, or names nothing any more)."""
    try:
        status = path.stat()
        if not path.is_file() or status.st_dev == NAMES.stat().st_dev:
            return None
    except OSError:
        return None
    return NamespaceIdentity(status.st_dev, status.st_ino)


def current_namespace() -> NamespaceIdentity:
    """The network namespace of the calling thread."""
    status = os.stat(f"/proc/self/task/{threading.get_native_id()}/ns/net")
    return NamespaceIdentity(status.st_dev, status.st_ino)


def namespace_names(prefix: str) -> list[str]:
    """The names that exist and start with `prefix`, sorted."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path.name for path in NAMES.iterdir() if path.name.startswith(prefix))
    return []


@contextlib.contextmanager
def temporary_namespace(name: str) -> Iterator[Path]:
    """A namespace that exists for the length of a `with` block."""
    path = create_namespace(name)
    try:
        yield path
    finally:
        delete_namespace(name)


def _check(result: int, thing: str, cause: str) -> None:
    if result != 0:
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        raise HostError(thing, f"{cause} ({error.strerror})", "run as root on a kernel with network namespaces") from error
