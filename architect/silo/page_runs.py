"""Page runs: sets of pages as arrays, as (first, count) runs, and as bytes on the wire.

Pages are numbered from 0 in the order of the RAM file. In the process a set is a sorted array of int64; on the wire it is runs of
two little-endian u32 each, strictly ascending and not touching out of range. Nothing of a peer is used as an index before
`decode_runs` has checked it.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from architect.errors import PeerError
from architect.wire.framing import CHECK_VERSION

Pages = npt.NDArray[np.int64]
"""Page numbers, ascending, each once."""

Bytes = npt.NDArray[np.uint8]

RUN_BYTES = 8
LIST_BYTES_MAX = 512 << 10
"""The longest page list in one message; longer ones go in parts."""

_RUN = struct.Struct("<II")
_NONE = np.empty(0, np.int64)
_ZERO = np.zeros(1, np.int64)


class PageRunsError(PeerError):
    """A list of pages from the peer that is none: not ascending, or out of range."""


def no_pages() -> Pages:
    """The empty set."""
    return _NONE


def pages_of(firsts: npt.NDArray[Any], counts: npt.NDArray[Any]) -> Pages:
    """The pages of runs: `firsts[i]` and the `counts[i] - 1` that follow it."""
    firsts, counts = firsts.astype(np.int64, copy=False), counts.astype(np.int64, copy=False)
    ends = np.cumsum(counts)
    if len(ends) == 0:
        return _NONE
    pages: Pages = np.arange(ends[-1], dtype=np.int64) + np.repeat(firsts - (ends - counts), counts)
    return pages


def run_list(pages: Pages) -> list[tuple[int, int]]:
    """`pages` (ascending) as the longest runs: (first, count)."""
    if len(pages) == 0:
        return []
    if is_one_run(pages):
        return [(int(pages[0]), len(pages))]
    firsts, counts = runs_of(pages)
    return list(zip(firsts.tolist(), counts.tolist(), strict=True))


def is_one_run(pages: Pages) -> bool:
    """Whether `pages` (ascending, not empty) follow one another. The case of most frames, so it takes no array."""
    return int(pages[-1]) - int(pages[0]) + 1 == len(pages)


def runs_of(pages: Pages) -> tuple[Pages, Pages]:
    """`pages` (ascending, not empty) as the longest runs: (firsts, counts)."""
    starts = np.concatenate((_ZERO, np.flatnonzero(pages[1:] - pages[:-1] != 1) + 1))
    return pages[starts], np.diff(starts, append=len(pages))


def encode_runs(pages: Pages) -> bytes:
    """`pages` (ascending) for the wire."""
    if len(pages) == 0:
        return b""
    if is_one_run(pages):
        return _RUN.pack(int(pages[0]), len(pages))
    return np.stack(runs_of(pages), axis=1).astype("<u4").tobytes()


def encode_parts(pages: Pages) -> list[bytes]:
    """`pages` (ascending) for the wire, in parts that each fit into a message; one empty part if there are none."""
    data = encode_runs(pages)
    return [data[at : at + LIST_BYTES_MAX] for at in range(0, len(data), LIST_BYTES_MAX)] or [b""]


def decode_runs(data: bytes, page_count: int, peer: str) -> Pages:
    """The pages in a list from the peer.

    Raises:
        PageRunsError: it is not a list of ascending runs within `page_count` pages.
    """
    if len(data) % RUN_BYTES:
        raise _refusal(peer, f"{len(data)} bytes")
    if len(data) == RUN_BYTES:
        first, count = _RUN.unpack(data)
        if count == 0 or first + count > page_count:
            raise _refusal(peer, f"a run of {count} from {first}, not within {page_count} pages")
        return np.arange(first, first + count)
    runs = np.frombuffer(data, "<u4").reshape(-1, 2).astype(np.int64)
    firsts, ends = runs[:, 0], runs[:, 0] + runs[:, 1]
    if len(runs) and ((runs[:, 1] == 0).any() or (firsts[1:] < ends[:-1]).any() or ends[-1] > page_count):
        raise _refusal(peer, f"{len(runs)} runs that are not ascending within {page_count} pages")
    return pages_of(firsts, runs[:, 1])


def _refusal(peer: str, what: str) -> PageRunsError:
    return PageRunsError(peer, f"sent a page list of {what}", CHECK_VERSION)
