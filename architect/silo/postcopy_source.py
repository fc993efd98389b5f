"""The source after a post-copy cut: demands are answered at once, the rest is pushed behind them, lost connections taken up again.

The guest at the source is paused and its memory no longer changes, so a page may be sent twice and the root may be computed when
all has been sent. The target says what it lacks after a reconnection; nothing else has to be remembered here.
"""

from __future__ import annotations

import threading
import time

from architect.errors import ArchitectError
from architect.silo.demand_server import DemandServer
from architect.silo.memory_errors import CutError, MemoryLostError
from architect.silo.memory_hash import hash_memory
from architect.silo.memory_messages import Served, SourceOptions
from architect.silo.merkle import HashTree
from architect.silo.page_map import PageMap
from architect.silo.page_runs import decode_runs
from architect.silo.page_sender import PageSender
from architect.silo.ram_file import RamFile
from architect.silo.source_streams import SourceStreams
from architect.silo.stream_connection import StreamLostError, StreamRefusedError
from architect.silo.stream_messages import FRAME_PAGES, Lacking, Promise, Proved

PROOF_TIMEOUT_S = 60.0
LIST_TIMEOUT_S = 10.0
RECONNECT_PAUSE_S = 0.25
STRIPE_PAGES = 1024
DEMANDS_RECENT_S = 0.1
DEMAND_YIELD_S = 0.002
PUSH_WINDOW_FRAMES = 4


class PostcopySource:
    """Answers and pushes until the target has proved that it has all.

    :param lacking: the move's map: what the target lacks.
    """

    def __init__(self, options: SourceOptions, streams: SourceStreams, lacking: PageMap, tree: HashTree, ram: RamFile) -> None:
        self._options = options
        self._streams = streams
        self._lacking = lacking
        self._tree = tree
        self._ram = ram
        self._demands: DemandServer | None = None
        self._thread: threading.Thread | None = None
        self._demanded_before = 0
        self._ended = threading.Event()
        self._hashes_known = True

    def start_demands(self) -> None:
        """Answer demands from now on, in a thread."""
        assert self._streams.demand is not None
        self._demands = DemandServer(self._streams.demand, self._lacking)
        self._thread = threading.Thread(target=self._run_demands, args=(self._demands,), name="memory-demand", daemon=True)
        self._thread.start()

    def _run_demands(self, demands: DemandServer) -> None:
        try:
            demands.run()
        except ArchitectError:
            self._streams.interrupt()  # `serve` notices, and reconnects or reports

    def resume_without_hashes(self) -> None:
        """This process has sent nothing of this move: the target says what it lacks, the root is taken from the memory itself."""
        self._hashes_known = False
        self._read_lacking()
        self.start_demands()

    def serve(self) -> Served:
        """As `SourceSession.serve`. May be called again once it has given up."""
        reconnects = 0
        while True:
            try:
                root = self._serve_once()
                assert self._demands is not None
                return Served(root, self._streams.bytes_sent, self._demanded_before + self._demands.demanded_pages, reconnects)
            except StreamLostError as error:
                if self._ended.is_set():
                    raise
                self._reconnect(error)
                reconnects += 1

    def _serve_once(self) -> str:
        if self._demands is None:
            raise StreamLostError("post-copy", "the target was lost before", "see the target host")
        self._streams.each(self._push)
        self._demands.wait_idle()
        root = self._tree.root() if self._hashes_known else hash_memory(self._ram)
        connection = self._streams.data[0].connection
        connection.send(Promise(root))
        proof = connection.receive_as(Proved, PROOF_TIMEOUT_S)
        if not proof.equal or proof.root != root:
            raise CutError("memory after post-copy", f"the target has {proof.root}, not {root}", "report this as a defect")
        return root

    def _push(self, index: int, sender: PageSender) -> None:
        pages = self._lacking.pages()
        pages = pages[(pages // STRIPE_PAGES) % len(self._streams.data) == index]
        for number, at in enumerate(range(0, len(pages), FRAME_PAGES), 1):
            batch = self._lacking.among(pages[at : at + FRAME_PAGES])
            if len(batch) == 0:
                continue
            self._yield_to_demands(sender, number)
            self._lacking.remove(batch)
            sender.send(batch)
        sender.barrier()

    def _yield_to_demands(self, sender: PageSender, number: int) -> None:
        """While the guest demands pages, keep little in flight that their answers would have to wait behind."""
        assert self._demands is not None
        since_s = time.monotonic() - self._demands.last_demand_s
        if since_s < DEMANDS_RECENT_S and number % PUSH_WINDOW_FRAMES == 0:
            sender.barrier()
        if since_s < DEMAND_YIELD_S:
            time.sleep(DEMAND_YIELD_S - since_s)

    def _reconnect(self, error: StreamLostError) -> None:
        deadline_s = time.monotonic() + self._options.reconnect_s
        cause: ArchitectError = error
        self._close()
        while time.monotonic() < deadline_s and not self._ended.wait(RECONNECT_PAUSE_S):
            try:
                self._streams.open(resume=True)
                self._read_lacking()
                self.start_demands()
                return
            except (StreamLostError, StreamRefusedError) as again:
                cause = again
                self._close()
        raise MemoryLostError(
            "post-copy", f"the target was not reached for {self._options.reconnect_s} s ({cause.cause})", "see the target host"
        ) from cause

    def _read_lacking(self) -> None:
        connection = self._streams.data[0].connection
        self._lacking.flags[:] = 0
        while True:
            part = connection.receive_as(Lacking, LIST_TIMEOUT_S)
            self._lacking.add(decode_runs(part.runs, self._lacking.page_count, connection.peer))
            if part.last:
                return

    def _close(self) -> None:
        self._streams.interrupt()
        if self._thread is not None:
            self._thread.join()
        if self._demands is not None:
            self._demanded_before += self._demands.demanded_pages
            self._demands = None
        self._streams.close()

    def end(self) -> None:
        """Make `serve` return, end the demand thread. Idempotent."""
        self._ended.set()
        self._streams.interrupt()
        if self._thread is not None:
            self._thread.join()
