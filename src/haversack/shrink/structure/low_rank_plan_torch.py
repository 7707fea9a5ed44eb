"""Low-rank weights, low-rank attention or both: what an encoder gains at a length, computed and then timed.

Papers: Cahyawijaya, "Greenformers" (2021), whose rule is low-rank weights up to 512 tokens and Linformer
from there, and that only low-rank weights make the stored model smaller.
What is here: `plan` computes the operations and bytes of every candidate from the model's own layers, runs
each beside the dense model in turns, and takes the best by the measured numbers; formulas alone never
decide.
Cost: factoring every candidate (only when `max_error` is given: otherwise drawn factors do for timing), and
`rounds` passes each.
Limits: the time of this machine at this length and batch. What Linformer loses is known after training only,
so with `max_error` it is no candidate.
"""

from __future__ import annotations

import ctypes
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from haversack.core.errors import UserError, not_allowed
from haversack.core.memory import peak_mib, reset_peak
from haversack.shrink.structure._factored_torch import CED, LED, shape_of
from haversack.shrink.structure.linformer_torch import LinformerAttention, linformerize
from haversack.shrink.structure.low_rank_torch import factorize
from haversack.shrink.structure.transformer_costs import attention_operations, linear_operations

SYSTEM = 38
GOALS = ("latency", "memory", "size")
RANKS, MIXTURES = (0.2, 0.4, 0.6), (128, 256)


@dataclass(frozen=True)
class Choice:
    """A candidate. `rank` and `projected` None: weights, attention stay. `operations` a text, by formula;
    `seconds` a pass, `time_ratio` to the dense model's (median of pairs), `memory_mib` weights and what a
    pass adds, measured. `error`: worst relative error of a layer, None where it is not known."""

    name: str
    rank: float | None
    projected: int | None
    operations: float
    size_mib: float
    error: float | None = None
    seconds: float = 0.0
    time_ratio: float = 1.0
    memory_mib: float = 0.0

    @property
    def needs_training(self) -> bool:
        """Whether it starts from drawn numbers (Linformer) or loses more than a tenth of a layer."""
        return self.projected is not None or self.error is None or self.error > 0.1


@dataclass(frozen=True)
class Plan:
    """All candidates, the dense model first, and the chosen one."""

    choices: tuple[Choice, ...]
    chosen: Choice
    goal: str

    def __str__(self) -> str:
        lines = [
            f"{one.name}: {one.operations / 1e9:.2f} G operations, {1e3 * one.seconds:.1f} ms "
            f"({one.time_ratio:.2f} of dense), {one.size_mib:.1f} MiB stored, {one.memory_mib:.1f} MiB in use"
            + ("" if one.error is None else f", worst relative error {one.error:.2f}")
            for one in self.choices
        ]
        lines.append(f"for {self.goal}: {self.chosen.name}")
        if self.chosen.needs_training and self.chosen.name != "dense":
            lines.append("train or fine-tune it before you use it")
        return "\n".join(lines)


def plan(
    model: nn.Module,
    seq_len: int,
    batch: int = 1,
    goal: str = "latency",
    max_error: float | None = None,
    *,
    ranks: Sequence[float] = RANKS,
    mixtures: Sequence[int] = MIXTURES,
    example: Mapping[str, Tensor] | None = None,
    rounds: int = 7,
) -> Plan:
    """What to make of an encoder for texts of `seq_len` tokens, `batch` at a time.

    `goal`: latency, memory or size. `max_error`: the largest relative error of a layer; the rank is then also
    found from it. `example`: inputs of the model where it takes no token numbers. Raises UserError for an
    unknown goal, a length that the model does not take, and a model that needs an example.
    """
    if goal not in GOALS:
        raise not_allowed("goal", goal, GOALS)
    inputs = dict(example) if example is not None else _tokens(model, seq_len, batch)
    model = model.eval()
    found = [(_choice("dense", model, seq_len, None, None), model)]
    solver = "svd" if max_error is not None else "random"
    thin: list[tuple[str, float | None, nn.Module, float | None]] = []
    error: float | None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # layers that stay are no news here
        for share in ranks:
            made, report = factorize(model, share, solver)
            error = report.worst_error if max_error is not None else None
            if report.factored and (max_error is None or report.worst_error <= max_error):
                thin.append((f"low rank {share}", share, made, error))
        if max_error is not None:
            made, report = factorize(model, max_error=max_error)
            if report.factored:
                thin.append((f"low rank for error {max_error}", None, made, report.worst_error))
    found += [(_choice(name, made, seq_len, rank, None, error), made) for name, rank, made, error in thin]
    if max_error is None:
        for k in mixtures:
            for name, rank, made, _ in [("", None, model, None), *thin]:
                mixed = _linformer(made, seq_len, k)
                if mixed is not None:
                    label = f"{name} and Linformer {k}" if name else f"Linformer {k}"
                    found.append((_choice(label, mixed, seq_len, rank, k), mixed))
    measured = _measured(found, inputs, rounds)
    by = {
        "latency": lambda one: one.time_ratio,
        "memory": lambda one: one.memory_mib,
        "size": lambda one: (one.size_mib, one.time_ratio),
    }[goal]
    return Plan(measured, min(measured, key=by), goal)


def _tokens(model: nn.Module, seq_len: int, batch: int) -> dict[str, Tensor]:
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None:
        raise UserError(
            f"{type(model).__name__} names no vocabulary; give example={{name: tensor}}.",
            field="example",
            given=None,
        )
    longest = getattr(config, "max_position_embeddings", seq_len)
    if seq_len > longest:
        raise UserError(
            f"seq_len={seq_len} is more than the {longest} positions of this model.",
            field="seq_len",
            given=seq_len,
            nearest=longest,
        )
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(0, vocabulary, (batch, seq_len), generator=generator)}


def _linformer(model: nn.Module, seq_len: int, k: int) -> nn.Module | None:
    """The model with Linformer attention, None where it takes none or where the text is too short for it."""
    try:
        return linformerize(model, seq_len, k) if k < seq_len else None
    except UserError:
        return None


def _choice(
    name: str,
    model: nn.Module,
    seq_len: int,
    rank: float | None,
    projected: int | None,
    error: float | None = None,
) -> Choice:
    """Operations and bytes, from the layers of `model`."""
    operations = 0.0
    inner: set[int] = set()
    for module in model.modules():
        if isinstance(module, LED | CED):
            inner.update(id(part) for part in module.modules())
            operations += linear_operations(seq_len, shape_of(module).factored(module.rank))
        elif isinstance(module, nn.Linear) and id(module) not in inner:
            operations += linear_operations(seq_len, module.weight.numel())
        if hasattr(module, "num_attention_heads"):
            first: Any = next((part for part in module.modules() if isinstance(part, nn.Linear | LED)), None)
            if first is not None:
                k = module.projected if isinstance(module, LinformerAttention) else None
                operations += attention_operations(seq_len, first.in_features, k)
    nbytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return Choice(name, rank, projected, operations, nbytes / 2**20, error)


def _measured(
    found: Sequence[tuple[Choice, nn.Module]], inputs: Mapping[str, Tensor], rounds: int
) -> tuple[Choice, ...]:
    """Time and memory of a pass of each, the candidates taking turns with the dense model."""
    grown = [growth_mib(model, inputs) for _, model in found]
    taken: list[list[float]] = [[] for _ in found]
    order = list(range(len(found)))
    with torch.inference_mode():
        for _ in range(rounds):
            for index in order:
                start = time.perf_counter()
                found[index][1](**inputs)
                taken[index].append(time.perf_counter() - start)
            order.reverse()
    return tuple(
        replace(
            choice,
            seconds=statistics.median(mine),
            time_ratio=statistics.median(a / b for a, b in zip(mine, taken[0], strict=True)),
            memory_mib=choice.size_mib + grown_mib,
        )
        for (choice, _), mine, grown_mib in zip(found, taken, grown, strict=True)
    )


def growth_mib(model: nn.Module, inputs: Mapping[str, Tensor]) -> float:
    """What a pass adds to this process's memory; the first pass of a model also warms it up."""
    with torch.inference_mode():
        model(**inputs)
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        reset_peak()
        before = peak_mib()
        model(**inputs)
    return max(0.0, peak_mib() - before)
