"""The demo's verdict: whatever was lost makes it fail, by name; the gaps of all hops count."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from demo.datagram_client import DatagramReport
from demo.report import Hop, Report, failures, summarise, table
from demo.stream_client import OutsideServer, ServiceStatus, StreamReport
from demo.witnesses import Evidence, Witnesses

HOP = Hop("aws-1", "gcp-1", "notice", 30.0, "precopy", 2.0, 50.0, 120.0, 1 << 20, 1 << 29, source_destroyed=True)
STREAM = StreamReport("stream 0", 10, 10, 20, 100.0, "aa", "bb", None)
DATAGRAMS = DatagramReport(
    sent=100, received=100, lost=0, reordered=0, duplicated=0, longest_gap_ms=7.0, longest_round_trip_ms=8.0, gaps=()
)


def status(**changed: Any) -> ServiceStatus:
    known: dict[str, Any] = dict.fromkeys(ServiceStatus.__struct_fields__, 0) | {"outside_state": "open"}
    known |= {"fuzzer_pid": 81, "executions": 5} | changed
    return msgspec.convert(known, ServiceStatus)


def report_of(
    streams: tuple[StreamReport, ...] = (STREAM,), datagrams: DatagramReport = DATAGRAMS, hop: Hop = HOP, **after: Any
) -> Report:
    evidence = Evidence(streams, datagrams, (), (), 120.0, 100)
    return summarise([hop], evidence, status(), status(**{"executions": 50} | after))


def test_a_demo_in_which_nothing_was_lost_has_no_failures() -> None:
    report = report_of()
    assert failures(report, 1) == []
    assert report.client.longest_gap_ms == 120.0
    assert "0 lost" in table(report)


@pytest.mark.parametrize(
    ("report", "word"),
    [
        (report_of(streams=(msgspec.structs.replace(STREAM, error="reset by peer"),)), "streams broke"),
        (report_of(streams=(msgspec.structs.replace(STREAM, error="its checksum differs"),)), "checksum"),
        (report_of(streams=(msgspec.structs.replace(STREAM, bytes_verified=0),)), "checksum"),
        (report_of(streams_failed=1), "streams broke"),
        (report_of(outside_failed=1), "streams broke"),
        (report_of(datagrams=msgspec.structs.replace(DATAGRAMS, lost=1)), "datagrams were lost"),
        (report_of(datagrams=msgspec.structs.replace(DATAGRAMS, reordered=1)), "out of order"),
        (report_of(hop=msgspec.structs.replace(HOP, source_destroyed=False)), "not destroyed"),
        (report_of(fuzzer_restarts=1), "restarted"),
        (report_of(fuzzer_pid=99), "restarted"),
        (report_of(executions=5), "no progress"),
    ],
)
def test_whatever_was_lost_fails_the_demo_by_name(report: Report, word: str) -> None:
    assert any(word in claim for claim in failures(report, 1))


def test_a_hop_that_was_not_made_fails_the_demo() -> None:
    assert any("1 of 5 hops" in claim for claim in failures(report_of(), 5))


def test_the_longest_gap_is_that_of_all_hops_but_not_of_the_boot() -> None:
    witnesses = Witnesses(OutsideServer())
    seen = iter([900.0, 300.0, 50.0])

    class Datagrams:
        longest_ms = next(seen)

        def reset_gap(self) -> None:
            self.longest_ms = next(seen)

        def report(self) -> DatagramReport:
            return msgspec.structs.replace(DATAGRAMS, longest_gap_ms=self.longest_ms)

    witnesses._datagrams = Datagrams()  # type: ignore[assignment]
    witnesses.reset_gap()  # 900 ms of boot are past
    witnesses.reset_gap()  # a hop of 300 ms is past, one of 50 ms comes
    assert witnesses.longest_gap_ms() == 50.0
    assert witnesses.longest_gap_so_far_ms() == 300.0
