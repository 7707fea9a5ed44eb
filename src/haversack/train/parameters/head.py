"""Head: the classifier alone learns.

Paper: none; a baseline of the slot.
What is here: the tensors of the last block learn; everything below runs as in use.
Cost: a pass forward, the classifier's inputs and its gradient. Limits: what the features below do not tell
apart stays unlearned.
"""

from __future__ import annotations

from dataclasses import dataclass

from haversack.core.method import Method
from haversack.train._network import Network, head_of
from haversack.train._slots import Learned


@dataclass(frozen=True)
class Head(Method):
    name = "head"
    stage = "train"
    slot = "parameters"
    paper = "-"
    summary = "The classifier alone learns."

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Parameters."""
        return ("head",)

    def prepare(self, network: Network, seed: int) -> Learned:
        """See Parameters."""
        roles = network.roles()
        return Learned({name: None for name in head_of(network) if roles[name] != "statistic"})
