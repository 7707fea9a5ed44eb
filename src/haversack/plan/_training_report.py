"""The report of a comparison of trainings: one HTML file, its fronts drawn as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from haversack.plan._report import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, frame

if TYPE_CHECKING:
    from haversack.plan._training_front import Arm, Front
    from haversack.train.fit_labels import Prepared, Wish

KIB_OF_MIB = 1024


def picture(
    arms: Sequence[Arm], title: str, x_label: str, memory: Callable[[Arm], float], limit: float | None
) -> dict[str, Any]:
    """Coordinates of one front: `memory` to the right, held-out accuracy upwards."""
    spread = [memory(arm) for arm in arms]
    near = [limit] if limit is not None and limit < 1.6 * max(spread) else []
    x = Axis.over([0.96 * min(spread), 1.03 * max(spread), *near], LEFT, WIDTH - RIGHT)
    y = Axis.over([100 * arm.accuracy for arm in arms], HEIGHT - BOTTOM, TOP)
    names = sorted({arm.scheme.parameters.partition(":")[0] for arm in arms})
    points = []
    for arm in arms:
        assert arm.record is not None
        seconds = arm.record["seconds"]
        points.append(
            {
                "x": x.at(memory(arm)),
                "y": y.at(100 * arm.accuracy),
                "r": round(3.0 + 2.2 * math.log10(1 + seconds), 1),
                "colour": names.index(arm.scheme.parameters.partition(":")[0]) % 8,
                "plain": arm.plain,
                "title": f"{arm.label}: {100 * arm.accuracy:.1f} %, {memory(arm):,.1f}, {seconds:.1f} s",
            }
        )
    return {
        **frame(x, y, near, [(x.at(memory(arm)), y.at(100 * arm.accuracy)) for arm in arms]),
        "title": title,
        "x_label": x_label,
        "points": points,
        "legend": [(name, index % 8) for index, name in enumerate(names)],
    }


def training_report(front: Front, ready: Prepared, wish: Wish) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from haversack.core.measurement import commit, machine

    environment = Environment(
        loader=PackageLoader("haversack.plan", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    trained = [arm for arm in front.arms if arm.record is not None]
    examples = ready.examples
    rows = f"{len(examples.learned)} rows to learn from, {len(examples.held_out)} held out"
    rate = "each arm's own, of three tried on rows to learn from" if wish.rate is None else f"{wish.rate:g}"
    pictures = []
    if trained:
        pictures = [
            picture(
                trained,
                "Accuracy and memory of the process",
                "peak memory of the process, MiB",
                lambda arm: arm.peak_mib,
                wish.budget.ram_mib,
            ),
            picture(
                trained,
                "Accuracy and what is saved for the way back",
                "saved for the way back, KiB",
                _saved_kib,
                None,
            ),
        ]
    return environment.get_template("training.html.j2").render(
        title=f"Training {front.network}",
        about=f"{rows}, {len(examples.classes)} classes, {wish.epochs} epochs",
        pictures=pictures,
        rows=[_row(arm, arm in front.best) for arm in trained],
        refused=[(arm.label, arm.reason) for arm in front.arms if arm.record is None],
        facts=[
            ("network", f"{front.network}, {ready.sha256[:16]}"),
            ("rows", rows),
            ("rate", rate),
            ("seed", str(wish.seed)),
            ("budget", str(wish.budget)),
            ("machine", ", ".join(f"{name} {value}" for name, value in machine().items())),
            ("commit", commit() or "not of a checkout"),
        ],
    )


def _saved_kib(arm: Arm) -> float:
    assert arm.record is not None
    return KIB_OF_MIB * float(arm.record["saved_mib"]["measured"])


def _row(arm: Arm, front: bool) -> dict[str, Any]:
    record = arm.record
    assert record is not None
    held, saved = record["held_out"], record["saved_mib"]
    planned = saved["planned"]
    return {
        "label": arm.label,
        "plain": arm.plain,
        "front": front,
        "cells": [
            f"{record['learned_numbers']:,}",
            f"{record['rate']:.3g}",
            f"{100 * held['before']['accuracy']:.1f} %",
            f"{100 * held['after']['accuracy']:.1f} %",
            f"{held['after']['loss']:.4f}",
            "" if planned is None else f"{KIB_OF_MIB * planned:,.1f}",
            f"{KIB_OF_MIB * saved['measured']:,.1f}",
            f"{arm.scheme.memory.total_mib:.1f}",
            f"{arm.peak_mib:.1f}",
            f"{record['seconds']:.1f}",
            f"{record['delta']['nbytes'] / KIB_OF_MIB:.0f}",
        ],
    }
