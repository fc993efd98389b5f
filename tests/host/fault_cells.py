"""Cells of the fault matrix, carried out: several VMs wait at once, each in a sub-step of its own, while one fault hits them all.

A `Fleet` keeps VMs with a `Witness` each over many faults: what survives one takes part in the next, so each cell also shows that
the VM of the one before can move again. `run` judges every cell by `fault_table.expected` and looks for what it left behind.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from architect.clouds.local.layout import StateFolder
from architect.runtime.namespaces import namespace_path
from tests.host.fabric_rig import FabricRig
from tests.host.fault_leaks import find_leaks
from tests.host.fault_rig import FaultRig, Move, MoveInside, is_inside
from tests.host.fault_strikes import LASTS_S, UNTIL_ENDED, Scene, agents_reset, strike
from tests.host.fault_table import BROKEN_AT, KILLED_AT, NAMED, Column, Need, Outcome, Stage, Victim, expected
from tests.host.witness import Witness, WitnessError

HOSTS = ("aws-1", "gcp-1")
PORT = 7100
MEMORY = "96M"
REACHED_S = 90.0
ENDED_S = 90.0
STARTED_S = 180.0
LOST_STATUS = 11
LIVES_S = 45.0
STIR_S = 20
FILL_MIB = 96
SECOND_WAVE = (Stage.STOPPED, Stage.TAKING, Stage.UNDOING)
"""Stages in which the other side's patience runs: their moves begin when the others wait already."""


class FleetVm(msgspec.Struct):
    """A VM and its witness."""

    name: str
    id: str
    port: int
    witness: Witness


class CellResult(msgspec.Struct, frozen=True):
    """What came of a cell. `silence_s` is the longest time between two acknowledged writes; `fault` is empty if all was well."""

    victim: str
    column: str
    phase: str
    outcome: str
    exit_status: int
    words: str
    silence_s: float
    fault: str = ""


class Fleet:
    """The VMs of a matrix, on two hosts."""

    def __init__(self, rig: FabricRig, faults: FaultRig, image: str, other_image: str) -> None:
        self.rig = rig
        self.faults = faults
        self._images = {False: image, True: other_image}
        self._vms: dict[str, FleetVm] = {}
        self._number = 0

    def gather(self, columns: list[Column]) -> tuple[str, str, list[FleetVm]]:
        """A VM for each column, all on one host, which becomes the source: (source, target, VMs)."""
        places = {name: str(self.faults.read(f"vms/{name}")["host"]) for name in self._vms}
        source = max(HOSTS, key=list(places.values()).count)
        target = next(host for host in HOSTS if host != source)
        away = [name for name, place in places.items() if place != source]
        moves = [(name, self.faults.begin_inside(name, source)) for name in away]
        for name, move in moves:
            status, words = move.outcome(ENDED_S)
            assert status == 0, f"{name} cannot move again: {words}\n{self.rig.logs()}"
        if any(column.need is Need.NO_BASE for column in columns):
            self._forget_bases(target)
        free = iter(sorted(self._vms))
        names = [None if self._is_special(column) else next(free, None) for column in columns]
        starting = {at: self._begin(source, columns[at]) for at, name in enumerate(names) if name is None}
        begun = {at: self._started(*started) for at, started in starting.items()}
        return source, target, [begun[at] if name is None else self._vms[name] for at, name in enumerate(names)]

    @staticmethod
    def _is_special(column: Column) -> bool:
        return column.need in (Need.NO_BASE, Need.FILLED)

    def _begin(self, host: str, column: Column) -> tuple[str, int, subprocess.Popen[str]]:
        self._number += 1
        name, port = f"vm-{self._number}", PORT + self._number
        words = ("--host", host, "--memory", MEMORY, "--publish", f"{port}:7000", "--publish", f"{port}:7000/udp")
        return name, port, self.rig.start("--json", "run", self._images[column.need is Need.NO_BASE], "--name", name, *words)

    def _started(self, name: str, port: int, starting: subprocess.Popen[str]) -> FleetVm:
        out, err = starting.communicate(timeout=STARTED_S)
        assert starting.returncode == 0, f"{name} does not start: {err}\n{self.rig.logs()}"
        vm = self._vms[name] = FleetVm(name, json.loads(out)["id"], port, Witness(self.rig, port))
        return vm

    def _forget_bases(self, target: str) -> None:
        """The target has no base disk but those of its VMs."""
        folder = StateFolder(self.rig.state_dir).host(target) / "state" / "images" / "bases"
        present = {json.loads(path.read_bytes())["spec"]["base"]["digest"] for path in self._records()}
        for base in folder.glob("*.raw"):
            if base.stem not in present:
                base.unlink()

    def _records(self) -> Iterator[Path]:
        for host in HOSTS:
            yield from (StateFolder(self.rig.state_dir).host(host) / "state" / "vms").glob("vm-*/vm.json")

    def retire(self, vm: FleetVm) -> None:
        """The VM is over, or of no more use."""
        vm.witness.close()
        self._vms.pop(vm.name, None)
        self.faults.remove(vm.name)

    def close(self) -> None:
        """End all of it."""
        for vm in list(self._vms.values()):
            with contextlib.suppress(AssertionError, OSError):
                self.retire(vm)

    def living(self) -> dict[str, str]:
        """VM ids and the hosts on which the control plane sees them run."""
        return {vm.id: str(self.faults.read(f"vms/{vm.name}")["host"]) for vm in self._vms.values()}


def run(fleet: Fleet, cells: Sequence[tuple[Victim, Column]]) -> list[CellResult]:
    """Faults at one moment, with a VM in each of the cells."""
    columns = [column for _, column in cells]
    victims = list(dict.fromkeys(victim for victim, _ in cells))
    name = " and ".join(victims)
    times = [time.monotonic()]
    source, target, vms = fleet.gather(columns)
    times.append(time.monotonic())
    words_before = len(_supervisor_words(fleet))
    scenes = {
        victim: Scene(fleet.faults, source, target, [vm.id for (of, _), vm in zip(cells, vms, strict=True) if of is victim])
        for victim in victims
    }
    batch = _Batch(fleet, Scene(fleet.faults, source, target, [vm.id for vm in vms]), list(zip(columns, vms, strict=True)))
    try:
        batch.approach()
    except BaseException:
        batch.abandon()
        raise
    times.append(time.monotonic())
    with contextlib.ExitStack() as fault:
        for victim in victims:
            fault.enter_context(strike(victim, scenes[victim]))
        batch.release()
        if UNTIL_ENDED & set(victims):
            batch.await_ends()
        else:
            time.sleep(max(LASTS_S.get(victim, 0.0) for victim in victims))
    batch.await_ends()
    times.append(time.monotonic())
    results = [batch.judge(victim, column, vm) for (victim, column), vm in zip(cells, vms, strict=True)]
    fleet.faults.await_ready(*HOSTS)
    died = [line for line in _supervisor_words(fleet)[words_before:] if "agent-" in line and "started again" in line]
    results += [
        CellResult(name, "agents", "", "", 0, "", 0.0, f"an agent died by itself: {line}\n{fleet.rig.logs()}")
        for line in died
        if "signal 9" not in line
    ]
    if leaks := find_leaks(fleet.faults, fleet.living(), HOSTS):
        results.append(CellResult(name, "afterwards", "", "", 0, "", 0.0, "left behind: " + "; ".join(leaks)))
    times.append(time.monotonic())
    steps = ("gathered", "approached", "struck", "judged")
    spent = (f"{step} {end - begin:.1f} s" for step, begin, end in zip(steps, times[:-1], times[1:], strict=True))
    print(f"--- {name}, {len(cells)} cells: {', '.join(spent)}")
    return results


def _supervisor_words(fleet: Fleet) -> list[str]:
    return (StateFolder(fleet.rig.state_dir).logs / "supervisor.log").read_text().splitlines()


class _Batch:
    """The moves of one fault."""

    def __init__(self, fleet: Fleet, scene: Scene, pairs: list[tuple[Column, FleetVm]]) -> None:
        self._fleet = fleet
        self._faults = fleet.faults
        self._scene = scene
        self._moves: dict[str, Move | MoveInside] = {}
        self._ends: dict[str, tuple[int, str]] = {}
        self.pairs = pairs

    def approach(self) -> None:
        """Begin the moves, until each waits in its column."""
        for wave in (False, True):
            # Who breaks connections comes before those whose connections must last.
            for breaks in (True, False):
                pairs = [pair for pair in self.pairs if (pair[0].stage in SECOND_WAVE) is wave and self._breaks(pair[0]) is breaks]
                for column, vm in pairs:
                    self._begin(column, vm)
                for column, vm in pairs:
                    self._lead(column, vm)

    @staticmethod
    def _breaks(column: Column) -> bool:
        return column.need in BROKEN_AT

    def _begin(self, column: Column, vm: FleetVm) -> None:
        if column.need is Need.STIRRED:
            vm.witness.tell(f"stir {STIR_S}")
        if column.need is Need.FILLED:
            vm.witness.tell(f"fill {FILL_MIB}")
        self._hold(column.point, vm)
        if (before := BROKEN_AT.get(column.need) or KILLED_AT.get(column.need)) is not None:
            self._hold(before, vm)
        vm.witness.begin()
        if (column, vm) == self.pairs[0]:  # one of them by the command itself
            words = ["--mode", column.mode, *(["--verify"] if column.verify else [])]
            self._moves[vm.name] = self._faults.begin_move(vm.name, self._scene.target, *words)
        else:
            self._moves[vm.name] = self._faults.begin_inside(vm.name, self._scene.target, column.mode, verify=column.verify)

    def _lead(self, column: Column, vm: FleetVm) -> None:
        if (before := KILLED_AT.get(column.need)) is not None:
            self._await(before, vm)
            for process in self._faults.qemus(self._scene.target, vm.id):
                self._faults.kill(process)
            self._release(before, vm)
        if (before := BROKEN_AT.get(column.need)) is not None:
            self._await(before, vm)
            with agents_reset(self._scene):
                self._await(column.point, vm)
            self._release(before, vm)
        self._await(column.point, vm)

    def _file(self, point: str, vm: FleetVm) -> Path:
        host = self._scene.source if point.startswith("source-") else self._scene.target
        return self._faults.hold_folder(host) / f"{point}@{vm.id}"

    def _hold(self, point: str, vm: FleetVm) -> None:
        path = self._file(point, vm)
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def _await(self, point: str, vm: FleetVm) -> None:
        path = self._file(point, vm)
        reached, move = path.with_name(f"{path.name}.reached"), self._moves[vm.name]

        def is_there() -> bool:
            if move.has_ended and not reached.exists():
                raise AssertionError(f"{vm.name} never came to {point}: {move.outcome()}\n{self._fleet.rig.logs()}")
            return reached.exists()

        self._fleet.rig.wait(f"{vm.name} is at {point}", is_there, REACHED_S)

    def _release(self, point: str, vm: FleetVm) -> None:
        path = self._file(point, vm)
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.reached").unlink(missing_ok=True)

    def release(self) -> None:
        """All handovers may go on."""
        for column, vm in self.pairs:
            self._release(column.point, vm)

    def abandon(self) -> None:
        """Something went wrong before the fault: the next one begins with other VMs."""
        self.release()
        self.await_ends()
        for _, vm in self.pairs:
            with contextlib.suppress(AssertionError, OSError):
                self._fleet.retire(vm)

    def await_ends(self) -> None:
        """Until every `architect migrate` has ended. Idempotent."""
        for name, move in self._moves.items():
            if name not in self._ends:
                try:
                    self._ends[name] = move.outcome(ENDED_S)
                except (AssertionError, subprocess.TimeoutExpired) as error:
                    self._ends[name] = -1, str(error)

    def judge(self, victim: Victim, column: Column, vm: FleetVm) -> CellResult:
        """What came of a cell, and whether that is what may come of it."""
        status, words = self._ends[vm.name]
        outcome, fault = "", ""
        try:
            outcome = self._outcome(vm)
            allowed = expected(victim, column)
            if outcome not in allowed:
                raise AssertionError(f"{outcome!r}, expected {' or '.join(sorted(allowed))}")
            assert status >= 0, words
            self._check_truth(vm, Outcome(outcome), status, words)
            self._check_reason(victim, column, vm, Outcome(outcome))
        except (AssertionError, OSError) as error:
            fault = str(error)
        silence_s = vm.witness.gap_s
        if outcome == Outcome.LOST or fault or column.need in (Need.NO_BASE, Need.FILLED):
            try:
                self._fleet.retire(vm)
            except (AssertionError, OSError) as error:
                fault = f"{fault}; and it cannot be removed: {error}"
        return CellResult(victim.value, column.name, column.phase.value, outcome, status, words[-300:], silence_s, fault)

    def _outcome(self, vm: FleetVm) -> str:
        """Where the VM is in the end: seen, alone, with its flows alive and nothing of theirs lost."""
        rig, faults = self._fleet.rig, self._faults

        def is_settled() -> bool:
            """A host that has been silent counts as lost until it speaks again: a VM is lost when nothing of it runs, too."""
            state = faults.state(vm.name)
            return state == "running" or (state == "lost" and not rig.machine_processes(vm.id))

        rig.wait(f"{vm.name} is settled", is_settled, LIVES_S)
        if faults.state(vm.name) == "lost":
            return Outcome.LOST.value
        rig.wait(f"one copy of {vm.name} is left", lambda: len(rig.machine_processes(vm.id)) == 1, LIVES_S)
        before = vm.witness.progress()

        def goes_on() -> bool:
            return bool(vm.witness.error) or all(now > then + 2 for now, then in zip(vm.witness.progress(), before, strict=True))

        rig.wait(f"the flows of {vm.name} go on", goes_on, LIVES_S)
        vm.witness.check()
        (machine,) = rig.machine_processes(vm.id)
        host = str(faults.read(f"vms/{vm.name}")["host"])
        assert is_inside(machine, os.stat(namespace_path(faults.namespace(host))).st_ino), f"it is not on {host}, as is said"
        return (Outcome.AT_SOURCE if host == self._scene.source else Outcome.AT_TARGET).value

    def _check_truth(self, vm: FleetVm, outcome: Outcome, status: int, words: str) -> None:
        """Command, record, events, log and output say what has happened."""
        found = self._faults.read(f"vms/{vm.name}")
        move = self._last_move(vm)
        said = f"exit {status}, move {move['state']} ({move['reason']}), vm {found['state']} ({found['reason']})"
        kinds = [
            e["kind"] for e in self._faults.read_lines("events") if e["migration"] == move["id"] and e["kind"] != "migration-state"
        ]
        ended = [kind for kind in kinds if kind in ("migration-done", "migration-failed")]
        match outcome:
            case Outcome.AT_TARGET if "fell silent" in move["reason"]:
                pass  # the control plane gave the move up before the source's agent was heard again, and carried it out
            case Outcome.AT_TARGET:
                assert (status, move["state"], ended) == (0, "done", ["migration-done"]), f"{said}: {kinds}"
            case Outcome.AT_SOURCE:
                assert status != 0 and move["reason"], said
                assert status != LOST_STATUS, f"{said}: {words}"
                assert (move["state"], ended) == ("failed", ["migration-failed"]), f"{said}: {kinds}"
            case Outcome.LOST:
                assert found["reason"], said
                assert len(ended) == 1 and (status == 0) == (ended == ["migration-done"]), f"{said}: {kinds}"
                assert status in (0, LOST_STATUS), f"{said}: {words}"
        if outcome is not Outcome.LOST:
            self._check_log(vm, found)
            self._check_output(vm)

    def _check_reason(self, victim: Victim, column: Column, vm: FleetVm, outcome: Outcome) -> None:
        """Who was killed is the reason, whoever noticed it."""
        if victim not in NAMED or outcome is Outcome.AT_TARGET or column.need in KILLED_AT:
            return
        what, is_at_source = NAMED[victim]
        found = self._last_move(vm) if outcome is Outcome.AT_SOURCE else self._faults.read(f"vms/{vm.name}")
        host = self._scene.source if is_at_source else self._scene.target
        assert f"{what} of vm {vm.name} on host {host} was killed by signal 9" in found["reason"], found["reason"]

    def _last_move(self, vm: FleetVm) -> Any:
        moves = (move for move in self._faults.read("migrations") if move["vm"] == vm.name)
        return max(moves, key=lambda move: str(move["started_at"]))

    def _check_log(self, vm: FleetVm, found: Any) -> None:
        folder = StateFolder(self._fleet.rig.state_dir).ownership / vm.id
        newest = json.loads(max(folder.glob("*.json")).read_bytes())
        assert (newest["host"], newest["kind"] != "end") == (found["host"], True), f"{newest}, yet it runs on {found['host']}"
        # A source need not know yet that the log keeps the VM with it by a newer term: it reads that before its next move.
        is_at_source = found["host"] == self._scene.source

        def is_known() -> bool:
            term = self._faults.read(f"vms/{vm.name}")["term"]
            return bool(term == newest["term"] or (is_at_source and newest["kind"] == "abort" and term + 1 == newest["term"]))

        self._fleet.rig.wait("its term is known", is_known, LIVES_S)

    def _check_output(self, vm: FleetVm) -> None:
        parts = self._faults.read_lines(f"vms/{vm.name}/logs")
        output = b"".join(base64.b64decode(part["data"]) for part in parts if "data" in part).decode()
        assert "FAILED" not in output, next(line for line in output.splitlines() if "FAILED" in line)
        for program in ("memory-verify", "disk-verify"):
            seen = [int(line.split("seconds=")[1].split()[0]) for line in output.splitlines() if line.startswith(f"{program}: sec")]
            assert seen == list(range(len(seen))), f"{program}'s lines are {seen}"


__all__ = ["CellResult", "Fleet", "FleetVm", "WitnessError", "run"]
