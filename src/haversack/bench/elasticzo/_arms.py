"""Ways of training side by side: the same rows in the same order, the same number of steps, each at its best
of a stated grid, chosen by rows that neither learn nor judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haversack.bench.elasticzo._data import Set
from haversack.core import index
from haversack.train._network import Batch
from haversack.train._slots import Learned, Settings
from haversack.train.networks.integers import IntegerNetwork
from haversack.train.networks.layered import LayeredNetwork

ROWS = 32
TUNING_SEED = 7
CLIP = 5.0
"""The largest slope that is used."""


@dataclass(frozen=True)
class Arm:
    """One way: its `grid` holds (method, rate) pairs. `integers`: in a network of integers."""

    name: str
    grid: tuple[tuple[str, float], ...]
    integers: bool = False


def floats(rates: Sequence[float], zeroth: Sequence[float]) -> tuple[Arm, ...]:
    """Backpropagation, full zeroth order, and ElasticZO with the last one and two layers by the way back.

    `rates` are those of the way back, `zeroth` those of zeroth order, four each. ElasticZO tries the middle
    two of `rates` with the lower three of `zeroth`. Slopes are clipped alike, as the paper clips them.
    """
    pairs = [(rate, low / rate) for rate in rates[1:3] for low in zeroth[:3]]
    clip = f"clip={CLIP:g}"
    return (
        Arm("backpropagation", tuple(("backprop", rate) for rate in rates)),
        Arm("full zeroth order", tuple((f"zeroth:{clip}", rate) for rate in zeroth)),
        *(
            Arm(
                f"ElasticZO, last {count}",
                tuple(
                    (f"elasticzo:backprop_layers={count},share={share:.4g},{clip}", rate)
                    for rate, share in pairs
                ),
            )
            for count in (1, 2)
        ),
    )


def whole(counts: Sequence[int]) -> tuple[Arm, ...]:
    """ElasticZO in integers: what stands for a rate is the share that is not perturbed, and the bits of a
    step."""
    tries = ("p_zero=0.5", "p_zero=0.9", "p_zero=0.9,b_bp=4", "p_zero=0.98", "p_zero=0.98,b_bp=4")
    return tuple(
        Arm(
            f"ElasticZO-INT8, last {count}",
            tuple(
                (f"elasticzo-int8:backprop_layers={count}{rest}", 1.0)
                for rest in ("", *(f",{t}" for t in tries))
            ),
            True,
        )
        for count in counts
    )


def network(data: Set, seed: int, integers: bool = False) -> Any:
    """A fresh one for `data`."""
    classes = tuple(str(each) for each in range(int(data.learn[1].max()) + 1))
    return (IntegerNetwork if integers else LayeredNetwork)(data.network, classes, seed=seed)


def learned_by(found: Any) -> Learned:
    """All that can learn."""
    roles = found.roles()
    return Learned({name: None for name in found.tensors() if roles[name] in ("weight", "bias")})


def accuracy(found: Any, rows: tuple[Any, Any]) -> float:
    """Percent of `rows` that the network gets right."""
    right = 0
    for start in range(0, len(rows[1]), 256):
        part = slice(start, start + 256)
        right += int((found.logits(rows[0][part]).argmax(axis=1) == rows[1][part]).sum())
    return 100 * right / len(rows[1])


def train(
    found: Any,
    rows: tuple[Any, Any],
    method: str,
    rate: float,
    steps: int,
    seed: int,
    look: Callable[[int, Any], None] = lambda step, stepper: None,
) -> Any:
    """`steps` steps of ROWS rows, drawn by `seed`; `look(done, stepper)` after each. The stepper."""
    way: Any = index.create("train", "gradient", method)
    stepper = way.begin(found, learned_by(found), Settings(steps, ROWS, seed))
    generator = np.random.default_rng([seed, 0xE1A])
    for step in range(steps):
        chosen = generator.integers(0, len(rows[1]), ROWS)
        stepper.step(Batch(rows[0][chosen], rows[1][chosen]), rate)
        look(step + 1, stepper)
    return stepper


@dataclass
class Result:
    """One arm: what was tried, what was taken, accuracy by seed, and on the way there by steps."""

    tried: dict[str, float] = field(default_factory=dict)
    taken: str = ""
    final: list[float] = field(default_factory=list)
    curve: dict[int, list[float]] = field(default_factory=dict)

    def note(self) -> str:
        """The grid with the accuracy that chose, and the curve of medians."""
        tried = ", ".join(f"{name}: {value:.1f}" for name, value in self.tried.items())
        curve = ", ".join(f"{step}: {np.median(values):.1f}" for step, values in self.curve.items())
        return f"grid (percent on choosing rows) {tried}; taken {self.taken}; percent by step {curve}"


def compared(
    data: Set, arms: Sequence[Arm], steps: int, seeds: Sequence[int], say: Callable[[str], None]
) -> Mapping[str, Result]:
    """Every arm at its best: half the steps choose, `steps` from each of `seeds` judge."""
    found = {}
    for arm in arms:
        result = Result()
        scores = []
        for method, rate in arm.grid:
            say(f"{data.name}, {arm.name}: trying {method} at {rate:g}")
            tried = network(data, TUNING_SEED, arm.integers)
            train(tried, data.learn, method, rate, steps // 2, TUNING_SEED)
            scores.append(accuracy(tried, data.choose))
            result.tried[f"{method} at {rate:g}"] = scores[-1]
        method, rate = arm.grid[int(np.argmax(scores))]
        result.taken = f"{method} at {rate:g}"
        result.curve = {steps * part // 4: [] for part in (1, 2, 3, 4)}
        for seed in seeds:
            say(f"{data.name}, {arm.name}: seed {seed}")
            last = network(data, seed, arm.integers)

            def look(done: int, stepper: Any, last: Any = last, curve: Any = result.curve) -> None:
                if done in curve:
                    curve[done].append(accuracy(last, data.judge))

            train(last, data.learn, method, rate, steps, seed, look)
            result.final.append(result.curve[steps][-1])
        found[arm.name] = result
    return found
