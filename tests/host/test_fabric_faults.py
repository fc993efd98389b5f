"""Faults in a real fabric beside the matrix (`test_fault_matrix`): what is refused, who is killed while no VM moves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from architect.clouds.local.layout import StateFolder
from architect.model.sizes import MIB
from architect.testing.sample_images import busybox_image
from tests.host.fabric_rig import FabricRig, fabric
from tests.host.fault_rig import TICKS, FaultRig
from tests.host.file_systems import tmpfs

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]

SOURCE, TARGET = "aws-1", "gcp-1"


@pytest.fixture(scope="module")
def rig() -> Iterator[FabricRig]:
    with fabric() as made:
        yield made


@pytest.fixture(scope="module")
def faults(rig: FabricRig) -> FaultRig:
    return FaultRig(rig)


@pytest.fixture(autouse=True)
def clean(rig: FabricRig, faults: FaultRig) -> Iterator[None]:
    """A test that failed leaves its VMs to nobody."""
    yield
    for vm in faults.read("vms"):
        rig.command("rm", "--force", vm["name"])
    for host in faults.read("hosts"):
        if host["state"] == "draining":
            faults.open_host(host["name"])


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> str:
    return busybox_image(tmp_path_factory.mktemp("images") / "oci")


def test_a_target_without_room_on_its_disk_is_named_before_a_move_and_in_its_middle(
    rig: FabricRig, faults: FaultRig, busybox: str
) -> None:
    vm = rig.run(busybox, "roomy", "--host", SOURCE, "--publish", "7777:7777", *TICKS)["id"]
    written = rig.command("exec", "roomy", "--", "sh", "-c", "dd if=/dev/urandom of=/data bs=1M count=24 && sync")
    assert written.returncode == 0, written.stderr
    vms = StateFolder(rig.state_dir).host(TARGET) / "state" / "vms"
    with tmpfs(vms, 32 * MIB) as folder:
        refused = rig.command("migrate", "roomy", "--to", TARGET)
        assert (refused.returncode, f"host {TARGET}: its file system {folder} has" in refused.stderr) == (10, True), refused.stderr
    with tmpfs(vms, 96 * MIB) as folder:
        with faults.held("roomy", SOURCE, TARGET, "source-bulk") as move:
            with (folder / "filler").open("wb") as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(1 << 20))
                    filler.flush()
        status, words = move.outcome()
        assert (status, f"host {TARGET}: its file system {folder} is full: free some space" in words) == (10, True), words
        assert faults.assert_lives("roomy", vm) == SOURCE
    assert rig.command("migrate", "roomy", "--to", TARGET).returncode == 0
    rig.remove("roomy")


PAIR = {"first": 7777, "second": 7778}


def test_a_vm_moves_once_at_a_time_and_only_to_a_host_that_can_take_it(rig: FabricRig, faults: FaultRig, busybox: str) -> None:
    name = "picky"
    vm = rig.run(busybox, name, "--host", SOURCE, "--publish", "7777:7777", *TICKS)["id"]
    with faults.held(name, SOURCE, TARGET, "source-hook") as move:
        second = rig.command("migrate", name, "--to", "azure-1")
        assert (second.returncode, "moving already" in second.stderr) == (4, True), second.stderr
        refused = rig.command("rm", name)
        assert (refused.returncode, name in refused.stderr) == (4, True), refused.stderr
        removing = faults.rig.start("rm", "--force", name)
        _, said = removing.communicate(timeout=60)
        assert (removing.returncode, "the move is given up first" in said) == (0, True), said
        status, words = move.outcome()
        assert (status, "it is to be removed" in words) == (10, True), words
    rig.wait("it is gone", lambda: not rig.machine_processes(vm) and not faults.state(name))
    faults.assert_clean(name, vm, "")


def test_a_full_host_and_one_that_is_gone_are_refused_by_name_and_a_vm_waits_for_what_is_there_until_it_is_gone(
    rig: FabricRig, faults: FaultRig, busybox: str
) -> None:
    rig.json("host", "add", "--provider", "aws", "--name", "doomed", timeout_s=180)
    free = next(host["memory_free_bytes"] for host in rig.json("host", "ls") if host["name"] == "doomed")
    rig.run(busybox, "filler", "--host", "doomed", "--memory", f"{(free >> 20) - 100}M", "--publish", "7778:7777", *TICKS)
    vm = rig.run(busybox, "steady", "--host", SOURCE, "--publish", "7777:7777", *TICKS)["id"]
    torn = rig.run(busybox, "torn", "--host", "doomed", "--memory", "96M", "--publish", "7779:7777", *TICKS)["id"]
    full = rig.command("migrate", "steady", "--to", "doomed")
    assert (full.returncode, "doomed has" in full.stderr) == (5, True), full.stderr
    with faults.cut_during("torn", "doomed", TARGET, "source-serve", "postcopy") as move:
        reason = "still at host doomed, which has not been reached since"
        rig.wait("it is seen to wait", lambda: reason in rig.inspect("torn")["reason"])
        waits = [event for event in faults.read_lines("events") if (event["vm"], event["kind"]) == ("torn", "vm-waits")]
        assert len(waits) == 1 and waits[0]["host"] == TARGET, waits
        assert not move.has_ended and rig.machine_processes(torn)
        rig.json("local", "kill", "doomed")
        rig.wait("it is missed", lambda: any(host["name"] == "doomed" and host["state"] == "lost" for host in faults.read("hosts")))
        gone = rig.command("migrate", "steady", "--to", "doomed")
        assert (gone.returncode, "not connected" in gone.stderr) == (7, True), gone.stderr
        status, words = move.outcome()
        assert (status, "is gone: its provider has it no more" in words) == (11, True), words
        faults.assert_lost("torn", torn, "still at host doomed", "is gone: its provider has it no more")
    rig.wait("its VM is lost", lambda: faults.state("filler") == "lost")
    assert "doomed vanished without notice (its provider has it no more)" in rig.inspect("filler")["reason"]
    assert faults.assert_lives("steady", vm) == SOURCE
    for name in ("filler", "steady"):
        rig.remove(name)
    rig.json("host", "rm", "doomed")


def test_a_preempted_host_without_a_target_tells_so_and_is_emptied_when_one_appears(
    rig: FabricRig, faults: FaultRig, busybox: str
) -> None:
    rig.json("host", "add", "--provider", "azure", "--name", "spot", timeout_s=180)
    others = ("aws-1", "gcp-1", "azure-1")
    vms = {name: rig.run(busybox, name, "--host", "spot", "--publish", f"{port}:7777", *TICKS)["id"] for name, port in PAIR.items()}
    for other in others:
        rig.json("host", "drain", other)
    rig.json("local", "preempt", "spot", "--notice", "90")
    rig.wait("it is told", lambda: all("draining" in rig.inspect(name)["reason"] for name in vms), 10)
    assert all(other in rig.inspect("first")["reason"] for other in others)
    rig.json("host", "add", "--provider", "azure", "--name", "rescue", timeout_s=180)
    rig.wait("both have moved", lambda: all(faults.read(f"vms/{name}")["host"] == "rescue" for name in vms), 60)
    rig.wait("the host is gone", lambda: not rig.processes("architect agent", "/spot/"), 60)
    rig.wait("it is missed", lambda: any(host["name"] == "spot" and host["state"] == "lost" for host in faults.read("hosts")))
    for other in others:
        faults.open_host(other)
    for name, vm in vms.items():
        assert faults.assert_lives(name, vm) == "rescue"
        rig.remove(name)
    for name in ("spot", "rescue"):
        rig.json("host", "rm", name)


def test_a_target_whose_agent_was_killed_in_a_move_spoils_no_later_one_when_its_next_agent_comes(
    rig: FabricRig, faults: FaultRig, busybox: str
) -> None:
    vm = rig.run(busybox, "spared", "--host", SOURCE, "--publish", "7777:7777", *TICKS)["id"]
    log = StateFolder(rig.state_dir).ownership / vm
    with contextlib.ExitStack() as dead:
        dead.enter_context(faults.supervisor_stopped())
        with faults.held("spared", SOURCE, TARGET, "source-hook") as move:
            faults.kill(faults.agent(TARGET))
        status, words = move.outcome()
        assert (status, f"host {TARGET}" in words) == (10, True), words
        newest = json.loads(max(log.glob("*.json")).read_bytes())
        assert (newest["term"], newest["kind"], newest["host"]) == (2, "abort", SOURCE), (
            "its number is used up by the source itself"
        )
        with faults.held("spared", SOURCE, "azure-1", "source-hook") as move:
            dead.close()
            faults.await_ready(TARGET)
        status, words = move.outcome()
        assert status == 0, words
    assert faults.assert_lives("spared", vm) == "azure-1"
    rig.remove("spared")


@pytest.mark.parametrize(
    ("stand_in", "words"),
    [("version", "has QEMU 6.2.0, older than 7.2"), ("cpu", "support requested feature"), ("kernel", "another guest kernel")],
)
def test_a_target_that_cannot_run_the_vm_is_refused_by_name(
    rig: FabricRig, faults: FaultRig, busybox: str, stand_in: str, words: str
) -> None:
    vm = rig.run(busybox, "picky", "--host", SOURCE, "--publish", "7777:7777", *TICKS)["id"]
    with faults.strange_agent(TARGET, stand_in):
        refused = faults.ask_to_move("picky", TARGET)
        assert (refused.returncode, words in refused.stderr, TARGET in refused.stderr) == (10, True, True), refused.stderr
        assert faults.assert_lives("picky", vm) == SOURCE
    faults.assert_moves("picky", TARGET)
    assert faults.assert_lives("picky", vm) == TARGET
    rig.remove("picky")


def test_logs_that_are_followed_go_on_over_a_killed_agent_and_a_command_in_the_vm_ends_in_words(
    rig: FabricRig, faults: FaultRig, busybox: str
) -> None:
    vm = rig.run(busybox, "followed", "--host", SOURCE, "--publish", "7777:7777", *TICKS)["id"]
    follower, session = faults.rig.start("logs", "-f", "followed"), faults.rig.start("exec", "followed", "--", "sleep", "1000")
    rig.wait("the command runs", lambda: "sleep 1000" in rig.command("exec", "followed", "--", "ps").stdout)
    faults.kill(faults.agent(SOURCE))
    _, words = session.communicate(timeout=60)
    assert session.returncode in (7, 8), words
    assert len(words.strip().splitlines()) == 1, words
    faults.assert_lives("followed", vm)
    wanted = len(faults.ticks("followed"))
    rig.wait("it has ended", lambda: rig.command("stop", "followed").returncode == 0)
    out, err = follower.communicate(timeout=60)
    seen = [int(line.split()[1]) for line in out.splitlines() if line.startswith("tick ")]
    assert follower.returncode == 0, err
    assert seen == list(range(len(seen))) and len(seen) >= wanted
    rig.remove("followed")


def test_a_vm_whose_agent_is_killed_while_it_is_made_is_made_all_the_same(rig: FabricRig, faults: FaultRig, busybox: str) -> None:
    for number in range(3):
        name = f"made-{number}"
        starting = faults.rig.start("--json", "run", busybox, "--name", name, "--host", SOURCE, "--publish", "7777:7777", *TICKS)
        rig.wait("its machine starts", lambda: faults.has_begun(SOURCE, number))  # noqa: B023
        faults.kill(faults.agent(SOURCE))
        _, err = starting.communicate(timeout=120)
        assert starting.returncode == 0, err
        vm = faults.read(f"vms/{name}")["id"]
        assert faults.assert_lives(name, vm) == SOURCE
        rig.remove(name)


def test_the_exit_code_of_a_workload_that_ends_while_no_agent_lives_is_kept(rig: FabricRig, faults: FaultRig, busybox: str) -> None:
    script = "echo before; nc -l -p 7777 -e cat; echo after; exit 9"
    vm = rig.run(busybox, "short", "--host", SOURCE, "--publish", "7777:7777", "--", "-c", script)["id"]
    with faults.supervisor_stopped():
        faults.kill(faults.agent(SOURCE))
        rig.connect(7777).close()
        rig.wait("nobody hears of it", lambda: "silent" in rig.inspect("short")["reason"])
    rig.wait("its end is known", lambda: faults.state("short") == "exited")
    assert rig.inspect("short")["exit_code"] == 9
    assert rig.log("short") == "before\nafter\n"
    rig.remove("short")
    faults.assert_clean("short", vm, "")
