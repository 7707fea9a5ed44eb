"""First-degree AV block and long QT, told from the marks: area under the curve, and the operating point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.featuredb_ecg._bench import bench, part, read
from haversack.sense.ecg import PR_CUT_MS, QTC_CUT_MS

F64 = NDArray[np.float64]
KINDS = {
    "pr": ("first-degree AV block", PR_CUT_MS, 0.85, 0.787),
    "qtc": ("long QT", QTC_CUT_MS["unknown"], 0.80, 0.684),
}


def area(scores: F64, labels: NDArray[np.bool_]) -> float:
    """The area under the ROC curve: the share of pairs in order, ties for half."""
    up, down = scores[labels], scores[~labels]
    return float(np.mean((up[:, None] > down[None]) + 0.5 * (up[:, None] == down[None])))


@bench.measure(
    *[
        row
        for name, (words, cut, limit, published) in KINDS.items()
        for row in (
            Row(
                f"auc-{name}",
                f"{words}: area under the curve on LUDB's even records, labels from the marks",
                "AUC",
                "quality",
                Bar(">=", limit),
                judged="ours",
                published=published,
            ),
            Row(
                f"alarm-{name}-sensitivity",
                f"{words}: share of such records that the alarm above {cut:g} ms finds",
                "share",
                "quality",
            ),
            Row(
                f"alarm-{name}-specificity",
                f"{words}: share of other records that the alarm above {cut:g} ms leaves alone",
                "share",
                "quality",
            ),
        )
    ],
    seconds=30,
)
def alarms(run: Run) -> Outcomes:
    marked = part(odd=False)
    found: dict[str, Outcome | Unavailable] = {}
    for name, (_, cut, _, _) in KINDS.items():
        known = [one for one in marked if np.isfinite(getattr(one, name)) and np.isfinite(one.rr)]
        labels = np.array([getattr(one, name) > cut for one in known])
        if labels.all() or not labels.any():
            raise Unavailable(f"the even records hold no two classes of {name}")
        sides = []
        for profile in ("fixed", "published"):
            scores = np.array([read(profile, "ii", one.number)[name] for one in known])
            absent = int((~np.isfinite(scores)).sum())
            scores = np.where(np.isfinite(scores), scores, -np.inf)  # no figure raises no alarm
            raised = scores > cut
            sides.append(
                (area(scores, labels), float(raised[labels].mean()), float((~raised[~labels]).mean()), absent)
            )
        note = (
            f"{int(labels.sum())} of {len(labels)} records are above {cut:g} ms; no figure for {sides[0][3]}"
        )
        for at, row in enumerate((f"auc-{name}", f"alarm-{name}-sensitivity", f"alarm-{name}-specificity")):
            found[row] = Outcome.single(
                sides[0][at], sides[1][at], name="fixed", against="published", note=note
            )
    return found
