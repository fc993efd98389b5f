"""The transfer benchmark's rows: medians, and ratios within a round."""

from __future__ import annotations

from bench.transfer_results import Engine, Sample, Way, rows_of, table


def _sample(engine: Engine, number: int, seconds: float, *, tls: bool = False) -> Sample:
    return Sample(Way(engine, 4096, tls), number, 1 << 30, seconds, 2.0, 0.0)


SAMPLES = (
    _sample(Engine.TCP, 1, 1.0), _sample(Engine.ARCHITECT, 1, 2.0, tls=True),
    _sample(Engine.TCP, 2, 10.0), _sample(Engine.ARCHITECT, 2, 20.0, tls=True),
    _sample(Engine.TCP, 3, 4.0), _sample(Engine.ARCHITECT, 3, 5.0, tls=True),
)  # fmt: skip


def test_a_ratio_is_taken_within_a_round_so_that_a_slow_one_slows_both() -> None:
    tcp, ours = rows_of(SAMPLES)
    assert (tcp.of_tcp, ours.of_tcp) == (1.0, 0.5)
    assert (tcp.bytes_per_s, ours.bytes_per_s) == ((1 << 30) // 4, round((1 << 30) / 5))
    assert ours.tls and ours.runs == 3 and ours.cpu_s_per_gib == 2.0


def test_without_a_plain_copy_in_its_round_a_way_has_no_ratio() -> None:
    assert rows_of(SAMPLES[1:2])[0].of_tcp is None
    assert "-" in table(rows_of(SAMPLES[1:2]))


def test_the_table_has_a_line_for_each_way() -> None:
    lines = table(rows_of(SAMPLES)).splitlines()
    assert len(lines) == 3 and lines[2].split() == ["architect", "4", "yes", "205", "0.50", "2.00", "3"]
