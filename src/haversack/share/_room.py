"""How many answers fit a budget: contexts first, then prefixes, planned before weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from haversack.core import index
from haversack.core.budget import Budget
from haversack.core.memory import MIB, MemoryPlan
from haversack.run._encoder import Encoder
from haversack.run._forward import ROWS
from haversack.run._memory import planned_memory
from haversack.run._residency import Residency
from haversack.run._rounds import ROWS_DUE
from haversack.run._source import Model
from haversack.run._weights import nbytes

SERVER_MIB = 28.0
"""FastAPI, uvicorn, the metrics and their imports, over the command line's own."""
VERIFIER_MIB = 4.0
"""The WebSocket library and the devices' connections, over that."""
DEFAULT_CONTEXTS = 8
DEFAULT_PREFIX_MIB = 64.0
EXPERTS = "weights, experts in memory"
STREAMED_SHARE = 4
"""Where experts are streamed, prefixes get this part of what is left, experts the rest."""


@dataclass(frozen=True)
class Room:
    """`contexts` answers at once and `prefix_bytes` for prefixes; `plan` says what it takes together.
    `experts_bytes`: of the buffer of streamed experts, where a budget decides.
    """

    contexts: int
    prefix_bytes: int
    context_length: int
    plan: MemoryPlan
    experts_bytes: int | None = None


def make_room(
    model: Model,
    *,
    residency: Residency | str,
    cache_type: str,
    context_length: int,
    budget: Budget,
    bodies_bytes: int,
    contexts: int | None = None,
    prefix_mib: float | None = None,
    verify: bool = False,
    small: Model | None = None,
) -> Room:
    """What fits `budget.ram_mib` (None: the defaults). `contexts` and `prefix_mib` fix what is given.
    `verify`: rounds of drafts are verified as well; `small`: by this draft model's distributions too.

    Raises BudgetError, with the least that would do, when not even one context fits, or not what was fixed.
    """
    source, architecture = model.source, model.architecture
    held, streams = fitted(model, residency)

    def planned(weights_limit: int | None) -> MemoryPlan:
        return planned_memory(
            architecture,
            blocks=[nbytes(source, block.tensors()) for block in architecture.blocks],
            top=nbytes(source, architecture.top_tensors()),
            residency=held,
            cache_type=cache_type,
            context=ROWS,
            prompt=ROWS,
            files=len(source.files),
            limit=weights_limit,
        )

    base = planned(0 if streams and budget.ram_mib is not None else None)
    one = architecture.cache_nbytes(context_length, cache_type)
    logits = (8 + verify * 2 * ROWS_DUE) * 4 * architecture.vocabulary
    fixed = MemoryPlan(
        (
            *(line for line in base.lines if not line[0].startswith("KV cache")),
            ("server", int((SERVER_MIB + verify * VERIFIER_MIB) * MIB)),
            ("requests", bodies_bytes + logits),
            *(() if small is None else _draft_lines(small, cache_type)),
        )
    )
    if small is not None:  # a slot holds both models' caches
        one += small.architecture.cache_nbytes(context_length, cache_type)
    limit = None if budget.ram_mib is None else int(budget.ram_mib * MIB)
    wanted_prefix = None if prefix_mib is None else int(prefix_mib * MIB)
    if limit is None:
        contexts = contexts or DEFAULT_CONTEXTS
        prefix = int(DEFAULT_PREFIX_MIB * MIB) if wanted_prefix is None else wanted_prefix
    else:
        left = limit - fixed.total_bytes - (wanted_prefix or 0)
        contexts = contexts or min(DEFAULT_CONTEXTS, max(1, left // max(one, 1)))
        rest = max(0, left - contexts * one)
        rest = rest // STREAMED_SHARE if streams else rest
        prefix = min(rest, int(DEFAULT_PREFIX_MIB * MIB)) if wanted_prefix is None else wanted_prefix
        if streams:  # what is left is for experts
            free = limit - fixed.total_bytes - contexts * one - prefix
            fixed = _with_weights(fixed, planned(max(0, free) + base.total_bytes))
    plan = fixed + MemoryPlan(
        (
            (f"KV caches, {contexts} of {context_length} tokens", contexts * one),
            ("prefixes", prefix),
        )
    )
    budget.require({"ram_mib": plan.total_mib}, f"serving {model.path.name}")
    experts = dict(plan.lines).get(EXPERTS, 0) - held.staging if streams and limit is not None else None
    return Room(contexts, prefix, context_length, plan, experts)


def _draft_lines(small: Model, cache_type: str) -> tuple[tuple[str, int], ...]:
    """What the draft model takes beside the model, without its caches."""
    source, architecture = small.source, small.architecture
    plan = planned_memory(
        architecture,
        blocks=[nbytes(source, block.tensors()) for block in architecture.blocks],
        top=nbytes(source, architecture.top_tensors()),
        cache_type=cache_type,
        context=ROWS,
    )
    lines = (line for line in plan.lines[2:] if not line[0].startswith("KV cache"))
    return tuple((f"draft: {label}", count) for label, count in lines)


def fitted(model: Model, residency: Residency | str) -> tuple[Any, bool]:
    """The residency as its method, and whether it keeps as many experts in memory as it is allowed; made for
    the model then."""
    method: Any = index.create("run", "residency", residency) if isinstance(residency, str) else residency
    made = getattr(method, "fitted", None)
    return (method, False) if made is None else (made(model.source, model.architecture), True)


def _with_weights(plan: MemoryPlan, other: MemoryPlan) -> MemoryPlan:
    """`plan` with the weights' lines of `other`."""
    weights = tuple(line for line in other.lines if line[0].startswith("weights"))
    first = next(at for at, line in enumerate(plan.lines) if line[0].startswith("weights"))
    rest = tuple(line for line in plan.lines[first:] if not line[0].startswith("weights"))
    return MemoryPlan((*plan.lines[:first], *weights, *rest))


def encoder_room(encoder: Encoder, budget: Budget, bodies_bytes: int) -> Room:
    """The room of an encoder, which answers requests one batch at a time.

    Raises BudgetError when it does not fit.
    """
    plan = encoder.memory_plan() + MemoryPlan((("server", int(SERVER_MIB * MIB)), ("requests", bodies_bytes)))
    budget.require({"ram_mib": plan.total_mib}, "serving this encoder")
    return Room(1, 0, encoder.longest, plan)
