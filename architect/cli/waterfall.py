"""The waterfall of a move: its spans as bars in lanes, above the whole move, below the switch alone. Pure: a move in, SVG out.

A row is a span; lanes are who performed it (`model.handover_span.Side`). Two bands run through all lanes: the pause (no CPU of the
guest runs) and the silence (from the edge's switch to the guest's first packet from the target: what a client can notice).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

from architect.cli.output import pause_text
from architect.model.handover_span import GUEST_RUNS

WIDTH = 1280
LEFT = 230
RIGHT = 70
ROW = 17
TOP = 64
PANEL_GAP = 62
SWITCH_START = ("hook", "hold")
COLOURS = {"control": "#7f7f7f", "source": "#3182bd", "target": "#31a354", "edge": "#e6550d", "guest": "#756bb1"}
PART_OPACITY = 0.45
PAUSE = "#fcbba1"
SILENCE = "#fff1c9"


class Bar(NamedTuple):
    """A span to draw, in milliseconds."""

    side: str
    name: str
    is_part: bool
    start_ms: float
    end_ms: float


class Band(NamedTuple):
    """A stretch of time that is marked through all lanes, in milliseconds."""

    name: str
    colour: str
    start_ms: float
    end_ms: float

    @property
    def label(self) -> str:
        """For the legend."""
        return f"{self.name} {self.end_ms - self.start_ms:.0f} ms"


def render(move: dict[str, Any]) -> str:
    """The picture as SVG. `move` is what `architect migrate --json` prints."""
    bars = [
        Bar(span["side"], span["name"], bool(span["parent"]), span["start_s"] * 1000, span["end_s"] * 1000)
        for span in move["spans"]
    ]
    bands = list(_bands(move, bars))
    switch_ms = next((bar.start_ms for bar in bars if bar.side == "source" and bar.name in SWITCH_START and not bar.is_part), None)
    panels = [("the whole move", [bar for bar in bars if not bar.is_part])]
    if switch_ms is not None:
        panels.append(("the switch", [bar for bar in bars if bar.start_ms >= switch_ms]))
    top = TOP
    drawn: list[str] = []
    for name, chosen in panels:
        drawn += _panel(name, chosen, bands, top)
        top += ROW * len(chosen) + PANEL_GAP
    error = "" if move["clock_error_ms"] is None else f"; clocks agree within {move['clock_error_ms']:.2f} ms"
    title = f"{move['vm']}: {move['source']} to {move['target']}, {move['mode']}, {move['outcome'] or move['state']}"
    figures = f"{move['total_s']:.2f} s, " + ", ".join([pause_text(move), *(band.label for band in bands[1:])])
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" font-family="sans-serif" font-size="11">',
            f'<rect width="{WIDTH}" height="{top}" fill="white"/>',
            f'<text x="12" y="20" font-size="15">{escape(title)}</text>',
            f'<text x="12" y="36" fill="#555">{escape(figures + error)}</text>',
            *_legend(bands),
            *drawn,
            "</svg>",
        ]
    )


def _bands(move: dict[str, Any], bars: Sequence[Bar]) -> Iterator[Band]:
    """The pause, then the silence, as far as they are known."""
    stop = _find(bars, "source", "pause")
    resume = _find(bars, "target", "resume")
    if stop is None or resume is None or move["downtime_ms"] is None:
        return
    runs = _find(bars, "target", GUEST_RUNS)
    runs_at_ms = resume.end_ms if runs is None else runs.start_ms
    yield Band("pause", PAUSE, runs_at_ms - move["downtime_ms"], runs_at_ms)
    steered = _find(bars, "edge", "steer-applied")
    seen = _find(bars, "guest", "first-packet")
    if steered is not None and seen is not None:
        yield Band("silence", SILENCE, steered.end_ms, seen.end_ms)


def _find(bars: Sequence[Bar], side: str, name: str) -> Bar | None:
    return next((bar for bar in bars if (bar.side, bar.name) == (side, name)), None)


def _legend(bands: Sequence[Band]) -> Iterator[str]:
    marks = [*COLOURS.items(), *((band.name, band.colour) for band in bands)]
    for index, (name, colour) in enumerate(marks):
        x = WIDTH - RIGHT - 90 * (len(marks) - index)
        yield f'<rect x="{x}" y="10" width="11" height="11" fill="{colour}"/><text x="{x + 15}" y="20">{name}</text>'


def _panel(name: str, bars: Sequence[Bar], bands: Sequence[Band], top: int) -> Iterator[str]:
    """One time axis with its rows, side by side in lanes, in the order in which they began."""
    rows = [bar for side in COLOURS for bar in sorted((bar for bar in bars if bar.side == side), key=lambda bar: bar.start_ms)]
    if not rows:
        return
    start_ms, end_ms = min(bar.start_ms for bar in rows), max(bar.end_ms for bar in rows)
    scale = (WIDTH - LEFT - RIGHT) / max(end_ms - start_ms, 1e-3)
    bottom = top + ROW * len(rows)

    def x(at_ms: float) -> float:
        return LEFT + (min(max(at_ms, start_ms), end_ms) - start_ms) * scale

    yield f'<text x="12" y="{top - 8}" font-size="12" font-weight="bold">{escape(name)}</text>'
    for band in reversed(bands):
        width = x(band.end_ms) - x(band.start_ms)
        yield f'<rect x="{x(band.start_ms):.1f}" y="{top}" width="{width:.1f}" height="{bottom - top}" fill="{band.colour}"/>'
    for at_ms in _ticks(start_ms, end_ms):
        yield f'<line x1="{x(at_ms):.1f}" y1="{top}" x2="{x(at_ms):.1f}" y2="{bottom}" stroke="#ddd"/>'
        yield f'<text x="{x(at_ms):.1f}" y="{bottom + 14}" fill="#777" text-anchor="middle">{at_ms:g} ms</text>'
    for index, bar in enumerate(rows):
        yield from _row(
            bar, x(bar.start_ms), x(bar.end_ms), top + index * ROW, is_first=index == 0 or rows[index - 1].side != bar.side
        )


def _row(bar: Bar, x0: float, x1: float, y: int, *, is_first: bool) -> Iterator[str]:
    if is_first:
        yield f'<line x1="12" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#aaa"/>'
        yield f'<text x="12" y="{y + 13}" font-weight="bold" fill="{COLOURS[bar.side]}">{bar.side}</text>'
    indent = 14 if bar.is_part else 0
    opacity = PART_OPACITY if bar.is_part else 1
    width, text = max(x1 - x0, 1.0), f"{bar.end_ms - bar.start_ms:.1f}"
    yield f'<text x="{72 + indent}" y="{y + 13}" fill="{"#666" if bar.is_part else "#000"}">{escape(bar.name)}</text>'
    yield (
        f'<rect x="{x0:.1f}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}" fill="{COLOURS[bar.side]}" opacity="{opacity}">'
        f"<title>{escape(bar.name)}: {text} ms</title></rect>"
    )
    yield f'<text x="{x0 + width + 4:.1f}" y="{y + 13}" fill="#555">{text}</text>'


def _ticks(start_ms: float, end_ms: float) -> list[float]:
    length_ms = end_ms - start_ms
    step_ms = next(
        (step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if length_ms / step <= 12), length_ms / 10
    )
    first = int(start_ms // step_ms) + 1
    return [number * step_ms for number in range(first, int(end_ms // step_ms) + 1)]
