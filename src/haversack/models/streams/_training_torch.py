"""Training a pipeline's networks in MMEdge's order: unit encoders with their aggregation, one fusion for each
pair of encoders, the accuracy table, its predictor, the gate.

What we changed: chunk sizes, frame rates and unfinished windows are drawn anew for every batch, so that one
set of weights serves the whole space of configurations; table, predictor and gate are learned on recordings
that no encoder or fusion saw, and judged on others (the published scripts use one set for all three); the
gate's target. Deterministic for its seed, machine type and number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from haversack.models._train_loop_torch import keep_freed_memory
from haversack.models.streams import _network_torch as nets
from haversack.models.streams._events import FRAMES, RATE, SAMPLES, WORDS, Recordings
from haversack.models.streams._record import CHECKPOINTS, SIZES
from haversack.models.streams._units import checkpoints, chunk_count, planned_frames
from haversack.models.streams.fusion import CLOSE

F32 = NDArray[np.float32]
RATES, CHUNKS = (20, 25, 30), (400, 500, 600)
AGGREGATORS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "temporal": (nets.VideoAggregator, nets.AudioAggregator),
    "plain": (nets.PlainAggregator, nets.PlainAggregator),
    "mean": (nets.PooledAggregator, nets.PooledAggregator),
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class How:
    """How long and how fast. `epochs` are of the encoders by their size, of a few units of each recording."""

    recordings: int = 4000
    validation: int = 2000
    epochs: tuple[int, int, int] = (7, 6, 6)
    time_epochs: int = 25
    fusion_epochs: int = 25
    gate_epochs: int = 8
    rows: int = 64
    rate: float = 3e-3
    seed: int = 0
    threads: int = 1


def step_through(
    modules: list[nn.Module],
    count: int,
    epochs: int,
    how: How,
    loss_of: Callable[[NDArray[np.int64], np.random.Generator], Tensor],
    *,
    rate: float | None = None,
    rows: int | None = None,
    label: str = "",
    say: Say = lambda text: None,
) -> None:
    """Adam over `epochs` passes of `count` rows, the rate falling to 0 like a cosine. `loss_of(rows, draw)`
    is the loss of the rows."""
    rows, rate = rows or how.rows, rate or how.rate
    draw = np.random.default_rng([how.seed, 0x57E9])
    torch.manual_seed(how.seed)
    learned = [each for module in modules for each in module.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=1e-4)
    steps = epochs * (count // rows)
    for module in modules:
        module.train()
    losses = []
    for step in range(steps):
        if step % (count // rows) == 0:
            order = draw.permutation(count)
        at = step % (count // rows) * rows
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / steps)) * min(1, (step + 1) / 20)
        loss = loss_of(order[at : at + rows], draw)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 5.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    for module in modules:
        module.eval()
    say(f"{label}: loss {np.mean(losses[-(count // rows) :]):.3f}")


def train_encoder(sense: str, name: str, data: Recordings, how: How, say: Say) -> nn.Module:
    """The encoder of single units. What it learns is which letter a unit shows or says, from the truth of
    each moment; the two layers above it are dropped. Frames and chunks are drawn one by one, chunks of any
    size."""
    torch.manual_seed(how.seed)
    video = sense == "video"
    encoder: nn.Module = nets.FrameEncoder(name) if video else nets.ChunkEncoder(name)
    truth = data.shown if video else data.said
    top = nn.Sequential(nn.GELU(), nn.Linear(nets.WIDTH, 32), nn.GELU(), nn.Linear(32, truth.shape[2]))
    each = 5 if video else 3  # units of a recording in a pass

    def loss_of(rows: NDArray[np.int64], draw: np.random.Generator) -> Tensor:
        rows = np.repeat(rows, each)
        if video:
            at = draw.integers(0, FRAMES, len(rows))
            units = torch.from_numpy(data.frames[rows, at]).float() / 255
            wanted = torch.from_numpy(truth[rows, at])
        else:
            size = int(draw.choice(CHUNKS))
            moment = SAMPLES // truth.shape[1]
            at = draw.integers(0, (SAMPLES - size) // moment + 1, len(rows))
            places = (at * moment)[:, None] + np.arange(size)
            units = torch.from_numpy(data.sound[rows[:, None], places])
            spans = at[:, None] + np.arange(size // moment)
            wanted = torch.from_numpy(truth[rows[:, None], spans].mean(1))
        return functional.cross_entropy(top(encoder(units)), wanted)

    epochs = how.epochs[SIZES.index(name)]
    parts = [encoder, top]
    step_through(parts, len(data), epochs, how, loss_of, label=f"{sense} {name}", say=say)
    return encoder


@torch.no_grad()
def unit_features(sense: str, encoder: nn.Module, data: Recordings) -> dict[int, Tensor]:
    """Features [n, units, WIDTH] of every frame (under 0), or of the chunks of each size (under the size)."""
    made: dict[int, Tensor] = {}
    for size in (0,) if sense == "video" else CHUNKS:
        every: Any = data.frames if sense == "video" else chunked(data.sound, size)
        pieces = []
        for at in range(0, len(data), 64):
            units = torch.as_tensor(every[at : at + 64])
            units = units.float() / 255 if sense == "video" else units
            pieces.append(encoder(units.flatten(0, 1)).unflatten(0, units.shape[:2]))
        made[size] = torch.cat(pieces)
    return made


def train_aggregator(
    sense: str, kind: str, units: dict[int, Tensor], labels: Tensor, how: How, say: Say
) -> nn.Module:
    """The aggregation `kind` of AGGREGATORS over features of units, for windows of any rate or chunk size; a
    linear layer above it is dropped."""
    torch.manual_seed(how.seed)
    module = AGGREGATORS[kind][0 if sense == "video" else 1]()
    top = nn.Linear(nets.WIDTH, len(WORDS))

    def loss_of(rows: NDArray[np.int64], draw: np.random.Generator) -> Tensor:
        if sense == "video":
            x = units[0][rows][:, planned_frames(FRAMES, int(draw.choice(RATES)))]
        else:
            x = units[int(draw.choice(CHUNKS))][rows]
        return functional.cross_entropy(top(module(x)), labels[rows], label_smoothing=0.05)

    step_through([module, top], len(labels), how.time_epochs, how, loss_of, label=f"{sense} {kind}", say=say)
    return module


def chunked(sound: F32, size: int) -> Tensor:
    """Sounds [n, samples] in chunks [n, count, size], the last padded with zeros."""
    count = chunk_count(sound.shape[1], size)
    padded = np.zeros((len(sound), count * size), np.float32)
    padded[:, : sound.shape[1]] = sound
    return torch.from_numpy(padded.reshape(len(sound), count, size))


@dataclass
class Features:
    """What the encoders and aggregators say of recordings: `video[size, rate, share]` and
    `audio[size, chunk]`, each [n, WIDTH]; `first[sense]` are the first units through the small encoders."""

    video: dict[tuple[str, int, float], Tensor]
    audio: dict[tuple[str, int], Tensor]
    first: tuple[Tensor, Tensor]
    labels: Tensor


Units = dict[tuple[str, str], dict[int, Tensor]]
"""Features of units by (sense, size)."""


@torch.no_grad()
def features(
    units: Units,
    aggregators: dict[tuple[str, str], nn.Module],
    labels: Tensor,
    sizes: Sequence[str] = SIZES,
) -> Features:
    """Features of windows of every choice, unfinished ones included; `first` is of the first size."""
    seen: dict[tuple[str, int, float], Tensor] = {}
    heard: dict[tuple[str, int], Tensor] = {}
    for name in sizes:
        every = units["video", name][0]
        for rate in RATES:
            plan = planned_frames(FRAMES, rate)
            places = (*checkpoints(plan, 1 / FRAMES, SAMPLES / RATE, CHECKPOINTS), len(plan))
            for share, count in zip((*CHECKPOINTS, 1.0), places, strict=True):
                seen[name, rate, share] = aggregators["video", name](every[:, plan[:count]])
        for size in CHUNKS:
            heard[name, size] = aggregators["audio", name](units["audio", name][size])
    first = (units["video", sizes[0]][0][:, 0], units["audio", sizes[0]][CHUNKS[0]][:, 0])
    return Features(seen, heard, first, labels)


def train_fusion(pair: tuple[str, str], found: Features, how: How, say: Say) -> nets.Fusion:
    """The fusion of one pair of encoders; a third of its batches are of unfinished windows."""
    torch.manual_seed(how.seed)
    fusion = nets.Fusion(2, len(WORDS))

    def loss_of(rows: NDArray[np.int64], draw: np.random.Generator) -> Tensor:
        share = float(draw.choice(CHECKPOINTS)) if draw.random() < 1 / 3 else 1.0
        x = torch.stack(
            [
                found.video[pair[0], int(draw.choice(RATES)), share][rows],
                found.audio[pair[1], int(draw.choice(CHUNKS))][rows],
            ],
            1,
        )
        return functional.cross_entropy(fusion(x), found.labels[rows], label_smoothing=0.05)

    count = len(found.labels)
    label = f"fusion {pair[0]}, {pair[1]}"
    step_through([fusion], count, how.fusion_epochs, how, loss_of, rate=2e-3, rows=128, label=label, say=say)
    return fusion


@torch.no_grad()
def all_logits(fusions: dict[tuple[str, str], nets.Fusion], found: Features) -> Tensor:
    """Logits [video, rate, audio, chunk, share, n, classes] of every configuration, shares 0.5 .. 1."""
    shares = (*CHECKPOINTS, 1.0)
    made = []
    for video in SIZES:
        for rate in RATES:
            for audio in SIZES:
                for size in CHUNKS:
                    for share in shares:
                        x = torch.stack([found.video[video, rate, share], found.audio[audio, size]], 1)
                        made.append(fusions[video, audio](x))
    return torch.stack(made).unflatten(0, (3, 3, 3, 3, len(shares)))


def accuracy_table(logits: Tensor, labels: Tensor) -> F32:
    """[video, rate, audio, chunk, class]: the share of right answers of each class over whole windows."""
    right = (logits[..., -1, :, :].argmax(-1) == labels).float()
    return np.stack([right[..., labels == label].mean(-1).numpy() for label in range(len(WORDS))], -1)


def evidence_rows(found: Features) -> Tensor:
    """s [n]: the cosine between the first frame's and the first chunk's feature."""
    return functional.cosine_similarity(found.first[0], found.first[1], dim=1)


def train_predictor(found: Features, logits: Tensor, table: F32, how: How, say: Say) -> nets.Predictor:
    """0.7 mean square error of the accuracy + 0.3 of the fusion's logits, Adam 1e-3, over all pairs of a
    recording and a configuration."""
    torch.manual_seed(how.seed)
    predictor = nets.Predictor(len(WORDS))
    s = evidence_rows(found)
    wanted = torch.from_numpy(table)

    def loss_of(rows: NDArray[np.int64], draw: np.random.Generator) -> Tensor:
        choice = [torch.from_numpy(draw.integers(0, 3, len(rows))) for _ in range(4)]
        x = torch.stack([s[rows], 1 - s[rows], *[each.float() / 2 for each in choice]], 1)
        guess, accuracy = predictor(x)
        v, r, a, c = choice
        taught = logits[v, r, a, c, -1, torch.from_numpy(rows)]
        told = wanted[v, r, a, c, found.labels[rows]]
        return 0.7 * functional.mse_loss(accuracy, told) + 0.3 * functional.mse_loss(guess, taught)

    count = len(found.labels)
    step_through([predictor], count, 60, how, loss_of, rate=1e-3, rows=128, label="predictor", say=say)
    return predictor


def train_gate(
    found: Features,
    logits: Tensor,
    how: How,
    say: Say,
    *,
    without: NDArray[np.int64],
    target: str = "right",
) -> nets.Gate:
    """Whether the rest of the slow sense may be skipped; recordings `without` are left for its cut. `target`:
    `right` as published (the answer now is right), or `regret`: it is right, or the whole window would be
    wrong too, which is rarer and here learned worse."""
    torch.manual_seed(how.seed)
    gate = nets.Gate()
    right = logits.argmax(-1) == found.labels
    wanted = right[..., :-1, :] | (~right[..., -1:, :] if target == "regret" else torch.tensor(False))

    def loss_of(rows: NDArray[np.int64], draw: np.random.Generator) -> Tensor:
        v, r, a, c = (int(each) for each in draw.integers(0, 3, 4))
        share = int(draw.integers(0, len(CHECKPOINTS)))
        x = gate_rows(found, v, r, a, c, share)[rows]
        return functional.binary_cross_entropy_with_logits(gate(x), wanted[v, r, a, c, share][rows].float())

    kept = np.setdiff1d(np.arange(len(found.labels)), without)

    def of_kept(rows: NDArray[np.int64], draw: np.random.Generator) -> Tensor:
        return loss_of(kept[rows], draw)

    step_through([gate], len(kept), how.gate_epochs, how, of_kept, rate=1e-3, rows=16, label="gate", say=say)
    return gate


def joined(one: Features, other: Features) -> Features:
    """The features of two sets of recordings as one."""
    return Features(
        {key: torch.cat([value, other.video[key]]) for key, value in one.video.items()},
        {key: torch.cat([value, other.audio[key]]) for key, value in one.audio.items()},
        (torch.cat([one.first[0], other.first[0]]), torch.cat([one.first[1], other.first[1]])),
        torch.cat([one.labels, other.labels]),
    )


def stop_scores(
    gate: nets.Gate, found: Features, logits: Tensor, choice: tuple[int, int, int, int]
) -> Tensor:
    """How sure it is at each place [3, n] that the slow sense may be stopped (fusion.stop_probability)."""
    made = []
    for share in range(len(CHECKPOINTS)):
        confidence = logits[(*choice, share)].softmax(-1).max(-1).values.clamp(CLOSE, 1 - CLOSE)
        made.append(torch.sigmoid(0.5 * (gate(gate_rows(found, *choice, share)) + torch.logit(confidence))))
    return torch.stack(made)


def gate_rows(found: Features, v: int, r: int, a: int, c: int, share: int) -> Tensor:
    """(audio, video) features [n, 2 WIDTH]: the fast sense first, at training as at run time."""
    slow = found.video[SIZES[v], RATES[r], CHECKPOINTS[share]]
    return torch.cat([found.audio[SIZES[a], CHUNKS[c]], slow], 1)


def prepare(how: How) -> None:
    """Threads and memory of a training."""
    torch.set_num_threads(how.threads)
    keep_freed_memory()
