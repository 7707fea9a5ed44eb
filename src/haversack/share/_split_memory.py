"""What serving a split pack will hold, before it holds it."""

from __future__ import annotations

import math

from haversack.core.memory import MIB, MemoryPlan
from haversack.core.pack import Pack
from haversack.models.vision._detector_maps import Map, Sizes
from haversack.share._split_pack import LOOK, SERVER, SplitRecord

BASE_MIB = 70.0
"""Interpreter, numpy, ONNX Runtime, the command and their imports."""
COPIES = 2.0
"""Of the weights, f32: as they were read, and as the runtime lays them out."""


def serving_plan(pack: Pack, record: SplitRecord) -> MemoryPlan:
    """The memory of a server of `record`."""
    graphs = sum(pack.record.files[name].size for name in (SERVER, LOOK) if name in pack.record.files)
    lines = [("program", int(BASE_MIB * MIB)), ("graphs", graphs)]
    detector = record.detector
    if detector is None:
        return MemoryPlan((*lines, ("weights", graphs)))
    behind = Sizes(detector.shapes)
    split = Map(detector.split, record.side // 4)
    said = detector.module.answers(behind, split, detector.module.stages(behind, split))
    numbers = sum(math.prod(detector.shapes[name]) for name in behind.used)
    outputs = sum(each.channels * each.side**2 for each in said.values())
    if hasattr(detector.module, "regions"):
        region = Sizes(detector.shapes)
        pooled = Map(said["p2"].channels, detector.module.POOLED)
        detector.module.regions(region, pooled)
        numbers += sum(math.prod(detector.shapes[name]) for name in region.used)
        lines.append(("regions", 4 * detector.module.PROPOSALS * 2 * pooled.channels * pooled.side**2))
    lines += [("weights", int(4 * COPIES * numbers)), ("maps", 4 * behind.widest)]
    lines.append(("outputs", detector.module.OUTPUT_BYTES * outputs))
    return MemoryPlan(tuple(lines))
