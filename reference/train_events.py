"""Trains `events`, the network of `haversack sense pipeline`: twelve signalled words, seen and heard.

    OMP_WAIT_POLICY=passive python reference/train_events.py --work DIR [--out DIR]

About fifteen minutes on one quiet core. Recordings are made (models/streams/_events.py) over photographs of
scikit-image: six for training, two others for everything that is chosen or measured. A killed run goes on
from what DIR holds. The card is written by events_card.py."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from code_recipe import fingerprint
from haversack.models.streams import _network_torch as nets
from haversack.models.streams import _training_torch as training
from haversack.models.streams._events import FRAMES, RATE, SAMPLES, SIDE, WORDS, Recordings, make
from haversack.models.streams._folder import PHOTOS, write_folder, write_photos
from haversack.models.streams._record import SIZES, Sense, Shape

GOAL = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models" / "events"
PICTURES = ("astronaut", "camera", "chelsea", "grass", "gravel", "rocket", "coffee", "brick")
"""All CC0 or public domain; the last two are held out."""
HELD_OUT = 6
PARTS = {"train": 100, "table": 101, "gate": 102, "test": 103}
"""Seeds of the recordings: of the networks; of accuracy table, predictor and gate; of gate and cut; of the
card."""
TEST = 2400
CUT_SHARE, MOST_LOSS = 0.3, 0.003
"""Of the gate's recordings: what its cut is chosen on; the accuracy that it may cost there."""
SHAPE = Shape(
    Sense("camera", "frames", FRAMES, (SIDE, SIDE), 1.0, training.RATES),
    Sense("microphone", "samples", RATE, (), SAMPLES / RATE, training.CHUNKS),
    WORDS,
)


def photographs(side: int = 128) -> NDArray[np.uint8]:
    """The pictures [n, side, side], grey, cut square from the middle."""
    from skimage import color, data, transform

    found = []
    for name in PICTURES:
        picture = getattr(data, name)()
        if picture.ndim == 3:
            picture = color.rgb2gray(picture) * 255
        least = min(picture.shape)
        top, left = ((size - least) // 2 for size in picture.shape)
        square = picture[top : top + least, left : left + least]
        small = transform.resize(square, (side, side), anti_aliasing=True, preserve_range=True)
        found.append(small.round().astype(np.uint8))
    return np.array(found)


def recordings(folder: Path, part: str, how: training.How, photos: NDArray[np.uint8]) -> Recordings:
    """The recordings of a part, made once."""
    path = folder / f"{part}.npz"
    if not path.is_file():
        count = {"train": how.recordings, "test": TEST}.get(part, how.validation)
        ground = photos[:HELD_OUT] if part == "train" else photos[HELD_OUT:]
        made = make(count, PARTS[part], ground)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **made.__dict__)
        partial.rename(path)
    with np.load(path) as found:
        return Recordings(**{name: found[name] for name in found.files})


def kept(path: Path, make_it: Callable[[], object]) -> object:
    """What `make_it` gives, made once and kept in `path`."""
    if not path.is_file():
        found = make_it()
        torch.save(found, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    return torch.load(path, weights_only=True)


def units(
    folder: Path, parts: dict[str, Recordings], how: training.How, say: training.Say
) -> tuple[dict[str, training.Units], dict[tuple[str, str], torch.nn.Module]]:
    """Features of units by part, and the encoders."""
    found: dict[str, training.Units] = {part: {} for part in parts}
    encoders: dict[tuple[str, str], torch.nn.Module] = {}
    for sense in ("audio", "video"):
        for size in SIZES:
            encoder: torch.nn.Module = (nets.FrameEncoder if sense == "video" else nets.ChunkEncoder)(size)
            state = kept(
                folder / f"encoder-{sense}-{size}.pt",
                lambda sense=sense, size=size: training.train_encoder(
                    sense, size, parts["train"], how, say
                ).state_dict(),
            )
            encoder.load_state_dict(state)
            encoder.eval()
            encoders[sense, size] = encoder
            for part, data in parts.items():
                found[part][sense, size] = kept(
                    folder / f"units-{sense}-{size}-{part}.pt",
                    lambda sense=sense, encoder=encoder, data=data: training.unit_features(
                        sense, encoder, data
                    ),
                )
            say(f"{sense} {size}: units encoded")
    return found, encoders


def choose_cut(gate: nets.Gate, found: training.Features, logits: Tensor, rows: NDArray[np.int64]) -> float:
    """The lowest cut of the gate that costs at most MOST_LOSS over all configurations of the recordings
    `rows`."""
    labels = found.labels[rows]
    right = (logits.argmax(-1)[..., rows] == labels).float()
    every = [(v, r, a, c) for v in range(3) for r in range(3) for a in range(3) for c in range(3)]
    sure = torch.stack([training.stop_scores(gate, found, logits, choice)[:, rows] for choice in every])
    sure = sure.unflatten(0, (3, 3, 3, 3))
    whole = float(right[..., -1, :].mean())
    for cut in 1 / (1 + np.exp(-np.linspace(-1, 8, 91))):
        answer = right[..., -1, :].clone()
        for share in (2, 1, 0):
            answer = torch.where(sure[..., share, :] >= cut, right[..., share, :], answer)
        if float(answer.mean()) >= whole - MOST_LOSS:
            return round(float(cut), 5)
    return 1.0


def gate_and_cut(
    found: dict[str, training.Features], logits: dict[str, Tensor], how: training.How, say: training.Say
) -> tuple[nets.Gate, float]:
    """The gate, learned on the recordings of the table and most of its own, and the cut, chosen on the
    rest."""
    both = training.joined(found["table"], found["gate"])
    every = torch.cat([logits["table"], logits["gate"]], -2)
    count = len(found["gate"].labels)
    held = np.random.default_rng(how.seed).permutation(count)[: int(CUT_SHARE * count)]
    held = held + len(found["table"].labels)
    gate = training.train_gate(both, every, how, say, without=held)
    with torch.no_grad():
        return gate, choose_cut(gate, both, every, held)


def train(work: Path, out: Path, how: training.How) -> None:
    """Train everything and write the model's folder."""
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:6.0f} s  {text}", flush=True)

    training.prepare(how)
    photos = photographs()
    key = fingerprint({"how": asdict(how), "parts": PARTS, "pictures": PICTURES})
    folder = work / f"events-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {part: recordings(folder, part, how, photos) for part in PARTS}
    say("recordings made")
    encoded, encoders = units(folder, parts, how, say)
    labels = {part: torch.from_numpy(data.labels) for part, data in parts.items()}
    tensors: dict[str, NDArray[np.float32]] = {}
    aggregators: dict[tuple[str, str], torch.nn.Module] = {}
    for place, encoder in encoders.items():
        module = training.train_aggregator(
            place[0], "temporal", encoded["train"][place], labels["train"], how, say
        )
        aggregators[place] = module
        prefix = ".".join(place)
        tensors |= nets.tensors(encoder, prefix) | nets.tensors(module, f"{prefix}.time")
    found = {part: training.features(encoded[part], aggregators, labels[part]) for part in parts}
    fusions = {}
    for video in SIZES:
        for audio in SIZES:
            fusions[video, audio] = training.train_fusion((video, audio), found["train"], how, say)
            tensors |= nets.tensors(fusions[video, audio], f"fusion.{video}.{audio}")
    logits = {part: training.all_logits(fusions, found[part]) for part in parts}
    table = training.accuracy_table(logits["table"], labels["table"])
    predictor = training.train_predictor(found["table"], logits["table"], table, how, say)
    tensors |= nets.tensors(predictor, "predictor")
    gate, cut = gate_and_cut(found, logits, how, say)
    tensors |= nets.tensors(gate, "gate")
    usual = round(float(training.evidence_rows(found["table"]).median()), 4)
    shape = Shape(SHAPE.slow, SHAPE.fast, SHAPE.labels, SHAPE.sizes, cut, usual)
    write_folder(out, shape, table, tensors)
    write_photos(out / PHOTOS, photos)
    mean = table.mean(-1)
    say(
        f"accuracy on the table's recordings {mean.min():.3f} to {mean.max():.3f}; the gate's cut {cut}; "
        f"{out}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of intermediates")
    parser.add_argument("--out", type=Path, default=GOAL, help="folder of the model")
    given = parser.parse_args(arguments)
    train(given.work, given.out, training.How())


if __name__ == "__main__":
    main()
