"""What a plan will take, before anything is packed: bytes from the layout itself, time from the device's
roofline.

Sizes are exact (the functions that write the pack say them); memory adds up the same lines that the engine
plans with; time is a bound from the device profile, printed beside what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from haversack.core.device import Device
from haversack.core.roofline import Cost, energy_mj, seconds
from haversack.models._architecture import Architecture
from haversack.models._experts import experts_of
from haversack.plan._candidates import OUTPUT_TOKENS
from haversack.shrink._precision import Stored

MIB = 2**20
PROMPT_TOKENS = 64  # the first output is predicted for a prompt of so many
# Native calls a block besides its matrix products: norms, positions, cache, attention, gate, additions.
SMALL_CALLS = 9
# Share of the loss by which unit noise in all weights raises it, until something was measured.
LOSS_PER_NOISE = 4.0
# Squared error over mean square: one scale for 32 or 64 inputs, one for a head's key or value.
ACTIVATION_NOISE = {"f32": 0.0, "int8-dynamic": 2.5e-5, "int8-static": 1e-4}
CACHE_NOISE = {"f32": 0.0, "f16": 2e-8, "int8": 4e-5}


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model as one precision stores it.

    `blocks`: of each block; `output`: of the matrix that makes the logits; `weights`: of all tensors;
    `products`: multiplications of a token in each block, fewer than weights where matrices are factored;
    `reads`: bytes that one token alone reads of each block, fewer where inputs are skipped or experts chosen;
    `experts`: those of the experts that one token takes of each block.
    """

    blocks: tuple[int, ...]
    output: int
    weights: int
    products: tuple[int, ...]
    reads: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()

    @classmethod
    def of(cls, architecture: Architecture, kinds: Mapping[str, Stored]) -> Sizes:
        """Of `architecture` with its tensors stored as `kinds`."""
        stored = {
            name: kinds[name].nbytes(shape[0] if len(shape) == 2 else 1, shape[-1])
            for name, shape in architecture.tensors().items()
        }
        blocks = tuple(sum(stored[name] for name in block.tensors()) for block in architecture.blocks)
        products = tuple(
            sum(products_of(kinds[one.weight], one.outputs, one.inputs) for one in block.read_by_one())
            for block in architecture.blocks
        )
        reads = tuple(
            nbytes
            - sum(stored[one.weight] for one in set(block.matrices()) - set(block.read_by_one()))
            - sum(skipped(kinds[one.weight], one.outputs, one.inputs) for one in block.read_by_one())
            for nbytes, block in zip(blocks, architecture.blocks, strict=True)
        )
        owners = getattr(experts_of(architecture), "owners", {})
        experts = tuple(
            sum(stored[one.weight] for one in block.read_by_one() if one.weight in owners)
            for block in architecture.blocks
        )
        output, weights = stored[architecture.head.weight], sum(stored.values())
        return cls(blocks, output, weights, products, reads, experts)


def products_of(stored: Stored, rows: int, columns: int) -> int:
    """Multiplications of one input with a matrix [rows, columns] as it is stored."""
    count = getattr(stored, "products", None)
    return rows * columns if count is None else int(count(rows, columns))


def skipped(stored: Stored, rows: int, columns: int) -> int:
    """Bytes of a matrix that one token alone need not wait for."""
    count = getattr(stored, "skipped", None)
    return 0 if count is None else int(count(rows, columns))


def bits_a_weight(architecture: Architecture, found: Sizes) -> float:
    """Mean bits of a weight, scales and padding included."""
    weights = sum(_numbers(shape) for shape in architecture.tensors().values())
    return 8 * found.weights / weights


def _numbers(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def token_costs(
    architecture: Architecture,
    found: Sizes,
    *,
    tokens: int,
    activations: str,
    residency: str,
    cache_type: str,
    held: int,
) -> list[Cost]:
    """The kernel calls of one step over `tokens` tokens with `held` tokens in the cache.

    Every matrix is read once a step; streamed blocks come from storage as well, and so, as if none was
    there already, do streamed experts.
    """
    arithmetic = "f32" if activations == "f32" else "int8"
    huge = residency == "copied"
    one_call = residency != "streamed"  # a block whose weights stay in memory: see run/_program.py
    costs = []
    reads = found.reads if tokens == 1 and found.reads else found.blocks
    one_call = one_call and found.reads in ((), found.blocks)
    apart = residency.startswith("streamed:")
    experts = found.experts if apart and found.experts else (0,) * len(found.blocks)
    for block, nbytes, read_bytes, products, chosen in zip(
        architecture.blocks, found.blocks, reads, found.products, experts, strict=True
    ):
        if tokens == 1 and block.index < len(architecture.reading):
            continue  # an encoder's blocks have read the prompt before
        operations = 2.0 * tokens * products
        read = set(block.read_by_one())
        calls = 1 if one_call else max(1, sum(group[0] in read for group in block.products()))
        stored = (nbytes if residency == "streamed" else chosen) / calls
        costs.append(
            Cost("products", read_bytes / calls, operations / calls, arithmetic, calls, stored, huge)
        )
        attention = block.attention
        if attention is not None:
            seen = held if attention.window is None else min(held, attention.window)
            meetings = 4.0 * tokens * seen * attention.heads * attention.head_width
            cached = architecture.cache_nbytes(seen, cache_type) / len(architecture.blocks)
            costs.append(Cost("attention", cached, meetings, "f32"))
        small = 1 if one_call else SMALL_CALLS - 1
        costs.append(Cost("small", 128.0 * tokens * architecture.width / small, 0.0, "f32", small))
    head = 2.0 * architecture.width * architecture.vocabulary
    costs.append(Cost("output", found.output, head, arithmetic, huge=huge))
    costs.append(Cost("sampling", 4.0 * architecture.vocabulary, 4.0 * architecture.vocabulary, "f32"))
    return costs


@dataclass(frozen=True)
class Times:
    """Predicted on a device: `tokens_per_s` when decoding, `latency_ms` to the first output, `energy_mj`
    of a job.
    """

    tokens_per_s: float
    latency_ms: float
    energy_mj: float


def times(
    device: Device,
    architecture: Architecture,
    found: Sizes,
    *,
    activations: str,
    residency: str,
    cache_type: str,
) -> Times:
    """The roofline of decoding and of reading a prompt on `device`."""

    def step(tokens: int, held: int) -> float:
        costs = token_costs(
            architecture,
            found,
            tokens=tokens,
            activations=activations,
            residency=residency,
            cache_type=cache_type,
            held=held,
        )
        return seconds(costs, device)

    decoding = step(1, PROMPT_TOKENS + OUTPUT_TOKENS)
    first = step(PROMPT_TOKENS, PROMPT_TOKENS)
    busy = first + OUTPUT_TOKENS * decoding
    return Times(1 / decoding, 1e3 * first, energy_mj(busy, device))


def noise(precision_noise: float, activations: str, cache_type: str) -> float:
    """Expected squared relative error that a plan puts into its matrix products."""
    return precision_noise + ACTIVATION_NOISE[activations] + CACHE_NOISE[cache_type]
