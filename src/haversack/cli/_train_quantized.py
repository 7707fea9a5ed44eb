"""`haversack train fit --gradient zeroqat`: training in few bits, on plain texts or a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from haversack.cli._output import print_json, show_memory
from haversack.cli._train_labels import refuse_options, show_plan

if TYPE_CHECKING:
    from haversack.core.memory import MemoryPlan
    from haversack.train.fit_quantized import Course
    from haversack.train.gradient.zeroqat import ZeroQat

OTHERS = (
    *("parameters", "precision", "compare", "epochs", "batch", "tune", "head", "skip_broken"),
    *("family", "form", "compute"),
)


def is_quantized(gradient: str | None) -> bool:
    """Whether the slot gradient is filled by a method that has this job."""
    return gradient is not None and gradient.partition(":")[0] == "zeroqat"


def fit_quantized_model(
    target: str,
    data: list[Path],
    output: Path,
    *,
    gradient: str,
    ram_mib: float | None,
    steps: int | None,
    rows: int | None,
    length: int | None,
    rate: float | None,
    columns: tuple[str, str],
    threads: int | None,
    seed: int,
    checkpoint_seconds: float,
    plan: bool,
    json: bool,
) -> None:
    """Train and print; see cli/train.py."""
    from haversack.core import index
    from haversack.core.budget import Budget
    from haversack.core.memory import peak_mib
    from haversack.core.progress import progress
    from haversack.kernels import set_threads
    from haversack.train.fit_quantized import Course, fit_quantized
    from haversack.train.gradient.zeroqat import ZeroQat

    refuse_options(OTHERS, "other methods than zeroqat")
    method = index.create("train", "gradient", gradient)
    assert isinstance(method, ZeroQat)
    if threads is not None:
        set_threads(threads)
    usual = Course()
    course = Course(
        usual.steps if steps is None else steps,
        usual.rows if rows is None else rows,
        usual.length if length is None else length,
        rate,
        seed=seed,
        text=columns[0],
        label=columns[1],
    )
    if plan:
        show_plan(target, str(method), planned_for(target, data, method, course, ram_mib), json=json)
        return
    with progress(f"training {target} in few bits", total=course.steps) as bar:
        done = fit_quantized(
            *(target, data, output, method, course),
            budget=Budget(ram_mib=ram_mib),
            bar=bar,
            checkpoint_seconds=checkpoint_seconds,
        )
    if json:
        ram = {"planned": round(done.memory.total_mib, 2), "measured": round(peak_mib(), 2)}
        print_json(done.record() | {"ram_mib": ram})
        return
    if method.until == "prepared":
        print(f"prepared: {output}; haversack train fit {output} --gradient {method} goes on from it")
    else:
        skipped = f", {done.skipped} skipped (loss not finite)" if done.skipped else ""
        print(f"{done.taken} steps{skipped}, {done.seconds:.0f} s; the best is step {done.best}")
        words = ", ".join(
            f"held-out {name} {done.before[name]:.4f} -> {value:.4f}" for name, value in done.held_out.items()
        )
        print(f"{words}, as {done.bits}")
        print(f"pack: {output}; it runs with f32 activations")
    show_memory(done.memory)


def planned_for(
    target: str, data: list[Path], method: ZeroQat, course: Course, ram_mib: float | None
) -> MemoryPlan:
    """What the training would hold, before anything is read but headers. Raises BudgetError."""
    from haversack.core.budget import Budget
    from haversack.core.pack import is_pack
    from haversack.formats.tables import is_table
    from haversack.run._source import open_model
    from haversack.train._quantized_plan import planned
    from haversack.train.gradient._zeroqat_prepare import CLIPS_NAME

    model = open_model(target)
    ready = is_pack(model.path) and CLIPS_NAME in getattr(model.source, "record").files  # noqa: B009
    kind = "table" if any(is_table(path) for path in data) else "text"
    method.check(kind)
    moves = method.moves_quantities(kind)
    memory = planned(model, method, course.rows, course.length, quantities=moves, ready=ready)
    Budget(ram_mib=ram_mib).require({"ram_mib": memory.total_mib}, f"training {model.path.name}")
    return memory
