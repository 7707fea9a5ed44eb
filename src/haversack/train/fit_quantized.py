"""Training a language model in the few bits it will be used in, by forward passes alone: the job of zeroqat.

Paper: ZeroQAT (arXiv 2509.00031, 2025); see gradient/zeroqat.py, which has the method.
What is here: the model is prepared (smoothed, fitted block by block, packed where it does not learn) into a
pack beside the output, from which steps go on; what was learned best on the rows kept apart is written as a
pack that runs without any of this. An interrupted training keeps its log, 40 bytes a step, and goes on by
playing it again. MODEL may itself be a prepared pack (zeroqat:until=prepared), made on a larger machine: then
nothing here needs PyTorch.
Cost: by the plan that is printed. Limits: as the method's.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic as clock
from typing import Any

import numpy as np

from haversack.core._files import write_atomically
from haversack.core._pack_writer import check_goal
from haversack.core.budget import Budget
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.memory import MemoryPlan
from haversack.core.pack import Pack, PackWriter, is_pack
from haversack.core.progress import Progress
from haversack.formats.tables import is_table, read_table
from haversack.models._hub_write import CARRIED
from haversack.run._source import Model, open_model
from haversack.train._quantized_plan import planned
from haversack.train._texts import Texts, texts_for
from haversack.train._training import finished, floats_only, training_folder, weights_crc32
from haversack.train.gradient._zeroqat_decoder import Bits, RoundedDecoder, float_matrices
from haversack.train.gradient._zeroqat_grid import OFF, packed
from haversack.train.gradient._zeroqat_prepare import (
    CLIPS_NAME,
    Preparing,
    clips_of,
    config_of,
    packed_arrays,
    prepare,
    write_plane,
    write_tensor,
)
from haversack.train.gradient._zeroqat_tasks import (
    Answers,
    PlainText,
    Task,
    examples_of,
    mark_of,
    split_examples,
)
from haversack.train.gradient.zeroqat import ZeroQat, ZeroQatStepper

PREPARED, STATE = "prepared.pack", "state.npz"
LOG_NAME = "zeroqat-log.npz"


@dataclass(frozen=True)
class Course:
    """`steps` of `rows` texts of `length` tokens at `rate` (None: the method's usual one); the rows kept
    apart are judged every `judge_every` steps."""

    steps: int = 8000
    rows: int = 16
    length: int = 256
    rate: float | None = None
    judge_every: int = 250
    seed: int = 0
    text: str = "text"
    label: str = "label"

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "length", "judge_every"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name}={value} is below 1.", field=name, given=value, nearest=1)
        if self.rate is not None and not (self.rate > 0 and math.isfinite(self.rate)):
            raise UserError(f"rate={self.rate} is not above 0.", field="rate", given=self.rate)


@dataclass(frozen=True)
class Quantized:
    """A written pack (None: ended before): figures on what was kept apart `before` the first step and, as
    `held_out`, of the best one, which is written; `taken` and `skipped` steps; `seconds` of this run."""

    path: Path | None
    bits: Bits
    variant: str
    before: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    best: int = 0
    taken: int = 0
    skipped: int = 0
    seconds: float = 0.0
    memory: MemoryPlan = field(default_factory=lambda: MemoryPlan(()), repr=False)

    def record(self) -> dict[str, Any]:
        """As `train fit --json` prints it."""
        return {
            "output": str(self.path or ""),
            "bits": asdict(self.bits),
            "variant": self.variant,
            "before": self.before,
            "held_out": self.held_out,
            "steps": {"best": self.best, "taken": self.taken, "skipped": self.skipped},
            "seconds": round(self.seconds, 2),
        }


def fit_quantized(
    target: str | Path,
    data: Sequence[Path] | Texts,
    goal: Path,
    method: ZeroQat,
    course: Course,
    *,
    budget: Budget | None = None,
    bar: Progress | None = None,
    checkpoint_seconds: float = 60.0,
    stop_after: int | None = None,
) -> Quantized:
    """Train `target` on `data` and write the pack `goal`, with `until=prepared` the one that steps start
    from. `stop_after` ends after so many steps without writing.

    Raises UserError for what does not go together, BudgetError for a budget that does not hold it.
    """
    began = clock()
    check_goal(goal)
    model = open_model(target)
    ready = is_pack(model.path) and CLIPS_NAME in getattr(model.source, "record").files  # noqa: B009
    if not ready:
        floats_only(model, "ZeroQAT")
    _require_groups(model, method)
    task = task_of(model, data, course, method)
    method.check(task.kind)
    memory = planned(
        model, method, course.rows, course.length, quantities=method.moves_quantities(task.kind), ready=ready
    )
    if budget is not None:
        budget.require({"ram_mib": memory.total_mib}, f"training {model.path.name}")
    how = preparing(method, course.seed)
    if method.until == "prepared":
        prepare(model, task.calibration(method.segments), how, goal, bar=bar)
        return Quantized(goal, method.rounding, method.variant, seconds=clock() - began, memory=memory)
    facts = {
        "job": "zeroqat",
        "method": str(method),
        "weights": model.path.name if ready else weights_crc32(model),
        "data": mark_of(task),
        **asdict(course),
    }
    with training_folder(goal, facts) as folder:
        place = model.path if ready else folder / PREPARED
        if not ready and not is_pack(place):
            prepare(model, task.calibration(method.segments), how, place, bar=None)
        start = open_model(place)
        _require_same_bits(start, method)
        stepper = started(start, method, task.kind, course.seed)
        taught = Taught(stepper, task, course, method, folder / STATE)
        if not taught.run(bar, checkpoint_seconds, stop_after):
            return taught.report(None, clock() - began, memory)
        best = stepper
        if taught.best < stepper.spsa.step:
            best = started(start, method, task.kind, course.seed)
            log = stepper.spsa.log
            best.replay(log[log["step"] < taught.best])
        write_trained(best.decoder, method, stepper, goal, {"steps": taught.best, **taught.figures})
        finished(folder)
    return taught.report(goal, clock() - began, memory)


class Taught:
    """The loop: steps, judgements, checkpoints. `figures` are those of the step `best` (0: none)."""

    def __init__(
        self, stepper: ZeroQatStepper, task: Task, course: Course, method: ZeroQat, path: Path
    ) -> None:
        self.stepper, self.task, self.course, self.path = stepper, task, course, path
        self.method = method
        self.rate = method.usual_rate if course.rate is None else course.rate
        self.best, self.figures, self.before = 0, dict[str, float](), dict[str, float]()
        if path.is_file():
            self._resume()
        else:
            self.before = self.figures = task.judged(stepper.decoder)

    def run(self, bar: Progress | None, checkpoint_seconds: float, stop_after: int | None) -> bool:
        """To the end of the course; False where `stop_after` ended it before."""
        stepper, course = self.stepper, self.course
        saved = clock()
        if bar is not None:
            bar.advance(stepper.spsa.step)
        while stepper.spsa.step < course.steps:
            if stop_after is not None and stepper.spsa.step >= stop_after:
                self.save()
                return False
            loss = stepper.step((self.task, stepper.spsa.step), self.rate)
            step = stepper.spsa.step
            if step % course.judge_every == 0 or step == course.steps:
                self._judge(step)
            if bar is not None:
                bar.advance(label=f"training, loss {loss:.3f}")
            if clock() - saved > checkpoint_seconds:
                self.save()
                saved = clock()
        return True

    def report(self, goal: Path | None, seconds: float, memory: MemoryPlan) -> Quantized:
        """What was done."""
        method, spsa = self.method, self.stepper.spsa
        return Quantized(
            *(goal, method.rounding, method.variant, self.before, self.figures, self.best),
            *(len(spsa.log), spsa.skipped, seconds, memory),
        )

    def _judge(self, step: int) -> None:
        now = self.task.judged(self.stepper.decoder)
        if math.isfinite(now["loss"]) and now["loss"] < self.figures["loss"]:
            self.best, self.figures = step, now

    def save(self) -> None:
        """Keep the log and the figures; the weights follow from them."""
        words = {"before": self.before, "figures": self.figures}
        figures = {
            f"{word}.{name}": np.float64(value)
            for word, each in words.items()
            for name, value in each.items()
        }
        write_atomically(
            self.path, packed_arrays({**self.stepper.state(), "best": np.int64(self.best), **figures})
        )

    def _resume(self) -> None:
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as held:
                state = {name: held[name] for name in held.files}
            self.stepper.restore(state)
        except (OSError, ValueError, KeyError) as error:
            advice = f"Remove {self.path.parent} to start anew."
            raise DamagedFileError(self.path, "it is no state of this training", advice=advice) from error
        self.best = int(state["best"])
        for name, value in state.items():
            word, dot, figure = name.partition(".")
            if dot and word in ("before", "figures"):
                getattr(self, word)[figure] = float(value)


def task_of(model: Model, data: Sequence[Path] | Texts, course: Course, method: ZeroQat) -> Task:
    """What is learned from. Raises UserError for tables with other files beside them, and of one class."""
    if isinstance(data, Texts) or not any(is_table(path) for path in data):
        return PlainText(texts_for(model, data, course.length), course.rows, course.length, course.seed)
    if len(data) > 1:
        raise UserError(
            "give one table alone, or plain texts.", field="data", given=[str(one) for one in data]
        )
    table = read_table(data[0], course.text, course.label)
    if len(table.classes) < 2:
        raise UserError(f"{data[0]} has rows of one class only.", field="data", given=table.classes[0])
    encode = model.tokenizer().encode
    examples = examples_of(
        table, table.classes, lambda text: list(encode(text, special=False)), course.length
    )
    learned, kept = split_examples(examples, course.seed)
    if not kept:
        raise UserError(f"{data[0]} has no class with two rows.", field="data", given=len(examples))
    return Answers(learned, kept, course.rows, course.length, course.seed)


def preparing(method: ZeroQat, seed: int) -> Preparing:
    """How the method prepares a model."""
    smooth: float | str | None = "given" if method.alpha is None else method.alpha
    if method.inputs >= OFF or not method.smooth:
        smooth = None
    kept = "all" if method.variant == "full" else "query-value"
    return Preparing(method.rounding, kept, smooth, method.epochs, seed=seed)


def started(model: Model, method: ZeroQat, kind: str, seed: int) -> ZeroQatStepper:
    """A stepper before its first step, on the prepared pack of `model`."""
    pack: Any = model.source
    pack.verify_once(keep_cached=False)
    factors = method.moves_quantities(kind) and method.smooth and method.inputs < OFF
    decoder = RoundedDecoder(model, method.rounding, float_matrices(model), clips_of(pack), factors=factors)
    return method.stepper(decoder, kind, seed)


def write_trained(
    decoder: RoundedDecoder, method: ZeroQat, stepper: ZeroQatStepper, goal: Path, figures: dict[str, float]
) -> None:
    """The pack of `decoder` as it stands: codes with D and z, vectors smoothed, all else as it was."""
    pack: Any = decoder.model.source
    bits = decoder.bits
    with PackWriter(goal) as writer:
        first, last = decoder.architecture.first_tensors(), decoder.architecture.last_tensors()
        for name in first:
            copy_tensor(writer, pack, name)
        for block in decoder.architecture.blocks:
            tensors = decoder.tensors(block)
            for name in block.tensors():
                values = tensors.get(name)
                if values is None:
                    copy_tensor(writer, pack, name)
                elif values.ndim == 2 and bits.weights < OFF:
                    write_plane(writer, name, packed(values, bits.weights, bits.group, decoder.clips[name]))
                else:
                    write_tensor(writer, name, values, "f16" if values.ndim == 2 else "f32")
        for name in last:
            copy_tensor(writer, pack, name)
        for name in CARRIED:
            if name in pack.record.files:
                writer.add_file(name, pack.read_file(name))
        writer.add_file(LOG_NAME, packed_arrays(_log(stepper)))
        plan = {"precision": f"zeroqat {bits}", "gradient": str(method), "activations": "f32"}
        writer.finish(
            {"architecture": config_of(decoder.model), "plan": plan, "provenance": {"zeroqat": figures}}
        )


def _log(stepper: ZeroQatStepper) -> dict[str, Any]:
    log = stepper.spsa.log
    history = {"plus": np.array(stepper.history.plus), "minus": np.array(stepper.history.minus)}
    return {
        **{name: log[name] for name in log.dtype.names or ()},
        **history,
        "seed": np.int64(stepper.spsa.seed),
    }


def copy_tensor(writer: PackWriter, pack: Pack, name: str) -> None:
    """A tensor of `pack`, with its form where it has one, as it lies there."""
    form = pack.forms.get(name)
    names = [name] if form is None else [part for part in pack.tensors if part.startswith(f"{name}.")]
    for part in names:
        entry = pack.tensors[part]
        writer.add_tensor(part, entry.kind, entry.shape, [pack.bytes(part)], entry.group, entry.layout)
    if form is not None:
        writer.add_form(name, form)


def _require_groups(model: Model, method: ZeroQat) -> None:
    if method.group is None:
        return
    for block in model.architecture.blocks:
        for linear in block.matrices():
            if linear.inputs % method.group:
                raise UserError(
                    f"group={method.group} does not divide the {linear.inputs} inputs of {linear.weight}; "
                    f"use group={math.gcd(linear.inputs, method.group)}.",
                    field="group",
                    given=method.group,
                    nearest=math.gcd(linear.inputs, method.group),
                )


def _require_same_bits(model: Model, method: ZeroQat) -> None:
    source: Any = model.source
    kept = "all" if method.variant == "full" else "query-value"
    wanted = {**asdict(method.rounding), "kept": kept}
    found = source.record.provenance.get("zeroqat", {})
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(
                f"{model.path} was prepared with {name}={found.get(name)}, and {value} is asked for; give "
                "the same, or the checkpoint.",
                field=name,
                given=value,
                nearest=found.get(name),
            )
