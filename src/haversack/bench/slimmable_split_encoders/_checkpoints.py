"""Checkpoints of published detectors with drawn weights: exactly the names and shapes of the public files,
at any width, for what depends on the format and not on what was learned."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.models.vision._record import channels_of
from haversack.models.vision.efficientdet import nodes

F32 = NDArray[np.float32]
Shape = tuple[int, ...]
QUIET = {"bn3.weight": 0.25, "bbox_pred.weight": 0.1, "cls_logits.weight": 0.2, "cls_score.weight": 0.1}
QUIET |= {"box_net.predict.conv_pw.weight": 0.1}
"""Ends of names whose tensors are drawn smaller, so that sums of many layers stay small and boxes near
anchors."""
NORM = ("weight", "bias", "running_mean", "running_var")


def faster_rcnn_shapes(
    stem: int = 64,
    planes: int = 64,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    pyramid: int = 256,
    hidden: int = 1024,
    outputs: int = 91,
    old: bool = True,
) -> dict[str, Shape]:
    """The state dict of torchvision's fasterrcnn_resnet50_fpn; `old`: with the names that the public file
    has, else with those of newer releases. Its defaults are the public file's."""
    found: dict[str, Shape] = {}

    def conv(name: str, norm: str, shape: Shape) -> None:
        found[f"{name}.weight"] = shape
        found.update({f"{norm}.{end}": shape[:1] for end in NORM})

    body = "backbone.body"
    conv(f"{body}.conv1", f"{body}.bn1", (stem, 3, 7, 7))
    inputs = stem
    for layer, count in enumerate(blocks, 1):
        mid = planes << (layer - 1)
        for number in range(count):
            at = f"{body}.layer{layer}.{number}"
            for part, shape in enumerate(((mid, inputs, 1, 1), (mid, mid, 3, 3), (4 * mid, mid, 1, 1)), 1):
                conv(f"{at}.conv{part}", f"{at}.bn{part}", shape)
            if number == 0:
                conv(f"{at}.downsample.0", f"{at}.downsample.1", (4 * mid, inputs, 1, 1))
            inputs = 4 * mid
    wrapped = "" if old else ".0"
    biased: dict[str, Shape] = {}
    for level in range(4):
        biased[f"backbone.fpn.inner_blocks.{level}{wrapped}"] = (pyramid, (4 * planes) << level, 1, 1)
        biased[f"backbone.fpn.layer_blocks.{level}{wrapped}"] = (pyramid, pyramid, 3, 3)
    biased["rpn.head.conv" if old else "rpn.head.conv.0.0"] = (pyramid, pyramid, 3, 3)
    biased["rpn.head.cls_logits"] = (3, pyramid, 1, 1)
    biased["rpn.head.bbox_pred"] = (12, pyramid, 1, 1)
    biased["roi_heads.box_head.fc6"] = (hidden, 49 * pyramid)
    biased["roi_heads.box_head.fc7"] = (hidden, hidden)
    biased["roi_heads.box_predictor.cls_score"] = (outputs, hidden)
    biased["roi_heads.box_predictor.bbox_pred"] = (4 * outputs, hidden)
    for name, whole in biased.items():
        found |= {f"{name}.weight": whole, f"{name}.bias": whole[:1]}
    return found


STAGES = (
    (16, 1, 3, 1),
    (24, 2, 3, 6),
    (40, 2, 5, 6),
    (80, 3, 3, 6),
    (112, 3, 5, 6),
    (192, 4, 5, 6),
    (320, 1, 3, 6),
)
"""EfficientNet-B0: channels, blocks, kernel, expansion."""
SIZES = {"d0": (1.0, 1.0, 64, 3), "d1": (1.0, 1.1, 88, 4), "d2": (1.1, 1.2, 112, 5)}
"""Width, depth, channels of the pyramid, cells."""


def efficientdet_shapes(
    size: str = "d0",
    *,
    width: float | None = None,
    pyramid: int | None = None,
    cells: int | None = None,
    repeats: int = 3,
    outputs: int = 90,
) -> dict[str, Shape]:
    """The state dict of efficientdet-pytorch's tf_efficientdet_d0, d1 or d2, as its public file; the other
    arguments make it another one."""
    wide, deep, channels, count = SIZES[size]
    wide, channels, count = width or wide, pyramid or channels, cells or count
    found: dict[str, Shape] = {}

    def norm(name: str, outputs: int) -> None:
        found.update({f"{name}.{end}": (outputs,) for end in NORM})

    def biased(name: str, shape: Shape) -> None:
        found.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def separable(name: str, outputs: int) -> None:
        found[f"{name}.conv_dw.weight"] = (channels, 1, 3, 3)
        biased(f"{name}.conv_pw", (outputs, channels, 1, 1))

    inputs = channels_of(32 * wide)
    found["backbone.conv_stem.weight"] = (inputs, 3, 3, 3)
    norm("backbone.bn1", inputs)
    last = []
    for stage, (base, blocks, kernel, expansion) in enumerate(STAGES):
        made = channels_of(base * wide)
        for number in range(math.ceil(blocks * deep)):
            at, inside = f"backbone.blocks.{stage}.{number}", inputs * expansion
            if expansion > 1:
                found[f"{at}.conv_pw.weight"] = (inside, inputs, 1, 1)
                norm(f"{at}.bn1", inside)
            found[f"{at}.conv_dw.weight"] = (inside, 1, kernel, kernel)
            norm(f"{at}.bn{2 if expansion > 1 else 1}", inside)
            biased(f"{at}.se.conv_reduce", (max(1, round(inputs / 4)), inside, 1, 1))
            biased(f"{at}.se.conv_expand", (inside, max(1, round(inputs / 4)), 1, 1))
            found[f"{at}.conv_pw{'l' if expansion > 1 else ''}.weight"] = (made, inside, 1, 1)
            norm(f"{at}.bn{3 if expansion > 1 else 2}", made)
            inputs = made
        last.append(made)
    levels = [last[2], last[4], last[6], channels, channels]

    def resampled(name: str, inputs: int) -> None:
        if inputs != channels:
            biased(f"{name}.conv.conv", (channels, inputs, 1, 1))
            norm(f"{name}.conv.bn", channels)

    resampled("fpn.resample.3", last[6])
    for cell in range(count):
        for number, (_, read) in enumerate(nodes()):
            at = f"fpn.cell.{cell}.fnode.{number}"
            found[f"{at}.combine.edge_weights"] = (len(read),)
            for one in read:
                if cell == 0 and one < len(levels):
                    resampled(f"{at}.combine.resample.{one}", levels[one])
            separable(f"{at}.after_combine.conv", channels)
            norm(f"{at}.after_combine.conv.bn", channels)
    for head, numbers in (("class_net", outputs), ("box_net", 4)):
        for repeat in range(repeats):
            separable(f"{head}.conv_rep.{repeat}", channels)
            for level in range(len(levels)):
                norm(f"{head}.bn_rep.{repeat}.{level}.bn", channels)
        separable(f"{head}.predict", 9 * numbers)
    return found


def drawn(shapes: Mapping[str, Shape], seed: int = 0) -> dict[str, F32]:
    """Tensors of these shapes, drawn by name, so that maps keep about their size from layer to layer."""
    return {name: _drawn(name, shape, seed) for name, shape in shapes.items()}


def _drawn(name: str, shape: Shape, seed: int) -> F32:
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
    made: Any
    if len(shape) > 1:
        spread = math.sqrt(2.0 / math.prod(shape[1:]))
        made = draw.standard_normal(shape, np.float32) * np.float32(spread)
    elif name.endswith(("running_var", "edge_weights")) or (name.endswith("weight") and len(shape) == 1):
        made = draw.uniform(0.5, 1.5, shape)
    else:
        made = draw.normal(0, 0.1, shape)
    return np.asarray(
        made * next((factor for end, factor in QUIET.items() if name.endswith(end)), 1), np.float32
    )
