"""The root of all errors, and the tree.

Every error that a user, a peer or a host can cause derives from `ArchitectError` and says three things: the *thing* it is
about, the *cause*, and the *next step*. Concrete classes live beside the code that raises them; each belongs to one of the
branches below, which fix the exit status of the command line and the HTTP status of the REST interface::

    ArchitectError                  exit  HTTP  at fault, and what a retry means
     ├── UsageError                    2   400  the caller's words; the same call fails again
     │    └── InvalidImageError        2   400  an image that cannot become a VM
     ├── NotFoundError                 3   404  what was named does not exist
     ├── ConflictError                 4   409  the state of the thing forbids it now (port taken, a second migrate, exited)
     ├── CapacityError                 5   507  no room: memory, disk, hosts
     ├── IncompatibleError             6   412  two sides that do not fit: QEMU, CPU model, kernel, protocol version
     ├── UnavailableError              7   503  somebody does not answer: control plane, host, edge; retry may help
     │    └── OutcomeUnknownError      7   503  the request was sent, its answer was not seen: read back before a retry
     ├── PeerError                     8   502  the other side broke the protocol
     ├── HostError                     9   500  this machine lacks or refused something (capability, permission, disk full)
     ├── HandoverError                10   409  a move failed; the VM runs on where it was
     ├── LostError                    11   410  the VM is gone, with its reason
     └── InternalError                70   500  our own defect

`code` is the class's stable name on the wire and in `--json`; `remote_error` rebuilds an error that another process reported.
Library errors are mapped where the library is called, with ``raise ... from``. Nothing is logged and raised.
"""

from __future__ import annotations

from typing import ClassVar


class ArchitectError(Exception):
    """An error that names its thing, cause and next step.

    :param thing: what it is about, as the user names it: ``image oci:/x:latest``, ``host aws-1``.
    :param cause: what is wrong with it.
    :param next_step: what the reader can do now.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retry_after_s: float | None = None

    def __init__(self, thing: str, cause: str, next_step: str) -> None:
        super().__init__(thing, cause, next_step)
        self.thing = _one_line(thing)
        self.cause = _one_line(cause)
        self.next_step = _one_line(next_step)

    def __str__(self) -> str:
        return f"{self.thing}: {self.cause}; {self.next_step}"


class UsageError(ArchitectError):
    """The caller's words cannot be acted on."""

    code = "usage"
    exit_status = 2
    http_status = 400


class InvalidImageError(UsageError):
    """An image that cannot become a VM."""

    code = "invalid-image"


class NotFoundError(ArchitectError):
    """What was named does not exist."""

    code = "not-found"
    exit_status = 3
    http_status = 404


class ConflictError(ArchitectError):
    """The state of the thing forbids the request now."""

    code = "conflict"
    exit_status = 4
    http_status = 409


class CapacityError(ArchitectError):
    """No room: memory, disk or hosts."""

    code = "capacity"
    exit_status = 5
    http_status = 507


class IncompatibleError(ArchitectError):
    """Two sides that do not fit together."""

    code = "incompatible"
    exit_status = 6
    http_status = 412


class UnavailableError(ArchitectError):
    """Somebody who is needed does not answer."""

    code = "unavailable"
    exit_status = 7
    http_status = 503
    retry_after_s: float | None = 1.0


class OutcomeUnknownError(UnavailableError):
    """The request was sent and its answer was not seen; read back before you retry."""

    code = "outcome-unknown"
    retry_after_s = None


class PeerError(ArchitectError):
    """The other side broke the protocol."""

    code = "peer"
    exit_status = 8
    http_status = 502


class HostError(ArchitectError):
    """This machine lacks or refused something."""

    code = "host"
    exit_status = 9


class HandoverError(ArchitectError):
    """A move failed; the VM runs on where it was."""

    code = "handover"
    exit_status = 10
    http_status = 409


class LostError(ArchitectError):
    """The VM is gone."""

    code = "lost"
    exit_status = 11
    http_status = 410


class InternalError(ArchitectError):
    """A defect of ours."""

    code = "internal"
    exit_status = 70


_BRANCHES: tuple[type[ArchitectError], ...] = (
    UsageError,
    InvalidImageError,
    NotFoundError,
    ConflictError,
    CapacityError,
    IncompatibleError,
    UnavailableError,
    OutcomeUnknownError,
    PeerError,
    HostError,
    HandoverError,
    LostError,
    InternalError,
)


def remote_error(code: str, thing: str, cause: str, next_step: str) -> ArchitectError:
    """The error that another process reported, in the branch that its code names; an unknown code is a plain ArchitectError."""
    for branch in _BRANCHES:
        if branch.code == code:
            return branch(thing, cause, next_step)
    return ArchitectError(thing, cause, next_step)


def first_error(errors: BaseException) -> BaseException:
    """The error itself, or of a task group's the first: one to report for all that ended together."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


def described(error: BaseException, thing: str) -> ArchitectError:
    """What went wrong, as an error of ours: the first of a task group's. What the system refused is the host's, others defects."""
    match first := first_error(error):
        case ArchitectError():
            return first
        case OSError():
            where = f": {first.filename}" if first.filename else ""
            return HostError(thing, f"{first.strerror or type(first).__name__}{where}", "see the host's disks, limits and logs")
        case _:
            return InternalError(thing, f"{type(first).__name__}: {first}", "report this as a defect")


def _one_line(text: str) -> str:
    return " ".join(text.split())
