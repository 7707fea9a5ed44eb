"""TesseraQ: each weight's rounding, up or down, learned by gradients and hardened step by step.

Paper: Li and Panda, "TesseraQ: Ultra Low-Bit LLM Post-Training Quantization with Block Reconstruction"
(2024).
What is here: progressive adaptive rounding. A weight w with the scale s becomes s (floor(w / s) + h) with h =
sigmoid(v) and v such that at first nothing changes. In ten rounds the share 1 - p of the h farthest from 1/2
is made hard, 0 or 1, with p = .75 .5 .375 .25 .125 .09 .06 .04 .02 .005; after each, Adam takes `steps` steps
on those still soft, so that they make good what hardening did. With them a factor 2 sigmoid(u) on each scale
is learned (decay 1e-4). At the end every h is hard, and what is stored is what was learned, bit for bit. The
block's output is fitted to the float block's. It starts from AWQ's scales of channels and clipped groups. The
learning is in tesseraq_torch.py.
What we changed: the paper takes 250 steps a round at 5e-4; with fewer the rates are larger. After the last
hardening the scales alone learn for one more round. `start=gptq` begins at most a fiftieth of a step from
GPTQ's codes, which so few steps seldom turn, and mostly learns their scales. A block whose learned rounding
ends with more error than the rounding it started from keeps the latter.
Cost: 11 `steps` steps of `batch` texts forward and back through each block; the most of all methods here.
Limits: wants PyTorch (extra `workshop`) and calibration text; too few texts are learned by heart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from haversack.core.method import Method, parameter
from haversack.models._architecture import Block
from haversack.shrink._block import BlockView
from haversack.shrink._precision import InputStatistics, Quantized, StoredKind, expected_noise
from haversack.shrink._reconstruction import (
    BlockTask,
    Reconstructed,
    check_positive,
    graph_nbytes,
    matrices_nbytes,
    torch_module,
)
from haversack.shrink._rounding import F32
from haversack.shrink.precision.awq import Awq

MODULE = "haversack.shrink.precision.tesseraq_torch"


@dataclass(frozen=True)
class TesseraQ(Method):
    name = "tesseraq"
    stage = "shrink"
    slot = "precision"
    system = 16
    paper = "Li and Panda, TesseraQ: Ultra Low-Bit LLM Post-Training Quantization (2024)"
    summary = "Learns for each weight whether it is rounded up or down, hardened step by step."
    provides = frozenset(
        {"weight-type:int8", "weight-type:int4", "weight-type:int3", "weight-layout:rows16-1"}
    )
    needs: ClassVar[frozenset[str]] = frozenset({"block"})

    bits: int = parameter(4, allowed=(3, 4, 8), help="bits a weight")
    group: int = parameter(
        64, allowed=(32, 64, 128), help="inputs that share a scale below 8 bits; 8 bits: whole rows"
    )
    activations: str = parameter(
        "f32", allowed=("f32", "int8-dynamic"), help="activation type that the block is fitted for"
    )
    start: str = parameter(
        "awq", allowed=("awq", "gptq", "searched"), help="scales and codes that learning starts from"
    )
    inputs: str = parameter(
        "compressed", allowed=("compressed", "float"), help="blocks before that give the inputs of learning"
    )
    steps: int = parameter(40, help="steps in each of the ten rounds")
    batch: int = parameter(2, help="texts in a step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(steps=self.steps, batch=self.batch)

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind and group in which a matrix [rows, columns] is stored."""
        return StoredKind.of_bits(self.bits, self.group)

    def learned(self, tokens: int, length: int) -> float:
        """Tokens that pass forward and back through all blocks, of `tokens` in texts of `length`."""
        return 11.0 * self.steps * self.batch * length

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square, less what learning makes good."""
        return 0.5 * expected_noise(self.bits, self.group, "searched")

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """Never asked for: this method is given whole blocks."""
        raise NotImplementedError(f"{self.name} reconstructs blocks")

    def transform(self, block: BlockView) -> None:
        """AWQ's scales of channels, folded into the block."""
        if self.start == "awq":
            Awq(bits=self.bits, group=self.group).transform(block)

    def reconstruct(self, task: BlockTask) -> Reconstructed:
        """The block with learned roundings. Raises MissingExtraError without PyTorch."""
        learner: Any = torch_module(MODULE, "tesseraq")
        found: Reconstructed = learner.reconstruct(task, self)
        return found

    def learning_nbytes(self, record: Block, length: int) -> int:
        """Each matrix about twelve times: itself, floors, v with its gradient and Adam's two means, h, codes,
        product and their gradients; GPTQ's statistics of the widest input before.
        """
        widest = max(linear.inputs for linear in record.matrices()) if self.start == "gptq" else 0
        learning = graph_nbytes(record, self.batch * length, length) + 12 * matrices_nbytes(record)
        return learning + 16 * widest**2
