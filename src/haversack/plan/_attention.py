"""The attention that a pack names in its plan, and what it needs beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core import index
from haversack.core.memory import MIB, MemoryPlan
from haversack.run._source import open_model
from haversack.run.attention._predictor import FILE
from haversack.run.attention._prompt import predictor_of

if TYPE_CHECKING:
    from haversack.plan._job import Job


TEACHING_MIB = 320
"""PyTorch and the steps of a predictor that is taught."""


def teaching_memory(job: Job) -> MemoryPlan:
    """What `attention_of` takes beside the packing."""
    method: Any = None if job.attention is None else index.create("run", "attention", job.attention)
    teaches = getattr(method, "predicts", False) and not method.predictor
    return MemoryPlan((("teaching borders", TEACHING_MIB * MIB),) if teaches else ())


@dataclass(frozen=True)
class Chosen:
    """Entries of the plan, files of the pack and lines of the report; empty where nothing was asked for."""

    plan: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()


def attention_of(
    job: Job, pack: Path, activations: str, texts: Callable[[], Sequence[Any]], scratch: Path
) -> Chosen:
    """What `job.attention` adds to the pack whose weights are those of `pack`.

    A method that predicts borders is taught on `texts()`, token arrays, by the pack's own attention. Raises
    MissingExtraError where that needs PyTorch and it is absent, UserError for texts that are too few.
    """
    if job.attention is None:
        return Chosen()
    method: Any = index.create("run", "attention", job.attention)
    if not getattr(method, "predicts", False):
        return Chosen({"attention": str(method)})
    plan = {"attention": str(replace(method, predictor=""))}
    if method.predictor:
        path = Path(method.predictor)
        predictor_of(method, open_model(pack))
        return Chosen(plan, {FILE: path.read_bytes()})
    taught = import_module("haversack.train.boundaries").train_boundary_predictor(
        pack, list(texts()), seed=job.seed, activations=activations
    )
    path = scratch / FILE
    taught.predictor.write(path)
    scores, plain = taught.scores, taught.baseline
    said = (
        f"F1 {scores.f1:.2f} on text it was not taught (precision {scores.precision:.2f}, recall "
        f"{scores.recall:.2f}); borders at equal distances {plain.f1:.2f}"
    )
    return Chosen(plan, {FILE: path.read_bytes()}, (("boundary predictor", said),))
