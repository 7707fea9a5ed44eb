"""The rows that both worlds have, and what they are of the seeds' curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.hera._bench import SHARE_MOST, Found
from haversack.share._hera_curve import area, at_share, share_for

KEPT = 0.98


def rows_of(world: str, quick: bool) -> list[Row]:
    """The rows of a world; those of a quick run with `quick`."""
    return [
        Row(
            f"{world}-success",
            f"{world}: success of Hera over that of the cloud alone, threshold chosen on other tasks",
            "success rate",
            "quality",
            Bar(">=", 0.90),
            published="92.5 % of the cloud's success at 46.3 % cloud steps",
            quick=quick,
        ),
        Row(
            f"{world}-share",
            f"{world}: share of steps that the cloud takes at that threshold",
            "share of steps",
            "bytes",
            Bar("<=", SHARE_MOST),
            judged="ours",
            published="46.3 %",
            quick=quick,
        ),
        Row(
            f"{world}-over-random",
            f"{world}: success over that of chance at equal cloud share",
            "success rate",
            "quality",
            Bar(">=", 1.05),
            published="random p=.5: 79.1 / 27.6 / 5.4 % against 86.1 / 34.1 / 19.7 %",
        ),
        Row(
            f"{world}-over-tasks",
            f"{world}: success over that of the best router of whole tasks at equal cloud share",
            "success rate",
            "quality",
            Bar(">=", 1.05),
            published="RouteLLM: 86.2 % of the cloud's success at 62.1 % cloud steps",
        ),
        Row(
            f"{world}-stages",
            f"{world}: both stages over imitation alone: a share of 0.9 or less at 0.98 of its success, or "
            "1.03 of its success at no more calls (1 or more: one of them)",
            "bars passed, as a factor",
            "quality",
            Bar(">=", 1.0),
            judged="ours",
            published="+6.6 points of success and 2.6 calls a task fewer",
        ),
        Row(
            f"{world}-area", f"{world}: area under success by share, over imitation alone", "area", "quality"
        ),
        Row(
            f"{world}-outcomes-alone",
            f"{world}: area of learning from outcomes alone, one round, over that of both stages, all rounds",
            "area",
            "quality",
            published="outcomes without a cold start are poor",
        ),
        Row(
            f"{world}-entropy",
            f"{world}: area of Hera over a threshold on the device's entropy",
            "area",
            "quality",
        ),
        Row(
            f"{world}-oracle",
            f"{world}: share of steps at which the agents' actions differ, were both always asked",
            "share of steps",
            "quality",
            published="below 25 %",
        ),
        Row(
            f"{world}-device",
            f"{world}: success of the device alone (the cloud alone beside it)",
            "success rate",
            "quality",
            Bar("in", (0.2, 0.5)),
            judged="ours",
        ),
        Row(
            f"{world}-prefill",
            f"{world}: tokens that a model reads anew, over the cloud alone",
            "tokens a task",
            "bytes",
        ),
    ]


def stages_factor(one: Found) -> tuple[float, str]:
    """How far both stages pass one of the two bars over imitation at tau one half, 1 where they just do."""
    base = min(one.curves["imitation"], key=lambda point: abs(point.tau - 0.5))
    shares = share_for(one.curve("hera"), KEPT * base.success) / max(base.share, 1e-9)
    better = at_share(one.curve("hera"), base.share) / max(base.success, 1e-9)
    calls = [point for point in one.curves["hera"] if point.calls <= base.calls]
    better_by_calls = max((point.success for point in calls), default=0.0) / max(base.success, 1e-9)
    note = (
        f"share {shares:.2f} at {KEPT:.2f}, success {better:.2f} at equal share, {better_by_calls:.2f} at no "
        "more calls"
    )
    return max(0.9 / max(shares, 1e-9), better_by_calls / 1.03), note


def outcomes_of(world: str, found: Sequence[Found], quick: bool) -> Outcomes:
    """Every row of a world."""

    def pair(
        ours: Callable[[Found], float], theirs: Callable[[Found], float], against: str, note: str = ""
    ) -> Outcome:
        return Outcome(
            Side("hera", tuple(ours(one) for one in found)),
            Side(against, tuple(theirs(one) for one in found)),
            note,
        )

    calls = [np.mean([one.chosen.calls for one in found]), np.mean([one.cloud.calls for one in found])]
    shares = ", ".join(f"{one.chosen.share:.2f}" for one in found)
    rows: dict[str, Outcome] = {
        f"{world}-success": pair(
            lambda one: one.chosen.success,
            lambda one: one.cloud.success,
            "cloud alone",
            f"cloud shares {shares}; calls a task {calls[0]:.1f}, the cloud alone {calls[1]:.1f}",
        ),
        f"{world}-share": Outcome(Side("hera", tuple(one.chosen.share for one in found))),
    }
    if quick:
        return rows
    tasks = [one.taskwise(one.chosen.share) for one in found]
    rows[f"{world}-over-random"] = pair(
        lambda one: one.chosen.success, lambda one: at_share(one.curve("random"), one.chosen.share), "chance"
    )
    rows[f"{world}-over-tasks"] = pair(
        lambda one: one.chosen.success,
        lambda one: one.taskwise(one.chosen.share)[0],
        "best of four",
        f"the best: {', '.join(name for _, name in tasks)}; the cascade begins anew where it escalates, "
        "which worlds seldom allow, and its discarded steps are not counted",
    )
    factors = [stages_factor(one) for one in found]
    rows[f"{world}-stages"] = Outcome(
        Side("hera", tuple(value for value, _ in factors)), None, "; ".join(note for _, note in factors)
    )
    rows[f"{world}-area"] = pair(
        lambda one: area(one.curve("hera")),
        lambda one: area(one.curve("imitation")),
        "imitation alone",
        f"chance {np.mean([area(one.curve('random')) for one in found]):.3f}",
    )
    rows[f"{world}-outcomes-alone"] = Outcome(
        Side("outcomes alone", tuple(area(one.curve("outcomes")) for one in found)),
        Side("both stages", tuple(area(one.curve("hera")) for one in found)),
        f"one round against {len(found[0].rounds)}",
    )
    rows[f"{world}-entropy"] = pair(
        lambda one: area(one.curve("hera")), lambda one: area(one.curve("entropy")), "entropy"
    )
    rows[f"{world}-oracle"] = Outcome(
        Side("oracle", tuple(one.curves["oracle"][0].share for one in found)),
        None,
        f"success {np.mean([one.curves['oracle'][0].success for one in found]):.3f}",
    )
    rows[f"{world}-device"] = Outcome(
        Side("device", tuple(one.device.success for one in found)),
        Side("cloud", tuple(one.cloud.success for one in found)),
    )
    rows[f"{world}-prefill"] = pair(
        lambda one: one.chosen.prefill,
        lambda one: one.cloud.prefill,
        "cloud alone",
        "four characters a token",
    )
    return rows
