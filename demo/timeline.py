"""The picture of a demo run: hosts as lanes, phases of each move as bars, client throughput and gaps on the same time axis.

Pure: values in, SVG text out. All times are seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

WIDTH = 1200
LEFT = 90
RIGHT = 20
LANE_HEIGHT = 34
CHART_HEIGHT = 110
COLOURS = {
    "running": "#9ecae1",
    "notice": "#fdae6b",
    "preparing": "#c7c7c7",
    "precopy": "#74c476",
    "switchover": "#e34a33",
    "postcopy": "#9e9ac8",
}


@dataclass(frozen=True)
class Bar:
    """A stretch of time on a host's lane. `kind` is a key of COLOURS."""

    host: str
    kind: str
    start_s: float
    end_s: float
    label: str = ""


@dataclass(frozen=True)
class Timeline:
    """What the picture shows. `throughput` is (time, bytes per second), `gaps` is (time of the end, length in ms)."""

    title: str
    hosts: tuple[str, ...]
    bars: tuple[Bar, ...]
    destroyed: tuple[tuple[str, float], ...] = ()
    throughput: tuple[tuple[float, float], ...] = ()
    gaps: tuple[tuple[float, float], ...] = field(default=())


def render(timeline: Timeline) -> str:
    """The picture as SVG."""
    times = [at for bar in timeline.bars for at in (bar.start_s, bar.end_s)] + [at for at, _ in timeline.throughput]
    start_s, end_s = (min(times), max(times)) if times else (0.0, 1.0)
    scale = (WIDTH - LEFT - RIGHT) / max(end_s - start_s, 1e-3)

    def x(at_s: float) -> float:
        return LEFT + (at_s - start_s) * scale

    lanes_top = 60
    lanes_bottom = lanes_top + LANE_HEIGHT * len(timeline.hosts)
    height = lanes_bottom + 2 * (CHART_HEIGHT + 40) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16">{escape(timeline.title)}</text>',
        *_legend(),
        *_lanes(timeline, x, lanes_top),
        *_chart("MB/s", [(x(at), value / 1e6) for at, value in timeline.throughput], lanes_bottom + 30, "#3182bd"),
        *_chart("gap, ms", [(x(at), value) for at, value in timeline.gaps], lanes_bottom + 70 + CHART_HEIGHT, "#e34a33", bars=True),
        *_axis(start_s, end_s, x, height - 16),
        "</svg>",
    ]
    return "\n".join(parts)


def _legend() -> list[str]:
    parts = []
    for index, (kind, colour) in enumerate(COLOURS.items()):
        at = LEFT + 130 * index
        parts.append(f'<rect x="{at}" y="34" width="12" height="12" fill="{colour}"/><text x="{at + 17}" y="45">{kind}</text>')
    return parts


def _lanes(timeline: Timeline, x: object, top: int) -> list[str]:
    assert callable(x)
    parts = []
    for index, host in enumerate(timeline.hosts):
        y = top + index * LANE_HEIGHT
        parts.append(f'<text x="8" y="{y + 21}">{escape(host)}</text>')
        parts.append(f'<line x1="{LEFT}" y1="{y + LANE_HEIGHT}" x2="{WIDTH - RIGHT}" y2="{y + LANE_HEIGHT}" stroke="#eee"/>')
    for bar in timeline.bars:
        y = top + timeline.hosts.index(bar.host) * LANE_HEIGHT
        thin = bar.kind in ("notice", "running")
        inset, tall = (6, LANE_HEIGHT - 12) if thin else (10, LANE_HEIGHT - 20)
        width = max(x(bar.end_s) - x(bar.start_s), 1.5)
        parts.append(
            f'<rect x="{x(bar.start_s):.1f}" y="{y + inset}" width="{width:.1f}" height="{tall}" '
            f'fill="{COLOURS[bar.kind]}"><title>{escape(bar.label or bar.kind)}</title></rect>'
        )
    for host, at_s in timeline.destroyed:
        y = top + timeline.hosts.index(host) * LANE_HEIGHT + LANE_HEIGHT // 2
        parts.append(f'<text x="{x(at_s) - 5:.1f}" y="{y + 6}" font-size="17" fill="#a50f15">✕</text>')
    return parts


def _chart(name: str, points: list[tuple[float, float]], top: int, colour: str, *, bars: bool = False) -> list[str]:
    highest = max((value for _, value in points), default=1.0) or 1.0
    bottom = top + CHART_HEIGHT
    parts = [
        f'<text x="8" y="{top + 12}">{name}</text><text x="8" y="{top + 28}" fill="#777">max {highest:.4g}</text>',
        f'<line x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}" stroke="#999"/>',
    ]
    if bars:
        parts += [
            f'<line x1="{at:.1f}" y1="{bottom}" x2="{at:.1f}" y2="{bottom - value / highest * CHART_HEIGHT:.1f}" '
            f'stroke="{colour}" stroke-width="2"/>'
            for at, value in points
        ]
    elif points:
        path = " ".join(f"{at:.1f},{bottom - value / highest * CHART_HEIGHT:.1f}" for at, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
    return parts


def _axis(start_s: float, end_s: float, x: object, y: int) -> list[str]:
    assert callable(x)
    span_s = end_s - start_s
    step_s = next((step for step in (1, 2, 5, 10, 20, 30, 60, 120, 300) if span_s / step <= 16), 600)
    return [
        f'<text x="{x(start_s + second):.1f}" y="{y}" fill="#777">{second} s</text>' for second in range(0, int(span_s) + 1, step_s)
    ]
