"""Trains `photo`, the codec of `haversack share encode`, and writes its pack and card.

    OMP_WAIT_POLICY=passive python reference/train_codec.py [--steps 160] [--out DIR]

About three minutes on two quiet cores. Learned from photographs that scikit-image ships under CC0 or in the
public domain, and from generated pictures of overlapping leaves, whose edges and sizes are distributed as in
nature; held out are two photographs of scikit-learn.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage import data
from sklearn.datasets import load_sample_images

from code_card import machine
from haversack.formats.tabled_jpeg import scan_nbytes
from haversack.models.vision.frappe import PATCHES, DecoderShape
from haversack.share._codec_pack import Codec
from haversack.share._codec_training import codec_of

U8 = npt.NDArray[np.uint8]
OUT = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models" / "photo-codec"
PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "rocket", "grass", "gravel", "brick")
SEED, LEAVES, SIDE = 11, 40, 256


def photos() -> list[U8]:
    """Photographs under CC0 or in the public domain; grey ones as three equal colours."""
    found = [getattr(data, name)() for name in PHOTOS]
    return [np.repeat(one[..., None], 3, 2) if one.ndim == 2 else one[..., :3].copy() for one in found]


def leaves(seed: int, side: int = SIDE) -> U8:
    """Discs one over the other, radii by a power law of exponent 3, colours drawn, a little texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    picture = np.full((side, side, 3), rng.uniform(40, 215, 3), np.float32)
    base = rng.uniform(30, 225, (6, 3))
    for _ in range(900):
        u = rng.random()
        radius = (4.0**-2 + u * (90.0**-2 - 4.0**-2)) ** -0.5
        cy, cx = rng.uniform(-20, side + 20, 2)
        colour = np.clip(base[rng.integers(6)] + rng.normal(0, 25, 3), 0, 255)
        slope = rng.normal(0, 0.4, 2)
        near = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        shade = slope[0] * (y[near] - cy) + slope[1] * (x[near] - cx) + rng.normal(0, 3, int(near.sum()))
        picture[near] = colour + shade[:, None]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def judged(codec: Codec, pictures: list[U8]) -> dict[int, tuple[float, float, float]]:
    """For each length of code: bits a pixel sent, decibels rebuilt, bits a pixel kept in the JPEG's scan."""
    found = {}
    for count in sorted(codec.decoders):
        sent, error, kept = [], [], []
        for one in pictures:
            stream = codec.encode(one, count)
            pixels = one.shape[0] * one.shape[1]
            rebuilt = codec.rebuild(codec.read(stream)).astype(float)
            sent.append(8 * len(stream) / pixels)
            error.append(float(np.mean((rebuilt - one) ** 2)))
            kept.append(8 * scan_nbytes(codec.transcode(stream)) / pixels)
        found[count] = (
            float(np.mean(sent)),
            float(10 * np.log10(255**2 / np.mean(error))),
            float(np.mean(kept)),
        )
    return found


def card(numbers: dict[int, tuple[float, float, float]], nbytes: int, made: str, minutes: float) -> str:
    rows = "\n".join(
        f"| {count} | {sent:.4f} | {24 / sent:.0f} | {decibels:.2f} | {kept:.3f} |"
        for count, (sent, decibels, kept) in numbers.items()
    )
    return f"""# photo

The codec of `haversack share encode`, `transcode` and `decode`: a sensor's encoder of independent products
with patches (FRAPPE), decoders for four lengths of code, a JPEG sandwich for the eye (SEAOTTER).

- Patches of 32, 16, 8 and 4 pixels, 12 channels; decoders of width 64 with two convolution blocks; one colour
  pair, three sets of quantization tables. {nbytes / 1024:.0f} KiB: encoder and colours f32, decoders f16.
- Data: {made}.
- **Held out**, two photographs that scikit-learn ships (china, flower):

| channels | bits/pixel sent | ratio | PSNR dB | bits/pixel kept (JPEG scan, first tables) |
|---|---|---|---|---|
{rows}

- Trained by `reference/train_codec.py` in {minutes:.0f} minutes by the clock: {machine()}.

## Limits
It has seen eight photographs. It exists so that the commands work at once and can be tried; for pictures of
your own, `haversack share codec train-encoder` takes minutes, and `finetune` tunes it for a task.

## Licence
Apache License 2.0, like the rest of Haversack.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--out", type=Path, default=OUT)
    asked: Any = parser.parse_args()
    from haversack.share._codec_train_torch import Plan

    begun = time.monotonic()
    pictures = photos() + [leaves(SEED * 1000 + number) for number in range(LEAVES)]
    plan = Plan(
        patches=PATCHES[:12], counts=(3, 6, 9, 12), shape=DecoderShape(8, 64, "CC"),
        channel_steps=25, decoder_steps=asked.steps, seed=SEED,
    )  # fmt: skip
    codec = codec_of(pictures, plan, asked.steps * 2 // 3, lambda text: print(text, flush=True))
    minutes = (time.monotonic() - begun) / 60
    provenance = {"made_by": "reference/train_codec.py", "pictures": list(PHOTOS), "leaves": LEAVES}
    codec.write(asked.out, {**provenance, "seed": SEED, "steps": asked.steps, "licence": "Apache-2.0"})
    opened = Codec.open(asked.out)
    held_out = [np.asarray(one) for one in load_sample_images().images]
    numbers = judged(opened, held_out)
    print(numbers)
    nbytes = sum(one.stat().st_size for one in asked.out.iterdir() if one.name != "CARD.md")
    made = (
        f"{len(PHOTOS)} photographs of scikit-image under CC0 or in the public domain ({', '.join(PHOTOS)})\n"
        f"  and {LEAVES} generated pictures of {SIDE} x {SIDE}; seed {SEED}, {asked.steps} steps of 8 crops"
    )
    (asked.out / "CARD.md").write_text(card(numbers, nbytes, made, minutes), encoding="utf-8")


if __name__ == "__main__":
    main()
