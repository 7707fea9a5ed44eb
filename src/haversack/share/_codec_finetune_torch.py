"""Tunes a codec for a task whose network is frozen: decoder, colours and one set of tables learn; the
sensor's encoder stays what it is in the field.

Loss: the task's plus lambda times bits a pixel, on pictures that went the whole way: latents, decoder,
colours, differentiable JPEG, colours back. AdamW stands in for Adan [inferred: acceptable]; tables and
colours learn at rates of their own size; rates fall along a cosine, gradients are clipped at 5.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from haversack.models.vision.frappe_torch import Channels, Decoder
from haversack.share._codec_pack import Codec
from haversack.share._codec_proxy_torch import Colours, Tables, through_jpeg
from haversack.share._codec_sandwich_torch import Sandwich, calibrate
from haversack.share._codec_train_torch import Say, codes_of, nothing

U8 = NDArray[np.uint8]
TaskLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(pictures rebuilt, pictures as they were, labels) -> loss; pictures [n, 3, h, w] within 0 .. 1."""
Batch = Callable[[np.random.Generator], tuple[Tensor, Tensor]]
"""Pictures within -1 .. 1 and what the task's loss takes as labels."""


@dataclass(frozen=True)
class Tuning:
    """`rate` of the decoder, `bit` what a bit a pixel costs, `entry` the tables' entries at first."""

    steps: int = 300
    rate: float = 1e-3
    bit: float = 0.10
    entry: float = 16.0
    seed: int = 0


def classification_loss(network: nn.Module) -> TaskLoss:
    """Cross-entropy of a frozen classifier against labels [n]."""

    def loss(rebuilt: Tensor, whole: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(rebuilt), labels)

    return loss


def segmentation_loss(network: nn.Module) -> TaskLoss:
    """Cross-entropy against the frozen network's own answer on the picture as it was; class 255 counts
    nothing."""

    def loss(rebuilt: Tensor, whole: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = network(whole).argmax(1)
            wanted = torch.where(labels == 255, labels, wanted) if labels.shape == wanted.shape else wanted
        return F.cross_entropy(network(rebuilt), wanted, ignore_index=255)

    return loss


def embedding_loss(network: Callable[[Tensor], tuple[Tensor, Tensor]]) -> TaskLoss:
    """0.7 (1 - mean cosine of patches) + 0.3 (1 - cosine of the pooled vector); `network` gives patches [n,
    p, d] and pooled [n, d]. Patches whose labels [n, p] are 0 count nothing."""

    def loss(rebuilt: Tensor, whole: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            patches, pooled = network(whole)
        ours, all_of_it = network(rebuilt)
        alike = F.cosine_similarity(ours, patches, dim=-1)
        counted = (labels != 0).to(alike.dtype) if labels.shape == alike.shape else torch.ones_like(alike)
        mean = (alike * counted).sum() / counted.sum().clamp(min=1)
        return 0.7 * (1 - mean) + 0.3 * (1 - F.cosine_similarity(all_of_it, pooled, dim=-1)).mean()

    return loss


def channels_of(codec: Codec) -> list[Channels]:
    """The codec's encoder as modules, frozen."""
    made = []
    for scale in codec.encoder.scales:
        one = Channels(len(scale.weight), scale.patch)
        with torch.no_grad():
            for part in ("weight", "bias", "sigma", "gamma"):
                getattr(one, part).copy_(torch.tensor(getattr(scale, part)))
        made.append(one.requires_grad_(False).eval())
    return made


def decoder_of(codec: Codec, count: int) -> Decoder:
    """The codec's decoder of `count` channels as a module."""
    made = Decoder(codec.encoder.patches[:count], codec.shape)
    made.load_state_dict({name: torch.tensor(one) for name, one in codec.decoders[count].items()})
    return made


def finetune(
    codec: Codec,
    count: int,
    batch: Batch,
    task: TaskLoss,
    name: str,
    tuning: Tuning | None = None,
    say: Say = nothing,
) -> Codec:
    """A codec for the task `name` with the same encoder, one decoder of `count` channels and one set of
    tables. The task's network must be frozen and in eval mode already."""
    tuning = tuning or Tuning()
    torch.manual_seed(tuning.seed)
    rng = np.random.default_rng(tuning.seed)
    channels, decoder = channels_of(codec), decoder_of(codec, count)
    colours, tables = Colours(codec.pair), Tables(1, tuning.entry)
    made = Sandwich(colours, tables)
    _calibrate(made, channels, decoder, count, batch, rng)
    big = [part for key, part in colours.named_parameters() if key.endswith("sigma")]
    small = [part for key, part in colours.named_parameters() if not key.endswith("sigma")]
    optimizer = torch.optim.AdamW(
        [
            {"params": list(decoder.parameters()), "lr": tuning.rate},
            {"params": small, "lr": 0.5 * tuning.rate},
            {"params": big, "lr": 50 * tuning.rate},
            {"params": list(tables.parameters()), "lr": 100 * tuning.rate},
        ],
        weight_decay=0.0,
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    total = 0.0
    for step in range(tuning.steps):
        colours.train()
        x, labels = batch(rng)
        pictures = (decoder(codes_of(channels, x, count)) + 1) * 127.5
        planes, bits = through_jpeg(colours.to_planes(pictures), tables()[0], training=True)
        rebuilt = colours.to_pictures(planes) / 255
        loss = task(rebuilt, (x + 1) / 2, labels) + tuning.bit * made.alpha * bits.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        parts = [part for group in optimizer.param_groups for part in group["params"]]
        nn.utils.clip_grad_norm_(parts, 5.0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * course(step, tuning.steps)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.item() if step == 0 else 0.95 * total + 0.05 * loss.item()
        if step % 50 == 0 or step == tuning.steps - 1:
            say(f"tuning, step {step}: loss {total:.3f}, {made.alpha * bits.mean().item():.2f} bits a pixel")
        if step == tuning.steps // 2:
            _calibrate(made, channels, decoder, count, batch, rng)
    _calibrate(made, channels, decoder, count, batch, rng)
    state = {key: part.detach().numpy().copy() for key, part in decoder.state_dict().items()}
    return Codec(
        codec.encoder,
        codec.shape,
        {count: state},
        colours.pair(),
        tables.stored(),
        codec.coder,
        task=name,
        alpha=made.alpha,
        threads=codec.threads,
    )


def course(step: int, steps: int) -> float:
    """Ten steps of warming up, then down along a cosine."""
    return min(1.0, (step + 1) / 10) * max(1e-5, math.sqrt(0.5 + 0.5 * math.cos(math.pi * step / steps)))


@torch.no_grad()
def _calibrate(
    made: Sandwich,
    channels: Sequence[Channels],
    decoder: Decoder,
    count: int,
    batch: Batch,
    rng: np.random.Generator,
) -> None:
    """On what the decoder gives, since that is what becomes JPEG."""
    whole: list[Tensor] = []
    fixed = copy.deepcopy(decoder).eval()
    while sum(len(one) for one in whole) < 16:
        whole.append(fixed(codes_of(channels, batch(rng)[0], count)))
    calibrate(made, torch.cat(whole)[:16])
