"""What the demo proves, as a document: `out/demo/report.json`, and the verdict on it."""

from __future__ import annotations

import msgspec

from demo.stream_client import ServiceStatus
from demo.witnesses import Evidence


class Hop(msgspec.Struct, frozen=True):
    """One move, its figures from the fabric, its gap from a client outside."""

    source: str
    target: str
    reason: str
    notice_s: float
    mode: str
    total_s: float
    downtime_ms: float
    guest_gap_ms: float
    bytes_sent: int
    memory_bytes: int
    source_destroyed: bool


class ClientSummary(msgspec.Struct, frozen=True):
    """What the clients saw over all hops."""

    tcp_streams: int
    tcp_bytes: int
    tcp_resets: int
    tcp_sha256_ok: bool
    udp_sent: int
    udp_lost: int
    udp_reordered: int
    longest_gap_ms: float
    udp_unseen: int
    """Of those lost: how many never came to the VM. The others' answers were lost."""


class WorkloadSummary(msgspec.Struct, frozen=True):
    """The fuzzer in the VM, before the first and after the last hop."""

    restarts: int
    pid_before: int
    pid_after: int
    executions_before: int
    executions_after: int


class Report(msgspec.Struct, frozen=True):
    """The whole demo."""

    migrations: tuple[Hop, ...]
    client: ClientSummary
    workload: WorkloadSummary


def summarise(hops: list[Hop], evidence: Evidence, before: ServiceStatus, after: ServiceStatus) -> Report:
    """The report of what was seen. The VM's own stream does not end in order with us; what it verified counts."""
    streams = evidence.streams
    client = ClientSummary(
        tcp_streams=len(streams),
        tcp_bytes=sum(stream.bytes_sent + stream.bytes_verified for stream in streams),
        tcp_resets=sum(stream.error is not None for stream in streams) + after.streams_failed + after.outside_failed,
        tcp_sha256_ok=not evidence.broken and all(stream.bytes_verified > 0 for stream in streams),
        udp_sent=evidence.datagrams.sent,
        udp_lost=evidence.datagrams.lost,
        udp_reordered=evidence.datagrams.reordered,
        longest_gap_ms=round(evidence.longest_gap_ms, 1),
        udp_unseen=evidence.datagrams.sent - evidence.datagrams_seen,
    )
    workload = WorkloadSummary(after.fuzzer_restarts, before.fuzzer_pid, after.fuzzer_pid, before.executions, after.executions)
    return Report(tuple(hops), client, workload)


def failures(report: Report, hops_wanted: int) -> list[str]:
    """What the demo promised and did not keep; empty if all is well."""
    client, workload = report.client, report.workload
    checks = {
        f"{len(report.migrations)} of {hops_wanted} hops were made": len(report.migrations) == hops_wanted,
        "a source was not destroyed": all(hop.source_destroyed for hop in report.migrations),
        f"{client.tcp_resets} TCP streams broke": client.tcp_resets == 0,
        "a checksum differs": client.tcp_sha256_ok,
        f"{client.udp_lost} datagrams were lost, {client.udp_unseen} of them on their way to the VM": client.udp_lost == 0,
        f"{client.udp_reordered} datagrams came out of order": client.udp_reordered == 0,
        "the fuzzer was restarted": workload.restarts == 0 and workload.pid_before == workload.pid_after,
        "the fuzzer made no progress": workload.executions_after > workload.executions_before,
    }
    return [claim for claim, holds in checks.items() if not holds]


def table(report: Report) -> str:
    """The short table at the end."""
    rows = [("hop", "from", "to", "mode", "total s", "pause ms", "gap ms", "MiB sent", "source")]
    for number, hop in enumerate(report.migrations, 1):
        gone = "destroyed" if hop.source_destroyed else "STILL THERE"
        figures = (f"{hop.total_s:.1f}", f"{hop.downtime_ms:.0f}", f"{hop.guest_gap_ms:.0f}", f"{hop.bytes_sent / 2**20:.0f}")
        rows.append((str(number), hop.source, hop.target, hop.mode, *figures, gone))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    gaps = sorted(hop.guest_gap_ms for hop in report.migrations)
    if gaps:
        lines.append(f"gap seen by the client: median {gaps[len(gaps) // 2]:.0f} ms, worst {gaps[-1]:.0f} ms")
    client, workload = report.client, report.workload
    lines.append(
        f"TCP: {client.tcp_streams} streams, {client.tcp_bytes / 1e6:.1f} MB, {client.tcp_resets} broken, "
        f"checksums {'equal' if client.tcp_sha256_ok else 'DIFFER'}"
    )
    lines.append(f"UDP: {client.udp_sent} sent, {client.udp_lost} lost, {client.udp_reordered} reordered")
    lines.append(
        f"fuzzer: pid {workload.pid_before} → {workload.pid_after}, {workload.restarts} restarts, "
        f"{workload.executions_before} → {workload.executions_after} executions"
    )
    return "\n".join(lines)
