"""Hosts that empty in time: several VMs at once, and one whose link is slow, on a real fabric."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from architect.model.times import parse_rfc3339
from architect.runtime.namespaces import namespace_path, run_in_namespace
from architect.testing.sample_images import busybox_image, verifier_image
from tests.host.fabric_rig import FabricRig, fabric
from tests.host.fault_rig import FaultRig

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]

TICKS = ("--", "-c", "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.5; done")
SLOW_MBIT_S = 80
NOTICE_S = 60


@pytest.fixture(scope="module")
def faults() -> Iterator[FaultRig]:
    with fabric() as made:
        yield FaultRig(made)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "oci"


def slow_down(faults: FaultRig, host: str) -> None:
    """The host's uplink carries `SLOW_MBIT_S` from now on."""
    words = f"tc qdisc replace dev {nic(faults, host)} root tbf rate {SLOW_MBIT_S}mbit burst 128k latency 100ms"
    run_in_namespace(namespace_path(faults.namespace(host)), lambda: subprocess.run(words.split(), check=True))


def nic(faults: FaultRig, host: str) -> str:
    def find() -> str:
        found = subprocess.run(["ip", "-o", "route", "show", "default"], capture_output=True, text=True, check=True).stdout
        return found.split(" dev ")[1].split()[0]

    return run_in_namespace(namespace_path(faults.namespace(host)), find)


def last_move(faults: FaultRig, name: str) -> Any:
    return [move for move in faults.read("migrations") if move["vm"] == name][-1]


def wait_empty(faults: FaultRig, host: str, limit_s: float) -> None:
    """Until the host's cloud was told that nothing is left there; fails if that was not before the deadline."""
    rig = faults.rig
    rig.wait("the notice is heard", lambda: notice_of(rig, host) is not None)
    notice = notice_of(rig, host)
    rig.wait(f"{host} is empty", lambda: bool(emptied(faults, host)), limit_s)
    assert parse_rfc3339(emptied(faults, host)[-1]["time"]) < parse_rfc3339(notice["deadline"])


def notice_of(rig: FabricRig, host: str) -> Any:
    """What its cloud has told the host, as `host ls` has it; None while it has told nothing."""
    return next(found["notice"] for found in rig.json("host", "ls") if found["name"] == host)


def emptied(faults: FaultRig, host: str) -> list[Any]:
    events = map(json.loads, faults.rig.command("--json", "events").stdout.splitlines())
    return [event for event in events if event["kind"] == "host-empty" and event["host"] == host]


def evacuate(faults: FaultRig, image: str, count: int, notice_s: int) -> None:
    """That many VMs leave azure-1 within a notice, none is lost and nothing that they say."""
    rig = faults.rig
    names = [f"crowd-{number:02}" for number in range(count)]
    for name in names:
        rig.run(image, name, "--host", "azure-1", "--memory", "128M", *TICKS)
    rig.json("local", "preempt", "azure-1", "--notice", str(notice_s))
    wait_empty(faults, "azure-1", notice_s)
    for name in names:
        vm = rig.inspect(name)
        assert (vm["state"], vm["restarts"]) == ("running", 0) and vm["host"] != "azure-1", vm
        assert last_move(faults, name)["decisions"], "every move says why it cut"
        seen = [int(line.split()[1]) for line in rig.log(name).splitlines() if line.startswith("tick ")]
        assert seen == list(range(len(seen))) and seen


def test_memory_written_faster_than_the_link_goes_postcopy_instead_of_round_after_round(faults: FaultRig, layout: Path) -> None:
    rig = faults.rig
    options = ("--", "memory-verify", "--size-mib", "64", "--rate-mib", "40")
    rig.run(verifier_image(layout), "writer", "--host", "aws-1", "--memory", "160M", *options)
    slow_down(faults, "aws-1")
    move = rig.json("migrate", "writer", "--to", "gcp-1", timeout_s=240)
    assert (move["outcome"], move["mode"]) == ("done", "postcopy"), move
    assert move["rounds"] < 8 and move["decisions"][-1]["choice"] == "cut, post-copy of memory", move["decisions"]
    assert 0.5 < move["decisions"][-1]["bandwidth_bytes_s"] * 8 / (SLOW_MBIT_S * 1e6) < 1.3, move["decisions"]
    assert rig.inspect("writer")["state"] == "running", rig.log("writer")
    rig.remove("writer")


def test_a_notice_in_the_middle_of_a_slow_move_makes_it_postcopy_and_frees_the_source_in_time(
    faults: FaultRig, layout: Path
) -> None:
    rig = faults.rig
    options = ("--", "memory-verify", "--size-mib", "160", "--rate-mib", "1")
    rig.run(verifier_image(layout), "late", "--host", "aws-1", "--memory", "320M", *options)
    rig.wait("its memory is written", lambda: "memory-verify" in rig.log("late"))
    slow_down(faults, "aws-1")
    moving = rig.start("--json", "migrate", "late", "--to", "gcp-1")
    rig.wait("it copies", lambda: any(move["state"] == "precopy" for move in faults.read("migrations")))
    rig.json("local", "preempt", "aws-1", "--notice", str(NOTICE_S))
    out, err = moving.communicate(timeout=NOTICE_S * 2)
    assert moving.returncode == 0, (out, err)
    decisions = last_move(faults, "late")["decisions"]
    assert decisions[-1]["remaining_s"] is not None, decisions
    wait_empty(faults, "aws-1", NOTICE_S)
    assert rig.inspect("late")["state"] == "running", rig.log("late")
    rig.remove("late")


def test_six_vms_leave_a_preempted_host_in_time(faults: FaultRig, layout: Path) -> None:
    evacuate(faults, busybox_image(layout), 6, 120)


@pytest.mark.soak
def test_twenty_vms_leave_a_preempted_host_in_time(layout: Path) -> None:
    with fabric() as rig:
        evacuate(FaultRig(rig), busybox_image(layout), 20, 180)
