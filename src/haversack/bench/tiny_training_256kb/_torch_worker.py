"""One step of the float network in PyTorch, batch 1: prints the process's memory before and its peak, KiB."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np


def memory_kib(what: str) -> int:
    """`VmHWM` (the peak) or `VmRSS` of this process."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1])


def main(arguments: list[str]) -> int:
    """Arguments: the checkpoint, then the tensors that learn (none: all)."""
    import torch
    from torch.nn import functional

    from haversack.models.graph._ir import Add, AveragePool, Conv2d, DepthwiseConv2d, FullyConnected
    from haversack.models.graph.mcu import load_mcu
    from haversack.models.graph.training import in_floats, with_head

    torch.set_num_threads(1)
    graph = in_floats(with_head(load_mcu(arguments[0]), 10, 0))
    chosen = set(arguments[1:]) or set(graph.parameters)
    weights: dict[str, Any] = {}
    depthwise = {op.weight for op in graph.linears() if isinstance(op, DepthwiseConv2d)}
    for name, array in graph.constants.items():
        if name in depthwise:
            array = array.transpose(2, 0, 1)[:, None]
        elif array.ndim == 4:
            array = array.transpose(0, 3, 1, 2)
        tensor = torch.from_numpy(np.array(array))
        weights[name] = tensor.requires_grad_(name in chosen)
    learned = [tensor for tensor in weights.values() if tensor.requires_grad]
    before = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    values: dict[str, Any] = {graph.inputs[0]: torch.zeros(1, 3, 128, 128)}
    for op in graph.ops:
        if isinstance(op, Conv2d):
            groups = values[op.x].shape[1] if isinstance(op, DepthwiseConv2d) else 1
            y = functional.conv2d(
                values[op.x], weights[op.weight], weights[str(op.bias)], op.stride, op.pads[0][0], 1, groups
            )
            values[op.y] = y.clamp(op.low, op.high) if np.isfinite(op.low) else y
        elif isinstance(op, Add):
            values[op.y] = values[op.x] + values[op.other]
        elif isinstance(op, AveragePool):
            values[op.y] = functional.avg_pool2d(values[op.x], op.size)
        elif isinstance(op, FullyConnected):
            values[op.y] = functional.linear(values[op.x], weights[op.weight], weights[str(op.bias)])
        else:
            values[op.writes[0]] = values[op.reads[0]].flatten(1)
    loss = functional.cross_entropy(values[graph.outputs[0]], torch.tensor([0]))
    del values
    loss.backward()
    with torch.no_grad():
        for tensor in learned:
            tensor -= 0.01 * tensor.grad
    print(before, memory_kib("VmHWM"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
