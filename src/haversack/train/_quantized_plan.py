"""What a training in few bits will hold: its steps, and what comes before them."""

from __future__ import annotations

from haversack.core.memory import MemoryPlan
from haversack.run._forward import scratch_nbytes
from haversack.run._memory import predicted_tokenizer_nbytes, program_mib
from haversack.run._source import Model
from haversack.run._weights import nbytes
from haversack.train._training import PYTORCH_MIB
from haversack.train.gradient._zeroqat_decoder import HEAD_ROWS, TOKENS
from haversack.train.gradient.zeroqat import ZeroQat


def planned(
    model: Model, method: ZeroQat, rows: int, length: int, *, quantities: bool, ready: bool
) -> MemoryPlan:
    """Memory of steps of `rows` texts of `length` tokens, or of preparing where that takes more and the model
    is not `ready`. `quantities`: whether clipping and smoothing move."""
    architecture = model.architecture
    sizes = [
        {linear.weight: linear.inputs * linear.outputs for linear in block.matrices()}
        for block in architecture.blocks
    ]
    moved, held = 0, 0
    for block, own in zip(architecture.blocks, sizes, strict=True):
        attention = block.attention
        light = () if attention is None else (attention.query.weight, attention.value.weight)
        learns = sum(own[name] for name in own if method.variant == "full" or name in light)
        moved += learns
        held += (sum(own.values()) - learns) * method.bits // 8
    tokens = rows * length
    scales = 2 * sum(
        linear.outputs * (1 if method.group is None else -(-linear.inputs // method.group))
        for block in architecture.blocks
        for linear in block.matrices()
    )
    widest = max(linear.inputs for block in architecture.blocks for linear in block.matrices())
    block_nbytes = 4 * max(sum(own.values()) for own in sizes)
    top = nbytes(model.source, architecture.top_tensors())
    base = (
        ("program", int(program_mib() * 2**20)),
        ("tokenizer", predicted_tokenizer_nbytes(architecture.vocabulary)),
        ("outside the blocks", top),
    )
    steps = MemoryPlan(
        (
            *base,
            ("what is perturbed, in f32", 4 * moved),
            ("clipping", 4 * (3 if quantities else 1) * scales),
            ("packed weights", held),
            ("a block of rounded weights", 2 * (4 * moved // max(1, len(sizes)))),
            ("states of some texts", 4 * min(tokens, max(TOKENS, length)) * architecture.width),
            ("buffers", scratch_nbytes(architecture, length) + 8 * length * widest),
            ("logits", 3 * 4 * min(HEAD_ROWS, tokens) * architecture.vocabulary),
        )
    )
    if ready:
        return steps
    calibration = 4 * method.segments * length * architecture.width
    prepare_lines = [
        *base,
        ("a block in f32, five times", 5 * block_nbytes),
        ("states of the calibration text, twice", 2 * calibration),
        ("buffers", scratch_nbytes(architecture, length)),
    ]
    if method.epochs:
        prepare_lines += [("PyTorch", PYTORCH_MIB << 20), ("the way back through a block", 10 * block_nbytes)]
    preparing_plan = MemoryPlan(tuple(prepare_lines))
    return max(steps, preparing_plan, key=lambda plan: plan.total_bytes)
