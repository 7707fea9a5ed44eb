"""`haversack train fit` on labelled rows: the training of one delta, or the comparison of methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from haversack.cli._output import print_json, show_memory, table
from haversack.core.errors import UserError

if TYPE_CHECKING:
    from haversack.core.memory import MemoryPlan
    from haversack.plan._training_front import Front
    from haversack.train.fit_labels import FittedDelta

TEXTS = ("family", "form", "steps", "rows", "compute")
LABELS = (
    *("gradient", "precision", "compare", "epochs", "batch", "tune"),
    *("head", "text_column", "label_column", "skip_broken"),
)
_WRITTEN = {"form": "as"}


def refuse_options(names: tuple[str, ...], why: str) -> None:
    """Raises UserError for an option of `names` on the command line, which is for the other kind of data."""
    import click
    from click.core import ParameterSource

    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = _WRITTEN.get(name, name).replace("_", "-")
            value = context.params[name]
            raise UserError(
                f"--{option} is for {why}; leave it out.",
                field=name,
                given=value if isinstance(value, int | float | str | bool) else str(value),
            )


def show_plan(model: str, methods: str, memory: MemoryPlan, *, json: bool) -> None:
    """What `--plan` prints of a training without labels."""
    if json:
        said = memory.record()
        print_json(
            {"model": model, "methods": methods, "plan_mib": said["lines"], "ram_mib": said["total_mib"]}
        )
        return
    print(f"methods: {methods}")
    print(memory.text())


def fit_on_labels(
    target: str,
    data: Path,
    output: Path,
    *,
    slots: tuple[str | None, str | None, str | None],
    ram_mib: float | None,
    compare: bool,
    epochs: int,
    batch: int,
    rate: float | None,
    tune: bool,
    head: str,
    columns: tuple[str, str],
    skip_broken: bool,
    length: int | None,
    plan: bool,
    threads: int | None,
    seed: int,
    checkpoint_seconds: float,
    json: bool,
) -> None:
    """Train and print; see cli/train.py."""
    from haversack.core.budget import Budget
    from haversack.core.memory import peak_mib
    from haversack.core.progress import progress
    from haversack.train.fit_labels import Rows, Wish, fit_labels, prepare

    rows = Rows(data, columns[0], columns[1], skip_broken, head, length)
    wish = Wish(*slots, Budget(ram_mib=ram_mib), epochs, batch, rate, seed, threads, tune)
    if plan:
        if compare:
            raise UserError("--plan is for one training; leave --compare out.", field="plan", given=True)
        with progress(f"planning {target}") as bar:
            ready = prepare(target, rows, wish, bar)
        if json:
            print_json(ready.record())
            return
        print(f"methods: {ready.choice.scheme.label}")
        print(f"why: {ready.choice.why}")
        print(ready.choice.scheme.memory.text())
        return
    if compare:
        from haversack.plan._training_front import compare_trainings

        with progress(f"comparing trainings of {target}") as bar:
            front = compare_trainings(target, rows, output, wish, bar=bar)
        if json:
            print_json(front.record())
        else:
            _show_front(front)
        return
    with progress(f"training {target}") as bar:
        done = fit_labels(target, rows, output, wish, bar=bar, checkpoint_seconds=checkpoint_seconds)
    assert done is not None
    if json:
        ram = {"planned": round(done.memory.total_mib, 2), "measured": round(peak_mib(), 2)}
        print_json(done.record() | {"ram_mib": ram})
        return
    _show(done)
    show_memory(done.memory)


def _show(done: FittedDelta) -> None:
    scheme, course, saved = done.choice.scheme, done.course, done.saved
    before, after = course.before, done.after
    for path, what in done.examples.left_out:
        print(f"left out: {path} ({what})")
    if done.new_head:
        print(f"a new head of {len(done.classes)} classes: {', '.join(done.classes[:12])}")
    print(f"methods: {scheme.label}")
    print(f"why: {done.choice.why}")
    first, last = course.edges
    print(
        f"{course.done} steps at rate {done.lessons.rate:.3g} on {len(done.examples.learned)} rows, "
        f"{course.seconds:.0f} s; loss {first:.4f} -> {last:.4f}"
    )
    print(
        f"held-out accuracy {100 * before.accuracy:.1f} % -> {100 * after.accuracy:.1f} %, loss "
        f"{before.loss:.4f} -> {after.loss:.4f} ({len(done.examples.held_out)} rows)"
    )
    print(
        f"delta: {done.path}, {done.nbytes / 1024:.0f} KiB, {done.tensors} tensors, "
        f"{scheme.numbers:,} numbers learned"
    )
    planned = "" if saved.planned is None else f"planned {saved.planned / 1024:,.0f} KiB, "
    print(f"saved for the way back: {planned}measured {saved.measured / 1024:,.0f} KiB")


def _show_front(front: Front) -> None:
    columns = ("methods", "numbers", "rate", "before", "after", "saved KiB", "MiB", "s", "KiB", "")
    rows = []
    for arm in front.arms:
        if arm.record is None:
            rows.append([arm.label, *["-"] * 8, arm.reason or ""])
            continue
        held, ram = arm.record["held_out"], arm.peak_mib
        rows.append(
            [
                arm.label,
                f"{arm.record['learned_numbers']:,}",
                f"{arm.record['rate']:.3g}",
                f"{100 * held['before']['accuracy']:.1f} %",
                f"{100 * held['after']['accuracy']:.1f} %",
                f"{1024 * arm.record['saved_mib']['measured']:,.0f}",
                f"{ram:.1f}",
                f"{arm.record['seconds']:.1f}",
                f"{arm.record['delta']['nbytes'] / 1024:.0f}",
                ("plain " if arm.plain else "") + ("front" if arm in front.best else ""),
            ]
        )
    table(columns, rows, right=columns[1:9])
    print("before, after: accuracy on held-out rows; saved: for the way back; MiB: peak of a fresh process")
    print(f"report: {front.report}")
    show_memory()
