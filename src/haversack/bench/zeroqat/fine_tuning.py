"""A table learned in W4A4, beside one learned in floats and rounded after.

The task, from a template: which of four modules a piece of Python imports, as the answer that the model finds
likeliest; three lines of the standard library around the import, learned from and judged on different
packages. Both sides move query and value by forward passes for the same steps of the same rows, each at its
best rate of a printed grid (chosen on rows that are learned from); the other side is then prepared by block
reconstruction, the strongest rounding here, or rounded to nearest.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.zeroqat._bench import bench
from haversack.bench.zeroqat._models import SEEDS, decoder, outlier_folder

WORDS = ("email", "json", "socket", "time")
LENGTH, LINES = 64, 3
LEARNED, JUDGED = 320, 160
"""Rows of all words together."""
ROWS, STEPS, TUNING = 12, 600, 120
RATES = (1e-4, 3e-4, 8e-4)
EPS = 1e-2
EPOCHS = 4


def pieces(purpose: str, count: int, seed: int) -> list[tuple[str, str]]:
    """(text, word) of `count` rows, the words in turns: lines of the text that ships for `purpose`, of which
    none says a word, and the import between them."""
    from haversack.models._calibration import default_text

    lines = [line.strip() for line in default_text(purpose).splitlines()]
    lines = [line for line in lines if 8 < len(line) < 48 and not any(word in line for word in WORDS)]
    rng = np.random.default_rng([seed, len(purpose)])
    found = []
    for number in range(count):
        word = WORDS[number % len(WORDS)]
        rows = [lines[i] for i in rng.integers(0, len(lines), LINES)]
        rows.insert(int(rng.integers(0, LINES + 1)), f"import {word}")
        found.append(("\n".join(rows), word))
    return found


def task_of(seed: int) -> tuple[Any, Any]:
    """(what is learned from with an end of it for choosing rates, the same judged on the other files)."""
    from haversack.formats.tables import Table
    from haversack.models import Tokenizer
    from haversack.train.gradient._zeroqat_tasks import Answers, examples_of, split_examples

    encode = Tokenizer.of_folder(outlier_folder()).encode
    sides = []
    for purpose, count in (("calibration", LEARNED), ("evaluation", JUDGED)):
        rows = pieces(purpose, count, seed)
        table = Table(Path("imports"), tuple(text for text, _ in rows), tuple(label for _, label in rows))
        sides.append(examples_of(table, WORDS, lambda text: list(encode(text, special=False)), LENGTH))
    learned, validation = split_examples(sides[0], seed)
    task = Answers(learned, validation, ROWS, LENGTH, seed)
    return task, Answers(sides[0], sides[1], ROWS, LENGTH, seed)


def prepare_as(folder: Path, bits: Any, kept: str, task: Any, seed: int, goal: Path) -> Path:
    """The model in `folder`, prepared on the task's own rows."""
    from haversack.run._source import open_model
    from haversack.train.gradient._zeroqat_prepare import Preparing, prepare

    how = Preparing(bits, kept, epochs=EPOCHS if bits.weights < 16 else 0, batch=4, seed=seed)
    if bits.weights >= 16:
        how = replace(how, smooth=None)
    prepare(open_model(folder), task.calibration(64), how, goal)
    return goal


def learned(pack: Path, bits: Any, task: Any, rate: float, steps: int, seed: int) -> Any:
    """The decoder of `pack` after `steps` of query and value."""
    from haversack.train.gradient.zeroqat import ZeroQat

    model = decoder(pack, bits)
    moved = {name: values for name, values in model.masters.items() if "q_proj" in name or "v_proj" in name}
    stepper = ZeroQat(eps=EPS, zo="weights").stepper(model, "table", seed, only=moved)
    for step in range(steps):
        stepper.step((task, step), rate)
    return model


def float_folder(model: Any, goal: Path) -> Path:
    """The masters of a float decoder as a checkpoint folder."""
    from haversack.models._hub_write import config_text, write_folder
    from haversack.run._source import open_model
    from haversack.train.gradient._zeroqat_decoder import floats

    source = open_model(outlier_folder())
    names = source.architecture.tensors()
    tensors = {name: model.masters.get(name) for name in names}
    found = {name: floats(source, name) if values is None else values for name, values in tensors.items()}
    listed = [
        (name, "f32", values.shape, values.nbytes, lambda values=values: [np.ascontiguousarray(values).data])
        for name, values in found.items()
    ]
    config = dict(getattr(source.source, "config", {}))
    write_folder(goal, listed, {"config.json": config_text(config)}, carry=outlier_folder())
    return goal


@bench.measure(
    Row(
        "table-reconstruction",
        "W4A4: the table learned in few bits is 10 points above the one learned in floats and reconstructed "
        "block by block",
        "points",
        "quality",
        Bar(">=", 10.0),
        judged="ours",
        published="SST-2: 87.8 to 88.2 % for 56 to 61 % (OPT-2.7B to 13B)",
    ),
    Row(
        "table-nearest",
        "W4A4: the same above floats that were rounded to nearest",
        "points",
        "quality",
        Bar(">=", 10.0),
        judged="ours",
    ),
    Row("table-accuracy", "accuracy learned in W4A4, beside learned and judged in floats", "%", "quality"),
    seconds=700,
)
def table(run: Run) -> Outcomes:
    from haversack.train.gradient._zeroqat_decoder import Bits

    few, whole = Bits(4, 4), Bits(16, 16)
    found: dict[str, list[float]] = {
        name: [] for name in ("zeroqat", "floats", "reconstruction", "nearest", "before")
    }
    chosen: dict[str, float] = {}
    words = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            run.say(f"table: seed {seed}")
            place = Path(folder) / str(seed)
            place.mkdir()
            task, judged = task_of(seed)
            starts = {
                "zeroqat": (
                    prepare_as(outlier_folder(), few, "query-value", task, seed, place / "q.pack"),
                    few,
                ),
                "floats": (prepare_as(outlier_folder(), whole, "all", task, seed, place / "f.pack"), whole),
            }
            found["before"].append(judged.judged(decoder(*starts["floats"]))["accuracy"])
            for name, (pack, bits) in starts.items():
                if name not in chosen:
                    losses = {
                        rate: task.judged(learned(pack, bits, task, rate, TUNING, seed))["loss"]
                        for rate in RATES
                    }
                    chosen[name] = min(losses, key=lambda rate: losses[rate])
                    shown = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in losses.items())
                    words.append(f"{name} losses by rate {shown}")
                model = learned(pack, bits, task, chosen[name], STEPS, seed)
                found[name].append(judged.judged(model)["accuracy"])
                if name == "floats":
                    rounded = float_folder(model, place / "learned")
                    again = prepare_as(rounded, few, "all", task, seed, place / "r.pack")
                    found["reconstruction"].append(judged.judged(decoder(again, few))["accuracy"])
                    nearest = decoder(rounded, few, clipped=False)
                    found["nearest"].append(judged.judged(nearest)["accuracy"])
    percent = {name: tuple(100 * value for value in values) for name, values in found.items()}
    note = (
        f"{STEPS} steps of {ROWS} rows, {len(WORDS)} words; before learning "
        f"{np.median(percent['before']):.1f} %; {'; '.join(words)}"
    )

    def above(other: str) -> Outcome:
        gaps = tuple(a - b for a, b in zip(percent["zeroqat"], percent[other], strict=True))
        means = f"{np.median(percent['zeroqat']):.1f} % and {np.median(percent[other]):.1f} %; {note}"
        return Outcome(Side("points above", gaps), None, means)

    return {
        "table-reconstruction": above("reconstruction"),
        "table-nearest": above("nearest"),
        "table-accuracy": Outcome(
            Side("learned in W4A4", percent["zeroqat"]), Side("learned in floats", percent["floats"]), note
        ),
    }
