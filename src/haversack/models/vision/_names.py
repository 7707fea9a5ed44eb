"""What the tensors of a network are called by those who publish checkpoints: one table for all of them.

`published(record, source)` maps our names (see `_record.py`) to those of `source`:
    timm          conv_stem, blocks.STAGE.NUMBER.conv_pw, conv_head, classifier
    torchvision   features.NUMBER.conv.0.0, features.NUMBER.block.0.0, classifier.1
    proxylessnas  first_conv.conv, blocks.NUMBER.mobile_inverted_conv.depth_conv.conv, classifier.linear
The number of proxylessnas counts the blocks that are there: the search leaves holes in it, which a reader
closes beforehand (`without_holes`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from haversack.models.vision._record import Block, PictureNet

SOURCES = ("timm", "torchvision", "proxylessnas")
MARKS = {
    "timm": "conv_stem.weight",
    "torchvision": "features.0.0.weight",
    "proxylessnas": "first_conv.conv.weight",
}
"""A tensor that only this source has."""
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
IGNORED = re.compile(r"\.num_batches_tracked$")
_NUMBER = re.compile(r"^blocks\.(\d+)\.")

Pair = tuple[str, str]


def source_of(names: Iterable[str]) -> str | None:
    """Whose names these are; None for nobody's here."""
    held = {name.removeprefix("module.") for name in names}
    return next((source for source, mark in MARKS.items() if mark in held), None)


def published(record: PictureNet, source: str) -> dict[str, str]:
    """Our name -> the name in a checkpoint of `source`, for every tensor, in the order of use."""
    layers = {"timm": _timm, "torchvision": _torchvision, "proxylessnas": _proxylessnas}[source]
    modules = dict(layers(record))
    found = {}
    for name in record.tensors():
        layer, _, part = name.rpartition(".")
        found[name] = f"{modules[layer]}.{part}"
    return found


def without_holes(names: Iterable[str]) -> dict[str, str]:
    """Name -> the same without `module.` in front, its block's number counting only blocks that are there."""
    bare = {name: name.removeprefix("module.") for name in names}
    numbers = {int(match[1]) for name in bare.values() if (match := _NUMBER.match(name))}
    rank = {number: index for index, number in enumerate(sorted(numbers))}
    return {
        name: _NUMBER.sub(lambda match: f"blocks.{rank[int(match[1])]}.", short)
        for name, short in bare.items()
    }


def _timm(record: PictureNet) -> Iterator[Pair]:
    yield "stem.conv", "conv_stem"
    yield "stem.norm", "bn1"
    blocks = iter(record.blocks)
    for stage, count in enumerate(record.stages):
        for number in range(count):
            yield from _timm_block(next(blocks), f"blocks.{stage}.{number}")
    if record.hidden is None:
        yield "final.conv", "conv_head"
        yield "final.norm", "bn2"
    else:
        yield "final.conv", f"blocks.{len(record.stages)}.0.conv"
        yield "final.norm", f"blocks.{len(record.stages)}.0.bn1"
        yield "hidden", "conv_head"
    yield "classifier", "classifier"


def _timm_block(block: Block, at: str) -> Iterator[Pair]:
    units = ("expand", "depthwise", "project") if block.expand is not None else ("depthwise", "project")
    convolutions = ("conv_pw", "conv_dw", "conv_pwl") if block.expand is not None else ("conv_dw", "conv_pw")
    for number, (unit, convolution) in enumerate(zip(units, convolutions, strict=True), 1):
        yield f"{block.name}.{unit}.conv", f"{at}.{convolution}"
        yield f"{block.name}.{unit}.norm", f"{at}.bn{number}"
    yield f"{block.name}.squeeze.reduce", f"{at}.se.conv_reduce"
    yield f"{block.name}.squeeze.expand", f"{at}.se.conv_expand"


def _torchvision(record: PictureNet) -> Iterator[Pair]:
    yield from _pair("stem", "features.0.0", "features.0.1")
    third = record.family == "mobilenetv3"
    for number, block in enumerate(record.blocks, 1):
        at = f"features.{number}.{'block' if third else 'conv'}"
        for place, layer in enumerate(block.layers()):
            if layer.name.endswith(".squeeze"):
                yield f"{layer.name}.reduce", f"{at}.{place}.fc1"
                yield f"{layer.name}.expand", f"{at}.{place}.fc2"
            elif layer.name.endswith(".project") and not third:
                yield from _pair(layer.name, f"{at}.{place}", f"{at}.{place + 1}")
            else:
                yield from _pair(layer.name, f"{at}.{place}.0", f"{at}.{place}.1")
    last = f"features.{len(record.blocks) + 1}"
    yield from _pair("final", f"{last}.0", f"{last}.1")
    yield "hidden", "classifier.0"
    yield "classifier", "classifier.3" if third else "classifier.1"


def _proxylessnas(record: PictureNet) -> Iterator[Pair]:
    yield from _pair("stem", "first_conv.conv", "first_conv.bn")
    for number, block in enumerate(record.blocks):
        at = f"blocks.{number}.mobile_inverted_conv"
        for unit, layer in (
            ("expand", "inverted_bottleneck"),
            ("depthwise", "depth_conv"),
            ("project", "point_linear"),
        ):
            yield from _pair(f"{block.name}.{unit}", f"{at}.{layer}.conv", f"{at}.{layer}.bn")
    yield from _pair("final", "feature_mix_layer.conv", "feature_mix_layer.bn")
    yield "classifier", "classifier.linear"


def _pair(layer: str, convolution: str, norm: str) -> Iterator[Pair]:
    yield f"{layer}.conv", convolution
    yield f"{layer}.norm", norm
