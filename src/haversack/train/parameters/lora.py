"""LoRA: a low-rank change beside each frozen matrix, merged into it or kept as an adapter.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685, 2021).
What is here: for each chosen matrix W [outputs, inputs] factors A [rank, inputs], drawn evenly within
1 / sqrt(inputs), and B [outputs, rank], zero, so that at first nothing changes; the layer gives
W x + (alpha / rank) B A x. `merged` of models/_adapter.py adds the product to the matrix, after which the
model costs what it did before. Adapters are written in PEFT's format and read from it.
What we changed: nothing; no dropout, no biases.
Cost: (rank / width) of the matrices' numbers and products; gradients pass through all blocks above the lowest
that changes.
Limits: attention and feed-forward matrices of dense decoders whose checkpoints keep each matrix in its own
tensor (Llama, Mistral, Qwen2, Qwen3); learning needs PyTorch (extra workshop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.models._adapter import FAMILIES, Pair, adapted_matrices
from haversack.models._architecture import Architecture, Attention
from haversack.train._network import Network, head_of, in_order
from haversack.train._slots import AdapterInTraining, Learned
from haversack.train._training import torch_part

F32 = npt.NDArray[np.float32]


def applied(x: F32, pair: Pair) -> F32:
    """What `pair` adds to a layer's output for inputs x f32 [n, inputs]: f32 [n, outputs]. Equals
    x (merged(W) - W)^T."""
    added = ((x @ pair.first.T) @ pair.second.T).astype(np.float32, copy=False)
    added *= np.float32(pair.scale)
    return added


def drawn(shapes: dict[str, tuple[int, int]], rank: int, seed: int) -> dict[str, F32]:
    """First factors [rank, inputs] by matrix, for matrices of `shapes` (outputs, inputs), even within
    1 / sqrt(inputs)."""
    generator = np.random.default_rng([seed, 0x10A])
    found = {}
    for name, (_, inputs) in shapes.items():
        bound = inputs**-0.5
        found[name] = generator.uniform(-bound, bound, (rank, inputs)).astype(np.float32)
    return found


@dataclass(frozen=True)
class Lora(Method):
    name = "lora"
    stage = "train"
    slot = "parameters"
    paper = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021)"
    summary = "A low-rank change beside each frozen matrix, merged or kept as an adapter."

    rank: int = parameter(8, allowed=(1, 2, 4, 8, 16, 32, 64), help="rows of the inner factor")
    alpha: float = parameter(16.0, help="the change is scaled by alpha / rank")
    first: int | None = parameter(
        None, help="the lowest block that changes (none: 0, or the first above a family's anchor)"
    )
    modules: str = parameter(
        "all", allowed=("all", "attention", "feed-forward"), help="layers whose matrices change"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1e6:
            raise UserError(
                f"alpha={self.alpha} is not above 0.", field="alpha", given=self.alpha, nearest=16
            )
        if self.first is not None and self.first < 0:
            raise UserError(f"first={self.first} is below 0.", field="first", given=self.first, nearest=0)

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Parameters: language models whose matrices are attention's and feed-forward's own."""
        if not _takes_adapters(network):
            return ()
        return ("lora", "lora:rank=4,modules=attention")

    def prepare(self, network: Network, seed: int) -> Learned:
        """See Parameters: the factors learn, and the classifier."""
        if not _takes_adapters(network):
            raise UserError(
                f"{network.name} is no language model whose matrices take adapters; use --parameters all or "
                "head.",
                field="parameters",
                given=str(self),
                nearest="all",
            )
        language: Any = network
        part = torch_part("haversack.train.networks.language_torch", "training")
        chosen = self.chosen(language.architecture, 0)
        names = part.attached(network, self.begin(language.architecture, 0, seed, "cpu"), chosen)
        return Learned(dict.fromkeys(in_order(network, (*names, *head_of(network)))))

    def chosen(self, architecture: Architecture, above: int) -> dict[str, tuple[int, int, int]]:
        """See Adapting."""
        blocks = len(architecture.blocks)
        if self.first is not None and self.first < above:
            raise UserError(
                f"first={self.first} is a block of the anchor, which has {above} and never changes; use "
                f"first={above} or more.",
                field="first",
                given=self.first,
                nearest=above,
            )
        first = above if self.first is None else self.first
        if first >= blocks:
            raise UserError(
                f"first={first} leaves no block to change: the model has {blocks}.",
                field="first",
                given=first,
                nearest=blocks - 1,
            )
        found = {}
        for name, (block, linear) in adapted_matrices(architecture).items():
            attention = architecture.blocks[block].attention
            inside = isinstance(attention, Attention) and any(
                linear in group for group in attention.products()
            )
            wanted = self.modules == "all" or (self.modules == "attention") == inside
            if block >= first and wanted:
                found[name] = (block, linear.outputs, linear.inputs)
        return found

    def learned_numbers(self, architecture: Architecture, above: int) -> int:
        """See Adapting."""
        chosen = self.chosen(architecture, above).values()
        return sum(self.rank * (outputs + inputs) for _, outputs, inputs in chosen)

    def begin(self, architecture: Architecture, above: int, seed: int, device: Any) -> AdapterInTraining:
        """See Adapting."""
        part = torch_part("haversack.train.parameters.lora_torch", "training")
        found: AdapterInTraining = part.LoraLearned(self, self.chosen(architecture, above), seed, device)
        return found


def _takes_adapters(network: Network) -> bool:
    architecture = getattr(network, "architecture", None)
    return isinstance(architecture, Architecture) and architecture.family in FAMILIES
