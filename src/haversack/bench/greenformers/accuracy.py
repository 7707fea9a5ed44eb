"""What low rank costs in accuracy, trained from the start and after training: digits, and Python source.

Digits: scikit-learn's 8x8 pictures (1,797), a vision transformer over 2x2 patches. Source: windows of 32
words from ten packages of the standard library, which one they are from; the last quarter of every file is
held out. Every model is trained three times; a point is a hundredth of the held-out pieces. By design means
that the factors are drawn and trained like the dense model; after training, the dense model's own weights
are factored, and then trained one epoch more (as the dense model is, for the comparison).
"""

from __future__ import annotations

import re
import statistics
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.greenformers._bench import bench, workshop

SEEDS = (0, 1, 2)
RANKS = (0.2, 0.4, 0.6)
TUNED = 0.5
TUNING = 4  # the epoch after factoring has this part of the rate
PACKAGES = ("asyncio", "concurrent", "ctypes", "email", "http", "importlib", "json", "logging",
            "multiprocessing", "unittest")  # fmt: skip
WORDS, WINDOW = 2000, 32


@dataclass(frozen=True)
class Task:
    """Inputs and labels to train on and held out; `make(seed)` the dense model; epochs and learning rate."""

    name: str
    train: tuple[Any, Any]
    held_out: tuple[Any, Any]
    make: Callable[[int], Any]
    epochs: int
    rate: float = 1e-3
    batch: int = 64


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

    return Task("source", arrays(False), arrays(True), make, epochs=10, rate=2e-3)


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


Scores = dict[str, list[float]]


def scores(
    task: Task, seeds: tuple[int, ...], ranks: tuple[float, ...]
) -> tuple[Scores, dict[str, list[float]]]:
    """Points of every variant by seed, and the mean relative error of the trained layers by solver."""
    from haversack.shrink.structure import factorize

    points: Scores = {}
    errors: dict[str, list[float]] = {}

    def note(name: str, model: Any) -> None:
        points.setdefault(name, []).append(accuracy(model, task))

    for seed in seeds:
        trained = fit(task.make(seed), task, task.epochs, seed, task.rate)
        note("dense", trained)
        for rank in ranks:
            drawn, _ = factorize(task.make(seed), rank, "random", seed=seed)
            note(f"design-{rank}", fit(drawn, task, task.epochs, seed, task.rate))
        for rank in sorted({*ranks, TUNED}):
            thin, _ = factorize(trained, rank, "svd")
            note(f"after-{rank}", thin)
            note(f"tuned-{rank}", fit(thin, task, 1, seed + 10, task.rate / TUNING))
        for solver in ("svd", "snmf", "random"):
            _, report = factorize(trained, TUNED, solver, n_iter=100 if solver == "snmf" else 10)
            found = [layer.error for layer in report.factored if layer.error is not None]
            errors.setdefault(solver, []).append(statistics.mean(found))
        fit(trained, task, 1, seed + 10, task.rate / TUNING)
        note("dense-more", trained)
    return points, errors


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
    points, errors = scores(task, (run.seed % 1000,) if run.quick else SEEDS, ranks)
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
        )
        found[f"{task.name}-{name}"] = Outcome.single(statistics.mean(lost), name="low rank", note=note)
    for other in ("random", "snmf"):
        sides = {name: tuple(errors[name]) for name in ("svd", other)}
        found[f"{task.name}-error-{other}"] = Outcome(Side("svd", sides["svd"]), Side(other, sides[other]))
    return found


@bench.measure(*declared("digits", "digits"), seconds=240, quick_seconds=25)
def on_digits(run: Run) -> Outcomes:
    return outcomes(digits(), run)


@bench.measure(*declared("source", "packages of source code"), seconds=300)
def on_source(run: Run) -> Outcomes:
    return outcomes(source(), run)
