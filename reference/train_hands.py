"""Trains `hands`, the small hand detector of `haversack collect`, and writes its ONNX file and card.

    OMP_WAIT_POLICY=passive python reference/train_hands.py [--days 60] [--steps 2500] [--out DIR]

About ten minutes on two quiet cores. Depthwise blocks of 8 to 64 channels on 192 x 108, two outputs at
strides 8 and 16, three anchors each; heads for being a hand, side, box, contact and the palm's direction.
Losses: focal (alpha 0.25, gamma 2), GIoU, cross-entropy for contact and side. [inferred] sizes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from code_card import machine
from hands_export import write_onnx
from hands_recipe import FIRST_SEED, HELD_OUT_SEED, IN_HEIGHT, IN_WIDTH, Data, anchors, rendered

OUT = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models" / "hands"
SEED, ROWS = 7, 32
OUTPUTS = 9
"""Of an anchor: hand, side, contact, box (4), palm (2)."""


class Block(nn.Module):
    """3 x 3 a channel, 1 x 1 across channels, each with its normalisation and a ReLU."""

    def __init__(self, into: int, out: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.depth = nn.Conv2d(into, into, 3, stride, dilation, groups=into, bias=False, dilation=dilation)
        self.one, self.point, self.two = (
            nn.BatchNorm2d(into),
            nn.Conv2d(into, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.same = into == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        made = torch.relu(self.two(self.point(torch.relu(self.one(self.depth(x))))))
        return x + made if self.same else made


class Hands(nn.Module):
    """Rows [batch, anchors, 9] in the order of `anchors`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.near = nn.ModuleList([Block(8, 16, 2), Block(16, 32, 2), Block(32, 48), Block(48, 48, 1, 2)])
        self.far = nn.ModuleList([Block(48, 64, 2), Block(64, 64), Block(64, 64, 1, 2), Block(64, 64)])
        self.heads = nn.ModuleList([nn.Conv2d(48, 3 * OUTPUTS, 1), nn.Conv2d(64, 3 * OUTPUTS, 1)])
        for head in self.heads:
            with torch.no_grad():
                head.weight.mul_(0.1)
                head.bias.zero_()
                head.bias[::OUTPUTS] = -4.0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x - 0.5)))
        rows = []
        for blocks, head in zip((self.near, self.far), self.heads, strict=True):
            for block in blocks:
                x = block(x)
            y = head(x)
            rows.append(y.reshape(len(y), 3, OUTPUTS, -1).transpose(2, 3).reshape(len(y), -1, OUTPUTS))
        return torch.cat(rows, 1)


def boxes_of(rows: Tensor, centres: Tensor, sizes: Tensor, strides: Tensor) -> Tensor:
    """Corners [.., anchors, 4] in px."""
    middle = centres + rows[..., 3:5] * strides[:, None]
    half = 0.5 * sizes * rows[..., 5:7].clamp(-3, 3).exp()
    return torch.cat([middle - half, middle + half], -1)


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes [.., 4], broadcast."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (one, other)]
    union = (areas[0] + areas[1] - both).clamp(min=1e-6)
    outer = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    hull = outer.prod(-1).clamp(min=1e-6)
    return both / union, both / union - (hull - union) / hull


def loss_of(rows: Tensor, hands: Tensor, there: Tensor, grid: tuple[Tensor, ...]) -> Tensor:
    """Of a batch: hands [batch, 2, 8] with boxes in px."""
    centres, sizes, strides = grid
    own = torch.cat([centres - sizes / 2, centres + sizes / 2], -1)
    iou, _ = overlaps(own[None, :, None], hands[:, None, :, :4])
    iou = iou * there[:, None]
    best, which = iou.max(-1)
    top = (iou >= iou.max(1, keepdim=True).values - 1e-4) & (iou > 0.1)
    positive = (best > 0.5) | top.any(-1)
    which = torch.where(top.any(-1), top.float().argmax(-1), which)
    counted = positive | (best < 0.35)
    probability = rows[..., 0].sigmoid()
    wanted = positive.float()
    hit = torch.where(positive, probability, 1 - probability)
    focal = torch.where(positive, 0.25, 0.75) * (1 - hit) ** 2
    cross = cross_entropy(rows[..., 0], wanted, reduction="none")
    many = positive.sum().clamp(min=1)
    total = (focal * cross * counted).sum() / many
    batch, at = positive.nonzero(as_tuple=True)
    if len(batch):
        chosen, truth = rows[batch, at], hands[batch, which[batch, at]]
        found = boxes_of(rows, centres, sizes, strides)[batch, at]
        total = total + 2 * (1 - overlaps(found, truth[:, :4])[1]).mean()
        total = total + 0.5 * cross_entropy(chosen[:, 1], truth[:, 4])
        total = total + cross_entropy(chosen[:, 2], truth[:, 5])
        total = total + 0.2 * (chosen[:, 7:9] - truth[:, 6:8]).abs().mean()
    return total


def batch_of(data: Data, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures in [0, 1] and hands in px: mirrored, recoloured, noised."""
    at = rng.integers(len(data.pictures), size=ROWS)
    x = torch.from_numpy(data.pictures[at]).float() / 255
    hands, there = data.hands[at].copy(), torch.from_numpy(data.there[at]).float()
    flip = rng.random(ROWS) < 0.5
    x[flip] = x[flip].flip(-1)
    hands[flip] = hands[flip] * np.array([-1, 1, -1, 1, -1, 1, -1, 1]) + np.array([1, 0, 1, 0, 1, 0, 0, 0])
    hands[flip] = hands[flip][..., [2, 1, 0, 3, 4, 5, 6, 7]]
    gain = rng.uniform(0.6, 1.4, (ROWS, 1, 1, 1)) * rng.uniform(0.9, 1.1, (ROWS, 3, 1, 1))
    noise = rng.uniform(0, 0.04, (ROWS, 1, 1, 1))
    x = x * torch.from_numpy(gain).float()
    x = (x + torch.randn(x.shape) * torch.from_numpy(noise).float()).clamp(0, 1)
    scale = np.array([IN_WIDTH, IN_HEIGHT, IN_WIDTH, IN_HEIGHT, 1, 1, 1, 1], np.float32)
    return x, torch.from_numpy((hands * scale).astype(np.float32)), there


def trained(data: Data, steps: int) -> Hands:
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = Hands()
    grid = tuple(torch.from_numpy(part) for part in anchors())
    rate = 3e-3
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for step in range(steps):
        x, hands, there = batch_of(data, rng)
        loss = loss_of(model(x), hands, there, grid)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def judged(path: Path, data: Data) -> dict[str, float]:
    """The shipped file on pictures of other days: recall and precision of boxes at IoU 0.5, accuracy of side
    and contact on those found, milliseconds a picture on one core."""
    from haversack.collect.detector import OnnxDetector
    from haversack.collect.motion_gate import Blocks

    detector = OnnxDetector(path, least_score=0.5)
    nothing = Blocks(np.zeros((0, 2)), np.zeros((0, 2)))
    hits = wrong = side = contact = 0
    spent = 0.0
    for picture, hands, there in zip(data.pictures, data.hands, data.there, strict=True):
        begun = time.perf_counter()
        found = detector.detect(np.ascontiguousarray(picture.transpose(1, 2, 0)), nothing)
        spent += time.perf_counter() - begun
        left = [row for row, is_there in zip(hands, there, strict=True) if is_there]
        for hand in found:
            box = torch.tensor([hand.x0, hand.y0, hand.x1, hand.y1])
            scored = [(float(overlaps(box, torch.from_numpy(row[:4]))[0]), at) for at, row in enumerate(left)]
            best = max(scored, default=(0.0, -1))
            if best[0] < 0.5:
                wrong += 1
                continue
            row = left.pop(best[1])
            hits += 1
            side += hand.side == row[4]
            contact += (hand.contact > 0.5) == (row[5] > 0.5)
    total, most = int(data.there.sum()), max(1, hits)
    return {
        **{"hands": total, "recall": hits / total, "precision": hits / max(1, hits + wrong)},
        **{"side": side / most, "contact": contact / most, "ms": 1000 * spent / len(data.pictures)},
    }


def card(numbers: dict[str, float], model: Hands, nbytes: int, made: str, minutes: float) -> str:
    """CARD.md; `made` says of what pictures and in how many steps."""
    count = sum(weight.numel() for weight in model.parameters())
    found = f"side {numbers['side']:.3f} and contact {numbers['contact']:.3f}"
    return f"""# hands

Finds hands in first-person pictures: boxes, side, whether one holds something. The small detector of
`haversack collect edge` and of the phone app, which run the same file (`hands.onnx`).

- Parameters: {count:,}; {nbytes / 1024:.0f} KiB of ONNX, f32; input RGB [1, 3, 108, 192] in [0, 1].
- Outputs: boxes [n, 4] (x0 y0 x1 y1, shares of the picture), scores, sides, contacts [n], palms [n, 2];
  n = 1,260 anchors, not yet suppressed.
- Data: {made}.
- **Held out** ({int(numbers["hands"])} hands of days it never saw, seeds from {HELD_OUT_SEED}, score 0.5,
  IoU 0.5): recall {numbers["recall"]:.3f}, precision {numbers["precision"]:.3f}; of those found,
  {found} are right.
- {numbers["ms"]:.1f} ms a picture with ONNX Runtime on one core (shared machine).
- Trained by `reference/train_hands.py` in {minutes:.0f} minutes by the clock: {machine()}.

## Limits
It has seen nothing but rendered hands: capsules with shaded skin in rooms of rectangles. It exists so that
the whole chain can be tried and tested with exact truth. For people's hands use the phone app's MediaPipe
detector, or an ONNX file of your own (`--detector FILE.onnx`).

## Licence
Apache License 2.0, like the rest of Haversack; all of its data is generated.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--out", type=Path, default=OUT)
    asked: Any = parser.parse_args()
    begun = time.monotonic()
    data = rendered(FIRST_SEED, asked.days, asked.each)
    print(f"rendered in {time.monotonic() - begun:.0f} s", flush=True)
    model = trained(data, asked.steps)
    minutes = (time.monotonic() - begun) / 60
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "hands.onnx"
    write_onnx(model, path)
    numbers = judged(path, rendered(HELD_OUT_SEED, 12, 40))
    print(numbers)
    made = (
        f"{asked.days * asked.each:,} pictures of {asked.days} rendered days\n"
        f"  (`haversack/bench/aoe/_world.py`, seeds from {FIRST_SEED}); "
        f"seed {SEED}, {asked.steps} steps of {ROWS}"
    )
    text = card(numbers, model, path.stat().st_size, made, minutes)
    (asked.out / "CARD.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
