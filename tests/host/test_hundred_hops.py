"""One VM moves again and again, with databases and verifiers in it: nothing that was acknowledged is lost, and nothing drifts.

A client outside writes rows into sqlite and keys into redis over the published ports, on connections that are never made anew, and
asks for every acknowledged one at the end. After each hop the fabric is sampled (`hop_samples`). A figure drifts if the median of
its last 20 hops is above that of its first 20 by more than the slack below, and it rises throughout (Mann-Kendall, one-sided, 1 %:
`architect.testing.drift`). The first two hops are not counted: each host gets the image's disk and its first QEMU with one.
The samples are written to `out/soak/hops-N.json`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from architect.testing.drift import Drift, Slack, drift_of
from architect.testing.sample_images import database_image
from tests.host.fabric_rig import FabricRig, fabric
from tests.host.fault_rig import FaultRig
from tests.host.hop_clients import REDIS_PORT, SQLITE_PORT, RedisPing, RedisWriter, SqliteWriter
from tests.host.hop_samples import HopSample, counts_of, fabric_processes, memory_of

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]

HOSTS = ("aws-1", "gcp-1")
WARM_UP_HOPS = 2
WINDOW_HOPS = 20
NAME = "databases"
OUT = Path(__file__).parents[2] / "out" / "soak"
LOAD = ("--size-mib 48 --rate-mib 8 --hot-percent 10 --hot-share 90", "--size-mib 16 --rate-mib 1 --flush-every 8")
SETTLE_S = 10.0

# Counted things may not grow at all. Memory, and the mappings and threads that a process has made of it, by a twentieth: allocators
# take and give. Times by a quarter: the databases grow while they are moved, and other work on the machine is not excluded.
COUNT_SLACK = Slack(absolute=1)
MAPPING_SLACK = Slack(absolute=2, share=0.05)
MEMORY_SLACK = Slack(absolute=2048, share=0.05)
TIME_SLACK = Slack(share=0.25)
ALLOCATED = ("mappings", "threads")


class HopReport(msgspec.Struct, frozen=True):
    """What a series of hops came to."""

    rows: int
    keys: int
    samples: tuple[HopSample, ...]
    drifts: tuple[Drift, ...]


@pytest.fixture
def rig() -> Iterator[FabricRig]:
    with fabric(len(HOSTS)) as made:
        yield made


def hops(faults: FaultRig, count: int, ping: RedisPing) -> Iterator[HopSample]:
    """Move the VM back and forth; a sample after each."""
    rig = faults.rig
    expected = sum(map(len, fabric_processes(faults).values()))
    for number, target in zip(range(1, count + 1), itertools.cycle(HOSTS[::-1]), strict=False):
        ping.longest_silence_ms()
        move = rig.json("migrate", NAME, "--to", target)
        assert move["outcome"] == "done", move["reason"]
        gap_ms = ping.longest_silence_ms()
        expected = wait_settled(faults, expected)
        processes = fabric_processes(faults)
        memory, counts = memory_of(processes), counts_of(faults, HOSTS, processes)
        print(f"hop {number} to {target}: {move['total_s']:.1f} s, pause {move['downtime_ms']:.0f} ms, gap {gap_ms:.0f} ms")
        yield HopSample(number, target, move["total_s"], move["downtime_ms"], gap_ms, memory, counts)


def wait_settled(faults: FaultRig, expected: int) -> int:
    """Until what ends at the source has ended; how many processes are left then."""
    end_s = time.monotonic() + SETTLE_S
    while (count := sum(map(len, fabric_processes(faults).values()))) > expected and time.monotonic() < end_s:
        time.sleep(0.1)
    return count


def drifts_of(samples: tuple[HopSample, ...], window: int) -> tuple[Drift, ...]:
    """How each figure went, the times included. Figures that not every sample has (a process that came later) count as 0 there."""
    counted = samples[WARM_UP_HOPS:]
    drifts = [
        drift_of(f"move {name}", [getattr(sample, name) for sample in counted], window, TIME_SLACK)
        for name in ("gap_ms", "pause_ms", "total_s")
    ]
    for kind, slack in (("memory_kib", MEMORY_SLACK), ("counts", COUNT_SLACK)):
        names = dict.fromkeys(name for sample in counted for name in getattr(sample, kind))
        series = {name: [getattr(sample, kind).get(name, 0) for sample in counted] for name in names}
        for name, values in series.items():
            drifts.append(drift_of(name, values, window, MAPPING_SLACK if name.endswith(ALLOCATED) else slack))
    return tuple(drifts)


def hop_and_judge(rig: FabricRig, layout: Path, count: int, window: int) -> HopReport:
    """Run the VM with its clients over `count` hops; fails if anything was lost."""
    faults = FaultRig(rig)
    image = database_image(layout)
    publish = [word for port in (REDIS_PORT, SQLITE_PORT) for word in ("--publish", f"{port}:{port}")]
    rig.run(image, NAME, "--host", HOSTS[0], "--memory", "256M", *publish, "--", *LOAD)
    rig.wait("the verifiers work", lambda: all(f"{kind}-verify: seconds" in rig.log(NAME) for kind in ("memory", "disk")))
    with contextlib.ExitStack() as stack:
        ping, keys, rows = RedisPing(rig), RedisWriter(rig), SqliteWriter(rig)
        for client in (ping, keys, rows):
            stack.callback(client.close)
            client.start()
        samples = tuple(hops(faults, count, ping))
        for client in (ping, keys, rows):
            client.finish()
        report = HopReport(rows.acknowledged, keys.acknowledged, samples, drifts_of(samples, window))
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"hops-{count}.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
        assert (rows.lost(), keys.lost(), rows.integrity()) == ([], [], "ok")
    assert rows.acknowledged > count
    assert keys.acknowledged > count
    assert faults.state(NAME) == "running", rig.log(NAME)[-500:]
    assert "FAILED" not in rig.log(NAME)
    return report


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_hops_lose_nothing_and_nothing_drifts(rig: FabricRig, tmp_path: Path) -> None:
    report = hop_and_judge(rig, tmp_path / "oci", WARM_UP_HOPS + 100, WINDOW_HOPS)
    assert [drift for drift in report.drifts if drift.drifts] == []


def test_a_few_hops_lose_nothing_and_leave_nothing_behind(rig: FabricRig, tmp_path: Path) -> None:
    report = hop_and_judge(rig, tmp_path / "oci", WARM_UP_HOPS + 4, 2)
    # Each host is compared with itself two hops later: what a process holds depends on where the VM is.
    before, after = report.samples[-3].counts, report.samples[-1].counts
    counted = [name for name in after if not name.endswith(ALLOCATED)]
    grown = {name: (before.get(name, 0), after[name]) for name in counted if after[name] > before.get(name, 0) + 1}
    assert grown == {}
