"""TinyTL: shifts learn, and a small branch beside each block, while the block's own weights stay.

Paper: Cai, Gan, Zhu and Han, "TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning"
(NeurIPS 2020, arXiv 2007.11622). Here it is what MobileTL is measured against.
What is here: in the top blocks every shift learns (norms with fixed statistics, biases), which keeps no
layer's input; beside each stands a lite residual on half the map: means of 2 x 2 places, a convolution in two
groups with a kernel of up to 5 as the map allows, a norm and a ReLU, a 1x1 convolution and a norm whose scale
begins at 0, bilinear enlargement, sum. So at first nothing changes. The classifier learns.
What we changed: the lite residual's norms are batch norms, as in the authors' code, not the group norms of
their experiments with one picture a step. Hard-Swish, which their networks lack, keeps its input as a float.
Cost: the branches' products, a few percent of the network's; what they keep has a quarter of the places.
Limits: networks of models/vision; PyTorch (extra workshop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from haversack.core.method import Method, parameter
from haversack.models.vision import _counts
from haversack.models.vision._counts import Way
from haversack.models.vision._record import Beside, Block, PictureNet, Unit, channels_of
from haversack.train._network import Network, top_blocks
from haversack.train._slots import Learned
from haversack.train._training import torch_part
from haversack.train.parameters.mobiletl import learned_of

POOL, KERNEL_MOST, GROUPS = 2, 5, 2


def lite_residual(block: Block, side: int) -> Beside:
    """The branch beside `block`, into which maps of side `side` come."""
    pool = POOL if side >= POOL else 1
    kernel = KERNEL_MOST
    while kernel > 1 and kernel > side // pool:
        kernel -= 2
    name, inner = f"{block.name}.beside", channels_of(block.inputs)
    return Beside(
        pool,
        Unit(
            *(f"{name}.first", block.inputs, inner, "relu"),
            kernel=kernel,
            stride=block.depthwise.stride,
            groups=GROUPS,
        ),
        Unit(f"{name}.second", inner, block.project.outputs, None),
    )


@dataclass(frozen=True)
class TinyTL(Method):
    name = "tinytl"
    stage = "train"
    slot = "parameters"
    system = 20
    paper = "Cai et al., TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning (2020)"
    summary = "Shifts learn, and a small branch beside each block, while its own weights stay."

    blocks: int | None = parameter(
        None, help="how many of the top inverted residual blocks change (none: all)"
    )

    def way(self, record: PictureNet) -> Way:
        """How `record` learns. Raises UserError when it has fewer blocks than are asked for."""
        count = len(record.blocks)
        what = f"{record.variant} has {count} inverted residual blocks"
        top = top_blocks(self.blocks, 1, count, what)
        first = count - top
        beside = {
            record.blocks[index].name: lite_residual(record.blocks[index], _counts.map_into(record, index))
            for index in range(first, count)
        }
        parts = [layer for block in record.blocks[first:] for layer in block.layers()]
        shifted = [*parts, record.final, *([record.hidden] if record.hidden else [])]
        learned = {name for layer in shifted for name, _ in layer.tensors() if name.endswith(".bias")}
        learned |= {name for name, _ in record.classifier.tensors()}
        measuring = set()
        for branch in beside.values():
            learned |= {name for name, _ in branch.tensors() if "running" not in name}
            measuring |= {branch.first.name, branch.second.name}
        units = [layer for layer in (*parts, record.final) if isinstance(layer, Unit)]
        masked = {unit.name for unit in units if unit.activation == "relu6"}
        return Way(frozenset(learned), frozenset(measuring), frozenset(masked), beside)

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Parameters."""
        record = getattr(getattr(network, "module", None), "record", None)
        return ("tinytl",) if isinstance(record, PictureNet) else ()

    def prepare(self, network: Network, seed: int) -> Learned:
        """See Parameters."""
        part = torch_part("haversack.train.parameters.tinytl_torch", "training")
        return learned_of(network, cast(Way, part.tinytl(getattr(network, "module", None), self, seed)))
