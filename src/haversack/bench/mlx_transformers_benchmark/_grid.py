"""The protocol: equal tokens into every backend, equality proved before a time is taken, then a grid of text
lengths and batch sizes, forced, interleaved, with what a table of means would hide.

A cell's texts are cut from a corpus to so many characters, tokenized once, and padded to the longest. Its
first call is timed apart. Then every backend runs once a round, the order turned from round to round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench.mlx_transformers_benchmark._backends import (
    REFERENCE,
    Backend,
    Batch,
    Checkpoint,
    Loaded,
    backend,
    read_checkpoint,
)
from haversack.core.errors import UserError
from haversack.run._encode import positions_of
from haversack.run._encoder import Encoder

F32 = npt.NDArray[np.float32]

LENGTHS, BATCHES, ITERATIONS = (50, 100, 200, 500), (1, 16), 11
FEWEST_ITERATIONS = 3
TOLERANCE = 1e-4
SLOPES = (0.8, 1.3)
"""What the latency of a forced backend grows like, over tokens: the exponent lies between these."""


@dataclass(frozen=True)
class Cell:
    """One backend at one place of the grid; times in ms. `fastest_ms` is the mean of all but the slowest
    tenth of the calls. `copy_ms`: the result into this process's memory, not part of the others."""

    backend: str
    characters: int
    batch: int
    mean_tokens: float
    padded_tokens: int
    first_ms: float
    median_ms: float
    p90_ms: float
    fastest_ms: float
    copy_ms: float
    times_ms: tuple[float, ...] = field(repr=False, default=())

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        rounded = {
            name: round(getattr(self, name), 3)
            for name in ("mean_tokens", "first_ms", "median_ms", "p90_ms", "fastest_ms", "copy_ms")
        }
        places = {name: getattr(self, name) for name in ("backend", "characters", "batch", "padded_tokens")}
        return {**places, **rounded, "iterations": len(self.times_ms)}


@dataclass(frozen=True)
class Ready:
    """A backend with the checkpoint loaded; `difference` and `cosine` to the reference, from the gate."""

    backend: Backend
    loaded: Loaded
    difference: float = 0.0
    cosine: float = 1.0

    def call_ms(self, batch: Batch) -> float:
        """One forced call."""
        begun = time.perf_counter()
        self.loaded.finish(self.loaded.run(batch))
        return 1e3 * (time.perf_counter() - begun)


class ParityError(UserError):
    """A backend that computes something else than the reference: its times would mean nothing."""


def speed_up(other_ms: float, this_ms: float) -> float:
    """How much faster `this` is than `other`, in percent: (other / this - 1) * 100."""
    return (other_ms / this_ms - 1.0) * 100.0


def slope(tokens: Sequence[float], times_ms: Sequence[float]) -> float:
    """The exponent of time over tokens: least squares in logarithms."""
    x, y = np.log(np.asarray(tokens, float)), np.log(np.asarray(times_ms, float))
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def suspicious(value: float) -> str | None:
    """What is wrong with a slope; None when nothing is."""
    if value < SLOPES[0]:
        return (
            f"time grows like tokens^{value:.2f}, less than {SLOPES[0]}: the result was not forced inside "
            "the timer, or the calls cost more than the work"
        )
    if value > SLOPES[1]:
        return (
            f"time grows like tokens^{value:.2f}, more than {SLOPES[1]}: something else than the work grows"
        )
    return None


def checked(lengths: Sequence[int], batches: Sequence[int], iterations: int) -> None:
    """Raises UserError for a grid that cannot be measured."""
    if iterations < FEWEST_ITERATIONS:
        raise UserError(
            f"{iterations} iterations say nothing; give at least {FEWEST_ITERATIONS}.",
            field="iters",
            given=iterations,
            nearest=FEWEST_ITERATIONS,
        )
    for name, values in (("lengths", lengths), ("batches", batches)):
        if not values or min(values) < 1:
            raise UserError(f"--{name} wants numbers from 1 on.", field=name, given=list(values), nearest=1)


def batch_of(encoder: Encoder, corpus: str, characters: int, texts: int) -> Batch:
    """`texts` pieces of `characters` characters of the corpus (which begins again at its end), tokenized and
    padded. Raises UserError for pieces longer than the model's positions."""
    plain = " ".join(corpus.split())
    if not plain:
        raise UserError("the text is empty.", field="text")
    need = characters * texts
    plain = plain * (need // len(plain) + 1)
    pieces = [plain[at * characters : (at + 1) * characters] for at in range(texts)]
    pieces = [piece if piece.strip() else plain[:characters] for piece in pieces]
    found = [encoder.tokenizer.encode_types(piece) for piece in pieces]
    longest = max(len(ids) for ids, _, _ in found)
    if longest > encoder.architecture.context:
        raise UserError(
            f"{characters} characters are {longest} tokens and the model has positions for "
            f"{encoder.architecture.context}; give shorter lengths.",
            field="lengths",
            given=characters,
            nearest=characters * encoder.architecture.context // longest,
        )
    shape = (texts, longest)
    ids = np.full(shape, encoder.architecture.padding, np.int64)
    types, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, (tokens, kinds, _) in enumerate(found):
        ids[row, : len(tokens)], types[row, : len(tokens)] = tokens, kinds
        mask[row, : len(tokens)] = 1
    positions = np.stack([positions_of(encoder.architecture, row.astype(np.int32)) for row in ids])
    return Batch(ids, mask, types, positions.astype(np.int64))


def gate(ready: Ready, reference: F32, batch: Batch, tolerance: float) -> Ready:
    """`ready` with its distance to the reference's hidden states at the real tokens.

    Raises ParityError for one that claims exactness and is further off than `tolerance`.
    """
    kept = batch.mask.astype(bool)
    ours, theirs = ready.loaded.array(ready.loaded.run(batch))[kept], reference[kept]
    difference = float(np.abs(ours - theirs).max())
    if not np.isfinite(difference):
        difference = float("inf")
    if ready.backend.exact and not difference <= tolerance:
        raise ParityError(
            f"{ready.backend.name} differs from {REFERENCE} by {difference:.3g}, more than {tolerance:g}: no "
            "times are taken.",
            field="atol",
            given=difference,
            nearest=tolerance,
        )
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = float(((ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())
    return Ready(ready.backend, ready.loaded, difference, cosine)


@dataclass(frozen=True)
class Opened:
    """A model and the backends that passed the gate; `skipped`: name -> why it does not run here."""

    checkpoint: Checkpoint
    encoder: Encoder
    ready: Mapping[str, Ready]
    skipped: Mapping[str, str]


def open_backends(
    folder: Path,
    names: Sequence[str],
    corpus: str,
    *,
    threads: int,
    tolerance: float = TOLERANCE,
    characters: int = 100,
    tell: Callable[[str], None] = lambda text: None,
) -> Opened:
    """Load `folder` into every backend and hold them against the reference on a padded batch.

    Raises ParityError when one that claims exactness fails: nothing is timed then.
    """
    checkpoint = read_checkpoint(folder)
    encoder = Encoder.open(folder, residency="mapped")
    tokens = batch_of(encoder, corpus, characters, 3)
    mask = tokens.mask.copy()
    mask[1, max(2, mask.shape[1] // 2) :] = 0  # real padding, whatever the texts' lengths
    mask[2, max(2, mask.shape[1] // 3) :] = 0
    ids = np.where(mask == 1, tokens.ids, checkpoint.architecture.padding)
    rows = [positions_of(checkpoint.architecture, row.astype(np.int32)) for row in ids]
    batch = Batch(ids, mask, tokens.types * mask, np.stack(rows).astype(np.int64))
    made = backend(REFERENCE).load(checkpoint, threads)
    reference = made.array(made.run(batch))
    ready: dict[str, Ready] = {}
    skipped: dict[str, str] = {}
    for name in names:
        one = backend(name)
        reason = one.unavailable()
        if reason is not None:
            skipped[name] = reason
            continue
        tell(f"loading {name}")
        try:
            loaded = one.load(checkpoint, threads)
            ready[name] = gate(Ready(one, loaded), reference, batch, tolerance)
        except UserError:
            raise
        except Exception as error:  # a library that is there and does not work is a row with its reason
            said = str(error).strip().splitlines() or [type(error).__name__]
            skipped[name] = f"it does not run here: {said[0][:200]}"
    return Opened(checkpoint, encoder, ready, skipped)


def measure_cell(
    opened: Opened,
    corpus: str,
    characters: int,
    texts: int,
    iterations: int,
    names: Sequence[str] | None = None,
) -> list[Cell]:
    """One place of the grid for every backend, or for `names`: interleaved, the order turned every round."""
    batch = batch_of(opened.encoder, corpus, characters, texts)
    chosen = [one for name, one in opened.ready.items() if names is None or name in names]
    first = {one.backend.name: one.call_ms(batch) for one in chosen}
    taken: dict[str, list[float]] = {one.backend.name: [] for one in chosen}
    for one in chosen:  # a second call that counts nowhere: caches and clocks settle
        one.call_ms(batch)
    order = list(chosen)
    for _ in range(iterations):
        for one in order:
            taken[one.backend.name].append(one.call_ms(batch))
        order.reverse()
    cells = []
    for one in chosen:
        times = taken[one.backend.name]
        result = one.loaded.run(batch)
        one.loaded.finish(result)
        begun = time.perf_counter()
        one.loaded.array(result)
        copy_ms = 1e3 * (time.perf_counter() - begun)
        kept = sorted(times)[: max(1, len(times) - max(1, len(times) // 10))]
        cells.append(
            Cell(
                one.backend.name,
                characters,
                texts,
                batch.mean_tokens,
                batch.ids.shape[1],
                first[one.backend.name],
                statistics.median(times),
                float(np.quantile(times, 0.9)),
                statistics.fmean(kept),
                copy_ms,
                tuple(times),
            )
        )
    return cells


def slopes(cells: Sequence[Cell], texts: int) -> dict[str, float]:
    """Backend -> exponent of its median time over mean tokens at a batch of `texts`, where two lengths or
    more were measured."""
    found = {}
    for name in dict.fromkeys(cell.backend for cell in cells):
        chosen = [cell for cell in cells if cell.backend == name and cell.batch == texts]
        tokens = [cell.mean_tokens for cell in chosen]
        if len(set(tokens)) >= 2:
            found[name] = slope(tokens, [cell.median_ms for cell in chosen])
    return found
