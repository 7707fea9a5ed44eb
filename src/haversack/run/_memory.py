"""What a run will hold, before it holds it: the same lines for the planner's predictions and for the
engine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from haversack.core.memory import MIB, MemoryPlan
from haversack.models._architecture import Architecture
from haversack.run._forward import ROWS, scratch_nbytes
from haversack.run._reading import reading_lines
from haversack.run._residency import Residency
from haversack.run._window import BACK, Windows, cache_nbytes, windows_of

BASE_MIB = 47.0
"""Interpreter, numpy, the native module, the command line and their imports."""
HUB_MIB = 22.0
"""The hub's library, where a model was fetched by its name."""
TOKENIZER_MIB = 7.5
TOKENIZER_BYTES_A_TOKEN = 900
"""The tokenizers library, and what one token of a byte-level vocabulary with merges takes while it is
read.
"""


def program_mib() -> float:
    """What this process's program takes: more where it fetched a model from the hub."""
    return BASE_MIB + (HUB_MIB if "huggingface_hub" in sys.modules else 0.0)


def predicted_tokenizer_nbytes(vocabulary: int) -> int:
    """Bytes of a tokenizer of `vocabulary` tokens, its library included."""
    return int(TOKENIZER_MIB * MIB) + TOKENIZER_BYTES_A_TOKEN * vocabulary


def run_lines(
    architecture: Architecture,
    *,
    capacity: int,
    cache_type: str,
    prompt: int,
    windows: Windows | None = None,
    back: int = BACK,
) -> tuple[tuple[str, int], ...]:
    """Lines of what depends on the text: a cache of `capacity` tokens, buffers for a prompt of `prompt`, and
    what an encoder makes of that.

    `windows`: what layers keep (default: as dense attention needs it), `back`: see `Cache`.
    """
    windows = windows_of(architecture) if windows is None else windows
    read: tuple[tuple[str, int], ...] = ()
    if architecture.reader is not None:
        read, prompt = reading_lines(architecture, prompt, cache_type), 1
    return (
        *read,
        (
            f"KV cache, {capacity} tokens",
            cache_nbytes(architecture, windows, capacity, cache_type, back),
        ),
        ("buffers", scratch_nbytes(architecture, prompt) + 8 * architecture.vocabulary),
    )


def planned_memory(
    architecture: Architecture,
    *,
    blocks: Sequence[int],
    top: int,
    residency: Residency | str = "mapped",
    cache_type: str = "f32",
    context: int,
    tokenizer_nbytes: int | None = None,
    base_mib: float = BASE_MIB,
    prompt: int | None = None,
    files: int = 1,
    limit: int | None = None,
    aside: int = 0,
    windows: Windows | None = None,
    back: int = BACK,
) -> MemoryPlan:
    """The memory of a run of `architecture`.

    `blocks` and `top`: stored bytes of each block and of everything outside the blocks. `context`: tokens of
    prompt and answer together; `prompt`: the longest prompt (default: at most 256 tokens pass at once).
    `tokenizer_nbytes`: of its files, a lower bound of what the line predicts from the vocabulary. `limit`:
    bytes that streamed weights may take, None for the least; `aside`: those they take beside their buffers.
    `windows`, `back`: see `run_lines`.
    """
    from haversack.core.index import create

    method = create("run", "residency", residency) if isinstance(residency, str) else residency
    base = (
        ("program", int(base_mib * MIB)),
        ("tokenizer", max(predicted_tokenizer_nbytes(architecture.vocabulary), tokenizer_nbytes or 0)),
    )
    rest = run_lines(
        architecture,
        capacity=context,
        cache_type=cache_type,
        prompt=(prompt or ROWS) if architecture.reader is not None else min(context, prompt or ROWS),
        windows=windows,
        back=back,
    )
    if limit is not None:
        limit -= sum(count for _, count in base + rest)
    weights = method.planned(blocks, top, files, limit, aside)  # type: ignore[union-attr]
    return MemoryPlan((*base, *weights, *rest))
