"""The whole fabric as a user has it: images run as VMs, move between hosts with their connections, and survive our own deaths."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from architect.testing.sample_images import busybox_image, redis_image, verifier_image
from tests.host.fabric_rig import FabricRig, fabric

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]

TICKS = ("--", "-c", "echo begin; i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done")


@pytest.fixture(scope="module")
def rig() -> Iterator[FabricRig]:
    with fabric() as made:
        yield made


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "oci"


@pytest.fixture(scope="module")
def busybox(layout: Path) -> str:
    return busybox_image(layout)


def ticks(rig: FabricRig, name: str) -> list[int]:
    return [int(line.split()[1]) for line in rig.log(name).splitlines() if line.startswith("tick ")]


def assert_goes_on(rig: FabricRig, name: str) -> None:
    """The VM's program goes on, and of its output nothing is lost or doubled."""
    before = len(ticks(rig, name))
    rig.wait(f"{name} goes on", lambda: len(ticks(rig, name)) > before + 3)
    seen = ticks(rig, name)
    assert seen == list(range(len(seen)))


def test_a_vm_runs_its_image_and_ends_with_its_exit_code(rig: FabricRig, busybox: str) -> None:
    vm = rig.run(busybox, "short", "--env", "WORD=hello", "--", "-c", "echo $WORD from $(hostname); sleep 1; exit 7")
    assert vm["state"] in ("running", "exited")
    rig.wait("it exits", lambda: rig.inspect("short")["state"] == "exited")
    assert rig.json("inspect", "short")["exit_code"] == 7
    assert rig.command("logs", "short").stdout == rig.log("short") == "hello from short\n"
    rig.remove("short")
    assert rig.command("inspect", "short").returncode == 3


def test_commands_run_in_a_vm_beside_its_workload(rig: FabricRig, busybox: str) -> None:
    rig.run(busybox, "execs", *TICKS)
    done = rig.command("exec", "execs", "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    rig.json("stop", "execs")
    assert rig.inspect("execs")["state"] == "stopped"
    rig.remove("execs")


def test_a_command_gets_all_its_input_from_the_first_byte_on(rig: FabricRig, busybox: str) -> None:
    rig.run(busybox, "inputs", *TICKS)
    text = "".join(f"line {number}\n" for number in range(50_000))
    for wanted in ("short\n", "", text, "short\n"):
        asked = rig.start("exec", "-i", "inputs", "--", "cat")
        assert asked.communicate(wanted, timeout=60) == (wanted, "")
        assert asked.returncode == 0
    rig.remove("inputs")


def test_output_is_followed_over_moves_and_a_command_that_a_move_leaves_behind_says_so(rig: FabricRig, busybox: str) -> None:
    rig.run(busybox, "followed", "--host", "aws-1", *TICKS)
    following = rig.start("logs", "-f", "followed")
    for target, mode in (("gcp-1", "precopy"), ("azure-1", "postcopy")):
        running = rig.start("exec", "followed", "--", "sleep", "1000")
        rig.wait("the command runs", lambda: "sleep 1000" in rig.command("exec", "followed", "--", "ps").stdout)
        assert rig.json("migrate", "followed", "--to", target, "--mode", mode)["outcome"] == "done"
        _, said = running.communicate(timeout=30)
        assert running.returncode == 7
        assert "the vm has left its host" in said and said.count("\n") == 1
    assert_goes_on(rig, "followed")
    rig.json("stop", "followed")
    out, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (0, "")
    seen = [line for line in out.splitlines() if line.startswith("tick ")]
    assert seen == [f"tick {number}" for number in range(len(seen))] and len(seen) > 10
    rig.remove("followed")


@pytest.mark.parametrize("mode", ["precopy", "postcopy", "auto"])
def test_a_vm_moves_in_every_mode_and_its_memory_is_equal(rig: FabricRig, busybox: str, mode: str) -> None:
    name = f"moves-{mode}"
    rig.run(busybox, name, "--host", "aws-1", *TICKS)
    for target in ("gcp-1", "azure-1", "aws-1"):
        move = rig.json("migrate", name, "--to", target, "--mode", mode, *(("--verify",) if mode != "postcopy" else ()))
        assert move["outcome"] == "done", move["reason"]
        assert rig.inspect(name)["host"] == target
        assert_goes_on(rig, name)
    rig.remove(name)


def test_a_bandwidth_limit_is_held_that_was_asked_for_and_that_is_the_hosts_default(rig: FabricRig, busybox: str) -> None:
    """By the move's own figures: all bytes over the time from the first to the last copying."""
    limit = 8 << 20
    config = rig.state_dir / "hosts" / "gcp-1" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"move_bandwidth_bytes_s": limit}))
    rig.kill("architect agent", "/gcp-1/")
    rig.run(busybox, "narrow", "--host", "aws-1", *TICKS)
    there = ("migrate", "narrow", "--to", "gcp-1", "--json")
    done = rig.command(*there)
    while done.returncode == 7:  # its agent is not connected yet
        done = rig.command(*there)
    assert _rate(json.loads(done.stdout)) > 1.05 * limit, "aws-1 has no default"
    assert _rate(rig.json("migrate", "narrow", "--to", "aws-1")) < 1.05 * limit
    assert _rate(rig.json("migrate", "narrow", "--to", "gcp-1", "--bandwidth", "8M")) < 1.05 * limit
    rig.remove("narrow")


def _rate(move: Any) -> float:
    assert move["outcome"] == "done", move["reason"]
    copying = [phase for phase in move["phases"] if phase["name"] in ("bulk", "cut")]
    return float(move["bytes_sent"] / (copying[-1]["end_s"] - copying[0]["start_s"]))


def test_a_verified_workload_loses_no_page_over_moves(rig: FabricRig, layout: Path) -> None:
    image = verifier_image(layout)
    rig.run(image, "verifier", "--host", "aws-1")
    for target, mode in (("gcp-1", "precopy"), ("azure-1", "postcopy"), ("aws-1", "auto")):
        move = rig.json("migrate", "verifier", "--to", target, "--mode", mode)
        assert move["outcome"] == "done", move["reason"]
        lines = len(rig.log("verifier").splitlines())
        rig.wait("it verifies on", lambda: len(rig.log("verifier").splitlines()) >= lines + 3)  # noqa: B023
    assert rig.inspect("verifier")["state"] == "running", rig.log("verifier")
    rig.remove("verifier")


def test_redis_keeps_its_clients_over_a_preemption(rig: FabricRig, layout: Path) -> None:
    rig.run(redis_image(layout), "redis", "--host", "gcp-1", "--publish", "6379:6379")
    with rig.connect(6379) as client:
        answers = client.makefile("rb")
        for number in range(50):
            client.sendall(b"INCR moves\r\n")
            assert answers.readline() == b":%d\r\n" % (number + 1)
            if number == 20:
                move = rig.json("migrate", "redis", "--to", "azure-1")
                assert move["outcome"] == "done", move["reason"]
    rig.remove("redis")


def test_a_killed_agent_finds_its_vms_and_a_killed_control_plane_its_fabric(rig: FabricRig, busybox: str) -> None:
    rig.run(busybox, "survivor", "--host", "aws-1", "--publish", "7777:7777", *TICKS)
    term = rig.inspect("survivor")["term"]
    for words in (("architect agent", "/aws-1/"), ("architect control",), ("architect edge",)):
        rig.kill(*words)
        rig.wait(f"{words} is back", lambda: len(rig.processes(*words)) == 1)  # noqa: B023
        rig.wait("it is heard of", lambda: rig.command("ps").returncode == 0)
        assert_goes_on(rig, "survivor")
    rig.wait("it is seen running", lambda: rig.inspect("survivor")["state"] == "running")
    assert rig.inspect("survivor")["term"] == term
    move = rig.json("migrate", "survivor", "--to", "gcp-1")
    assert move["outcome"] == "done", move["reason"]
    assert_goes_on(rig, "survivor")
    rig.remove("survivor")


def test_a_vm_whose_qemu_is_killed_is_reported_lost_with_its_reason(rig: FabricRig, busybox: str) -> None:
    vm = rig.run(busybox, "doomed", "--host", "azure-1", *TICKS)
    rig.kill_machine(vm["id"])
    rig.wait("it is lost", lambda: rig.inspect("doomed")["state"] == "lost")
    assert "QEMU" in rig.inspect("doomed")["reason"]
    rig.remove("doomed")
    rig.wait("nothing of it is left", lambda: not rig.processes(vm["id"]) and not rig.machine_processes(vm["id"]))


def test_bad_requests_are_one_line_with_the_next_step(rig: FabricRig, busybox: str, tmp_path: Path) -> None:
    rig.run(busybox, "taken", "--publish", "8080:80", *TICKS)
    (tmp_path / "empty").mkdir()
    cases: list[tuple[int, tuple[str, ...]]] = [
        (2, ("run", "oci:/nowhere:x")),
        (2, ("run", f"oci:{tmp_path}/empty:x")),
        (5, ("run", busybox, "--memory", "900G")),
        (4, ("run", busybox, "--name", "taken")),
        (4, ("run", busybox, "--publish", "8080:80")),
        (3, ("migrate", "taken", "--to", "nowhere")),
        (3, ("migrate", "nobody", "--to", "gcp-1")),
        (4, ("migrate", "taken", "--to", rig.inspect("taken")["host"])),
        (2, ("run",)),
    ]
    for status, words in cases:
        done = rig.command(*words)
        lines = [line for line in done.stderr.splitlines() if line.startswith("architect: ")]
        assert (done.returncode, len(lines)) == (status, 1), (words, done.returncode, done.stderr)
        assert lines[0].count(";") >= 1, lines
        assert "Traceback" not in done.stderr
    assert rig.inspect("taken")["state"] == "running"
    assert [vm["name"] for vm in rig.json("ps")] == ["taken"]
    rig.remove("taken")


def test_a_garbage_peer_on_the_migration_port_harms_nobody(rig: FabricRig, busybox: str) -> None:
    rig.run(busybox, "target", "--host", "aws-1", *TICKS)
    hosts = rig.json("host", "ls")
    assert len(hosts) == 3

    def attack() -> None:
        for address in ("198.18.1.10", "198.18.2.10"):
            try:
                with socket.create_connection((address, 7402), timeout=3) as peer:
                    peer.sendall(b"\x00" * 100000)
                    peer.recv(10)
            except OSError:
                pass

    rig.machine.run(attack)
    assert_goes_on(rig, "target")
    rig.remove("target")
