"""Plots as SVG text without a library: axes with round ticks, lines, bands, marks, words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
COLOURS = {
    "ink": "#1f2933",
    "quiet": "#8793a1",
    "grid": "#e3e7ec",
    "one": "#1b6ca8",
    "two": "#c2541b",
    "three": "#2f855a",
    "four": "#7b4b94",
}
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 30, 34
MOST_POINTS = 4000


def tick_step(rough: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-300)))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


@dataclass
class Panel:
    """One pair of axes of `width` by `height` pixels; what is drawn on it is kept until `render`."""

    title: str
    width: int = 900
    height: int = 220
    x_label: str = ""
    y_label: str = ""
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        low, high = self.x_range
        bottom, top = self.y_range
        px = LEFT + (x - low) / ((high - low) or 1.0) * (self.width - LEFT - RIGHT)
        py = TOP + (top - y) / ((top - bottom) or 1.0) * (self.height - TOP - BOTTOM)
        return round(px, 1), round(py, 1)

    def line(self, x: F64, y: F64, colour: str, label: str = "", *, dashed: bool = False) -> None:
        """A line through points; of many, the extremes of each pixel are kept."""
        x, y = thinned(np.asarray(x, np.float64), np.asarray(y, np.float64))
        points = " ".join(f"{px:g},{py:g}" for px, py in (self.at(a, b) for a, b in zip(x, y, strict=True)))
        style = ' stroke-dasharray="5 3"' if dashed else ""
        title = f"<title>{escape(label)}</title>" if label else ""
        self.parts.append(
            f'<polyline fill="none" stroke="{COLOURS[colour]}" stroke-width="1.3"{style} '
            f'points="{points}">{title}</polyline>'
        )

    def band(self, start: float, end: float, colour: str, label: str = "") -> None:
        """A strip from `start` to `end` on the x axis over the whole height."""
        (left, top), (right, bottom) = self.at(start, self.y_range[1]), self.at(end, self.y_range[0])
        title = f"<title>{escape(label)}</title>" if label else ""
        self.parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{max(right - left, 0.5):g}" height="{bottom - top:g}" '
            f'fill="{COLOURS[colour]}" opacity="0.16">{title}</rect>'
        )

    def mark(self, x: float, y: float, text: str, colour: str) -> None:
        """A dot with a word above it."""
        px, py = self.at(x, y)
        self.parts.append(
            f'<circle cx="{px:g}" cy="{py:g}" r="2.6" fill="{COLOURS[colour]}"/>'
            f'<text x="{px:g}" y="{py - 6:g}" text-anchor="middle" fill="{COLOURS[colour]}">'
            f"{escape(text)}</text>"
        )

    def render(self, top: int) -> str:
        """The panel as an SVG group `top` pixels down."""
        lines = [f'<g transform="translate(0,{top})">']
        lines.append(f'<text x="{LEFT}" y="18" font-weight="bold">{escape(self.title)}</text>')
        for axis, span in (("x", self.x_range), ("y", self.y_range)):
            step = tick_step((span[1] - span[0] or 1.0) / (8 if axis == "x" else 4))
            for index in range(math.ceil(span[0] / step - 1e-9), math.floor(span[1] / step + 1e-9) + 1):
                lines += self._tick(axis, index * step)
        lines.append("".join(self.parts))
        if self.x_label:
            lines.append(
                f'<text x="{self.width - RIGHT}" y="{self.height - 4}" text-anchor="end" '
                f'fill="{COLOURS["quiet"]}">{escape(self.x_label)}</text>'
            )
        if self.y_label:
            lines.append(
                f'<text x="{self.width - RIGHT}" y="18" text-anchor="end" fill="{COLOURS["quiet"]}">'
                f"{escape(self.y_label)}</text>"
            )
        return "\n".join([*lines, "</g>"])

    def _tick(self, axis: str, value: float) -> list[str]:
        said, quiet, right = f"{round(value, 10):g}", COLOURS["quiet"], self.width - RIGHT
        if axis == "x":
            px, _ = self.at(value, self.y_range[0])
            bottom = self.height - BOTTOM
            return [
                f'<line x1="{px:g}" y1="{TOP}" x2="{px:g}" y2="{bottom}" stroke="{COLOURS["grid"]}"/>',
                f'<text x="{px:g}" y="{bottom + 14}" text-anchor="middle" fill="{quiet}">{said}</text>',
            ]
        _, py = self.at(self.x_range[0], value)
        return [
            f'<line x1="{LEFT}" y1="{py:g}" x2="{right}" y2="{py:g}" stroke="{COLOURS["grid"]}"/>',
            f'<text x="{LEFT - 6}" y="{py + 4:g}" text-anchor="end" fill="{quiet}">{said}</text>',
        ]


def picture(panels: Sequence[Panel], *, note: str = "") -> bytes:
    """The panels one below the other as a whole SVG file."""
    width = max(panel.width for panel in panels)
    top, groups = 4, []
    for panel in panels:
        groups.append(panel.render(top))
        top += panel.height
    if note:
        top += 18
        groups.append(f'<text x="{LEFT}" y="{top - 6}" fill="{COLOURS["quiet"]}">{escape(note)}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + 6}" width="{width}" '
        f'height="{top + 6}" font-family="system-ui, sans-serif" font-size="11" fill="{COLOURS["ink"]}">'
    )
    background = f'<rect width="{width}" height="{top + 6}" fill="#ffffff"/>'
    return "\n".join([head, background, *groups, "</svg>", ""]).encode()


def span(*values: F64, margin: float = 0.06) -> tuple[float, float]:
    """A range that holds all of `values` with some room."""
    low = min(float(np.min(each)) for each in values)
    high = max(float(np.max(each)) for each in values)
    room = margin * ((high - low) or max(abs(high), 1.0))
    return low - room, high + room


def thinned(x: F64, y: F64) -> tuple[F64, F64]:
    """At most MOST_POINTS points that look the same: the least and the greatest of each run."""
    if len(x) <= MOST_POINTS:
        return x, y
    size = -(-len(x) // (MOST_POINTS // 2))
    keep: list[int] = []
    for start in range(0, len(x), size):
        run = y[start : start + size]
        keep += sorted({start + int(run.argmin()), start + int(run.argmax())})
    return x[keep], y[keep]
