"""Makes the recordings that published detectors are tested against: what the libraries that their files come
from answer with drawn weights.

    PYTORCH_JIT=0 python tests/models/record_detectors.py [CASE ...]     # writes detector_recordings/

It needs torchvision, timm and effdet. torchvision's native operators need a build for the torch at hand; in
their place stand the definitions below (its own Python form of RoIAlign is not the same where a region lies
beyond the map: there the native one reads zeros). A recording holds some of the numbers of each stage, all
proposals, and the detections.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from haversack.bench.slimmable_split_encoders._checkpoints import (
    drawn,
    efficientdet_shapes,
    faster_rcnn_shapes,
)

RECORDINGS = Path(__file__).parent / "detector_recordings"
SIDE, OUTPUTS = 128, 7
SAMPLES = 120


def picture(side: int) -> Any:
    """The picture that every recording is of."""
    return np.random.default_rng(3).integers(0, 256, (side, side, 3)).astype(np.uint8)


def sample(values: Any) -> Any:
    """Some of the numbers, evenly apart."""
    flat = np.ravel(np.asarray(values, np.float32))
    return flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES]


def narrow_shapes(old: bool) -> dict[str, tuple[int, ...]]:
    """ResNet-50 with an eighth of its planes, a pyramid of 16 channels, seven outputs."""
    return faster_rcnn_shapes(64, 8, (3, 4, 6, 3), 16, 32, OUTPUTS, old)


def torchvision() -> Any:
    """The package, with these two operators in place of its native ones."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
    register = torch.library.register_fake

    def lenient(name: str, *given: Any, **named: Any) -> Any:
        def take(function: Any) -> Any:
            try:
                return register(name, *given, **named)(function)
            except RuntimeError:  # an operator that is not there
                return function

        return take

    torch.library.register_fake = lenient
    found = importlib.import_module("torchvision")
    for name in ("torchvision.extension", "torchvision.ops.roi_align"):
        sys.modules[name]._has_ops = lambda: True
    library.impl("nms", _nms, "CPU")
    library.impl("roi_align", _roi_align, "CPU")
    found.kept = library
    return found


def _nms(boxes: torch.Tensor, scores: torch.Tensor, overlap: float) -> torch.Tensor:
    alive = torch.ones(len(scores), dtype=torch.bool)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    for at in scores.argsort(descending=True, stable=True).tolist():
        if alive[at]:
            kept.append(at)
            low, high = torch.maximum(boxes[:, :2], boxes[at, :2]), torch.minimum(boxes[:, 2:], boxes[at, 2:])
            both = (high - low).clamp(min=0).prod(1)
            alive &= both <= overlap * (areas + areas[at] - both)
    return torch.tensor(kept, dtype=torch.int64)


def _roi_align(
    x: torch.Tensor, rois: torch.Tensor, scale: float, high: int, wide: int, samples: int, aligned: bool
) -> torch.Tensor:
    assert not aligned and high == wide
    side = x.shape[2]
    made = torch.zeros(len(rois), x.shape[1], high, wide)
    for at, (which, *corners) in enumerate(rois.tolist()):
        places = []
        for low, end in ((corners[1], corners[3]), (corners[0], corners[2])):
            step = max((end - low) * scale, 1.0) / high / samples
            place = low * scale + (torch.arange(high * samples) + 0.5) * step
            weights = torch.zeros(high * samples, side)
            for row, value in enumerate(place.tolist()):
                if -1 <= value <= side:
                    first = min(int(max(value, 0)), side - 1)
                    share = 0.0 if first == side - 1 else max(value, 0) - first
                    weights[row, first] += 1 - share
                    weights[row, min(first + 1, side - 1)] += share
            places.append(weights)
        values = places[0] @ x[int(which)] @ places[1].T
        made[at] = values.reshape(x.shape[1], high, samples, wide, samples).mean((2, 4))
    return made


def faster_rcnn(old: bool) -> dict[str, Any]:
    """What torchvision's Faster R-CNN says of the picture."""
    resnet = importlib.import_module("torchvision.models.resnet")
    detection = importlib.import_module("torchvision.models.detection.faster_rcnn")
    utils = importlib.import_module("torchvision.models.detection.backbone_utils")
    ops = importlib.import_module("torchvision.ops")

    class Narrow(resnet.ResNet):
        def _make_layer(self, block: Any, planes: int, *given: Any, **named: Any) -> Any:
            return super()._make_layer(block, planes // 8, *given, **named)

    body = Narrow(resnet.Bottleneck, [3, 4, 6, 3], norm_layer=ops.FrozenBatchNorm2d)
    layers = {f"layer{at + 1}": str(at) for at in range(4)}
    model = detection.FasterRCNN(
        utils.BackboneWithFPN(body, layers, [32, 64, 128, 256], 16),
        None,
        min_size=SIDE,
        max_size=SIDE,
        box_head=detection.TwoMLPHead(16 * 49, 32),
        box_predictor=detection.FastRCNNPredictor(32, OUTPUTS),
    ).eval()
    if old:  # as torchvision does where it loads the public file
        for module in model.modules():
            if isinstance(module, ops.FrozenBatchNorm2d):
                module.eps = 0.0
    weights = drawn(narrow_shapes(old), int(old))
    model.load_state_dict({name: torch.from_numpy(each) for name, each in weights.items()})
    seen: dict[str, Any] = {}
    model.backbone.body.register_forward_hook(lambda module, given, said: seen.update(body=said))
    model.backbone.register_forward_hook(lambda module, given, said: seen.update(pyramid=said))
    model.rpn.head.register_forward_hook(lambda module, given, said: seen.update(head=said))
    model.rpn.register_forward_hook(lambda module, given, said: seen.update(proposals=said[0][0]))
    x = torch.from_numpy(np.ascontiguousarray(picture(SIDE).transpose(2, 0, 1))).float() / 255
    with torch.no_grad():
        said = model([x])[0]
    found = {f"stage{at}": sample(each) for at, each in enumerate(seen["body"].values())}
    found |= {f"p{at + 2}": sample(each) for at, each in enumerate(list(seen["pyramid"].values())[:4])}
    for level in range(5):
        found[f"objectness{level}"] = sample(seen["head"][0][level])
        found[f"deltas{level}"] = sample(seen["head"][1][level])
    found["proposals"] = seen["proposals"].numpy()
    return found | {name: said[name].numpy() for name in ("boxes", "scores", "labels")}


def slim_shapes() -> dict[str, tuple[int, ...]]:
    """EfficientNet-B0 whole, with a pyramid of 16 channels, two cells and seven classes."""
    return efficientdet_shapes("d0", pyramid=16, cells=2, repeats=2, outputs=OUTPUTS)


def efficientdet() -> dict[str, Any]:
    """What efficientdet-pytorch says of the picture; first, whether D0 to D2 have the names and shapes that
    we say."""
    for name in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):  # which its package imports
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].COCO = sys.modules[name].COCOeval = object
    effdet = importlib.import_module("effdet")
    for size in ("d0", "d1", "d2"):
        theirs = effdet.EfficientDet(
            effdet.get_efficientdet_config(f"tf_efficientdet_{size}"), False
        ).state_dict()
        held = {name: tuple(each.shape) for name, each in theirs.items() if "num_batches" not in name}
        assert held == efficientdet_shapes(size), size
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.update(fpn_channels=16, fpn_cell_repeats=2, box_class_repeats=2, num_classes=OUTPUTS)
    config.update(image_size=(SIDE, SIDE), max_detection_points=1000)
    model = effdet.EfficientDet(config, False).eval()
    weights = {name: torch.from_numpy(each) for name, each in drawn(slim_shapes(), 2).items()}
    model.load_state_dict(weights, strict=False)
    held = {name for name in model.state_dict() if "num_batches" not in name}
    assert held == set(weights)
    seen: dict[str, Any] = {}
    model.backbone.blocks[1].register_forward_hook(lambda module, given, said: seen.update(split=said))
    model.backbone.register_forward_hook(lambda module, given, said: seen.update(levels=[*said]))
    record = importlib.import_module("haversack.models.vision._record")
    mean, deviation = np.array(record.IMAGENET_MEAN), np.array(record.IMAGENET_STD)
    pixels = ((picture(SIDE) / 255 - mean) / deviation).transpose(2, 0, 1).astype(np.float32)
    x = torch.from_numpy(pixels)[None]
    with torch.no_grad():
        classes, boxes = model(x)
        size = {"img_scale": torch.ones(1), "img_size": torch.tensor([[float(SIDE), float(SIDE)]])}
        said = effdet.DetBenchPredict(model).eval()(x, size)[0].numpy()
    found = {"split": sample(seen["split"])}
    found |= {f"level{at}": sample(each) for at, each in enumerate(seen["levels"][:3])}
    for level in range(5):
        found |= {f"classes{level}": sample(classes[level]), f"boxes{level}": sample(boxes[level])}
    return found | {"found": said}


def main() -> None:
    RECORDINGS.mkdir(exist_ok=True)
    torchvision()
    cases = {"faster-rcnn": lambda: faster_rcnn(False), "faster-rcnn-old": lambda: faster_rcnn(True)}
    for name, make in {**cases, "efficientdet": efficientdet}.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        np.savez_compressed(RECORDINGS / f"{name}.npz", **make())


if __name__ == "__main__":
    main()
