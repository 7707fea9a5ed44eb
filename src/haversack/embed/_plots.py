"""Tracking as a picture: the path (or the position over time) beside what was wished, and the error over
time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.embed._c import rendered
from haversack.embed.tracking import Track

Array = npt.NDArray[Any]

COLOURS = ("#999999", "#c4713b", "#2b6ca8", "#4d8b3a")


def tracking_svg(tracks: Mapping[str, Track], tick_s: float, title: str) -> str:
    """An SVG of closed loops along one wish. Positions in millimetres, the wish dashed."""
    first = next(iter(tracks.values()))
    seconds = np.arange(len(first.wish)) * tick_s
    flat = first.wish.shape[1] > 1
    wish = {"wish": 1e3 * first.wish}
    paths = {name: 1e3 * track.positions for name, track in tracks.items()}
    if flat:
        lines: dict[str, tuple[Array, Array]] = {
            name: (values[:, 0], values[:, 1]) for name, values in {**wish, **paths}.items()
        }
        left = panel(lines, (60, 56, 360, 320), "x, mm", "y, mm", square=True)
    else:
        lines = {name: (seconds, values[:, 0]) for name, values in {**wish, **paths}.items()}
        left = panel(lines, (60, 56, 360, 320), "s", "position, mm")
    errors: dict[str, tuple[Array, Array]] = {
        name: (seconds, 1e3 * np.linalg.norm(track.positions - track.wish, axis=1))
        for name, track in tracks.items()
    }
    right = panel(errors, (490, 56, 360, 320), "s", "distance from the wish, mm", colours=COLOURS[1:])
    return rendered("tracking.svg.j2", width=880, height=424, title=title, panels=[left, right])


def panel(
    lines: Mapping[str, tuple[Array, Array]],
    place: tuple[int, int, int, int],
    x_label: str,
    y_label: str,
    *,
    square: bool = False,
    colours: tuple[str, ...] = COLOURS,
) -> dict[str, Any]:
    """What the template draws of one plot; `square`: one scale for both axes."""
    left, top, width, height = place
    xs, ys = (np.concatenate([line[at] for line in lines.values()]) for at in (0, 1))
    x_low, x_high, y_low, y_high = (float(each) for each in (xs.min(), xs.max(), ys.min(), ys.max()))
    x_span, y_span = max(x_high - x_low, 1e-9), max(y_high - y_low, 1e-9)
    if square:
        scale = max(x_span / width, y_span / height)
        x_low, x_span = x_low - (scale * width - x_span) / 2, scale * width
        y_low, y_span = y_low - (scale * height - y_span) / 2, scale * height

    def across(x: Array) -> Array:
        return (x - x_low) / x_span * width

    def down(y: Array) -> Array:
        return height - (y - y_low) / y_span * height

    drawn = [
        {
            "name": name,
            "colour": colours[at % len(colours)],
            "thick": 1.3,
            "dashed": name == "wish",
            "points": " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across(x), down(y), strict=True)),
        }
        for at, (name, (x, y)) in enumerate(lines.items())
    ]
    x_at, y_at = np.linspace(x_low, x_low + x_span, 5), np.linspace(y_low, y_low + y_span, 5)
    return {
        "left": left,
        "top": top,
        "width": width,
        "height": height,
        "x_label": x_label,
        "y_label": y_label,
        "x_ticks": [(f"{a:.1f}", f"{x:.3g}") for a, x in zip(across(x_at), x_at, strict=True)],
        "y_ticks": [(float(b), f"{y:.3g}") for b, y in zip(down(y_at), y_at, strict=True)],
        "lines": drawn,
    }
