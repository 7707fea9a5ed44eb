"""Trains the landmark network of `haversack collect`: 21 joints of a hand in a crop of 64 x 64 pixels.

    python reference/train_hand_landmarks.py [--crops 7000] [--steps 1100] [--seed 0] [--out FILE]
    python reference/train_hand_landmarks.py --card     # measures what is shipped and writes its card

About seven minutes of one core. The crops are rendered hands of capsules in random poses, skins, light and
backgrounds, turned, shifted and scaled anew whenever they are drawn; no photograph, no clip of the bench.
Output: (x, y) of each joint in [-1, 1] of the crop and its depth from the wrist in lengths of 95 mm. Left
hands are mirrored before they are looked at.

Where a joint is comes from a map of 16 x 16 for each, as the mean place under its softmax: a layer that says
places as numbers, from all pixels at once, errs more.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from haversack.bench.aoe._scene import paint, textures
from haversack.bench.aoe._world import HEIGHT, WIDTH
from haversack.collect._hand_model import HIGH, LOW, joints
from haversack.collect._rotations import exp

MODELS = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models"
OUT = MODELS / "hand-landmarks" / "landmarks.npz"
SIDE, LEFT, TOP = 64, 128, 58
PALM_DOWN = np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]).T
HOLDOUT, PART = 1000, 250
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


def some(seed: int, number: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The crops of one part, whichever process makes them."""
    rng = np.random.default_rng([seed, 99, number])
    walls = textures(900 + number % 8)
    return [crop(rng, list(walls)) for _ in range(count)]


def rendered(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` crops u8 [n, 3, 64, 64] and their targets, in parts of PART."""
    sizes = [min(PART, count - begin) for begin in range(0, count, PART)]
    with multiprocessing.get_context("fork").Pool() as pool:
        parts = pool.starmap(some, [(seed, number, size) for number, size in enumerate(sizes)], chunksize=1)
    made = [one for part in parts for one in part]
    x = torch.from_numpy(np.stack([picture for picture, _ in made])).permute(0, 3, 1, 2)
    return x, torch.from_numpy(np.stack([target for _, target in made]))


class Step(nn.Module):
    """3 x 3, its normalisation, a ReLU."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.convolution(x)))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that does the same."""
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        return self.convolution.weight * scale[
            :, None, None, None
        ], self.norm.bias - self.norm.running_mean * scale


class Landmarks(nn.Module):
    """63 numbers of crops [n, 3, 64, 64]: down to 4 x 4 and up again to 16 x 16; collect/_landmarks.py has
    the same in numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleDict({name: Step(*how) for name, how in LAYERS.items()})
        self.lift = nn.Conv2d(96, 64, 1)
        self.maps = nn.Conv2d(32, 21, 1)
        self.deep = nn.Sequential(nn.Linear(96 * 16, 64), nn.ReLU(), nn.Linear(64, 21))
        self.register_buffer("cells", (torch.arange(16) + 0.5) / 8 - 1)

    def forward(self, x: Tensor) -> Tensor:
        step = self.steps
        fine = step["c"](step["b"](step["a"](x)))
        middle = step["e"](step["d"](fine))
        coarse = step["g"](step["f"](middle))
        up = step["h"](middle + doubled(self.lift(coarse)))
        up = step["i"](fine + doubled(up))
        share = self.maps(up).flatten(2).softmax(2).reshape(-1, 21, 16, 16)
        places = [(share.sum(axis) * self.cells).sum(2) for axis in (2, 3)]
        return torch.cat([torch.stack(places, 2).flatten(1), self.deep(coarse.flatten(1))], 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored."""
        found = {}
        for name, step in self.steps.items():
            found[f"{name}_weight"], found[f"{name}_bias"] = step.folded()
        for name, layer in (
            ("lift", self.lift),
            ("maps", self.maps),
            ("k", self.deep[0]),
            ("l", self.deep[2]),
        ):
            found[f"{name}_weight"], found[f"{name}_bias"] = layer.weight, layer.bias
        return {name: value.detach().numpy().astype(np.float16) for name, value in found.items()}


LAYERS = {
    **{"a": (3, 16, 2), "b": (16, 32, 2), "c": (32, 32), "d": (32, 64, 2), "e": (64, 64)},
    **{"f": (64, 96, 2), "g": (96, 96), "h": (64, 32), "i": (32, 32)},
}


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times."""
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def moved(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Crops and targets, each turned, scaled and shifted at random, as light as it comes."""
    n = len(x)
    angle, scale = 0.35 * torch.randn(n), torch.exp(0.12 * torch.randn(n))
    shift = 0.10 * torch.randn(n, 2)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    A = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    grid = nn.functional.affine_grid(torch.cat([A, shift[:, :, None]], 2), list(x.shape), align_corners=False)
    x = nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    at = (y[:, :42].reshape(n, 21, 2) - shift[:, None]) @ torch.linalg.inv(A).transpose(1, 2)
    x = x * (1 + 0.15 * torch.randn(n, 3, 1, 1)) + 0.1 * torch.randn(n, 1, 1, 1)
    return x, torch.cat([at.flatten(1), y[:, 42:]], 1)


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
- Trained by `reference/train_hand_landmarks.py`, about seven minutes of one core; its option `--card`
  measures and writes this page.

## Limits
It has seen nothing but rendered hands. For people's hands bring a model of your own (docs/collect.md).

## Licence
Apache License 2.0, like the rest of Haversack; all of its data is generated.
"""
    OUT.with_name("CARD.md").write_text(card, encoding="utf-8")


def huber(off: Tensor, beta: float) -> Tensor:
    """Mean of the absolute error, squared where it is small."""
    return nn.functional.smooth_l1_loss(off, torch.zeros_like(off), beta=beta)


def held_out(model: Landmarks, x: Tensor, y: Tensor) -> Tensor:
    """Pixels that joints are off [n, 21]."""
    model.eval()
    with torch.no_grad():
        off = (model(x.float() / 127.5 - 1) - y)[:, :42].reshape(-1, 21, 2).norm(dim=2) * SIDE / 2
    model.train()
    return off


def main() -> None:
    """Render, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, default=7_000)
    parser.add_argument("--steps", type=int, default=1_100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--card", action="store_true")
    given = parser.parse_args()
    if given.card:
        write_card()
        return
    x, y = rendered(given.crops, given.seed)
    print(f"{len(x)} crops", flush=True)
    torch.manual_seed(given.seed)
    model = Landmarks().to(memory_format=torch.channels_last)  # a fifth faster
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=1e-3)
    count, batch = len(x) - HOLDOUT, 96
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=given.steps)
    for step in range(given.steps):
        chosen = torch.randint(count, (batch,))
        seen, wanted = moved(x[chosen].float() / 127.5 - 1, y[chosen])
        off = model(seen) - wanted
        loss = huber(off[:, :42], 0.03) + 0.1 * huber(off[:, 42:], 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            off = held_out(model, x[count:], y[count:])
            print(
                f"step {step + 1}: held-out error {off.mean():.2f} px of 64, median {off.median():.2f}",
                flush=True,
            )
            np.savez_compressed(given.out, **model.arrays())
    print(f"{given.out}: {given.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
