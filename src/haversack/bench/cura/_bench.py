"""The bench object that the files of this folder add their rows to, the grown MLP and the targets."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Bench
from haversack.bench._rows import Unavailable
from haversack.models.series.cura_estimators import stratified

FILES = (
    "bench/cura/*.py",
    "models/series/cura*.py",
    "models/series/_cura*.py",
    "models/series/_estimator.py",
)
F64 = NDArray[np.float64]
bench = Bench("cura", number=10, watches=FILES)
STEPS, RESTARTS = 2000, 3


def torch_of() -> Any:
    """PyTorch. Raises Unavailable where it is not installed."""
    try:
        import torch
    except ImportError:
        raise Unavailable("PyTorch is not installed; run: pip install 'haversack[workshop]'") from None
    return torch


@dataclass(frozen=True)
class Task:
    """Rows to learn from and rows to test on, scaled; `classes` is 0 for regression."""

    name: str
    x: F64
    y: Any
    test_x: F64
    test_y: Any
    classes: int = 0


@functools.cache
def targets() -> tuple[Task, ...]:
    """Five functions: a chirp with jumps and a trend, Friedman 1 to 3, two spirals. 800 rows of each and 800
    to test on. Raises Unavailable without scikit-learn."""
    try:
        from sklearn.datasets import make_friedman1, make_friedman2, make_friedman3
    except ImportError:
        raise Unavailable("scikit-learn is not installed; run: pip install 'haversack[workshop]'") from None
    random = np.random.default_rng(0)

    def chirp(x: F64) -> F64:
        return np.sin(12 * x) * np.exp(-(x**2)) + 0.5 * np.sign(np.sin(5 * x)) + 0.3 * x

    made = []
    x = random.uniform(-2, 2, (1600, 1))
    made.append(("chirp", x, chirp(x[:, 0])))
    for number, maker in enumerate((make_friedman1, make_friedman2, make_friedman3), 1):
        made.append((f"friedman-{number}", *maker(1600, noise=0.0, random_state=number)))
    turn = np.sqrt(random.random(800)) * 3.5 * np.pi
    spiral = np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1)
    found = [_task(name, inputs, goal) for name, inputs, goal in made]
    mixed = random.permutation(1600)
    both = np.concatenate([spiral, -spiral])[mixed] / 10
    sides = np.repeat([0, 1], 800)[mixed]
    found.append(Task("spirals", both[:800], sides[:800], both[800:], sides[800:], 2))
    return tuple(found)


def _task(name: str, x: F64, y: F64) -> Task:
    mean, scale = x[:800].mean(0), x[:800].std(0)
    level, spread = y[:800].mean(), y[:800].std()
    x, y = (x - mean) / scale, (y - level) / spread
    return Task(name, x[:800], y[:800], x[800:], y[800:])


def error(task: Task, made: Any) -> float:
    """Mean square error, or the share of wrong classes."""
    if task.classes:
        return float(np.mean(np.asarray(made) != task.test_y))
    return float(np.mean((np.asarray(made) - task.test_y) ** 2))


@dataclass(frozen=True)
class Grown:
    """An MLP of two hidden layers of `width`: its numbers, what it says of the test rows, its held-out
    loss."""

    width: int
    numbers: int
    made: Any
    held_out: float


@functools.cache
def mlp(name: str, width: int) -> Grown:
    """A ReLU MLP of one of the five targets."""
    task = next(one for one in targets() if one.name == name)
    return grow(task, width)


def grow(task: Task, width: int, steps: int = STEPS, restarts: int = RESTARTS) -> Grown:
    """Two hidden layers of ReLU, the same trainer as CURA's: AdamW by a cosine, all rows at once, restarts
    side by side, the best on the same held-out fifth; of rates 1e-3, 3e-3 and 1e-2 the best too."""
    torch = torch_of()
    torch.manual_seed(0)
    x = torch.tensor(task.x, dtype=torch.float32)
    y = torch.tensor(np.asarray(task.y), dtype=torch.long if task.classes else torch.float32)
    held = torch.tensor(
        stratified(np.asarray(task.y) if task.classes else np.zeros(len(task.x), np.int64), 0)
    )
    outputs, sizes = task.classes or 1, (task.x.shape[1], width, width)
    rates = [rate for rate in (1e-3, 3e-3, 1e-2) for _ in range(restarts)]
    weights = []
    for inputs, units in ((sizes[0], width), (width, width), (width, outputs)):
        first = torch.randn(len(rates), inputs, units) * math.sqrt(2 / inputs)
        weights += [first.requires_grad_(), torch.zeros(len(rates), 1, units).requires_grad_()]
    factor = torch.tensor(rates)[:, None, None] / 1e-2
    # One optimizer runs all restarts: a rate of its own is a step scaled afterwards.
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=1e-4)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def run(rows: Any) -> Any:
        h = torch.relu(rows @ weights[0] + weights[1])
        h = torch.relu(h @ weights[2] + weights[3])
        return h @ weights[4] + weights[5]

    def losses(made: Any, goal: Any) -> Any:
        if task.classes:
            wide = goal.expand(len(rates), -1).reshape(-1)
            each = torch.nn.functional.cross_entropy(made.reshape(-1, outputs), wide, reduction="none")
            return each.reshape(len(rates), -1).mean(1)
        return ((made[..., 0] - goal) ** 2).mean(1)

    for _ in range(steps):
        optimizer.zero_grad()
        losses(run(x[~held]), y[~held]).sum().backward()
        before = [one.detach().clone() for one in weights]
        optimizer.step()
        plan.step()
        with torch.no_grad():
            for one, old in zip(weights, before, strict=True):
                one.copy_(old + (one - old) * factor)
    with torch.no_grad():
        scores = losses(run(x[held]), y[held])
        best = int(scores.argmin())
        made = run(torch.tensor(task.test_x, dtype=torch.float32))[best].numpy()
    numbers = sum(one[0].numel() for one in weights)
    return Grown(width, numbers, made.argmax(1) if task.classes else made[:, 0], float(scores[best]))


Fit = Callable[[], Any]
