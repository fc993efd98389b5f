"""Faults for tests of a whole fabric: handovers held at a step, processes killed by what they are, links cut, leftovers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from architect.cli import vm_commands
from architect.cli.parser import parse
from architect.clouds.local.layout import StateFolder
from architect.errors import ArchitectError
from architect.runtime.namespaces import namespace_path, run_in_namespace
from architect.runtime.processes import ProcessIdentity, is_alive, processes_where
from tests.host.fabric_rig import CommandFailedError, FabricRig, without_children
from tests.host.rest_reader import PATIENCE_S

TICKS = (
    "--",
    "-c",
    "echo begin; (while true; do nc -l -p 7777 -e cat; done) & i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done",
)
"""A program whose output tells whether it was ever stopped, doubled or set back; what is sent to port 7777 comes back."""


class Move:
    """`architect migrate`, under way."""

    def __init__(self, rig: FabricRig, name: str, to: str, *words: str) -> None:
        self._process = rig.start("--json", "migrate", name, "--to", to, *words)
        self._words: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it has, well or not."""
        return self._process.poll() is not None

    def outcome(self, timeout_s: float = PATIENCE_S) -> tuple[int, str]:
        """Exit status and last words, once it has ended."""
        if self._words is None:
            out, err = self._process.communicate(timeout=timeout_s)
            self._words = (err or out).strip()
        return self._process.returncode, self._words


class MoveInside:
    """The same in a thread of the test: what `architect migrate` does, without the start of a process."""

    def __init__(self, state_dir: Path, name: str, to: str, mode: str = "auto", *, verify: bool = False) -> None:
        self._end: tuple[int, str] | None = None
        words = ["migrate", name, "--to", to, "--mode", mode, *(["--verify"] if verify else [])]
        options = parse(["--json", "--state-dir", str(state_dir), *words])
        assert options is not None
        self._options = options
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._end = vm_commands.migrate(self._options), ""
        except ArchitectError as error:
            self._end = error.exit_status, str(error)

    @property
    def has_ended(self) -> bool:
        """As of `Move`."""
        return self._end is not None

    def outcome(self, timeout_s: float = PATIENCE_S) -> tuple[int, str]:
        """As of `Move`."""
        self._thread.join(timeout_s)
        assert self._end is not None, f"the move has not ended in {timeout_s:g} s"
        return self._end


class FaultRig:
    """What tests do to a fabric."""

    def __init__(self, rig: FabricRig) -> None:
        self.rig = rig

    def read(self, path: str) -> Any:
        """A document of the REST interface, over a restart of the control plane; None where there is none."""
        return self.rig.rest.read(path)

    def read_lines(self, path: str) -> list[Any]:
        """The items of a stream of the REST interface, but for its end."""
        return self.rig.rest.read_lines(path)

    def begin_move(self, name: str, to: str, *words: str) -> Move:
        """`architect migrate`, begun."""
        return Move(self.rig, name, to, *words)

    def begin_inside(self, name: str, to: str, mode: str = "auto", *, verify: bool = False) -> MoveInside:
        """The same, cheaper."""
        return MoveInside(self.rig.state_dir, name, to, mode, verify=verify)

    def remove(self, name: str) -> None:
        """`architect rm --force`, without the start of a process."""
        status, answer = self.rig.rest.ask("DELETE", f"vms/{name}?force=true")
        assert status == 200, answer

    def state(self, name: str) -> str:
        """The VM's state."""
        found = self.read(f"vms/{name}")
        return "" if found is None else str(found["state"])

    # handovers

    def hold_folder(self, host: str) -> Path:
        return StateFolder(self.rig.state_dir).host(host) / "state" / "hold"

    def asked_to_hold(self, host: str, step: str) -> Path:
        """The file that makes handovers of the host wait at `step`, made now."""
        path = self.hold_folder(host) / step
        path.parent.mkdir(exist_ok=True)
        path.with_name(f"{step}.reached").unlink(missing_ok=True)
        path.touch()
        return path

    @contextlib.contextmanager
    def held(self, name: str, source: str, target: str, step: str, mode: str = "precopy") -> Iterator[Move]:
        """A move that waits at `step` while the block runs, and goes on (if it still can) after it."""
        path = self.asked_to_hold(source if step.startswith("source") else target, step)
        folder = path.parent
        try:
            move = self.begin_move(name, target, "--mode", mode)
            self.rig.wait(f"the move is at {step}", (folder / f"{step}.reached").exists)
            yield move
        finally:
            (folder / step).unlink(missing_ok=True)

    @contextlib.contextmanager
    def cut_during(self, name: str, source: str, target: str, step: str, mode: str = "precopy") -> Iterator[Move]:
        """A move between whose hosts no packet passes from `step` on, while the block runs."""
        with contextlib.ExitStack() as cutting:
            with self.held(name, source, target, step, mode) as move:
                cutting.enter_context(self.cut(source, target))
            yield move

    def await_ready(self, *hosts: str) -> None:
        """Until the hosts' agents are connected."""

        def are_ready() -> bool:
            found = {host["name"]: host["state"] for host in self.read("hosts")}
            return all(found.get(host) == "ready" for host in hosts)

        self.rig.wait(f"{' and '.join(hosts)} are ready", are_ready)

    def open_host(self, host: str) -> None:
        """The host takes VMs again."""
        assert self.rig.rest.ask("POST", f"hosts/{host}/open")[0] == 200

    # processes

    @contextlib.contextmanager
    def supervisor_stopped(self) -> Iterator[None]:
        """Nothing that dies is started again while the block runs."""
        (supervisor,) = self.rig.processes("architect supervisor")
        os.kill(supervisor.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(supervisor.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def strange_agent(self, host: str, stand_in: str) -> Iterator[None]:
        """The host's agent is another one while the block runs: `strange_agent.STAND_INS` says how it differs."""
        config = StateFolder(self.rig.state_dir).host(host) / "config.json"
        call = [sys.executable, "-m", "tests.host.strange_agent", stand_in, "--config", str(config)]
        with self.supervisor_stopped():
            agent = self.agent(host)
            self.kill(agent)
            with (self.rig.state_dir / "logs" / f"strange-{stand_in}.log").open("ab") as log:
                stranger = run_in_namespace(
                    namespace_path(self.namespace(host)), lambda: subprocess.Popen(call, stdout=log, stderr=log)
                )
            try:
                yield
            finally:
                stranger.kill()
                stranger.wait()

    def has_begun(self, host: str, stage: int) -> bool:
        """Whether a VM is being made there: 0: it has a folder, 1: its memory process runs, 2: its QEMU."""
        folder = StateFolder(self.rig.state_dir).host(host) / "state" / "vms"
        wanted = ("vm.json", "memory/memory.pid", "qemu/machine.json")[stage]
        return any(folder.glob(f"vm-*/{wanted}"))

    def agent(self, host: str) -> ProcessIdentity:
        """The host's agent."""
        return _one(without_children(self.rig.processes("architect agent", f"/{host}/")), f"agent of {host}")

    def memory(self, host: str, vm: str) -> ProcessIdentity:
        """The VM's memory process on the host."""
        return _one(self.memories(host, vm), f"memory process of {vm} on {host}")

    def memories(self, host: str, vm: str) -> list[ProcessIdentity]:
        """Forks of one process look alike: those of the VM have files open in its folder, be it deleted."""
        namespace = os.stat(namespace_path(self.namespace(host))).st_ino

        def fits(process: ProcessIdentity) -> bool:
            try:
                is_memory = Path(f"/proc/{process.pid}/comm").read_text() == "memory_main\n"
                return is_memory and is_inside(process, namespace) and any(vm in path for path in _open_files(process))
            except OSError:
                return False

        return processes_where(fits)

    def qemu(self, host: str, vm: str) -> ProcessIdentity:
        """The VM's QEMU on the host."""
        return _one(self.qemus(host, vm), f"QEMU of {vm} on {host}")

    def qemus(self, host: str, vm: str) -> list[ProcessIdentity]:
        """The same, be it there or not."""
        namespace = os.stat(namespace_path(self.namespace(host))).st_ino
        return [process for process in self.rig.machine_processes(vm) if is_inside(process, namespace)]

    def kill(self, process: ProcessIdentity) -> None:
        """`kill -9`, and wait until it is gone."""
        os.kill(process.pid, signal.SIGKILL)
        self.wait_gone(process)

    def wait_gone(self, process: ProcessIdentity) -> None:
        """Until the process has ended."""
        self.rig.wait(f"process {process.pid} is gone", lambda: not is_alive(process))

    # network

    @property
    def fabric(self) -> str:
        return StateFolder(self.rig.state_dir).fabric

    def namespace(self, host: str) -> str:
        return f"arc-{self.fabric}-host-{host}"

    def address(self, host: str) -> str:
        """The host's underlay address."""
        config: Any = json.loads((StateFolder(self.rig.state_dir).host(host) / "config.json").read_bytes())
        return str(config["address"])

    @contextlib.contextmanager
    def cut_from_log(self, host: str) -> Iterator[None]:
        """The host's way to the ownership log leads nowhere while the block runs, as if its file system were gone."""
        way = StateFolder(self.rig.state_dir).host(host) / "ownership"
        aside = way.with_name("ownership-aside")
        way.rename(aside)
        try:
            yield
        finally:
            aside.rename(way)

    @contextlib.contextmanager
    def cut_from_edge(self, host: str) -> Iterator[None]:
        """No packet passes between a host and the edge while the block runs."""
        config: Any = json.loads((StateFolder(self.rig.state_dir).host(host) / "config.json").read_bytes())
        with self._cut(self.address(host), str(config["edge_address"])):
            yield

    @contextlib.contextmanager
    def cut(self, one: str, other: str) -> Iterator[None]:
        """No packet passes between two hosts while the block runs; both reach everybody else."""
        with self._cut(self.address(one), self.address(other)):
            yield

    @contextlib.contextmanager
    def _cut(self, one: str, other: str) -> Iterator[None]:
        pairs = [(one, other), (other, one)]
        self._filter("-I", pairs)
        try:
            yield
        finally:
            self._filter("-D", pairs)

    def _filter(self, what: str, pairs: list[tuple[str, str]]) -> None:
        for source, target in pairs:
            call = ["iptables", "-w", what, "FORWARD", "-s", source, "-d", target, "-j", "DROP"]
            run_in_namespace(
                namespace_path(f"arc-{self.fabric}-internet"),
                lambda: subprocess.run(call, check=True),  # noqa: B023 run at once
            )

    # what must hold afterwards

    def ticks(self, name: str) -> list[int]:
        """The numbers that the VM's program has printed."""
        return [int(word) for word in re.findall(r"^tick (\d+)$", self.rig.log(name), re.MULTILINE)]

    def assert_lives(self, name: str, vm: str) -> str:
        """Exactly one copy runs, nothing that it said is lost or doubled, and its port answers; returns its host."""
        rig = self.rig
        rig.wait("it is seen running", lambda: self.state(name) == "running")
        rig.wait("one copy is left", lambda: len(rig.machine_processes(vm)) == 1)
        before = len(self.ticks(name))
        rig.wait(f"{name} goes on", lambda: len(self.ticks(name)) > before + 2)
        seen = self.ticks(name)
        assert seen == list(range(len(seen)))
        found = self.read(f"vms/{name}")
        host = str(found["host"])
        assert is_inside(rig.machine_processes(vm)[0], os.stat(namespace_path(self.namespace(host))).st_ino)
        self.assert_answers(found["endpoints"][0]["port"])
        self.assert_clean(name, vm, host)
        return host

    def assert_answers(self, port: int) -> None:
        """What is sent to the published port comes back."""
        with self.rig.connect(port) as client:
            client.sendall(b"echo\n")
            assert client.recv(100) == b"echo\n"

    def assert_lost(self, name: str, vm: str, *words: str) -> None:
        """The VM is reported lost with its reason, and nothing of it runs."""
        rig = self.rig
        rig.wait("it is lost", lambda: self.state(name) == "lost")
        reason = self.read(f"vms/{name}")["reason"]
        assert all(word in reason for word in words), reason
        rig.wait("no copy is left", lambda: not rig.machine_processes(vm))
        rig.remove(name)
        self.assert_clean(name, vm, "")

    def assert_clean(self, name: str, vm: str, host: str) -> None:
        """Of the VM there is a process, a tap and a folder at `host` only."""
        hosts = [found["name"] for found in self.read("hosts") if found["state"] != "lost"]
        for other in hosts:
            wanted = 1 if other == host else 0
            folder = StateFolder(self.rig.state_dir).host(other) / "state" / "vms"

            def is_clean(other: str = other, wanted: int = wanted, folder: Path = folder) -> bool:
                taps = self.taps(other)
                folders = len(list(folder.glob(vm)))
                return (len(self.memories(other, vm)), folders) == (wanted, wanted) and len(taps) == self._expected_taps(other)

            try:
                self.rig.wait(f"{other} has {wanted} of {name}", is_clean, 20)
            except CommandFailedError as error:
                found = (self.memories(other, vm), list(folder.iterdir()), self.taps(other))
                raise AssertionError(f"{other} has {found}, expected {wanted} of {vm}\n{error}") from error

    def _expected_taps(self, host: str) -> int:
        living = ("running", "migrating", "paused")
        return sum(vm["host"] == host and vm["state"] in living for vm in self.read("vms"))

    def taps(self, host: str) -> list[str]:
        """The taps of VMs on the host."""
        found = run_in_namespace(
            namespace_path(self.namespace(host)),
            lambda: subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout,
        )
        return re.findall(r"^(avt\w+)", found, re.MULTILINE)

    def ask_to_move(self, name: str, to: str, *words: str) -> subprocess.CompletedProcess[str]:
        """`architect migrate`, once the agents of both hosts are connected."""
        end_s = time.monotonic() + PATIENCE_S
        while True:
            done = self.rig.command("--json", "migrate", name, "--to", to, *words)
            is_away = done.returncode == 7 and "not connected" in done.stderr
            if not is_away or time.monotonic() > end_s:
                return done
            time.sleep(0.3)

    def assert_moves(self, name: str, to: str) -> None:
        """The next move works."""
        done = self.ask_to_move(name, to)
        assert done.returncode == 0, done.stderr + self.rig.logs()
        assert json.loads(done.stdout)["outcome"] == "done"


def _one(found: list[ProcessIdentity], what: str) -> ProcessIdentity:
    assert len(found) == 1, (what, found)
    return found[0]


def _open_files(process: ProcessIdentity) -> list[str]:
    return [os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()]


def is_inside(process: ProcessIdentity, namespace_inode: int) -> bool:
    """Whether the process is in that network namespace."""
    try:
        return os.stat(f"/proc/{process.pid}/ns/net").st_ino == namespace_inode
    except OSError:
        return False
