"""Bias: what is added to layers' outputs learns, and the classifier.

Paper: Cai et al., "TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning" (NeurIPS 2020),
whose first baseline this is; Ben Zaken et al., "BitFit" (ACL 2022) for language models.
What is here: biases and shifts of norms of the top blocks, and all of the classifier. The gradient of a bias
needs no layer's input, so the way back keeps only what activations need.
Cost: the way back through the chosen blocks, without layers' inputs. Limits: a network whose layers have no
biases learns its classifier alone, which is refused here (use head).
"""

from __future__ import annotations

from dataclasses import dataclass

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.train._network import Network, head_of, top_blocks
from haversack.train._slots import Learned


@dataclass(frozen=True)
class Bias(Method):
    name = "bias"
    stage = "train"
    slot = "parameters"
    paper = "Cai et al., TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning (2020)"
    summary = "Biases and shifts of norms learn, and the classifier."

    blocks: int | None = parameter(
        None, help="how many of the top blocks learn, the head counted (none: all)"
    )

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Parameters."""
        if not self._biases(network, len(network.blocks)):
            return ()
        depths = [count for count in (4, 8, 16) if count < len(network.blocks)]
        return ("bias", *(f"bias:blocks={count}" for count in reversed(depths)))

    def prepare(self, network: Network, seed: int) -> Learned:
        """See Parameters."""
        depth = len(network.blocks)
        what = f"{network.name} has {depth}, and the head is one of them"
        count = top_blocks(self.blocks, 2, depth, what)
        biases = self._biases(network, count)
        if not biases:
            raise UserError(
                f"{network.name} has no biases in its top {count} blocks; use --parameters head.",
                field="parameters",
                given=str(self),
                nearest="head",
            )
        roles = network.roles()
        head = {name for name in head_of(network) if roles[name] != "statistic"}
        return Learned({name: None for name in network.tensors() if name in biases or name in head})

    def _biases(self, network: Network, count: int) -> set[str]:
        roles = network.roles()
        groups = list(network.blocks.values())[:-1]
        top = groups[max(0, len(groups) + 1 - count) :]
        return {name for group in top for name in group if roles[name] == "bias"}
