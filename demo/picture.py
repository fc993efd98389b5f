"""From what the fabric tells of a demo run to the picture of it (`timeline`)."""

from __future__ import annotations

from typing import Any

from architect.model.times import parse_rfc3339
from demo.timeline import Bar, Timeline, render
from demo.witnesses import Evidence

GAP_MS_MIN = 20.0
_SWITCH_START, _SWITCH_END = "hook", "commit"


def draw(moves: list[Any], events: list[Any], evidence: Evidence, began_s: float) -> str:
    """The picture as SVG."""
    end_s = max([at for at, _ in evidence.throughput], default=began_s + 1)
    bars: list[Bar] = []
    hosts: list[str] = []
    done = [move for move in moves if move["state"] == "done"]
    since_s = began_s
    for move in done:
        start_s = parse_rfc3339(move["started_at"])
        for host in (move["source"], move["target"]):
            if host not in hosts:
                hosts.append(host)
        left_s = start_s + move["total_s"]
        bars.append(Bar(move["source"], "running", since_s, left_s, f"runs on {move['source']}"))
        bars += _phases(move, start_s)
        since_s = left_s
    if done:
        bars.append(Bar(done[-1]["target"], "running", since_s, end_s))
    destroyed = [
        (event["host"], min(parse_rfc3339(event["time"]), end_s))
        for event in events
        if event["kind"] == "host-lost" and event["host"] in hosts
    ]
    ends = dict(destroyed)
    notices = [
        Bar(event["host"], "notice", parse_rfc3339(event["time"]), ends.get(event["host"], end_s), "noticed")
        for event in events
        if event["kind"] == "notice" and event["host"] in hosts
    ]
    bars = notices + bars
    gaps = tuple((at, length_ms) for at, length_ms in evidence.gaps if length_ms >= GAP_MS_MIN and at >= began_s)
    throughput = tuple(sample for sample in evidence.throughput if sample[0] >= began_s)
    title = f"{len(done)} hops; longest gap seen by a client {max((ms for _, ms in gaps), default=0):.0f} ms"
    return render(Timeline(title, tuple(hosts), tuple(bars), tuple(destroyed), throughput, gaps))


def _phases(move: Any, start_s: float) -> list[Bar]:
    """Preparing up to the copy, the copy up to the switch, the switch, and what was left for afterwards."""
    ends = {phase["name"]: phase for phase in move["phases"]}
    total_s = move["total_s"]
    copy_s = ends["bulk"]["start_s"] if "bulk" in ends else total_s
    switch_s = ends[_SWITCH_START]["start_s"] if _SWITCH_START in ends else total_s
    commit_s = ends[_SWITCH_END]["end_s"] if _SWITCH_END in ends else total_s
    spans = (
        (move["source"], "preparing", 0.0, copy_s),
        (move["source"], "precopy", copy_s, switch_s),
        (move["source"], "switchover", switch_s, commit_s),
        (move["target"], "switchover", switch_s, commit_s),
        (move["target"], "postcopy", commit_s, total_s),
    )
    return [
        Bar(host, kind, start_s + begin_s, start_s + end_s, f"{kind} {end_s - begin_s:.3f} s")
        for host, kind, begin_s, end_s in spans
        if end_s > begin_s and (kind != "postcopy" or move["mode"] == "postcopy")
    ]
