"""Block-wise reconstruction: what a method that learns through a whole block is given, and gives back.

A method whose `needs` is {"block"} has a function `reconstruct(task) -> Reconstructed` in place of
`quantize`. The calibration text runs twice side by side: through the model as it came and through the blocks
already compressed. The method sees the block's record, its weights, both inputs and what the float block
makes of its own; it gives every matrix compressed, and the norms and biases that it changed.

Hidden states are read a piece at a time, from memory or disk; at any time one block and three sets of them
are held, and while the method learns what `learning_nbytes` says.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from haversack.core.errors import MissingExtraError, UserError
from haversack.core.memory import give_back_freed
from haversack.core.pack import TensorSource
from haversack.core.progress import Progress
from haversack.kernels import Matrix
from haversack.models._architecture import Attention, Block, FeedForward
from haversack.shrink._activations import Activations
from haversack.shrink._block import BlockView
from haversack.shrink._precision import Compressed, Quantized
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_tensor
from haversack.shrink.precision.round_to_nearest import round_to_nearest

BLOCK = "block"  # the need that asks for this file
SETS = 3  # of hidden states: compressed input, float input, float output
PYTORCH_MIB = 320  # what PyTorch, its threads and its allocator take beside what is counted


@dataclass(frozen=True)
class BlockTask:
    """One block to be reconstructed.

    `weights` f32: every tensor of `record`, norms and biases included; a method may change the mapping, not
    the arrays. `inputs` are what the compressed blocks before give and `exact` what the float ones do;
    `targets` what this block in float makes of `exact`; each holds pieces f32 [length, width] that are texts
    of their own. `causal`: tokens see those before them only. `note` tells a person how far learning is.
    """

    index: int
    record: Block
    weights: dict[str, F32]
    inputs: Activations
    exact: Activations
    targets: Activations
    causal: bool = True
    seed: int = 0
    note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Reconstructed:
    """What a method gives back: each matrix compressed, each norm and bias as it is to be stored.

    `losses`: squared error of the block's output over the target's mean square, from the start to what is
    stored, as the method measured them.
    """

    matrices: Mapping[str, Compressed]
    vectors: Mapping[str, F32]
    losses: tuple[float, ...] = field(default_factory=tuple)


class Reconstruction(Protocol):
    """The part of a precision method that this file calls; `stored` and `noise` are those of `Precision`."""

    name: ClassVar[str]

    def reconstruct(self, task: BlockTask) -> Reconstructed:
        """Compress the block."""

    def learning_nbytes(self, record: Block, length: int) -> int:
        """Bytes that learning through a block holds at most, on texts of `length` tokens."""


def torch_module(name: str, job: str) -> Any:
    """The module `name`, which imports PyTorch; its absence ends in one sentence."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(job, "torch", "workshop") from error


def check_positive(**values: int) -> None:
    """Raises UserError for a parameter below 1."""
    for name, value in values.items():
        if value < 1:
            raise UserError(
                f"{name}={value} is not supported (allowed 1 and more); use {name}=1.",
                field=name,
                given=value,
                nearest=1,
            )


def graph_nbytes(record: Block, rows: int, length: int) -> int:
    """Bytes of activations and their gradients when `rows` tokens in texts of `length` pass a block and back.

    Each product's inputs and outputs count three times (kept, the gradient, a temporary of the step between),
    the hidden states eight times, attention by the n x n scores of its heads where the fused product cannot
    be used and otherwise by its inputs.
    """
    numbers = 0
    for branch in record.branches:
        layer = branch.layer
        for group in layer.products():
            numbers += 3 * (group[0].inputs + sum(linear.outputs for linear in group)) * rows
        if isinstance(layer, Attention):
            numbers += 6 * layer.heads * layer.head_width * rows
            if layer.softcap is not None or layer.window is not None:
                numbers += 4 * layer.heads * rows * length
        elif isinstance(layer, FeedForward):
            numbers += 3 * layer.width * rows
        numbers += 8 * layer.products()[-1][0].outputs * rows
    return 4 * numbers


def matrices_nbytes(record: Block) -> int:
    """Bytes of the block's matrices in f32."""
    return sum(4 * linear.inputs * linear.outputs for linear in record.matrices())


def learning_lines(walk: Any, method: Any, length: int) -> list[tuple[str, int]]:
    """The lines of a memory plan that learning adds, on texts of `length` tokens; none for other methods."""
    if BLOCK not in method.needs:
        return []
    records = [getattr(walk, "record", lambda block: None)(block) for block in range(walk.blocks)]
    most = max(
        (method.learning_nbytes(record, length) for record in records if record is not None), default=0
    )
    return [("learning through the largest block", most), ("PyTorch", PYTORCH_MIB << 20)]


def record_of(walk: Any, block: int, method: str) -> Block | None:
    """The record of `block`; None for one that lies beside the blocks, as an encoder's pooler does.

    Raises UserError for a walk that has no records.
    """
    found = getattr(walk, "record", None)
    if found is None:
        raise UserError(
            f"{method} learns through blocks that are declared, and those of this model are not; use gptq.",
            field="precision",
            given=method,
            nearest="gptq",
        )
    record: Block | None = found(block)
    return record


@dataclass(frozen=True)
class Writing:
    """How results leave: `matrix` stores a compressed matrix and gives it as the walk runs it; `vector`
    stores a norm or a bias.
    """

    matrix: Callable[[str, Compressed], Any]
    vector: Callable[[str, F32], None]


def reconstruct_blocks(
    source: TensorSource,
    walk: Any,
    method: Any,
    inputs: Activations,
    writing: Writing,
    *,
    folder: Path,
    activations_mib: float,
    seed: int,
    bar: Progress | None,
) -> None:
    """Compress and write every block. `inputs` hold the embedded text, a set of SETS that share
    `activations_mib`.
    """

    def note(text: str) -> None:
        if bar is not None:
            bar.advance(0, label=text)

    count, length, width = inputs.shape
    with (
        Activations(count, length, width, folder, activations_mib / SETS) as one,
        Activations(count, length, width, folder, activations_mib / SETS) as other,
    ):
        for index in range(count):
            one.write(index, inputs.read(index))
        sets = [one, other]
        for block in range(walk.blocks):
            reconstruct_block(source, walk, block, method, (inputs, sets[0], sets[1]), writing, seed, note)
            sets.reverse()  # what the float block gave is what the next one is given
            if bar is not None:
                bar.advance()


def reconstruct_block(
    source: TensorSource,
    walk: Any,
    block: int,
    method: Any,
    states: tuple[Activations, Activations, Activations],
    writing: Writing,
    seed: int,
    note: Callable[[str], None],
) -> None:
    """Compress one block and write it; of `states` (compressed input, float input, float output) the first is
    moved behind the compressed block, the last filled.
    """
    inputs, exact, targets = states
    record = record_of(walk, block, method.name)
    plain = {name: read_tensor(source, name) for name in walk.names(block)}
    transform = getattr(method, "transform", None)
    if transform is not None and record is not None:
        transform(BlockView(walk, block, plain, inputs))
        give_back_freed()
    advance(walk, block, bound(walk, plain), exact, targets)
    if record is None:
        found = rounded(walk, plain, method)
    else:
        causal = getattr(walk, "causal", True)
        found = method.reconstruct(
            BlockTask(block, record, plain, inputs, exact, targets, causal, seed, note)
        )
    del plain
    packed: dict[str, Any] = {}
    for name in walk.names(block):
        if not walk.is_matrix(name):
            packed[name] = found.vectors[name]
            writing.vector(name, found.vectors[name])
    for name in walk.names(block):
        if walk.is_matrix(name):
            packed[name] = writing.matrix(name, found.matrices[name])
    del found
    give_back_freed()
    advance(walk, block, packed, inputs, inputs)


def rounded(walk: Any, plain: Mapping[str, F32], method: Any) -> Reconstructed:
    """Matrices beside the blocks, in the method's kinds: searched scales, rounded to nearest."""
    matrices: dict[str, Compressed] = {}
    for name, values in plain.items():
        if walk.is_matrix(name):
            kind = method.stored(*values.shape)
            codes, scales = round_to_nearest(values, method.bits, kind.group, "searched")
            matrices[name] = Quantized(kind, codes, scales)
    return Reconstructed(matrices, {name: v for name, v in plain.items() if name not in matrices})


def bound(walk: Any, plain: Mapping[str, F32]) -> dict[str, Any]:
    """Tensors as the walk runs them: matrices for the kernels, vectors as they are."""
    return {
        name: Matrix.from_array(values) if walk.is_matrix(name) else values for name, values in plain.items()
    }


def advance(walk: Any, block: int, weights: Mapping[str, Any], come: Activations, go: Activations) -> None:
    """Take every piece of `come` through `block` into `go` (which may be `come`).

    Raises UserError naming the block when values are no longer finite.
    """
    for index in range(len(come)):
        after = walk.run(block, come.read(index), weights, None)
        if not np.isfinite(after).all():
            raise UserError(
                f"block {block} turns the calibration text into values that are not finite; "
                "the checkpoint is damaged or needs another number type.",
                field="model",
                given=f"block {block}",
            )
        go.write(index, after)
