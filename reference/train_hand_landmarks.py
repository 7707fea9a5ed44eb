"""Trains the landmark network of `haversack collect`: 21 joints of a hand in a crop of 64 x 64 pixels.

    python reference/train_hand_landmarks.py [--crops 24000] [--epochs 14] [--seed 0] [--out FILE]
    python reference/train_hand_landmarks.py --card     # measures what is shipped and writes its card

About ten minutes on two quiet cores. The crops are rendered hands of capsules in random poses, skins, light
and backgrounds, turned, shifted and scaled anew in every epoch; no photograph, no clip of the bench. Output:
(x, y) of each joint in [-1, 1] of the crop and its depth from the wrist in lengths of 95 mm. Left hands are
mirrored before they are looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from haversack.bench.aoe._scene import paint, textures
from haversack.bench.aoe._world import HEIGHT, WIDTH
from haversack.collect._hand_model import HIGH, LOW, joints
from haversack.collect._rotations import exp

MODELS = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models"
OUT = MODELS / "hand-landmarks" / "landmarks.npz"
SIDE, LEFT, TOP = 64, 128, 58
PALM_DOWN = np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]).T
HOLDOUT = 1000
UNSEEN = 70_000
"""The seed of the crops that the card's figures are of; trainings have small ones."""


def pose(rng: np.random.Generator) -> np.ndarray:
    """A right hand's joints [21, 3] before a camera."""
    closed = float(rng.beta(0.8, 1.2))
    angles = np.zeros((5, 4))
    angles[:, 1:] = np.radians([[25, 40, 35], *[[62, 75, 40]] * 4]) * closed
    angles[:, 1] += 0.1
    angles[:, 1:] += rng.normal(0, 0.14, (5, 3)) + rng.normal(0, 0.10)
    angles[:, 0] += rng.normal(0, 0.09, 5)
    points = joints(np.clip(angles.ravel(), LOW, HIGH)[None], float(rng.uniform(0.88, 1.12)))[0]
    about = exp(np.radians([rng.uniform(-75, 25), 0, 0])) @ exp(
        np.array([0, 0, np.radians(rng.uniform(-35, 35))])
    )
    turn = exp(np.array([0, np.radians(rng.uniform(-50, 50)), 0])) @ about @ PALM_DOWN.T
    return points @ turn.T + np.array(
        [rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.15), rng.uniform(0.28, 0.7)]
    )


def crop(rng: np.random.Generator, walls: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A crop u8 [64, 64, 3] and its 63 targets."""
    points = pose(rng)
    flat, depth = points[:, :2] / points[:, 2:], points[:, 2]
    low, high = flat.min(0), flat.max(0)
    side = float((high - low).max()) * float(rng.uniform(1.15, 1.9))
    middle = (low + high) / 2 + rng.uniform(-0.14, 0.14, 2) * side
    scale = SIDE / side
    at = (flat - middle) * scale + SIDE / 2
    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    texture, zoom = walls[int(rng.integers(len(walls)))], float(rng.uniform(0.6, 2.5))
    rows = (np.arange(SIDE) * zoom + rng.integers(512)).astype(int) % 512
    columns = (np.arange(SIDE) * zoom + rng.integers(512)).astype(int) % 512
    image[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = texture[rows][:, columns]
    skin = np.array([205, 150, 120], np.float32) * float(rng.uniform(0.6, 1.1))
    shift = np.array([LEFT, TOP])
    if rng.random() < 0.15:
        other = pose(rng)
        away = other[:, :2] / other[:, 2:] * scale
        away = away - away.mean(0) + SIDE / 2 + rng.choice([-1, 1]) * np.array([rng.uniform(38, 60), 0])
        paint(image, away + shift, scale / other[:, 2], other[:, 2], skin)
    if rng.random() < 0.6:
        x, y = at[[4, 8, 12]].mean(0) + shift + rng.normal(0, 4, 2)
        half = 0.03 * scale / depth[8] * rng.uniform(0.5, 1.6)
        box = tuple(slice(max(0, int(v - half)), max(0, int(v + half))) for v in (y, x))
        image[box] = rng.uniform([30, 60, 70], [100, 190, 220]) * rng.uniform(0.7, 1.2)
    paint(image, at + shift, scale / depth, depth, skin)
    picture = image[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    if rng.random() < 0.5:
        picture = (picture + np.roll(picture, 1, int(rng.integers(2)))) / 2
    picture = picture * rng.uniform(0.8, 1.15) + rng.normal(0, rng.uniform(1, 5), picture.shape)
    target = np.concatenate([(at / SIDE * 2 - 1).ravel(), (depth - depth[0]) / 0.095])
    return np.clip(picture, 0, 255).astype(np.uint8), target.astype(np.float32)


def network() -> nn.Sequential:
    """Four convolutions with stride 2 and two layers."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 48), (48, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 160), nn.ReLU(), nn.Linear(160, 63))


def write_card() -> None:
    """Measure the shipped weights on crops that no training drew, and write CARD.md beside them."""
    from haversack.collect._landmarks import network as shipped
    from haversack.collect._landmarks import weights

    rng = np.random.default_rng(UNSEEN)
    walls = [part for seed in range(UNSEEN, UNSEEN + 4) for part in textures(seed)]
    made = [crop(rng, walls) for _ in range(HOLDOUT)]
    found = shipped(np.stack([picture for picture, _ in made]))
    truth = np.stack([target for _, target in made])
    off = np.linalg.norm(found[..., :2] - truth[:, :42].reshape(-1, 21, 2), axis=2) * SIDE / 2
    deep = np.abs(found[..., 2] - truth[:, 42:]) * 95
    numbers = sum(each.size for each in weights().values())
    card = f"""# hand-landmarks

Finds the 21 joints of a hand in a crop of {SIDE} x {SIDE} pixels: the built-in hand pose of
`haversack collect process`.

- Parameters: {numbers:,}, stored in f16 ({OUT.stat().st_size:,} bytes); input RGB u8,
  output x and y of each joint in the crop and its depth from the wrist.
- Data: rendered hands of capsules in random poses, skins, light and backgrounds; left hands are mirrored.
- **Held out** ({HOLDOUT:,} crops, seed {UNSEEN}, that no training drew): {off.mean():.2f} pixels off in the
  mean, {np.median(off):.2f} in the median; depth {deep.mean():.0f} mm in the mean.
- Trained by `reference/train_hand_landmarks.py`, about ten minutes on two cores; its option `--card`
  measures and writes this page.

## Limits
It has seen nothing but rendered hands. For people's hands bring a model of your own (docs/collect.md).

## Licence
Apache License 2.0, like the rest of Haversack; all of its data is generated.
"""
    OUT.with_name("CARD.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Render, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, default=24_000)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--card", action="store_true")
    given = parser.parse_args()
    if given.card:
        write_card()
        return
    rng = np.random.default_rng([given.seed, 99])
    walls = [part for seed in range(900, 908) for part in textures(seed)]
    made = [crop(rng, walls) for _ in range(given.crops)]
    x = torch.from_numpy(np.stack([one[0] for one in made])).permute(0, 3, 1, 2)
    y = torch.from_numpy(np.stack([one[1] for one in made]))
    torch.manual_seed(given.seed)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    count, batch = len(x) - HOLDOUT, 128
    steps = given.epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(given.epochs):
        order = torch.randperm(count)
        for at in range(0, count - batch + 1, batch):
            chosen = order[at : at + batch]
            loss = nn.functional.smooth_l1_loss(model(x[chosen].float() / 127.5 - 1), y[chosen], beta=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            off = (model(x[count:].float() / 127.5 - 1) - y[count:])[:, :42]
            off = off.reshape(-1, 21, 2).norm(dim=2) * 32
        print(
            f"epoch {epoch}: held-out error {off.mean():.2f} px of 64, median {off.median():.2f}", flush=True
        )
    weights = {
        name.replace(".", "_"): value.numpy().astype(np.float16) for name, value in model.state_dict().items()
    }
    np.savez_compressed(given.out, **weights)
    print(f"{given.out}: {given.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
