"""The report of a pack: one HTML file without scripts or network, the front drawn as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from haversack.core.budget import Budget
from haversack.core.device import Device
from haversack.plan._candidates import Candidate, front, ranked
from haversack.shrink.structure._packed import Layer

WIDTH, HEIGHT = 760, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 18, 46
MOST_ROWS = 40


@dataclass(frozen=True)
class Axis:
    """A linear axis: `low` to `high` in its unit on pixels `first` to `last`, with round `ticks`."""

    low: float
    high: float
    first: float
    last: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], first: float, last: float, *, count: int = 5) -> Axis:
        """An axis that holds all of `values`, with about `count` ticks of 1, 2 or
        5 steps.
        """
        low, high = min(values), max(values)
        if high - low < 1e-9 * max(abs(high), 1.0):
            high = low + max(abs(low), 1.0) * 0.1
        step = tick_step((high - low) / count)
        begin, end = math.floor(low / step), math.ceil(high / step)
        ticks = tuple(step * index for index in range(begin, end + 1))
        return cls(min(ticks[0], low), max(ticks[-1], high), first, last, ticks)

    def at(self, value: float) -> float:
        """The pixel of `value`, never outside the axis."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.first + share * (self.last - self.first), 1)


def tick_step(rough: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def frame(x: Axis, y: Axis, limit: Sequence[float], steps: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What every plot of a front has, for its template: edges, ticks, the budget (the first of `limit`, if
    any), and a line through those of the pixels `steps` that are higher than all to their left."""
    line: list[tuple[float, float]] = []
    for px, py in sorted(steps):
        if not line or py < line[-1][1]:
            line.append((px, py))
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "x_ticks": [(x.at(tick), f"{tick:g}") for tick in x.ticks],
        "y_ticks": [(y.at(tick), f"{round(tick, 4):g}") for tick in y.ticks],
        "limit": x.at(limit[0]) if limit else None,
        "limit_text": f"budget {limit[0]:g} MiB" if limit else "",
        "line": " ".join(f"{px},{py}" for px, py in line),
    }


def family(candidate: Candidate) -> str:
    """The colour of a point: the precision method and its bits."""
    name, _, parameters = candidate.plan.precision.partition(":")
    bits = round(candidate.bits)
    return f"{name} {bits} bits" if parameters or bits else name


def picture(candidates: Sequence[Candidate], budget: Budget, chosen: Candidate | None) -> dict[str, Any]:
    """Coordinates of the front's drawing: memory to the right, quality lost downwards."""
    limit = budget.ram_mib
    spread = [candidate.ram_mib for candidate in candidates]
    shown = (
        [limit] if limit is not None and limit < 1.6 * max(spread) else []
    )  # a far limit squeezes the rest
    x = Axis.over([0.92 * min(spread), 1.03 * max(spread), *shown], LEFT, WIDTH - RIGHT)
    losses = [100 * max(candidate.loss, 0.0) for candidate in candidates]
    y = Axis.over([0.0, max(0.5, *losses)], TOP, HEIGHT - BOTTOM)
    families = {name: index for index, name in enumerate(sorted({family(one) for one in candidates}))}
    best = front(candidates)
    points = [
        {
            "x": x.at(candidate.ram_mib),
            "y": y.at(100 * max(candidate.loss, 0.0)),
            "r": round(3.0 + 2.2 * math.log10(1 + candidate.device), 1),
            "colour": families[family(candidate)] % 8,
            "measured": candidate.source == "measured",
            "fits": budget.fits(candidate.demand()),
            "chosen": candidate is chosen,
            "title": f"{candidate.plan.label}: {100 * candidate.loss:.2f} % lost, "
            f"{candidate.ram_mib:.0f} MiB, "
            f"{candidate.device:.1f} tokens/s on the device ({candidate.source})",
        }
        for candidate in sorted(candidates, key=lambda one: (one is chosen, one.source == "measured"))
    ]
    steps = [(x.at(one.ram_mib), y.at(100 * max(one.loss, 0.0))) for one in best]
    return {
        **frame(x, y, shown, steps),
        "points": points,
        "legend": [(name, index % 8) for name, index in families.items()],
    }


def report_html(
    *,
    title: str,
    model: str,
    device: Device,
    budget: Budget,
    objective: str,
    candidates: Sequence[Candidate],
    chosen: Candidate,
    facts: Sequence[tuple[str, str]],
    layers: Sequence[Layer] = (),
) -> str:
    """The page. `facts` are labelled lines below the table (texts, machine, seeds, version); `layers` what a
    structure method did to each matrix.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("haversack.plan", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    order = ranked(candidates, objective)
    order.sort(key=lambda one: (one is not chosen, one.source != "measured", not budget.fits(one.demand())))
    return environment.get_template("report.html.j2").render(
        title=title,
        model=model,
        device=device,
        budget=str(budget),
        objective=objective,
        chosen=chosen,
        rows=[
            {
                "chosen": one is chosen,
                "plan": one.plan,
                "bits": f"{one.bits:.2f}",
                "quality": "" if one.quality is None else f"{one.quality:.4f}",
                "loss": f"{100 * one.loss:+.2f} %",
                "ram": f"{one.ram_mib:.1f}",
                "storage": f"{one.storage_mib:.1f}",
                "here": "" if one.here is None else f"{one.here:.1f}",
                "device": f"{one.device:.1f}",
                "measured": one.source == "measured",
                "fits": budget.fits(one.demand()),
            }
            for one in order[:MOST_ROWS]
        ],
        layers=layers,
        left_out=max(0, len(order) - MOST_ROWS),
        picture=picture(candidates, budget, chosen),
        facts=list(facts),
    )
