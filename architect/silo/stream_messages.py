"""Memory process and memory process: the messages of a move's data connections. See `docs/protocols/memory-stream.md`.

The source connects; each connection is TLS 1.3 and starts with `Hello`, answered by `Welcome` or `Refused`. `runs` fields are page
lists as `page_runs` encodes them. Version: `framing.PROTOCOL_VERSION` in Hello, equal on both sides.

    source                                target
      Hello(purpose=data)      ->          as many as the move has streams
                               <-          Welcome
      Pages | PackedPages | Zeros ... ->   written (before the cut), installed (after it)
      Barrier(n)               ->
                               <-          Ack(n): all before it on this connection is in place
      Hurry                    ->          the guest is paused: the cut begins
      Missing ...              ->          post-copy cut: what the target lacks; it forgets its copies, then acknowledges
      Promise(root)            ->          after the last page
                               <-          Proved(root, equal)

      Hello(purpose=demand)    ->          one
                               <-          Want(pages): a guest waits for these
      Pages | Zeros            ->
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from architect.silo.page_runs import LIST_BYTES_MAX

FRAME_PAGES_MAX = 256
FRAME_PAGES = 64
"""The length of a frame that a guest may have to wait for, or behind."""
Runs = Annotated[bytes, msgspec.Meta(max_length=LIST_BYTES_MAX)]
Name = Annotated[str, msgspec.Meta(max_length=128)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One message; its class name is its tag."""


class Hello(_Message, frozen=True):
    """What this connection is for. `session` is the move's secret; `resume`: a post-copy whose connections were lost goes on."""

    version: int
    session: Name
    purpose: Literal["data", "demand", "tunnel"]
    index: Annotated[int, msgspec.Meta(ge=0, lt=64)] = 0
    page_count: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    resume: bool = False


class TunnelHello(_Message, frozen=True):
    """Follows a Hello for a tunnel: half `upward` (source to target) or its opposite of connection `number` of tunnel `name`.

    `parked`: the source holds it ready for a client at the target, which takes it with `TunnelTaken`.
    """

    name: Name
    number: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    upward: bool
    parked: bool = False


class TunnelTaken(_Message, frozen=True):
    """A parked tunnel connection has a client now."""


class Welcome(_Message, frozen=True):
    """The connection is accepted."""


class Refused(_Message, frozen=True):
    """It is not; the connection ends."""

    cause: Annotated[str, msgspec.Meta(max_length=1024)]


class Pages(_Message, frozen=True):
    """The body is the pages of `runs`; `digest` is the SHA-256 of their SHA-256 hashes in order."""

    runs: Runs
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class PackedPages(_Message, frozen=True):
    """As Pages, but that the body is the pages compressed with `codec`; `digest` is of the pages themselves. On data connections
    whose target has agreed to it (`packing`) only."""

    runs: Runs
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    codec: Annotated[str, msgspec.Meta(max_length=16)]


class Zeros(_Message, frozen=True):
    """These pages are all zeros."""

    runs: Runs


class Missing(_Message, frozen=True):
    """A part of the list of pages that the target lacks at a post-copy cut; `last` ends the list."""

    runs: Runs
    last: bool


class Lacking(_Message, frozen=True):
    """Target to source, when a lost post-copy goes on: a part of what it still lacks."""

    runs: Runs
    last: bool


class Hurry(_Message, frozen=True):
    """The guest is paused from now on: what comes is urgent."""


class Barrier(_Message, frozen=True):
    """Answer with Ack when all before is in place."""

    number: int


class Ack(_Message, frozen=True):
    """Everything before that Barrier is in place."""

    number: int


class Want(_Message, frozen=True):
    """A guest waits for these pages."""

    runs: Runs


class Promise(_Message, frozen=True):
    """All has been sent; the RAM at the cut has this root."""

    root: Name


class Proved(_Message, frozen=True):
    """What the target received has this root."""

    root: Name
    equal: bool


StreamMessage = (
    Hello | TunnelHello | TunnelTaken | Welcome | Refused | Pages | PackedPages | Zeros | Missing | Lacking | Hurry | Barrier | Ack
    | Want | Promise | Proved
)  # fmt: skip
