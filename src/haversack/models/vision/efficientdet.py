"""EfficientDet: an EfficientNet, a pyramid fused down and up again, and heads that all levels share.

Paper: EfficientDet: Scalable and Efficient Object Detection (Tan, Pang and Le, 2019, arXiv 1911.09070),
[recalled]. Names, constants and the order of steps are those of the widely used PyTorch port
`efficientdet-pytorch` (Apache-2.0, tf_efficientdet_d0 and larger ones), whose state dict `read` takes; the
code is ours.
What is here: the layers, written once over `Maps`: `front` up to the split (the stem and the first two
stages: stride 4), `stages` behind it, the pyramid and the heads (`answers`). Then, on numpy arrays, anchors
and the detections. Fast normalized fusion: the sum of w_i x_i / (the sum of w + 1e-4) with w = max(w, 0), a
number a map. Padding is TensorFlow's SAME.
What we changed: frozen batch norms are folded into their convolutions, so that the heads' pointwise layers
exist once a level; the fusion's weights are normalized beforehand. Widths, depths, kernels and repeats
follow from the tensors; strides are EfficientNet's. The picture is read at the split's square.
Cost: at 384 x 384 1.4, 2.2 and 2.7 G multiplications for D0, D1 and D2. Limits: nine anchors a place,
five levels; sides that are multiples of 128.
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
FAMILY = "efficientdet"
KNOWN = "efficientdet-pytorch's tf_efficientdet_d0 to d2"
MARKS = ("backbone.conv_stem.weight", "class_net.predict.conv_pw.weight")
MULTIPLE = 128
RECTIFIED = False
FIRST_COLUMN = 0
STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Of EfficientNet's seven stages."""
TAPS = (2, 4, 6)
"""The stages whose last maps the pyramid reads: strides 8, 16 and 32."""
LEVELS = 5
EPS, FUSION_EPS = 1e-3, 1e-4
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
SCALES, SIZE = 3, 4.0
OUTPUT_BYTES = 36
"""That each number of the answers takes until the boxes are chosen: itself, its copies by place, its rank."""
CANDIDATES, OVERLAP, MOST, LEAST = 5000, 0.5, 100, 0.01


def nodes() -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The fusions of one cell: (level, what they read), where 0 to 4 are the cell's inputs, 5 the first
    fusion's result and so on. From the coarsest level down, then up again, with the inputs of their level.

    >>> nodes()[0], nodes()[4], nodes()[7]
    ((3, (3, 4)), (1, (1, 7, 8)), (4, (4, 11)))
    """
    held = {level: [level] for level in range(LEVELS)}
    found: list[tuple[int, tuple[int, ...]]] = []
    for level in range(LEVELS - 2, -1, -1):
        found.append((level, (held[level][-1], held[level + 1][-1])))
        held[level].append(LEVELS + len(found) - 1)
    for level in range(1, LEVELS):
        found.append((level, (*held[level], held[level - 1][-1])))
        held[level].append(LEVELS + len(found) - 1)
    return tuple(found)


def fused(weights: F32) -> F32:
    """Fast normalized fusion: what each map is multiplied with."""
    kept = np.maximum(weights, 0)
    return np.asarray(kept / (kept.sum() + np.float32(FUSION_EPS)), np.float32)


def read(source: Source) -> dict[str, F32]:
    """The folded tensors of a state dict of efficientdet-pytorch, by our names."""
    found: dict[str, F32] = {}

    def put(name: str, pair: tuple[F32, F32]) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = pair

    def plain(name: str) -> tuple[F32, F32]:
        return source.take(f"{name}.weight", 4), source.take(f"{name}.bias", 1)

    put("stem", source.folded("backbone.conv_stem", "backbone.bn1", EPS))
    for stage in range(len(STRIDES)):
        at = f"backbone.blocks.{stage}"
        for number in range(source.count(f"{at}.", ".conv_dw.weight")):
            _read_block(source, f"{at}.{number}", f"blocks.{stage}.{number}", put, plain)
    for level in range(len(TAPS), LEVELS):
        name = f"fpn.resample.{level}.conv"
        if source.has(f"{name}.conv.weight"):
            put(f"coarser.{level}", source.folded(f"{name}.conv", f"{name}.bn", EPS, biased=True))
    for cell in range(source.count("fpn.cell.", ".fnode.0.combine.edge_weights")):
        for number, (_, inputs) in enumerate(nodes()):
            at, name = f"fpn.cell.{cell}.fnode.{number}", f"cells.{cell}.{number}"
            found[f"{name}.fusion"] = fused(source.take(f"{at}.combine.edge_weights", 1))
            for one in inputs:
                down = f"{at}.combine.resample.{one}.conv"
                if source.has(f"{down}.conv.weight"):
                    put(f"{name}.from.{one}", source.folded(f"{down}.conv", f"{down}.bn", EPS, biased=True))
            conv = f"{at}.after_combine.conv"
            found[f"{name}.depthwise.weight"] = source.take(f"{conv}.conv_dw.weight", 4)
            put(f"{name}.pointwise", source.folded(f"{conv}.conv_pw", f"{conv}.bn", EPS, biased=True))
    for head in ("class_net", "box_net"):
        for repeat in range(source.count(f"{head}.conv_rep.", ".conv_dw.weight")):
            conv, name = f"{head}.conv_rep.{repeat}", f"{head}.{repeat}"
            found[f"{name}.depthwise.weight"] = source.take(f"{conv}.conv_dw.weight", 4)
            pair = plain(f"{conv}.conv_pw")
            for level in range(LEVELS):
                put(f"{name}.{level}", source.behind(pair, f"{head}.bn_rep.{repeat}.{level}.bn", EPS))
        found[f"{head}.predict.depthwise.weight"] = source.take(f"{head}.predict.conv_dw.weight", 4)
        put(f"{head}.predict.pointwise", plain(f"{head}.predict.conv_pw"))
    return found


def _read_block(source: Source, at: str, name: str, put: Any, plain: Any) -> None:
    """An inverted residual block; without an expansion the norms are one less and the projection is
    `conv_pw`."""
    expanded = source.has(f"{at}.conv_pwl.weight")
    if expanded:
        put(f"{name}.expand", source.folded(f"{at}.conv_pw", f"{at}.bn1", EPS))
    first, last = ("bn2", "bn3") if expanded else ("bn1", "bn2")
    put(f"{name}.depthwise", source.folded(f"{at}.conv_dw", f"{at}.{first}", EPS))
    put(f"{name}.reduce", plain(f"{at}.se.conv_reduce"))
    put(f"{name}.restore", plain(f"{at}.se.conv_expand"))
    projection = "conv_pwl" if expanded else "conv_pw"
    put(f"{name}.project", source.folded(f"{at}.{projection}", f"{at}.{last}", EPS))


def front(maps: Maps, x: Any) -> Any:
    """The feature at the split [c, h/4, w/4] of normed pixels: the stem and the first two stages."""
    x = maps.silu(maps.conv(x, "stem", 2, same=True))
    return _stage(maps, _stage(maps, x, 0), 1)


def stages(maps: Maps, split: Any) -> list[Any]:
    """What the other five stages make of it."""
    found = []
    for stage in range(2, len(STRIDES)):
        split = _stage(maps, split, stage)
        found.append(split)
    return found


def _stage(maps: Maps, x: Any, stage: int) -> Any:
    """Inverted residual blocks."""
    number = 0
    while f"blocks.{stage}.{number}.depthwise.weight" in maps.shapes:
        name = f"blocks.{stage}.{number}"
        y = maps.silu(maps.conv(x, f"{name}.expand")) if f"{name}.expand.weight" in maps.shapes else x
        stride = STRIDES[stage] if number == 0 else 1
        y = maps.silu(maps.conv(y, f"{name}.depthwise", stride, same=True))
        y = maps.conv(maps.gated(y, f"{name}.reduce", f"{name}.restore"), f"{name}.project")
        x = maps.add(x, y) if _carried(maps.shapes, name, stride) else y
        number += 1
    return x


def _carried(shapes: Shapes, name: str, stride: int) -> bool:
    """Whether a block's input is added to what it gives: where both have the same size."""
    inside = shapes[f"{name}.depthwise.weight"][0]
    inputs = shapes.get(f"{name}.expand.weight", (0, inside))[1]
    return stride == 1 and shapes.get(f"{name}.project.weight", (0,))[0] == inputs


def answers(maps: Maps, split: Any, behind: list[Any]) -> dict[str, Any]:
    """Of each level, stride 8 to 128: classes [9 classes, h, w] and boxes [36, h, w]."""
    levels = [behind[stage - 2] for stage in TAPS]
    for level in range(len(TAPS), LEVELS):
        x = levels[-1]
        if f"coarser.{level}.weight" in maps.shapes:
            x = maps.conv(x, f"coarser.{level}")
        levels.append(maps.pooled(x, 3, 2, same=True))
    cell = 0
    while f"cells.{cell}.0.fusion" in maps.shapes:
        levels = _cell(maps, levels, f"cells.{cell}")
        cell += 1
    found = {}
    for head, word in (("class_net", "classes"), ("box_net", "boxes")):
        for level, x in enumerate(levels):
            repeat = 0
            while f"{head}.{repeat}.depthwise.weight" in maps.shapes:
                x = maps.conv(x, f"{head}.{repeat}.depthwise", same=True)
                x = maps.silu(maps.conv(x, f"{head}.{repeat}.{level}"))
                repeat += 1
            x = maps.conv(x, f"{head}.predict.depthwise", same=True)
            found[f"{word}{level}"] = maps.conv(x, f"{head}.predict.pointwise")
    return found


def _cell(maps: Maps, levels: list[Any], name: str) -> list[Any]:
    held, level_of = list(levels), list(range(LEVELS))
    for number, (level, inputs) in enumerate(nodes()):
        at = f"{name}.{number}"
        read_ = []
        for one in inputs:
            x = held[one]
            if f"{at}.from.{one}.weight" in maps.shapes:
                x = maps.conv(x, f"{at}.from.{one}")
            if level_of[one] > level:
                x = maps.doubled(x)
            elif level_of[one] < level:
                x = maps.pooled(x, 3, 2, same=True)
            read_.append(x)
        x = maps.silu(maps.weighted(read_, f"{at}.fusion"))
        held.append(maps.conv(maps.conv(x, f"{at}.depthwise", same=True), f"{at}.pointwise"))
        level_of.append(level)
    return held[-LEVELS:]


def outputs_of(shapes: Shapes) -> int:
    """How many classes the network tells apart."""
    return shapes["class_net.predict.pointwise.weight"][0] // (SCALES * len(ASPECTS))


def check(shapes: Shapes, side: int) -> Sizes:
    """The sizes of the whole network at `side`. Raises MisfitError where its tensors do not fit together."""
    sizes = Sizes(shapes)
    split = front(sizes, Map(3, side))
    found = answers(sizes, split, stages(sizes, split))
    places = SCALES * len(ASPECTS)
    if found["boxes0"].channels != 4 * places or found["classes0"].channels % places:
        raise MisfitError(f"its heads do not give {places} boxes a place")
    return sizes


def anchors(level: int, places: int, side: int) -> F32:
    """Boxes [places^2 * 9, 4] about the middles of the places of a level, row by row: three sizes, each in
    three aspects."""
    stride = side / places
    sides = [
        (SIZE * stride * 2 ** (octave / SCALES) * wide, SIZE * stride * 2 ** (octave / SCALES) * high)
        for octave in range(SCALES)
        for wide, high in ASPECTS
    ]
    half = np.asarray(sides) / 2
    at = (np.arange(places) + 0.5) * stride
    y, x = np.meshgrid(at, at, indexing="ij")
    middles = np.stack([x, y], -1).reshape(-1, 1, 2)
    return np.concatenate([middles - half, middles + half], -1).reshape(-1, 4).astype(np.float32)


Look = Callable[[Mapping[str, Any]], Mapping[str, F32]]


def found(
    said: Mapping[str, F32], columns: tuple[int, ...], side: int, look: Look, least: float = LEAST
) -> Detections:
    """The detections of one picture: of all levels, places and classes the 5,000 surest, moved from their
    anchors, less those that overlap surer ones of their class. `columns`: the output of each class, from 0
    on."""
    every = outputs_of({"class_net.predict.pointwise.weight": (said["classes0"].shape[0],)})
    logits, deltas, boxes = [], [], []
    for level in range(LEVELS):
        logits.append(rows_of(said[f"classes{level}"], every)[:, list(columns)])
        deltas.append(rows_of(said[f"boxes{level}"], 4)[:, [1, 0, 3, 2]])
        boxes.append(anchors(level, said[f"classes{level}"].shape[1], side))
    scores = np.concatenate(logits)
    best = largest(scores.ravel(), CANDIDATES)
    rows, kinds = np.divmod(best, len(columns))
    sure = (1 / (1 + np.exp(-np.clip(scores[rows, kinds].astype(np.float64), -60, 60)))).astype(np.float32)
    placed = within(moved(np.concatenate(boxes)[rows], np.concatenate(deltas)[rows]), side)
    kept = np.flatnonzero((sure >= least) & wide_enough(placed, 1e-2))
    chosen = kept[standing(placed[kept], sure[kept], kinds[kept], OVERLAP, MOST)]
    return Detections(placed[chosen], sure[chosen], kinds[chosen].astype(np.int64))
