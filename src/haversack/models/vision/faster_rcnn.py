"""Faster R-CNN on a residual network with a feature pyramid, cut in two behind the quarter resolution.

Paper: Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks (Ren et al., 2015,
arXiv 1506.01497), Feature Pyramid Networks (Lin et al., 2017) and the RoIAlign of Mask R-CNN (He et al.,
2017), [recalled]. Names, constants and the order of steps are those of torchvision's published
`fasterrcnn_resnet50_fpn` (BSD-3-Clause), whose state dict `read` takes; the code is ours.
What is here: the layers, written once over `Maps`: `front` up to the split (the stem and layer1: stride 4),
`stages` behind it, the pyramid and the proposals' head (`answers`), the regions' head (`regions`). Then, on
numpy arrays, anchors, proposals, the pyramid level of a region, and the detections. RoIAlign is ONNX's
operator.
What we changed: frozen batch norms are folded into their convolutions; the two hidden layers of the
regions' head are convolutions of 7 x 7 and 1 x 1. Widths and depths follow from the tensors. The picture is
read at the split's square and not scaled to 800 pixels.
Cost: at 384 x 384 with ResNet-50, 27.7 G multiplications before the regions and 14.4 M for each of up to
1,000 of them. Limits: bottleneck blocks; three anchors a place; sides that are multiples of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.formats.coco import Detections
from haversack.models.vision._boxes import largest, moved, rows_of, standing, wide_enough, within
from haversack.models.vision._detector_maps import Map, Maps, MisfitError, Shapes, Sizes, Source

SYSTEM = 13

F32 = NDArray[np.float32]
FAMILY = "faster-rcnn"
MARKS = ("backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight")
MULTIPLE = 32
RECTIFIED = True
"""The feature at the split has no negative values."""
KNOWN = "torchvision's fasterrcnn_resnet50_fpn"
SIZES, RATIOS = (32.0, 64.0, 128.0, 256.0, 512.0), (0.5, 1.0, 2.0)
EACH_LEVEL = PROPOSALS = 1000
PROPOSAL_OVERLAP, OVERLAP = 0.7, 0.5
LEAST, MOST = 0.05, 100
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
POOLED, SAMPLES = 7, 2
OUTPUT_BYTES = 8
"""That each number of the answers takes: itself, and once more where the regions' graph reads it."""
PYRAMID = ("p2", "p3", "p4", "p5")


def read(source: Source) -> dict[str, F32]:
    """The folded tensors of a torchvision state dict, by our names. Public files have the names of before the
    layers were wrapped, and norms without an epsilon; newer ones add 1e-5."""
    old = source.has("rpn.head.conv.weight")
    eps = 0.0 if old else 1e-5
    found: dict[str, F32] = {}

    def put(name: str, pair: tuple[F32, F32]) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = pair

    def plain(name: str) -> tuple[F32, F32]:
        return source.take(f"{name}.weight", 4), source.take(f"{name}.bias", 1)

    def linear(name: str) -> tuple[F32, F32]:
        weight = source.take(f"{name}.weight", 2)
        return weight[:, :, None, None], source.take(f"{name}.bias", 1)

    put("conv1", source.folded("backbone.body.conv1", "backbone.body.bn1", eps))
    for layer in range(1, 5):
        at = f"backbone.body.layer{layer}"
        for number in range(source.count(f"{at}.", ".conv1.weight")):
            name = f"layer{layer}.{number}"
            for part in (1, 2, 3):
                put(
                    f"{name}.conv{part}",
                    source.folded(f"{at}.{number}.conv{part}", f"{at}.{number}.bn{part}", eps),
                )
            if source.has(f"{at}.{number}.downsample.0.weight"):
                down = f"{at}.{number}.downsample"
                put(f"{name}.downsample", source.folded(f"{down}.0", f"{down}.1", eps))
    wrapped = ".0" if source.has("backbone.fpn.inner_blocks.0.0.weight") else ""
    for level in range(4):
        put(f"inner.{level}", plain(f"backbone.fpn.inner_blocks.{level}{wrapped}"))
        put(f"smooth.{level}", plain(f"backbone.fpn.layer_blocks.{level}{wrapped}"))
    put("rpn.conv", plain("rpn.head.conv" if old else "rpn.head.conv.0.0"))
    put("rpn.objectness", plain("rpn.head.cls_logits"))
    put("rpn.deltas", plain("rpn.head.bbox_pred"))
    weight, bias = linear("roi_heads.box_head.fc6")
    if weight.shape[1] % POOLED**2 == 0:
        weight = weight.reshape(len(weight), -1, POOLED, POOLED)
    put("hidden.0", (weight, bias))
    put("hidden.1", linear("roi_heads.box_head.fc7"))
    put("classes", linear("roi_heads.box_predictor.cls_score"))
    put("boxes", linear("roi_heads.box_predictor.bbox_pred"))
    return found


def front(maps: Maps, x: Any) -> Any:
    """The feature at the split [c, h/4, w/4] of normed pixels: the stem and layer1."""
    x = maps.pooled(maps.relu(maps.conv(x, "conv1", 2)), 3, 2, 1)
    return _layer(maps, x, 1)


def stages(maps: Maps, split: Any) -> list[Any]:
    """What layer2, layer3 and layer4 make of it."""
    found = []
    for layer in (2, 3, 4):
        split = _layer(maps, split, layer)
        found.append(split)
    return found


def _layer(maps: Maps, x: Any, layer: int) -> Any:
    """Bottleneck blocks; the first one of layers 2 to 4 halves the side in its 3 x 3 convolution."""
    number = 0
    while f"layer{layer}.{number}.conv1.weight" in maps.shapes:
        name = f"layer{layer}.{number}"
        stride = 2 if layer > 1 and number == 0 else 1
        y = maps.relu(maps.conv(x, f"{name}.conv1"))
        y = maps.relu(maps.conv(y, f"{name}.conv2", stride))
        y = maps.conv(y, f"{name}.conv3")
        if f"{name}.downsample.weight" in maps.shapes:
            x = maps.conv(x, f"{name}.downsample", stride)
        x = maps.relu(maps.add(x, y))
        number += 1
    return x


def answers(maps: Maps, split: Any, behind: list[Any]) -> dict[str, Any]:
    """The pyramid p2 to p5, and of each level and of p6, every second place of p5, objectness [3, h, w] and
    deltas [12, h, w]."""
    inner = [maps.conv(x, f"inner.{level}") for level, x in enumerate((split, *behind))]
    for level in (2, 1, 0):
        inner[level] = maps.add(inner[level], maps.doubled(inner[level + 1]))
    pyramid = [maps.conv(x, f"smooth.{level}") for level, x in enumerate(inner)]
    found = dict(zip(PYRAMID, pyramid, strict=True))
    for level, x in enumerate((*pyramid, maps.pooled(pyramid[-1], 1, 2))):
        y = maps.relu(maps.conv(x, "rpn.conv"))
        found[f"objectness{level}"] = maps.conv(y, "rpn.objectness")
        found[f"deltas{level}"] = maps.conv(y, "rpn.deltas")
    return found


def regions(maps: Maps, x: Any) -> dict[str, Any]:
    """Logits [classes + 1, 1, 1] and deltas [4 (classes + 1), 1, 1] of pooled regions [c, 7, 7]."""
    y = maps.relu(maps.conv(x, "hidden.0", pad=0))
    y = maps.relu(maps.conv(y, "hidden.1"))
    return {"classes": maps.conv(y, "classes"), "boxes": maps.conv(y, "boxes")}


def outputs_of(shapes: Shapes) -> int:
    """How many classes the network tells apart, without the background."""
    return shapes["classes.weight"][0] - 1


def check(shapes: Shapes, side: int) -> Sizes:
    """The sizes of the whole network at `side`. Raises MisfitError where its tensors do not fit together."""
    sizes = Sizes(shapes)
    split = front(sizes, Map(3, side))
    found = answers(sizes, split, stages(sizes, split))
    wanted = {"objectness": len(RATIOS), "deltas": 4 * len(RATIOS)}
    for name, channels in wanted.items():
        if found[f"{name}0"].channels != channels:
            raise MisfitError(
                f"rpn.{name} gives {found[f'{name}0'].channels} numbers a place, not {channels}"
            )
    behind = regions(sizes, Map(found["p2"].channels, POOLED))
    if behind["boxes"].channels != 4 * behind["classes"].channels or behind["boxes"].side != 1:
        raise MisfitError("boxes.weight has not four rows a class")
    return sizes


def anchors(level: int, places: int, side: int) -> F32:
    """Boxes [places^2 * 3, 4] about the corners of the places of a level, row by row: of one size, three
    ratios of height to width, the corners rounded to pixels."""
    high = np.sqrt(np.asarray(RATIOS, np.float32))
    sides = np.stack([1 / high, high], 1) * np.float32(SIZES[level])
    base = np.rint(np.concatenate([-sides, sides], 1) / 2).astype(np.float32)
    at = np.arange(places, dtype=np.float32) * (side // places)
    y, x = np.meshgrid(at, at, indexing="ij")
    shifts = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return np.asarray((shifts + base).reshape(-1, 4), np.float32)


def proposals(found: Mapping[str, F32], side: int) -> F32:
    """At most 1,000 boxes [n, 4] where something seems to be, the surest first: of each level the 1,000
    surest anchors, moved, less those that overlap surer ones of their level."""
    boxes, scores, levels = [], [], []
    for level in range(len(SIZES)):
        sure = rows_of(found[f"objectness{level}"], 1)[:, 0]
        best = largest(sure, EACH_LEVEL)
        deltas = rows_of(found[f"deltas{level}"], 4)[best]
        places = found[f"objectness{level}"].shape[1]
        boxes.append(within(moved(anchors(level, places, side)[best], deltas), side))
        scores.append(sure[best])
        levels.append(np.full(len(best), level))
    every, sure, level_of = np.concatenate(boxes), np.concatenate(scores), np.concatenate(levels)
    kept = np.flatnonzero(wide_enough(every, 1e-3))
    chosen = standing(every[kept], sure[kept], level_of[kept], PROPOSAL_OVERLAP, PROPOSALS)
    return np.asarray(every[kept][chosen])


def levels_of(boxes: F32) -> NDArray[np.int64]:
    """The pyramid level of each region, 0 for p2: one lower for each halving of its side below 224 pixels,
    which lies on p4."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = np.floor(4 + np.log2(np.sqrt(np.maximum(area, 1e-12)) / 224 + 1e-12) + 1e-6)
    return (np.clip(level, 2, 5) - 2).astype(np.int64)


Look = Callable[[Mapping[str, Any]], Mapping[str, F32]]


def found(
    said: Mapping[str, F32], columns: tuple[int, ...], side: int, look: Look, least: float = LEAST
) -> Detections:
    """The detections of one picture. `said`: what `answers` gave; `look` is the regions' graph: pyramid and
    regions by level in, logits and deltas out; `columns`: the output of each class, from 1 on."""
    boxes = proposals(said, side)
    if not len(boxes):
        return Detections(boxes, np.zeros(0, np.float32), np.zeros(0, np.int64))
    levels = levels_of(boxes)
    boxes = boxes[np.argsort(levels, kind="stable")]
    levels = np.sort(levels)
    fed: dict[str, Any] = {name: said[name][None] for name in PYRAMID}
    for level, name in enumerate(PYRAMID):
        fed[f"rois_{name}"] = boxes[levels == level]
    judged = look(fed)
    logits = judged["classes"].reshape(len(boxes), -1).astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    scores = shares[:, list(columns)]
    rows, kinds = np.nonzero(scores > least)
    sure = scores[rows, kinds].astype(np.float32)
    every = judged["boxes"].reshape(len(boxes), -1, 4)[rows, np.asarray(columns)[kinds]]
    placed = within(moved(boxes[rows], every, WEIGHTS), side)
    kept = np.flatnonzero(wide_enough(placed, 1e-2))
    chosen = kept[standing(placed[kept], sure[kept], kinds[kept], OVERLAP, MOST)]
    return Detections(placed[chosen], sure[chosen], kinds[chosen].astype(np.int64))
