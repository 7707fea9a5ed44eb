"""Perplexity in few bits: plain rounding, SmoothQuant, block reconstruction, ZeroQAT, and Adam above them.

Every method has the same grids, texts and calibration; rates are chosen on an end of the learned text by the
first seed, from a grid that the notes print, and kept for the others. Adam follows the gradient through the
rounding (straight through) on the same texts, from the same reconstruction.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.zeroqat._bench import bench
from haversack.bench.zeroqat._models import (
    LENGTH,
    QUICK_ROWS,
    SEEDS,
    decoder,
    learned_texts,
    outlier_folder,
    perplexity,
    prepared,
    scored_rows,
)

ROWS, STEPS, TUNING = 8, 900, 250
EPOCHS = 8
GRIDS = {
    "w4a4": (("weights+quant", 1e-3, 100, 3e-6), ("quant", 1e-2, 10, 1e-4), ("quant", 1e-2, 10, 5e-4)),
    "w2a16": (("weights+quant", 1e-3, 100, 5e-6), ("quant", 1e-2, 10, 5e-4), ("quant", 1e-2, 10, 1e-3)),
}
"""zo, eps, quant_move, rate."""
ADAM_RATES, ADAM_STEPS = (1e-4, 4e-4, 1e-3), 150


def bits_of(name: str) -> Any:
    """W4A4 by whole rows; W2A16 by groups of 64."""
    from haversack.train.gradient._zeroqat_decoder import Bits

    return Bits(4, 4) if name == "w4a4" else Bits(2, 16, 64)


def smoothing_of(name: str) -> str | None:
    """Weight-only settings keep clipping and drop smoothing."""
    return "given" if name == "w4a4" else None


def zeroqat(name: str, seed: int, choice: tuple[Any, ...], steps: int, goal: Path) -> Any:
    """Train from the reconstruction of `seed`; what train/fit_quantized.py reports."""
    from haversack.train.fit_quantized import Course, fit_quantized
    from haversack.train.gradient.zeroqat import ZeroQat

    zo, eps, move, rate = choice
    bits = bits_of(name)
    method = ZeroQat(
        bits=bits.weights, inputs=bits.inputs, group=bits.group, zo=zo, eps=eps, quant_move=float(move)
    )
    start = prepared(bits, seed, smooth=smoothing_of(name), epochs=EPOCHS)
    course = Course(steps, ROWS, LENGTH, rate, judge_every=50, seed=seed)
    return fit_quantized(start, learned_texts(), goal, method, course)


def chosen(name: str, folder: Path, say: Callable[[str], None]) -> tuple[tuple[Any, ...], str]:
    """The entry of the grid that is best after TUNING steps of the first seed, and the grid in words."""
    found = {}
    for number, choice in enumerate(GRIDS[name]):
        say(f"{name}: {choice}")
        found[choice] = zeroqat(name, SEEDS[0], choice, TUNING, folder / f"tune-{number}.pack").held_out[
            "loss"
        ]
    words = ", ".join(
        f"{zo} eps {eps:g} move {move} rate {rate:g}: {loss:.4f}"
        for (zo, eps, move, rate), loss in found.items()
    )
    return min(found, key=lambda each: found[each]), words


def adam(name: str, seed: int, rate: float, steps: int, rows: Any) -> tuple[float, float]:
    """Perplexity on `rows`, and loss on the tuning end, of the masters that Adam learned."""
    import torch

    from haversack.train.gradient._zeroqat_decoder import Rows
    from haversack.train.gradient._zeroqat_tasks import PlainText
    from haversack.train.gradient._zeroqat_torch import TrueGradient

    bits = bits_of(name)
    model = decoder(prepared(bits, seed, smooth=smoothing_of(name), epochs=EPOCHS), bits)
    task = PlainText(learned_texts(), ROWS, LENGTH, seed)
    true = TrueGradient(model)
    optimizer = torch.optim.Adam([each for each in true.learned.values()], lr=rate)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        true.loss(Rows.of_texts(task.rows.at(step))).backward()
        optimizer.step()
    for master, each in true.learned.items():
        model.masters[master][...] = each.detach().numpy()
    return math.exp(model.loss(rows)), task.judged(model)["loss"]


def rows_of(name: str) -> list[Row]:
    title = "W4A4" if name == "w4a4" else "W2A16 in groups of 64"
    published = "Llama2-7B: 12.95, OmniQuant 14.26" if name == "w4a4" else "Llama2-7B: 29.61, OmniQuant 37.37"
    found = [
        Row(
            f"{name}-zeroqat",
            f"{title}: ZeroQAT's perplexity is at most 0.95 of block reconstruction's",
            "perplexity",
            "quality",
            Bar("<=", 0.95),
            published=published,
        ),
        Row(
            f"{name}-reconstruction",
            f"{title}: block reconstruction is below "
            + ("SmoothQuant" if name == "w4a4" else "rounding to nearest"),
            "perplexity",
            "quality",
            Bar("<=", 0.9999),
            quick=name == "w4a4",
        ),
        Row(
            f"{name}-adam",
            f"{title}: Adam through the rounding, the upper bound of what training can do, beside ZeroQAT",
            "perplexity",
            "quality",
        ),
    ]
    if name == "w4a4":
        found += [
            Row(
                "w4a4-smoothquant",
                "W4A4: SmoothQuant (alpha 0.5) is below rounding to nearest",
                "perplexity",
                "quality",
                Bar("<=", 0.9999),
                quick=True,
            ),
            Row(
                "w4a4-no-smoothing",
                "W4A4: without smoothing perplexity is more than ten times as high",
                "perplexity",
                "quality",
                Bar(">=", 10.0),
                quick=True,
            ),
        ]
    return found


def _baselines(name: str, seeds: tuple[int, ...], rows: Any) -> dict[str, list[float]]:
    """Perplexity of floats and of what needs no steps, by seed."""
    bits = bits_of(name)
    found: dict[str, list[float]] = {"reconstruction": [], "smoothquant": [], "no smoothing": []}
    for seed in seeds:
        learned = prepared(bits, seed, smooth=smoothing_of(name), epochs=EPOCHS)
        found["reconstruction"].append(perplexity(learned, bits, rows))
        if name == "w4a4":
            smooth = prepared(bits, seed, smooth=0.5, epochs=0)
            found["smoothquant"].append(perplexity(smooth, bits, rows, clipped=False))
            bare = prepared(bits, seed, smooth=None, epochs=EPOCHS)
            found["no smoothing"].append(perplexity(bare, bits, rows))
    return found


def _ladder(name: str, found: dict[str, list[float]], plain: float, note: str) -> dict[str, Outcome]:
    """The rows that need no steps."""

    def side(arm: str) -> Side:
        return Side(arm, tuple(found[arm]))

    nearest = Side("round to nearest", (plain,) * len(found["reconstruction"]))
    before = side("smoothquant") if name == "w4a4" else nearest
    outcomes = {f"{name}-reconstruction": Outcome(side("reconstruction"), before, note)}
    if name == "w4a4":
        outcomes["w4a4-smoothquant"] = Outcome(side("smoothquant"), nearest, note)
        outcomes["w4a4-no-smoothing"] = Outcome(side("no smoothing"), side("reconstruction"), note)
    return outcomes


def _measure(name: str, run: Run) -> Outcomes:
    from haversack.train.gradient._zeroqat_decoder import Bits

    bits = bits_of(name)
    rows = scored_rows(QUICK_ROWS if run.quick else 96)
    exact = perplexity(outlier_folder(), Bits(16, 16), rows)
    plain = perplexity(outlier_folder(), bits, rows, clipped=False)
    seeds = (run.seed % 1000,) if run.quick else SEEDS
    run.say(f"{name}: what needs no steps")
    found = _baselines(name, seeds, rows)
    note = f"floats {exact:.2f}, round to nearest {plain:.2f}; {len(rows.tokens)} held-out texts of {LENGTH}"
    outcomes: dict[str, Outcome] = _ladder(name, found, plain, note)
    if run.quick:
        return outcomes
    ours, upper = [], []
    with tempfile.TemporaryDirectory() as folder:
        choice, words = chosen(name, Path(folder), run.say)
        for seed in SEEDS:
            run.say(f"{name}: seed {seed}")
            done = zeroqat(name, seed, choice, STEPS, Path(folder) / f"{seed}.pack")
            ours.append(perplexity(done.path, bits, rows))
    run.say(f"{name}: Adam")
    losses = {rate: adam(name, SEEDS[0], rate, ADAM_STEPS, rows)[1] for rate in ADAM_RATES}
    rate = min(losses, key=lambda each: losses[each])
    upper = [adam(name, seed, rate, ADAM_STEPS, rows)[0] for seed in SEEDS]
    told = f"{note}; {STEPS} steps of {ROWS} texts; losses after {TUNING} steps: {words}"
    zero = Side("ZeroQAT", tuple(ours))
    base = Side("reconstruction", tuple(found["reconstruction"]))
    outcomes[f"{name}-zeroqat"] = Outcome(zero, base, told)
    grid = ", ".join(f"{each:g}: {loss:.4f}" for each, loss in losses.items())
    outcomes[f"{name}-adam"] = Outcome(
        Side("Adam", tuple(upper)), zero, f"{ADAM_STEPS} steps; losses by rate: {grid}"
    )
    return outcomes


@bench.measure(*rows_of("w4a4"), seconds=700, quick_seconds=25)
def few_inputs(run: Run) -> Outcomes:
    return _measure("w4a4", run)


@bench.measure(*rows_of("w2a16"), seconds=600)
def few_weights(run: Run) -> Outcomes:
    return _measure("w2a16", run)
