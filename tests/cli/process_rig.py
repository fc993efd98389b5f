"""A real `architect control` process with fake hosts and a fake edge on TLS, and the command line as subprocesses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from architect.errors import ArchitectError
from architect.model.config import ControlConfig
from architect.runtime.certificates import make_ca, make_certificate
from architect.runtime.config_file import write_config
from architect.runtime.rpc import Channel, Handler, open_channel, peer_name
from architect.runtime.tls import client_context, san_name, server_context
from architect.testing.fake_agent import FakeAgent, FakeWorld
from architect.testing.fake_edge import FakeEdge
from architect.wire.agent_messages import AgentMessage
from architect.wire.edge_messages import EdgeMessage

ResultT = TypeVar("ResultT")
START_S = 30.0
COMMAND = (sys.executable, "-m", "architect")


class ProcessRig:
    """One fabric. The fakes run on a loop in a thread; `call` runs a coroutine there."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.folder = state_dir / "work"
        """Where commands are given; the images that they name by path lie there, as far as anybody but a host looks at them."""
        for image in ("image", "x"):
            (self.folder / image).mkdir(parents=True)
        self.world = FakeWorld()
        self.edge = FakeEdge()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        make_ca(state_dir / "ca")
        for name in ("control", "edge:edge-1"):
            make_certificate(state_dir / "ca", state_dir / "tls" / name, name)
        self._edge_server, edge_port = self.call(self._start_edge())
        self.port = free_port()
        config = ControlConfig(
            "test", "127.0.0.1", self.port, str(state_dir / "control.sock"), str(state_dir / "control"),
            str(state_dir / "tls" / "control"), "edge-1", "127.0.0.1", edge_port, host_lost_after_s=2.0,
        )  # fmt: skip
        write_config(state_dir / "control.json", config)
        self.process: subprocess.Popen[bytes] | None = None

    def start_control(self) -> None:
        """Start the control plane and wait until it answers."""
        with (self.state_dir / "control.log").open("ab") as log:
            command = [*COMMAND, "control", "--config", str(self.state_dir / "control.json")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline_s = time.monotonic() + START_S
        while self.cli("host", "ls").returncode != 0:
            assert self.process.poll() is None and time.monotonic() < deadline_s, self.log()

    def kill_control(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def add_host(self, name: str, memory_mib: int = 2048) -> FakeAgent:
        """A new host, connected."""
        agent = self.world.add_host(name, memory_mib << 20, name.partition("-")[0])
        self.connect(agent)
        return agent

    def connect(self, agent: FakeAgent) -> None:
        """Have the agent dial until it is accepted."""
        tls_dir = self.state_dir / "tls" / agent.name
        make_certificate(self.state_dir / "ca", tls_dir, f"agent:{agent.name}")

        async def connect(handler: Handler) -> Channel:
            return await open_channel(
                ("127.0.0.1", self.port), AgentMessage, handler, "control plane",
                tls=client_context(tls_dir), server_name=san_name("control"),
            )  # fmt: skip

        deadline_s = time.monotonic() + START_S
        while True:
            try:
                return self.call(agent.connect(connect, 0.2))
            except ArchitectError:
                assert time.monotonic() < deadline_s
                self.call(agent.disconnect())

    def call(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run a coroutine on the fakes' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)

    def cli(self, *words: str, stdin: bytes = b"", timeout_s: float = 30.0) -> subprocess.CompletedProcess[bytes]:
        """Run a command line to its end."""
        return subprocess.run(
            [*COMMAND, *words], env=self.environment(), cwd=self.folder, input=stdin, capture_output=True, timeout=timeout_s
        )

    def start_cli(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command line."""
        return subprocess.Popen(
            [*COMMAND, *words],
            env=self.environment(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """For command lines."""
        return {**os.environ, "ARCHITECT_STATE": str(self.state_dir), "COLUMNS": "100"}

    def json(self, *words: str) -> Any:
        """What a command prints as JSON; it must go well."""
        done = self.cli("--json", *words)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def log(self) -> str:
        """What the control plane logged."""
        return (self.state_dir / "control.log").read_text()

    def close(self) -> None:
        """End everything."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.kill_control()
        self.call(self.world.__aexit__())
        self._edge_server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start_edge(self) -> tuple[asyncio.Server, int]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert peer_name(writer) == "control"
            await Channel(reader, writer, EdgeMessage, self.edge.handle, "control").run()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(self.state_dir / "tls" / "edge:edge-1"))
        return server, server.sockets[0].getsockname()[1]


def free_port() -> int:
    """A TCP port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process_rig(state_dir: Path, *hosts: str) -> Iterator[ProcessRig]:
    """A running fabric with these hosts."""
    one = ProcessRig(state_dir)
    try:
        one.start_control()
        for name in hosts:
            one.add_host(name)
        yield one
    finally:
        one.close()
