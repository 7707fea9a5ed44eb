"""All: every tensor learns, the plain fine-tuning that others are measured against.

Paper: none; the baseline of the slot.
What is here: every weight, scale and bias of the network learns; statistics stay as they are (a network whose
norms learn theirs says so itself). The planner is not offered this for int8 networks whose gradients are
floats: their full update diverged in the published scripts of Lin et al. (arXiv 2206.15472); asked for by
name it runs. Networks that learn in integers alone have it.
Cost: the way back keeps every layer's input, and a gradient of every tensor. Limits: none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from haversack.core.method import Method, parameter
from haversack.train._network import Network, top_blocks
from haversack.train._slots import Learned


@dataclass(frozen=True)
class All(Method):
    name = "all"
    stage = "train"
    slot = "parameters"
    paper = "-"
    summary = "Every tensor learns, or every tensor of the top blocks: plain fine-tuning."

    blocks: int | None = parameter(
        None, help="how many of the top blocks learn, the head counted (none: all)"
    )

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Parameters."""
        roles = network.roles()
        weights = (array for name, array in network.tensors().items() if roles[name] == "weight")
        integers = any(np.issubdtype(array.dtype, np.integer) for array in weights)
        if integers and not hasattr(network, "integer_gradients"):
            return ()
        depths = [count for count in (2, 4, 8, 16) if count < len(network.blocks)]
        return ("all", *(f"all:blocks={count}" for count in reversed(depths)))

    def prepare(self, network: Network, seed: int) -> Learned:
        """See Parameters."""
        groups = list(network.blocks.values())
        what = f"{network.name} has {len(groups)}, the head counted"
        count = top_blocks(self.blocks, 1, len(groups), what)
        inside = {name for group in groups[len(groups) - count :] for name in group}
        roles = network.roles()
        return Learned(
            {name: None for name in network.tensors() if name in inside and roles[name] != "statistic"}
        )
