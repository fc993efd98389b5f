"""Real workloads in a real fabric: what users run goes on over moves, and loses nothing."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from architect.testing.sample_images import busybox_image, redis_image, ssh_image, verifier_image
from architect.testing.sample_layout import ImageFile, ImageSettings
from architect.testing.sample_programs import compile_static
from demo.datagram_client import DatagramClient, DatagramReport
from tests.host.fabric_rig import FabricRig, fabric
from tests.host.fault_rig import FaultRig

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]

HOSTS = ("aws-1", "gcp-1", "azure-1")
MODES = ("precopy", "postcopy", "auto")
FILE_BYTES = 400 << 16
PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def rig() -> Iterator[FabricRig]:
    with fabric() as made:
        yield made


@pytest.fixture(scope="module")
def faults(rig: FabricRig) -> FaultRig:
    return FaultRig(rig)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "oci"


@pytest.fixture(autouse=True)
def clean(rig: FabricRig, faults: FaultRig) -> Iterator[None]:
    """A test that failed leaves its VMs to nobody."""
    yield
    for vm in faults.read("vms"):
        rig.command("rm", "--force", vm["name"])


def moves(rig: FabricRig, name: str, count: int) -> Iterator[Any]:
    """Move the VM around the hosts, in each mode in turn; yields what became of each move."""
    hosts = itertools.cycle(HOSTS[1:] + HOSTS[:1])
    for number, target, mode in zip(range(count), hosts, itertools.cycle(MODES), strict=False):
        move = rig.json("migrate", name, "--to", target, "--mode", mode)
        assert move["outcome"] == "done", move["reason"]
        print(f"move {number} to {target} by {mode}: pause {move['downtime_ms']:.0f} ms, {move['total_s']:.1f} s")
        yield move


class InMachine:
    """A function that runs in the machine's namespace, in a thread of its own."""

    def __init__(self, rig: FabricRig, function: Callable[[], Any]) -> None:
        self._results: list[Any] = []
        self._errors: list[BaseException] = []

        def body() -> None:
            try:
                self._results.append(rig.machine.run(function))
            except BaseException as error:  # shown by `result`
                self._errors.append(error)

        self._thread = threading.Thread(target=body)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not returned."""
        return self._thread.is_alive()

    def result(self, timeout_s: float = 120) -> Any:
        """What it returned, or raised."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "it does not end"
        if self._errors:
            raise self._errors[0]
        return self._results[0]


def test_a_redis_benchmark_sees_no_error_over_moves(rig: FabricRig, layout: Path) -> None:
    rig.run(redis_image(layout), "redis", "--host", HOSTS[0], "--publish", "6379:6379")
    rig.connect(6379).close()
    have_moved = threading.Event()
    command = ["redis-benchmark", "-h", rig.edge, "-p", "6379", "-q", "-c", "20", "-n", "4000", "-t", "set,get,incr,lpush"]

    def benchmark() -> list[str]:
        outputs = []
        while not have_moved.is_set():
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            outputs.append(done.stdout + done.stderr)
            assert done.returncode == 0, outputs[-1]
        return outputs

    running = InMachine(rig, benchmark)
    for _ in moves(rig, "redis", 4):
        assert running.is_running
    have_moved.set()
    outputs = running.result()
    assert not [output for output in outputs if "rror" in output]
    assert all(len(re.findall(r"requests per second", output)) >= 4 for output in outputs)
    info = rig.command("exec", "redis", "--", "redis-cli", "info", "stats").stdout
    assert "total_error_replies:0" in info


def test_an_ssh_session_that_is_idle_lives_over_moves(rig: FabricRig, layout: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    rig.run(ssh_image(layout, key.with_suffix(".pub").read_text()), "ssh", "--host", HOSTS[0], "--publish", "2222:22")
    rig.connect(2222).close()
    command = [
        "ssh", "-i", str(key), "-p", "2222", "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/hosts",
        "-o", "BatchMode=yes", f"root@{rig.edge}", "echo ready; cat",
    ]  # fmt: skip
    session = rig.machine.run(
        lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    )
    assert session.stdin is not None and session.stdout is not None
    assert session.stdout.readline() == "ready\n"
    for number, _ in enumerate(moves(rig, "ssh", 3)):
        session.stdin.write(f"line {number}\n")
        assert session.stdout.readline() == f"line {number}\n"
    session.stdin.close()
    assert session.wait(20) == 0


def test_a_download_over_moves_has_the_sum_of_what_was_offered(rig: FabricRig, layout: Path) -> None:
    make = f"dd if=/dev/urandom of=/www/file bs=64k count={FILE_BYTES >> 16} 2>/dev/null"
    serve = f"mkdir /www; {make}; sha256sum /www/file; exec httpd -f -p 80 -h /www"
    rig.run(busybox_image(layout), "web", "--host", HOSTS[0], "--publish", "8080:80", "--", "-c", serve)
    rig.wait("the file is there", lambda: "/www/file" in rig.log("web"))
    rig.connect(8080).close()

    def download() -> str:
        digest = hashlib.sha256()
        with urllib.request.urlopen(f"http://{rig.edge}:8080/file", timeout=60) as answer:
            first = answer.read(64 << 10)
            digest.update(first)
            has_begun.set()
            left = FILE_BYTES - len(first)
            while part := answer.read(64 << 10):
                digest.update(part)
                left -= len(part)
                if not have_moved.is_set():
                    have_moved.wait(
                        0.02 if left > FILE_BYTES // 2 else 1
                    )  # so that it lasts over the moves, however long they take
        return digest.hexdigest()

    has_begun, have_moved = threading.Event(), threading.Event()
    downloading = InMachine(rig, download)
    assert has_begun.wait(60)
    for _ in moves(rig, "web", 2):
        pass
    assert downloading.is_running, "the download was too short to be moved"
    have_moved.set()
    assert downloading.result() in rig.log("web")


def test_no_datagram_is_lost_or_out_of_order_over_moves(rig: FabricRig, layout: Path) -> None:
    echo = ImageFile(compile_static("udp_echo", [PROGRAMS / "udp_echo.c"]), 0o755)
    image = busybox_image(layout, "echo", ImageSettings(cmd=("/usr/bin/udp-echo",)), {"/usr/bin/udp-echo": echo})
    rig.run(image, "echo", "--host", HOSTS[0], "--publish", "7001:7001/udp")
    rig.wait("it listens", lambda: "ready" in rig.log("echo"))
    have_moved = threading.Event()

    async def send() -> DatagramReport:
        stop = asyncio.Event()
        client = DatagramClient(rig.edge, 7001, rate_per_s=500)

        async def end() -> None:
            await asyncio.to_thread(have_moved.wait)
            stop.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(end())
            running = group.create_task(client.run(stop))
        return running.result()

    sending = InMachine(rig, lambda: asyncio.run(send()))
    try:
        for _ in moves(rig, "echo", 6):
            pass
    finally:
        have_moved.set()
    report: DatagramReport = sending.result()
    print(report.sent, report.lost, report.reordered, report.duplicated, report.longest_gap_ms)
    assert (report.lost, report.reordered, report.duplicated) == (0, 0, 0), losses(rig)
    assert report.sent > 1000


def losses(rig: FabricRig) -> str:
    """The counters of all places where a datagram may get lost."""
    inside = rig.command("exec", "echo", "--", "cat", "/proc/net/snmp").stdout
    client = rig.machine.run(lambda: Path("/proc/thread-self/net/snmp").read_text())
    return f"guest:\n{inside}\nclient:\n{client}"


VERIFIED = {
    "uniform": (
        "--size-mib 48 --rate-mib 4 --hot-percent 100 --hot-share 100",
        "--size-mib 8 --rate-mib 1 --flush-every 1 --fsync 1",
    ),
    "hot": ("--size-mib 96 --rate-mib 24 --hot-percent 5 --hot-share 95", "--size-mib 32 --rate-mib 2 --flush-every 8"),
    "skewed": (
        "--size-mib 64 --rate-mib 12 --hot-percent 20 --hot-share 80",
        "--size-mib 16 --rate-mib 1 --flush-every 2 --fsync 1",
    ),
}


def verify_over_moves(rig: FabricRig, faults: FaultRig, image: str, load: str, count: int) -> None:
    memory, disk = VERIFIED[load]
    rig.run(image, "verifier", "--host", HOSTS[0], "--disk", "1G", "--", "both", memory, disk)
    for _ in moves(rig, "verifier", count):
        before = {kind: rig.log("verifier").count(f"{kind}-verify: seconds") for kind in ("memory", "disk")}
        rig.wait(
            "both verify on",
            lambda: all(rig.log("verifier").count(f"{kind}-verify: seconds") >= before[kind] + 2 for kind in before),  # noqa: B023
        )
    assert faults.state("verifier") == "running", rig.log("verifier")[-500:]
    assert "FAILED" not in rig.log("verifier")
    rig.remove("verifier")


@pytest.mark.parametrize("load", ["uniform", "hot"])
def test_memory_and_disk_are_what_was_written_over_moves(rig: FabricRig, faults: FaultRig, layout: Path, load: str) -> None:
    verify_over_moves(rig, faults, verifier_image(layout), load, 6 if load == "hot" else 3)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("load", list(VERIFIED))
def test_memory_and_disk_are_what_was_written_over_many_moves(rig: FabricRig, faults: FaultRig, layout: Path, load: str) -> None:
    verify_over_moves(rig, faults, verifier_image(layout), load, 21)
