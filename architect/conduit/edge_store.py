"""Where the edge's table outlives its process: one JSON file, replaced as a whole.

The file is written whole but not flushed: it has to survive the process, not the machine (whose maps and flows are lost with
it, and the control plane defines anew). So a steer waits for no disk in the middle of a switch.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from architect.conduit.edge_table import EdgeTable
from architect.errors import HostError
from architect.runtime.whole_file import write_whole

FILE = "table.json"
_EDGE_TABLE_DECODER = msgspec.json.Decoder(EdgeTable)


class EdgeStore:
    """The table's file in the edge's state folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def load(self) -> EdgeTable:
        """The table as last saved; empty if there is none.

        Raises:
            HostError: the file cannot be read or is damaged.
        """
        try:
            return _EDGE_TABLE_DECODER.decode(self._path.read_bytes())
        except FileNotFoundError:
            return EdgeTable()
        except (OSError, msgspec.DecodeError) as error:
            raise HostError(f"edge table {self._path}", str(error), "delete it; the control plane defines its VMs anew") from error

    def save(self, table: EdgeTable) -> None:
        """Replace the table.

        Raises:
            HostError: it cannot be written; the former one is still there.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self._path, msgspec.json.encode(table))
        except OSError as error:
            raise HostError(f"edge table {self._path}", str(error), "make room on that disk, then repeat the request") from error
