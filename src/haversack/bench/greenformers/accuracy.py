"""What low rank costs in accuracy, trained from the start and after training: digits, and Python source.

Digits: scikit-learn's 8x8 pictures (1,797), a vision transformer over 2x2 patches. Source: windows of 32
words from ten packages of the standard library, which one they are from; the last quarter of every file is
held out. Every model is trained three times; a point is a hundredth of the held-out pieces. By design means
that the factors are drawn and trained like the dense model; after training, the dense model's own weights
are factored, and then trained one epoch more (as the dense model is, for the comparison).

Both kinds are tuned alike before, on a fifth of the training pieces that one more model of each kind is not
trained on: out of the same learning rates the one that names most of them. What held-out pieces say is not
looked at. Factors by design start as drawn, or as the SVD of a drawn dense layer (spectral); that is tuned
with their rate.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import statistics
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.greenformers._bench import bench, workshop

SEEDS = (0, 1, 2)
RANKS = (0.2, 0.4, 0.6)
TUNED = 0.5
TUNING = 4  # the epoch after factoring has this part of the rate
RATES = (1e-3, 2e-3, 4e-3)
STARTS = ("random", "spectral")
TUNED_AT, TUNING_SEED = 0.4, 100
PACKAGES = ("asyncio", "concurrent", "ctypes", "email", "http", "importlib", "json", "logging",
            "multiprocessing", "unittest")  # fmt: skip
WORDS, WINDOW = 2000, 32

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """Inputs and labels to train on and held out; `make(seed)` the dense model; epochs and learning rate."""

    name: str
    train: tuple[Any, Any]
    held_out: tuple[Any, Any]
    make: Callable[[int], Any]
    epochs: int
    batch: int = 64

    def tuning(self) -> Task:
        """The task on four fifths of its training pieces, the last fifth of a drawn order held out."""
        torch = workshop(threads=1)
        inputs, labels = self.train
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(TUNING_SEED))
        kept, held = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
        return replace(self, train=(inputs[kept], labels[kept]), held_out=(inputs[held], labels[held]))


@dataclass(frozen=True)
class Tuned:
    """What tuning chose: a learning rate for the dense model, a rate and a start for factors by design."""

    dense: float
    design: float
    start: str

    def __str__(self) -> str:
        return f"tuned: dense at {self.dense:g}, by design at {self.design:g} from {self.start} factors"


def digits() -> Task:
    """Raises Unavailable without scikit-learn."""
    torch = workshop(threads=1)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise Unavailable("scikit-learn is not installed; run: pip install 'haversack[workshop]'") from None
    import transformers

    data = load_digits()
    images = torch.tensor(data.images / 8 - 1, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held, kept = order[:600], order[600:]

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        config = transformers.ViTConfig(  # type: ignore[call-arg]
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
        )
        return transformers.ViTForImageClassification(config)

    return Task("digits", (images[kept], labels[kept]), (images[held], labels[held]), make, epochs=40)


def source() -> Task:
    """Which package a window of words is from."""
    torch = workshop(threads=1)
    import transformers

    root = Path(sysconfig.get_paths()["stdlib"])
    pieces: dict[bool, list[tuple[list[str], int]]] = {False: [], True: []}
    for label, package in enumerate(PACKAGES):
        for path in sorted((root / package).rglob("*.py")):
            if "test" in path.parts:
                continue
            words = re.findall(r"[A-Za-z_]{2,}", path.read_text(encoding="utf-8", errors="replace"))
            edge = len(words) * 3 // 4
            for start in range(0, len(words) - WINDOW + 1, WINDOW):
                if start + WINDOW <= edge or start >= edge:
                    pieces[start >= edge].append((words[start : start + WINDOW], label))
    if len(pieces[False]) < 500:
        raise Unavailable("this Python has no source of its standard library")
    counted = Counter(word for words, _ in pieces[False] for word in words)
    known = {word: number + 1 for number, (word, _) in enumerate(counted.most_common(WORDS - 1))}

    def arrays(held: bool) -> tuple[Any, Any]:
        tokens = [[known.get(word, 0) for word in words] for words, _ in pieces[held]]
        return torch.tensor(tokens), torch.tensor([label for _, label in pieces[held]])

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        config = transformers.BertConfig(  # type: ignore[call-arg]
            vocab_size=WORDS,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=WINDOW,
            num_labels=len(PACKAGES),
            hidden_dropout_prob=0.1,
        )
        return transformers.BertForSequenceClassification(config)

    return Task("source", arrays(False), arrays(True), make, epochs=10)


def fit(model: Any, task: Task, epochs: int, seed: int, rate: float) -> Any:
    """Train with AdamW, the rate rising for a twentieth of the steps and falling to nothing; returns it."""
    torch = workshop(threads=1)
    inputs, labels = task.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * -(-len(labels) // task.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) * 20 / steps, 1 - step / steps)
    )
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(labels), generator=generator).split(task.batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs[part]).logits, labels[part])
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def accuracy(model: Any, task: Task) -> float:
    """Share of the held-out pieces that are named rightly, in points."""
    torch = workshop(threads=1)
    inputs, labels = task.held_out
    model.eval()
    with torch.inference_mode():
        found = [model(part).logits.argmax(-1) for part in inputs.split(256)]
    return 100 * float((torch.cat(found) == labels).float().mean())


def by_design(task: Task, seed: int, rank: float, start: str) -> Any:
    """A model whose factors are drawn."""
    from haversack.shrink.structure import factorize

    return factorize(task.make(seed), rank, "random" if start == "random" else "svd", seed=seed)[0]


def tune(task: Task) -> Tuned:
    """Rates and start by the accuracy on the part of the training pieces that `task.tuning` holds out."""
    choices = [(rate, start) for rate in RATES for start in (None, *STARTS)]
    points = dict(zip(choices, spread(tuning_points, task, choices), strict=True))
    dense = max(RATES, key=lambda rate: points[rate, None])
    design, start = max((c for c in choices if c[1] is not None), key=lambda choice: points[choice])
    return Tuned(dense, design, str(start))


def tuning_points(task: Task, rate: float, start: str | None) -> float:
    """Points of one choice on the pieces that tuning holds out; `start` None: the dense model."""
    inner = task.tuning()
    drawn = None if start is None else by_design(inner, TUNING_SEED, TUNED_AT, start)
    model = inner.make(TUNING_SEED) if drawn is None else drawn
    return accuracy(fit(model, inner, inner.epochs, TUNING_SEED, rate), inner)


def tuned(task: Task) -> Tuned:
    """`tune`, its answer kept by content."""
    torch = workshop(threads=1)
    inputs, labels = task.train
    data = hashlib.sha256(inputs.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    config = {"rates": RATES, "starts": STARTS, "at": TUNED_AT, "epochs": task.epochs, "batch": task.batch}
    about = {"task": task.name, "data": data, "torch": torch.__version__, **config}

    def make(folder: Path) -> None:
        (folder / "tuned.json").write_text(json.dumps(asdict(tune(task))))

    return Tuned(**json.loads((cached("greenformers-tuned", about, make) / "tuned.json").read_text()))


Scores = dict[str, list[float]]


def scores(
    task: Task, seeds: tuple[int, ...], ranks: tuple[float, ...], chosen: Tuned
) -> tuple[Scores, Scores]:
    """Points of every variant by seed, and the mean relative error of the trained layers by solver."""
    points: Scores = {}
    errors: Scores = {}
    for found in spread(seed_scores, task, [(seed, ranks, chosen) for seed in seeds]):
        for into, values in zip((points, errors), found, strict=True):
            for name, value in values.items():
                into.setdefault(name, []).append(value)
    return points, errors


def seed_scores(
    task: Task, seed: int, ranks: tuple[float, ...], chosen: Tuned
) -> tuple[dict[str, float], dict[str, float]]:
    """`scores` of one seed."""
    from haversack.shrink.structure import factorize

    more = chosen.dense / TUNING
    points: dict[str, float] = {}
    errors: dict[str, float] = {}
    trained = fit(task.make(seed), task, task.epochs, seed, chosen.dense)
    points["dense"] = accuracy(trained, task)
    for rank in ranks:
        drawn = by_design(task, seed, rank, chosen.start)
        points[f"design-{rank}"] = accuracy(fit(drawn, task, task.epochs, seed, chosen.design), task)
    for rank in sorted({*ranks, TUNED}):
        thin, _ = factorize(trained, rank, "svd")
        points[f"after-{rank}"] = accuracy(thin, task)
        points[f"tuned-{rank}"] = accuracy(fit(thin, task, 1, seed + 10, more), task)
    for solver in ("svd", "snmf", "random"):
        _, report = factorize(trained, TUNED, solver, n_iter=100 if solver == "snmf" else 10)
        found = [layer.error for layer in report.factored if layer.error is not None]
        errors[solver] = statistics.mean(found)
    fit(trained, task, 1, seed + 10, more)
    points["dense-more"] = accuracy(trained, task)
    return points, errors


def spread(function: Callable[..., T], task: Task, choices: Sequence[tuple[Any, ...]]) -> list[T]:
    """`function(task, *choice)` of every choice, each on one thread: in as many processes as there are cores
    where `task` is one of TASKS, which every process reads for itself.
    """
    cores = min(len(os.sched_getaffinity(0)), len(choices))
    if task.name not in TASKS or cores < 2:
        return [function(task, *choice) for choice in choices]
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(partial(_in_process, function, task.name), choices))


def _in_process(function: Callable[..., T], name: str, choice: tuple[Any, ...]) -> T:
    return function(TASKS[name](), *choice)


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "source": source}


def declared(name: str, words: str) -> list[Row]:
    """The rows of one task; the numbers are points lost against the dense model, three seeds."""
    found = []
    for rank in RANKS:
        bar = Bar("<=", 2.0) if rank == 0.4 else None
        claim = f"{words}: points lost by design at rank {rank}"
        published = "ResNeXt-50: 0.8486 to 0.8281 at 0.5"
        quick = rank == 0.4 and name == "digits"
        found.append(Row(f"{name}-design-{rank}", claim, "points", "quality", bar, "ours", published, quick))
    for rank in sorted({*RANKS, TUNED}):
        bar = Bar("<=", 1.0) if rank == TUNED else None
        claim = f"{words}: points lost by SVD after training and one epoch more, rank {rank}"
        found.append(Row(f"{name}-tuned-{rank}", claim, "points", "quality", bar, "ours"))
        claim = f"{words}: points lost by SVD after training alone, rank {rank}"
        published = "BERT on reviews: 0.9286 to 0.9243 at rank 192"
        found.append(Row(f"{name}-after-{rank}", claim, "points", "quality", None, "ours", published))
    for other in ("random", "snmf"):
        claim = f"{words}: relative error of the trained layers at rank {TUNED}: svd beside {other}"
        found.append(Row(f"{name}-error-{other}", claim, "relative", "quality", Bar("<=", 1.0)))
    return found


def outcomes(task: Task, run: Run) -> Outcomes:
    ranks = (0.4,) if run.quick else RANKS
    chosen = QUICK_CHOICE if run.quick else tuned(task)
    points, errors = scores(task, (run.seed % 1000,) if run.quick else SEEDS, ranks, chosen)
    dense = statistics.mean(points["dense"])
    size = len(task.held_out[1])
    found = {}
    for name, taken in points.items():
        if name.startswith("dense"):
            continue
        against = "dense-more" if name.startswith("tuned") else "dense"
        lost = [a - b for a, b in zip(points[against], taken, strict=True)]
        note = (
            f"{statistics.mean(taken):.1f} points, dense {statistics.mean(points[against]):.1f} "
            f"(trained {dense:.1f}), means of {len(lost)} seeds, {size} held out; lost by seed: "
            + ", ".join(f"{one:.1f}" for one in lost)
            + ("" if run.quick else f"; {chosen}")
        )
        found[f"{task.name}-{name}"] = Outcome.single(statistics.mean(lost), name="low rank", note=note)
    for other in ("random", "snmf"):
        sides = {name: tuple(errors[name]) for name in ("svd", other)}
        found[f"{task.name}-error-{other}"] = Outcome(Side("svd", sides["svd"]), Side(other, sides[other]))
    return found


QUICK_CHOICE = Tuned(1e-3, 1e-3, "random")
"""What a quick run takes, which has no time to tune."""


@bench.measure(*declared("digits", "digits"), seconds=240, quick_seconds=25)
def on_digits(run: Run) -> Outcomes:
    return outcomes(digits(), run)


@bench.measure(*declared("source", "packages of source code"), seconds=300)
def on_source(run: Run) -> Outcomes:
    return outcomes(source(), run)
