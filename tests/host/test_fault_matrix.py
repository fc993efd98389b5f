"""The fault matrix on a real fabric: whatever is hit, in whatever sub-step of a move, comes to what `fault_table` says.

A covering part strikes each victim before, in and after the time in which the guest stands, in `make test`; all cells are struck in
`make soak`. One test is one fault: it hits several moves at once, each in a sub-step of its own. All
share a fabric; leftovers fail the test.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import msgspec
import pytest

from architect.clouds.local.layout import StateFolder
from architect.model.sizes import GIB
from architect.testing.sample_images import witness_image
from tests.host.fabric_rig import fabric
from tests.host.fault_cells import HOSTS, CellResult, Fleet, run
from tests.host.fault_rig import FaultRig
from tests.host.fault_table import Strike, Victim, complete, covering
from tests.host.file_systems import LOOP_DEVICES, ext4, skip_without_loop_devices

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]

DISK_BYTES = GIB
AT_ONCE = 8
RESULTS = Path("out") / "fault-matrix.jsonl"


@contextlib.contextmanager
def disks(root: Path) -> Iterator[None]:
    """The VMs' folders of both hosts on file systems of DISK_BYTES each: what can be full. Not so without loop devices."""
    with contextlib.ExitStack() as mounted:
        for host in HOSTS if LOOP_DEVICES.exists() else ():
            folder = StateFolder(root).host(host) / "state" / "vms"
            mounted.enter_context(ext4(folder, root / f"{host}.ext4", DISK_BYTES))
        yield


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    layout = tmp_path_factory.mktemp("images") / "oci"
    images = [witness_image(layout, tag) for tag in ("witness", "other-witness")]
    with fabric(len(HOSTS)) as rig:
        with disks(rig.state_dir):
            made = Fleet(rig, FaultRig(rig), *images)
            yield made
            made.close()


def show(results: list[CellResult]) -> None:
    """Print each cell, and keep it in `out/` for the documentation's table."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        for result in results:
            file.write(json.dumps(msgspec.to_builtins(result)) + "\n")
            print(
                f"{result.victim} × {result.column}: {result.outcome}, exit {result.exit_status}, "
                f"silent {result.silence_s:.1f} s; {result.words[-160:]!r} {result.fault[:3000]}"
            )


def assert_holds(fleet: Fleet, strike: Strike) -> None:
    """The cells come to what they may come to; all are tried before any fails."""
    if any(victim is Victim.DISK_FULL for victim, _ in strike.cells):
        skip_without_loop_devices()
    results = run(fleet, strike.cells)
    show(results)
    faults = [f"{result.victim} × {result.column}: {result.fault}" for result in results if result.fault]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("strike", covering(), ids=attrgetter("name"))
def test_a_fault_in_each_part_of_a_move_costs_what_the_matrix_says(fleet: Fleet, strike: Strike) -> None:
    assert_holds(fleet, strike)


@pytest.mark.soak
@pytest.mark.parametrize("strike", complete(AT_ONCE), ids=attrgetter("name"))
def test_a_fault_in_every_sub_step_costs_what_the_matrix_says(fleet: Fleet, strike: Strike) -> None:
    assert_holds(fleet, strike)
