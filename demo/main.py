"""`make demo`: a fuzzing VM with open connections is moved over five spot preemptions, and nothing is lost.

Builds the image, starts a fabric of three local hosts, runs the VM on the first, holds streams and datagrams to it from here, and
then takes one host after the other away by a notice. Exits non-zero if anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from architect.errors import ArchitectError, LostError, first_error
from architect.testing.sample_images import demo_image
from demo.console import say
from demo.fabric_commands import Fabric
from demo.interruption import interruptible
from demo.picture import draw
from demo.report import Hop, Report, failures, summarise, table
from demo.stream_client import OutsideServer
from demo.witnesses import Witnesses

HOPS = 5
NOTICE_S = 30.0
SETTLED_S = 3.0
POLL_S = 0.5
PROVIDERS = ("aws", "gcp", "azure")
INTERRUPTED = 130
VM = "fuzzer"
OUT = Path("out/demo")


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--hops", type=int, default=HOPS)
    parser.add_argument("--notice", type=float, default=NOTICE_S, help="seconds from a notice to the end of the host")
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/architect-demo"))
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("demo: needs root (network namespaces, userfaultfd, BPF); run it as root", file=sys.stderr)
        return 9
    return exit_status(_demo(options.state_dir, options.hops, options.notice))


def exit_status(work: Coroutine[Any, Any, int]) -> int:
    """Run it; an error is one line, whether it comes alone or out of a task group."""
    try:
        return asyncio.run(work)
    except (asyncio.CancelledError, KeyboardInterrupt):
        return INTERRUPTED
    except (ArchitectError, ExceptionGroup) as errors:
        error = first_error(errors)
        if not isinstance(error, ArchitectError):
            raise
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_status


async def _demo(state_dir: Path, hops: int, notice_s: float) -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(state_dir)
    with interruptible(say, f"still taking the fabric apart, which ends by itself; if not: architect --state-dir {state_dir} down"):
        say("building the image: AFL++, its target and a TCP/UDP service")
        image = await asyncio.to_thread(demo_image, OUT / "image")
        await fabric.down()
        try:
            say("starting the fabric: three hosts, an edge, a control plane (the first time the guests' kernel is made ready, too)")
            up = await fabric.up(3)
            report, picture = await _show(fabric, up, image, hops, notice_s)
        finally:
            say("taking the fabric apart")
            await fabric.down()
    (OUT / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    (OUT / "timeline.svg").write_text(picture)
    print("\n" + table(report))
    print(f"report: {OUT / 'report.json'}   picture: {OUT / 'timeline.svg'}")
    wrong = failures(report, hops)
    for claim in wrong:
        print(f"demo: FAILED: {claim}", file=sys.stderr)
    if wrong:
        print(f"demo: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; hosts, VMs and clients share them", file=sys.stderr)
    return 1 if wrong else 0


async def _show(fabric: Fabric, up: Any, image: str, hops: int, notice_s: float) -> tuple[Report, str]:
    outside = OutsideServer()
    await outside.start(up["outside"]["address"])
    say(f"running the VM on aws-1; its service is at {up['edge']['addresses'][0]}")
    publish = [word for port in ("7000:7000", "7001:7001/udp", "7002:7002") for word in ("--publish", port)]
    environment = f"OUTSIDE={up['outside']['address']}:{outside.port}"
    await fabric.run(image, "--name", VM, "--host", "aws-1", "--memory", "512M", *publish, "--env", environment)
    witnesses = Witnesses(outside)
    async with asyncio.TaskGroup() as group:
        await _wait_service(witnesses, up["edge"]["addresses"][0], group)
        before = await witnesses.status()
        say(f"the fuzzer is process {before.fuzzer_pid} in the VM; {before.executions} executions so far")
        began_s = time.time()
        done = [await _hop(fabric, witnesses, number, notice_s) for number in range(1, hops + 1)]
        after = await witnesses.status()
        evidence = await witnesses.finish()
    await outside.stop()
    say(f"all hops done after {time.time() - began_s:.0f} s")
    picture = draw(await fabric.migrations(), await fabric.events(), evidence, began_s)
    return summarise(done, evidence, before, after), picture


async def _wait_service(witnesses: Witnesses, address: str, group: asyncio.TaskGroup) -> None:
    """Until the service answers and the fuzzer works."""
    deadline_s = time.monotonic() + 120
    await witnesses.begin_when_ready(group, address, deadline_s)
    while (await witnesses.status(deadline_s)).executions == 0:
        if time.monotonic() > deadline_s:
            raise LostError("demo's fuzzer", "does not start", "see `architect logs`")
        await asyncio.sleep(POLL_S)
    await asyncio.sleep(SETTLED_S)
    witnesses.reset_gap()


async def _hop(fabric: Fabric, witnesses: Witnesses, number: int, notice_s: float) -> Hop:
    """Take away the host that the VM is on, and see where it goes."""
    vm = await fabric.inspect(VM)
    source = vm["host"]
    known = {move["id"] for move in await fabric.migrations()}
    witnesses.reset_gap()
    noticed_s = time.monotonic()
    await fabric.command("local", "preempt", source, "--notice", str(notice_s), "--json")
    say(f"hop {number}: {source} gets a notice: {notice_s:.0f} s")
    move = await _wait_move(fabric, known, notice_s)
    await asyncio.sleep(SETTLED_S)
    gap_ms = witnesses.longest_gap_ms()
    status = await witnesses.status()
    say(
        f"hop {number}: {source} → {move['target']} in {move['total_s']:.1f} s ({move['mode']}), "
        f"pause {move['downtime_ms']:.0f} ms, gap seen outside {gap_ms:.0f} ms; fuzzer at {status.executions} executions"
    )
    provider = PROVIDERS[(number - 1) % len(PROVIDERS)]
    added = await fabric.command("host", "add", "--provider", provider, "--json")
    say(f"hop {number}: a new host {added['name']} takes the place of {source}")
    gone = await _wait_gone(fabric, source, notice_s - (time.monotonic() - noticed_s) + 15)
    say(f"hop {number}: {source} is {'destroyed' if gone else 'STILL THERE'}")
    return Hop(
        source, move["target"], move["cause"], notice_s, move["mode"], move["total_s"], move["downtime_ms"], round(gap_ms, 1),
        move["bytes_sent"], move["memory_bytes"], gone,
    )  # fmt: skip


async def _wait_move(fabric: Fabric, known: set[str], limit_s: float) -> Any:
    deadline_s = time.monotonic() + limit_s
    told = ""
    while time.monotonic() < deadline_s:
        for move in await fabric.migrations():
            if move["id"] in known:
                continue
            if move["state"] != told:
                told = move["state"]
                say(f"       {move['source']} → {move['target']}: {told}")
            if move["state"] == "done":
                return move
            if move["state"] in ("failed", "lost"):
                known.add(move["id"])
                say(f"       that move {move['state']}: {move['reason']}")
        await asyncio.sleep(0.2)
    raise LostError("demo's VM", f"did not move within its notice of {limit_s:.0f} s", "see `architect events`")


async def _wait_gone(fabric: Fabric, host: str, limit_s: float) -> bool:
    """Whether every trace of the host is gone: its namespace, too."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        state = {row["name"]: row["state"] for row in await fabric.hosts()}.get(host)
        namespaces = [path.name for path in Path("/run/netns").iterdir()]
        if state in (None, "lost") and not any(name.endswith(f"-{host}") for name in namespaces):
            return True
        await asyncio.sleep(POLL_S)
    return False


if __name__ == "__main__":
    raise SystemExit(main())
