"""The picture of a move."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from architect.cli.waterfall import COLOURS, LEFT, PAUSE, WIDTH, render
from architect.model.handover_span import Side

SVG = "{http://www.w3.org/2000/svg}"


def span(side: str, name: str, start_s: float, end_s: float, parent: str = "") -> dict[str, Any]:
    return {"side": side, "name": name, "start_s": start_s, "end_s": end_s, "parent": parent}


def move(*spans: dict[str, Any], **other: Any) -> dict[str, Any]:
    known = {
        "vm": "web <1>", "source": "aws-1", "target": "gcp-1", "mode": "precopy", "outcome": "done", "state": "done",
        "total_s": 1.2, "downtime_ms": 40.0, "clock_error_ms": 0.2,
    }  # fmt: skip
    return {**known, "spans": list(spans), **other}


WHOLE = move(
    span("control", "order", -0.01, 0.0),
    span("source", "bulk", 0.1, 0.8),
    span("source", "hook", 0.9, 0.91),
    span("edge", "steer-applied", 0.95, 0.951, "steer"),
    span("source", "pause", 0.96, 0.963),
    span("source", "save-state", 0.963, 0.97, "last-round"),
    span("target", "resume", 0.998, 1.0),
    span("guest", "first-packet", 1.0, 1.09),
)


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_every_span_is_a_row_of_its_lane_and_pause_and_silence_are_marked() -> None:
    shown = texts(render(WHOLE))
    assert {"the whole move", "the switch", "order", "bulk", "save-state", "first-packet", "pause", "silence"} <= set(shown)
    assert shown.count("bulk") == 1, "what was before the switch is not drawn in its panel"
    assert "1.20 s, pause 40 ms, silence 139 ms; clocks agree within 0.20 ms" in shown


def test_the_pause_ends_when_the_guest_runs_and_not_when_its_qemu_says_so() -> None:
    spans = [one for one in WHOLE["spans"] if one["name"] not in ("resume", "first-packet")]
    late = [span("target", "resume", 0.998, 6.0), span("target", "guest-runs", 1.0, 6.0, "resume")]
    drawn = ElementTree.fromstring(render(move(*spans, *late))).findall(f".//{SVG}rect[@fill='{PAUSE}']")
    of_the_switch = drawn[-1]
    assert float(of_the_switch.attrib["x"]) < LEFT + 0.2 * (WIDTH - LEFT), "5 s of answer are on its right"


def test_each_side_has_a_colour() -> None:
    assert set(COLOURS) == {side.value for side in Side}


def test_a_move_that_failed_before_the_switch_is_one_panel_without_bands() -> None:
    shown = texts(render(move(span("source", "bulk", 0.1, 0.8), outcome="failed", state="failed", clock_error_ms=None)))
    assert "the switch" not in shown and "pause" not in shown
    assert "web <1>: aws-1 to gcp-1, precopy, failed" in shown
