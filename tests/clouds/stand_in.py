"""Stand-ins for `architect control`, `edge` and `agent`: they listen where the real ones do, and introduce themselves.

    python stand_in.py ROLE --config FILE

An agent leaves a process behind itself that ignores SIGTERM, has a session of its own and lost its environment, as a VM would.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from architect.runtime.socket_paths import short_socket_path

HOLD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


async def control(config: dict[str, Any]) -> None:
    """Serve agents, and `GET /v1/hosts` at the REST socket."""
    hosts: dict[str, asyncio.StreamWriter] = {}

    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip()
        if name:
            hosts[name] = writer
            await reader.read()
            hosts.pop(name, None)
        writer.close()

    async def rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps([{"name": name, "state": "ready", "vms": 0} for name in hosts]).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    Path(config["rest_socket"]).unlink(missing_ok=True)
    with short_socket_path(Path(config["rest_socket"])) as path:
        await asyncio.start_unix_server(rest, path)
    await asyncio.start_server(agent, config["address"], config["port"])
    await asyncio.Event().wait()


async def edge(config: dict[str, Any]) -> None:
    """Take connections."""
    await asyncio.start_server(lambda _, writer: writer.close(), config["underlay_address"], config["port"])
    await asyncio.Event().wait()


async def agent(config: dict[str, Any]) -> None:
    """Take connections, start a "VM" unless it runs, and say hello for ever."""
    start_vm(Path(config["state_dir"]) / "vm.pid")
    await asyncio.start_server(lambda _, writer: writer.close(), config["address"], config["migration_port"])
    while True:
        try:
            reader, writer = await asyncio.open_connection(config["control_address"], config["control_port"])
            writer.write(config["name"].encode() + b"\n")
            await reader.read()
        except OSError:
            pass
        await asyncio.sleep(0.1)


def start_vm(pid_file: Path) -> None:
    """Start what outlives the agent, unless an earlier agent did."""
    if not pid_file.exists():
        child = subprocess.Popen([sys.executable, "-c", HOLD], start_new_session=True, env={})
        pid_file.write_text(str(child.pid))


def main() -> None:
    """Play the role on the command line."""
    role, _, path = sys.argv[1:]
    print(f"{role} {os.getpid()} starts", flush=True)
    config = json.loads(Path(path).read_text())
    asyncio.run({"control": control, "edge": edge, "agent": agent}[role](config))


if __name__ == "__main__":
    main()
