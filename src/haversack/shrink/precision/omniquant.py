"""OmniQuant: clipping and smoothing learned by gradients, one block at a time.

Paper: Shao et al., "OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models" (2024).
What is here: learned weight clipping (LWC): the scale of each group is sigmoid(u) times that of its whole
range, u from 4.0 (sigmoid 0.98201), learned at 1e-2; and, where activations are int8, the learned equivalent
transform (LET): a factor for each channel between a norm or matrix and the matrices after it, learned at
5e-3 from SmoothQuant's with exponent 0.5, and a shift where the model has biases to hold it. The block's
output is fitted to the float block's by mean squared error; AdamW without decay, rounding straight through.
Afterwards factors are folded into weights, and what is stored is what was learned, bit for bit. The learning
is in omniquant_torch.py.
What we changed: scales are ours, symmetric with either sign. `start=searched` begins with the scales of least
rounding error, which the learned share can still move; `range` is the paper's start. The state of least
error is kept, the start among them, so that a block never gets worse than it began. The paper takes 20 epochs
of 128 texts; the default is fewer steps, and the fewer the larger the rates, up to ten times the paper's.
Cost: `epochs` passes forward and back through each block; about three times a forward pass each.
Limits: wants PyTorch (extra `workshop`) and calibration text; fits block by block, so errors of one block are
only made good in the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from haversack.core.method import Method, parameter
from haversack.models._architecture import Block
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

MODULE = "haversack.shrink.precision.omniquant_torch"


@dataclass(frozen=True)
class OmniQuant(Method):
    name = "omniquant"
    stage = "shrink"
    slot = "precision"
    system = 16
    paper = "Shao et al., OmniQuant: Omnidirectionally Calibrated Quantization for LLMs (2024)"
    summary = "Learns clipping, and smoothing where activations are int8, block by block by gradients."
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
        "searched", allowed=("searched", "range"), help="scales that learned clipping multiplies"
    )
    inputs: str = parameter(
        "compressed", allowed=("compressed", "float"), help="blocks before that give the inputs of learning"
    )
    epochs: int = parameter(5, help="passes through the calibration text for each block")
    batch: int = parameter(2, help="texts in a step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(epochs=self.epochs, batch=self.batch)

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind and group in which a matrix [rows, columns] is stored."""
        return StoredKind.of_bits(self.bits, self.group)

    def learned(self, tokens: int, length: int) -> float:
        """Tokens that pass forward and back through all blocks, of `tokens` in texts of `length`."""
        return float(self.epochs * tokens)

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square, less what learning makes good."""
        return 0.7 * expected_noise(self.bits, self.group, "searched")

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Quantized]:
        """Never asked for: this method is given whole blocks."""
        raise NotImplementedError(f"{self.name} reconstructs blocks")

    def reconstruct(self, task: BlockTask) -> Reconstructed:
        """The block with learned scales. Raises MissingExtraError without PyTorch."""
        learner: Any = torch_module(MODULE, "omniquant")
        found: Reconstructed = learner.reconstruct(task, self)
        return found

    def learning_nbytes(self, record: Block, length: int) -> int:
        """Each matrix about eight times: itself, its groups over scales, codes, product, their gradients."""
        return graph_nbytes(record, self.batch * length, length) + 8 * matrices_nbytes(record)
