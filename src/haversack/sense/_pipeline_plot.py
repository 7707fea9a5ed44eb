"""A picture of windows over time: what each sense sensed and encoded, and when the answer came."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from haversack.models.streams._record import Shape
from haversack.sense._svg import COLOURS, LEFT, Panel, picture
from haversack.sense.pipeline import Result

LANE = 26
COLOUR_OF = {
    "evidence": "four",
    "encode": "one",
    "aggregate": "three",
    "gate": "four",
    "fuse": "two",
}


def timeline(results: Sequence[Result], shape: Shape) -> bytes:
    """One panel a window: lanes of the senses and of the fusion; grey: sensed, coloured: computed."""
    panels = [_panel(result, shape) for result in results]
    note = "grey: sensed; blue: encode; green: aggregate; violet: evidence, gate; orange: fuse"
    return picture(panels, note=note)


def _panel(result: Result, shape: Shape) -> Panel:
    lanes = [sense.name for sense in shape.senses] + ["fusion"]
    end = max(result.wall_ms, *(1000 * b for *_, b in result.spans)) * 1.02
    stopped = ", stopped by the gate" if result.stopped else ""
    title = (
        f"{result.label} ({result.probabilities.max():.2f}) {result.latency_ms:.1f} ms after: "
        f"{result.config}, "
        f"units {result.used[0]}/{result.planned[0]} and {result.used[1]}/{result.planned[1]}{stopped}"
    )
    height = 64 + LANE * len(lanes)
    panel = Panel(title, height=height, x_label="ms", x_range=(0.0, end), y_range=(0.1, 0.1))
    top = 34
    sensed = result.stages["sense"]
    for at, name in enumerate(lanes):
        y = top + at * LANE
        panel.parts.append(
            f'<text x="{LEFT - 6}" y="{y + 13}" text-anchor="end" fill="{COLOURS["quiet"]}">'
            f"{escape(name[:10])}</text>"
        )
        if at < len(shape.senses):
            window = min(1000 * shape.senses[at].window_s, sensed if at == 0 else 1e9)
            panel.parts.append(_bar(panel, 0, window, y + 3, "quiet", "sensed", 0.25, LANE - 10))
    for lane, kind, start, stop in result.spans:
        y = top + lanes.index(lane) * LANE
        label = f"{kind} {1000 * (stop - start):.2f} ms"
        panel.parts.append(_bar(panel, 1000 * start, 1000 * stop, y, COLOUR_OF[kind], label, 0.9, LANE - 4))
    x, _ = panel.at(sensed, 0)
    panel.parts.append(
        f'<line x1="{x:g}" x2="{x:g}" y1="{top - 4}" y2="{top + LANE * len(lanes)}" '
        f'stroke="{COLOURS["ink"]}" stroke-dasharray="3 3"/>'
    )
    return panel


def _bar(
    panel: Panel, start: float, stop: float, y: float, colour: str, label: str, opacity: float, height: int
) -> str:
    left, _ = panel.at(start, 0)
    right, _ = panel.at(stop, 0)
    return (
        f'<rect x="{left:g}" y="{y:g}" width="{max(right - left, 0.6):g}" height="{height}" '
        f'fill="{COLOURS[colour]}" opacity="{opacity}"><title>{escape(label)}</title></rect>'
    )
