"""What ElasticZO learns in a given number of steps, between full zeroth order and backpropagation.

Every arm sees the same rows, has the same number of steps and is tried on its own grid; the best on rows kept
for choosing is trained from three seeds and judged on others. Easy data is learned to the end by
backpropagation, so the curves say more than their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.elasticzo import _data
from haversack.bench.elasticzo._arms import Result, compared, floats, whole
from haversack.bench.elasticzo._bench import bench

RATES, ZEROTH = (0.02, 0.05, 0.1, 0.2), (3e-4, 1e-3, 3e-3, 1e-2)
BODY_RATES, BODY_ZEROTH = (0.01, 0.03, 0.1, 0.2), (1e-4, 3e-4, 1e-3, 3e-3)
DIGIT_STEPS, BODY_STEPS, LARGE_STEPS = 800, 800, 1500
SEEDS = (0, 1, 2)
PUBLISHED = "5.2 to 9.5 points over zeroth order"
BACK, FULL, INTEGERS = "backpropagation", "full zeroth order", "ElasticZO-INT8, last 2"


def rows(name: str, what: str, quick: bool = False) -> list[Row]:
    found = []
    for count in (1, 2):
        found += [
            Row(
                f"over-zeroth-{name}-{count}",
                f"{what}: ElasticZO, last {count} by the way back, has at least 4 points more than full "
                "zeroth order",
                "points",
                "quality",
                Bar(">=", 4.0),
                judged="ours",
                published=PUBLISHED,
                quick=quick and count == 2,
            ),
            Row(
                f"gap-{name}-{count}",
                f"{what}: ElasticZO with the last {count} closes at least half of the gap from full zeroth "
                "order to backpropagation",
                "share",
                "quality",
                Bar(">=", 0.5),
                judged="ours",
            ),
        ]
    return found


def integer_row(name: str, what: str) -> Row:
    return Row(
        f"int8-{name}",
        f"{what}: in integers, at most 2 points below ElasticZO in floats, the last 2 by the way back",
        "points",
        "quality",
        Bar(">=", -2.0),
        judged="ours",
        published="accuracy not compromised",
    )


def verdicts(name: str, found: Mapping[str, Result]) -> dict[str, Outcome]:
    """The rows of one data set."""
    full, back = found[FULL], found[BACK]
    settled = {}
    for count in (1, 2):
        ours = found[f"ElasticZO, last {count}"]
        pairs = list(zip(ours.final, full.final, back.final, strict=True))
        settled[f"over-zeroth-{name}-{count}"] = Outcome(
            Side("ElasticZO less full zeroth order", tuple(a - b for a, b, _ in pairs)),
            note=f"ElasticZO: {said(ours)}; full zeroth order: {said(full)}",
        )
        settled[f"gap-{name}-{count}"] = Outcome(
            Side("share closed", tuple((a - b) / (c - b) for a, b, c in pairs)),
            note=f"backpropagation: {said(back)}",
        )
    if INTEGERS in found:
        whole_, float_ = found[INTEGERS], found["ElasticZO, last 2"]
        settled[f"int8-{name}"] = Outcome(
            Side(
                "integers less floats", tuple(a - b for a, b in zip(whole_.final, float_.final, strict=True))
            ),
            note=f"integers: {said(whole_)}",
        )
    return settled


def said(result: Result) -> str:
    """Accuracy by seed and how it came about."""
    return f"{', '.join(f'{value:.1f}' for value in result.final)} %; {result.note()}"


def measured(run: Run, name: str, data: Callable[[], _data.Set], steps: int, integers: bool) -> Outcomes:
    clouds = name in ("bodies", "modelnet40")
    arms = floats(BODY_RATES, BODY_ZEROTH) if clouds else floats(RATES, ZEROTH)
    arms += whole((2,)) if integers else ()
    return verdicts(name, compared(data(), arms, steps, SEEDS, run.say))


@bench.measure(
    *rows("digits", "LeNet-5 on digits", quick=True),
    integer_row("digits", "LeNet-5 on digits"),
    seconds=600,
    quick_seconds=25,
)
def digits(run: Run) -> Outcomes:
    if not run.quick:
        return measured(run, "digits", _data.digits, DIGIT_STEPS, True)
    arms = [arm for arm in floats(RATES, ZEROTH) if arm.name in (FULL, "ElasticZO, last 2")]
    short = [type(arm)(arm.name, arm.grid[1:2]) for arm in arms]
    found = compared(_data.digits(), short, 300, (run.seed,), run.say)
    ours, full = found["ElasticZO, last 2"], found[FULL]
    return {
        "over-zeroth-digits-2": Outcome(
            Side("ElasticZO less full zeroth order", (ours.final[0] - full.final[0],)),
            note=f"300 steps; ElasticZO {said(ours)}; full zeroth order {said(full)}",
        )
    }


@bench.measure(*rows("bodies", "PointNet on generated bodies"), seconds=500)
def bodies(run: Run) -> Outcomes:
    return measured(run, "bodies", _data.bodies, BODY_STEPS, False)


@bench.measure(*rows("mnist", "LeNet-5 on MNIST"), integer_row("mnist", "LeNet-5 on MNIST"), seconds=5)
def mnist(run: Run) -> Outcomes:
    return measured(run, "mnist", lambda: _data.mnist("mnist"), LARGE_STEPS, True)


@bench.measure(
    *rows("fashion", "LeNet-5 on Fashion-MNIST"),
    integer_row("fashion", "LeNet-5 on Fashion-MNIST"),
    seconds=5,
)
def fashion(run: Run) -> Outcomes:
    return measured(run, "fashion", lambda: _data.mnist("fashion-mnist"), LARGE_STEPS, True)


@bench.measure(*rows("modelnet40", "PointNet on ModelNet40"), seconds=5)
def modelnet40(run: Run) -> Outcomes:
    return measured(run, "modelnet40", _data.modelnet, LARGE_STEPS, False)
