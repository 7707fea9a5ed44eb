"""What every training shares, without PyTorch: its folder of checkpoints, its memory plan, its report.

A training of OUTPUT keeps its state in OUTPUT.training beside it until OUTPUT is written. The same command
goes on from there; one with other settings is refused, since its steps would not belong together.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.core._files import explain_write_errors, remove, write_atomically
from haversack.core.errors import DamagedFileError, MissingExtraError, UserError
from haversack.core.memory import MemoryPlan
from haversack.models._architecture import Architecture
from haversack.run._source import Model

JOB = "job.json"
PROCESS_MIB, PYTORCH_MIB = 120, 320
HEAD_ROWS = 512
"""Positions whose logits exist at once."""
COMPUTE = ("f32", "bf16")


@dataclass(frozen=True)
class Learning:
    """How long and how fast: `steps` of `rows` texts of `length` tokens. `matrix_rate` is Muon's, `rate`
    AdamW's. `compute`: numbers that matrix products are taken in, f32 or bf16. `threads`: None leaves it to
    PyTorch; it is part of what makes a run repeatable."""

    steps: int = 600
    rows: int = 16
    length: int = 256
    matrix_rate: float = 0.02
    rate: float = 0.003
    warm_up_steps: int = 20
    half_life_steps: float = 20.0
    seed: int = 0
    compute: str = "f32"
    threads: int | None = None

    def __post_init__(self) -> None:
        for field in ("steps", "rows", "length", "warm_up_steps"):
            value = getattr(self, field)
            if value < 1:
                raise UserError(f"{field}={value} is below 1.", field=field, given=value, nearest=1)
        for field in ("matrix_rate", "rate", "half_life_steps"):
            value = getattr(self, field)
            if not value > 0 or not math.isfinite(value):
                raise UserError(f"{field}={value} is not above 0.", field=field, given=value)
        if self.compute not in COMPUTE:
            from haversack.core.errors import not_allowed

            raise not_allowed("compute", self.compute, COMPUTE)


@dataclass(frozen=True)
class Report:
    """What a training did: `loss` of its first and last tenth, figures on held-out text by name, seconds of
    all its runs together."""

    steps: int
    tokens: int
    loss: tuple[float, float]
    held_out: Mapping[str, float]
    seconds: float

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "loss": {"first": round(self.loss[0], 5), "last": round(self.loss[1], 5)},
            "held_out": {name: round(value, 5) for name, value in self.held_out.items()},
            "seconds": round(self.seconds, 2),
        }


def torch_part(name: str, job: str) -> Any:
    """The module `name`, which imports PyTorch; its absence ends in one sentence."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise MissingExtraError(job, "PyTorch", "workshop") from error


def floats_only(model: Model, job: str) -> None:
    """Raises UserError unless `model` is a checkpoint folder whose every tensor is a float of its own."""
    if not getattr(model.source, "config", None) or not model.path.is_dir():
        raise UserError(
            f"{job} starts from a checkpoint folder, and {model.path} is none; give the original checkpoint.",
            field="model",
            given=str(model.path),
        )
    for name in model.architecture.tensors():
        entry = model.source.tensors.get(name)
        if entry is None and name not in getattr(model.source, "forms", {}):
            raise DamagedFileError(model.path, f"the tensor {name} is missing", field=name)
        if entry is None or entry.kind not in ("f32", "f16", "bf16"):
            stored = "in parts" if entry is None else f"as {entry.kind}"
            raise UserError(
                f"{job} starts from floats, and {model.path} stores {name} {stored}; give the original "
                "checkpoint.",
                field="model",
                given=stored,
                nearest="f16",
            )


def weights_crc32(model: Model) -> str:
    """Tells whether these are the weights of an earlier run."""
    found = 0
    for name in model.architecture.tensors():
        found = zlib.crc32(model.source.bytes(name), zlib.crc32(name.encode(), found))
    return f"{found:08x}"


@contextlib.contextmanager
def training_folder(goal: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """The folder GOAL.training for the state of a run described by `facts`, which `finished` removes.

    What is refused before anything was learned leaves no folder behind. Raises UserError when it holds a run
    of other facts, or when another process trains there.
    """
    folder = goal.with_name(f"{goal.name}.training")
    job = json.loads(json.dumps(facts))
    with explain_write_errors(folder):
        folder.mkdir(exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder} is in use: another process trains {goal.name}.", field="output", given=str(goal)
            ) from error
        path = folder / JOB
        if not path.is_file() or _require_same(path, job, goal):
            write_atomically(path, (json.dumps(job, indent=1) + "\n").encode())
        try:
            yield folder
        except BaseException:
            if {each.name for each in folder.iterdir()} <= {JOB, ".lock"}:
                remove(folder)
            raise


def finished(folder: Path) -> None:
    """What was trained is written: its state is not needed any more."""
    remove(folder)


def forget_rate(folder: Path) -> None:
    """The run in `folder` cannot go on at its rate: the next one may bring another."""
    path = folder / JOB
    job = json.loads(path.read_text(encoding="utf-8"))
    (folder / "rate.json").unlink(missing_ok=True)
    write_atomically(path, (json.dumps({**job, "rate": None}, indent=1) + "\n").encode())


def _require_same(path: Path, job: Mapping[str, Any], goal: Path) -> bool:
    """Raises UserError unless the run that was begun is this one; True where it left its rate open."""
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(
            path, "it is not JSON", advice=f"Remove {path.parent} to start anew."
        ) from error
    if not isinstance(begun, dict):
        raise DamagedFileError(path, "it is no job", advice=f"Remove {path.parent} to start anew.")
    open_rate = "rate" in begun and begun["rate"] is None
    fields = [
        field for field in job if begun.get(field) != job[field] and not (open_rate and field == "rate")
    ]
    if fields:
        first = fields[0]
        raise UserError(
            f"{path.parent} holds the beginning of another training ({first} was {_shown(begun.get(first))} "
            f"and is {_shown(job[first])}); give the same settings to go on, or remove it to start anew.",
            field=first,
            given=job[first],
            nearest=begun.get(first),
        )
    return open_rate


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]


def memory_plan(architecture: Architecture, learned: int, rows: int, length: int, blocks: int) -> MemoryPlan:
    """Of a training of `learned` numbers through `blocks` blocks: all weights in f32, the learned ones five
    times more (gradient, two means, average, copy), what the way back needs of a block for each token, logits
    of HEAD_ROWS positions."""
    tokens = rows * length
    width, inner = architecture.width, max(linear.outputs for linear in architecture.blocks[0].matrices())
    weights = sum(math.prod(shape) for shape in architecture.tensors().values())
    inside = (14 * width + 6 * inner) * tokens * blocks
    states = 10 * tokens * width
    logits = 4 * min(HEAD_ROWS, tokens) * architecture.vocabulary
    return MemoryPlan(
        (
            ("process", PROCESS_MIB << 20),
            ("PyTorch", PYTORCH_MIB << 20),
            ("weights in f32", 4 * weights),
            ("what is learned", 4 * 6 * learned),
            ("the way back through blocks", 4 * inside),
            ("hidden states", 4 * states),
            ("logits", 4 * logits),
        )
    )
