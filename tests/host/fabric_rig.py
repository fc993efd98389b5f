"""A real fabric for tests: `architect` as a user has it, on a machine that is a network namespace."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from architect.runtime.processes import ProcessIdentity, command_line, processes_where
from tests.host.rest_reader import PATIENCE_S, RestReader
from tests.machine import Machine, machine

ARCHITECT = Path(sys.executable).parent / "architect"
POLL_S = 0.1
ResultT = TypeVar("ResultT")


class CommandFailedError(AssertionError):
    """A command that was to go well did not."""


class FabricRig:
    """One fabric, used through its command line."""

    def __init__(self, place: Machine, state_dir: Path) -> None:
        self.machine = place
        self.state_dir = state_dir
        self.rest = RestReader(state_dir)
        self.edge = ""
        self.outside = ""

    def command(self, *words: str, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run `architect WORDS` on the machine, whatever comes of it."""
        call = [str(ARCHITECT), "--state-dir", str(self.state_dir), *words]
        return self.machine.run(lambda: subprocess.run(call, capture_output=True, text=True, timeout=timeout_s, check=False))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin to run `architect WORDS` on the machine, with pipes."""
        call = [str(ARCHITECT), "--state-dir", str(self.state_dir), *words]
        pipes: dict[str, int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return self.machine.run(lambda: subprocess.Popen(call, text=True, **pipes))  # type: ignore[call-overload]

    def json(self, *words: str, timeout_s: float = PATIENCE_S) -> Any:
        """The document that a command prints."""
        done = self.command("--json", *words, timeout_s=timeout_s)
        if done.returncode:
            raise CommandFailedError(f"architect {' '.join(words)}: {done.returncode}: {done.stderr}\n{self.logs()}")
        return json.loads(done.stdout)

    def up(self, hosts: int = 3) -> None:
        """`architect up`."""
        fabric = self.json("up", "--hosts", str(hosts), timeout_s=300)
        self.edge, self.outside = fabric["edge"]["addresses"][0], fabric["outside"]["address"]

    def run(self, image: str, name: str, *words: str) -> Any:
        """`architect run`, and the VM."""
        options, separator, command = (words, (), ()) if "--" not in words else _split(words)
        return self.json("run", image, "--name", name, *options, *separator, *command, timeout_s=180)

    def remove(self, name: str) -> None:
        """`architect rm --force`."""
        self.json("rm", "--force", name)

    def inspect(self, name: str) -> Any:
        """The VM as `architect inspect` prints it."""
        return self.rest.read(f"vms/{name}")

    def log(self, name: str) -> str:
        """The VM's output, as `architect logs` prints it."""
        return self.rest.log(name)

    def wait(self, what: str, holds: Callable[[], bool], limit_s: float = PATIENCE_S) -> None:
        """Until it holds; fails with the fabric's logs if it does not."""
        end_s = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > end_s:
                raise CommandFailedError(f"not within {limit_s} s: {what}\n{self.command('ps').stdout}\n{self.logs()}")
            time.sleep(POLL_S)

    def connect(self, port: int) -> socket.socket:
        """A TCP connection from the machine to a published port, once somebody listens there."""
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.machine.run(lambda: socket.create_connection((self.edge, port), timeout=20))
            except ConnectionRefusedError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.2)

    def processes(self, *words: str) -> list[ProcessIdentity]:
        """The fabric's processes whose command line has all these words."""
        own = str(self.state_dir)

        def fits(process: ProcessIdentity) -> bool:
            line = " ".join(command_line(process))
            return own in line and all(word in line for word in words)

        return processes_where(fits)

    def machine_processes(self, vm: str) -> list[ProcessIdentity]:
        """The VM's QEMU, on whichever host: its command line names the VM, and no path."""
        return processes_where(lambda process: any(vm in part for part in command_line(process)[:8]) and _is_qemu(process))

    def kill(self, *words: str) -> int:
        """`kill -9` of the one process of ours whose command line has these words; its pid."""
        return _kill(self.processes(*words))

    def kill_machine(self, vm: str) -> int:
        """`kill -9` of the VM's QEMU; its pid."""
        return _kill(self.machine_processes(vm))

    def logs(self) -> str:
        """The last words of all the fabric's processes, and of the memory processes of the VMs that there are."""
        memories = self.state_dir.glob("hosts/*/state/vms/*/memory/memory.log")
        paths = [*sorted((self.state_dir / "logs").glob("*.log")), *sorted(memories)]
        return "\n".join(f"--- {path.relative_to(self.state_dir)}\n{words}" for path in paths if (words := _last_words(path)))


def _last_words(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-12:])
    except FileNotFoundError:  # its VM has gone meanwhile
        return ""


def _is_qemu(process: ProcessIdentity) -> bool:
    return "qemu-system" in " ".join(command_line(process)[:1])


def without_children(found: list[ProcessIdentity]) -> list[ProcessIdentity]:
    """Those that are no child of another: a child looks like its parent until it has executed its program."""
    pids = {process.pid for process in found}
    return [process for process in found if _parent(process) not in pids]


def _parent(process: ProcessIdentity) -> int:
    try:
        return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _kill(found: list[ProcessIdentity]) -> int:
    (process,) = without_children(found)
    os.kill(process.pid, signal.SIGKILL)
    return process.pid


def _split(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    at = words.index("--")
    return words[:at], ("--",), words[at + 1 :]


@contextlib.contextmanager
def fabric(hosts: int = 3) -> Iterator[FabricRig]:
    """A fabric for the length of a block; afterwards nothing of it is left."""
    state_dir = Path(tempfile.mkdtemp(prefix="arc", dir="/tmp"))
    with machine() as place:
        rig = FabricRig(place, state_dir)
        try:
            rig.up(hosts)
            yield rig
        finally:
            rig.command("down")
            shutil.rmtree(state_dir, ignore_errors=True)
