"""The main job: a model and a budget in, a pack and its report out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core import index
from haversack.core._files import explain_write_errors, partial_path, remove, remove_stale_partials
from haversack.core._pack_writer import check_goal
from haversack.core.budget import Budget
from haversack.core.device import Device
from haversack.core.errors import UserError, not_allowed
from haversack.core.measurement import machine
from haversack.core.memory import MemoryPlan
from haversack.core.pack import PackWriter
from haversack.models._borrowed import open_folder
from haversack.models._gguf import is_gguf
from haversack.models.audio import is_speech
from haversack.models.language import is_encoder, is_text_to_text
from haversack.models.tokenizers import can_be_made, tokenizer_json
from haversack.plan._candidates import OBJECTIVES, Candidate
from haversack.plan._sealing import for_sealing
from haversack.plan._structure import full_structure
from haversack.plan._versions import model_of, refuse_version
from haversack.shrink._pipeline import Policy
from haversack.shrink.structure._packed import Layer

if TYPE_CHECKING:
    from haversack.plan._sensitivity import LayerBits

CALIBRATION_TOKENS = 32_768
# Files of a checkpoint folder that belong into its pack, besides the weights.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "LICENCE")
RECORD_NBYTES = 96 << 10  # pack.json, report.html and the weights' header, about


@dataclass(frozen=True)
class Job:
    """What the user asked for.

    `effort_s` bounds the search; the rest is named as in `haversack pack --help`.
    """

    model: str
    output: Path
    device: Device
    budget: Budget
    objective: str = "quality"
    effort_s: float = 120.0
    precision: str | None = None
    structure: str | None = None
    architecture: str | None = None
    activations: str | None = None
    residency: str | None = None
    cache_type: str | None = None
    policy: Policy = field(default_factory=Policy)
    calibration: Path | None = None
    evaluation: Path | None = None
    calibration_tokens: int = CALIBRATION_TOKENS
    work_ram_mib: float | None = None
    seed: int = 0
    requantize: str | None = None
    key: Path | None = None
    """The file of the key that the pack is sealed with; None: not sealed."""
    attention: str | None = None
    adapter: Path | None = None
    """A PEFT adapter that is merged into the model first."""
    family: str | None = None
    """A draft, or another model of the family that the pack will belong to."""

    def __post_init__(self) -> None:
        if self.attention is not None:
            index.create("run", "attention", self.attention)
        if self.objective not in OBJECTIVES:
            raise not_allowed("objective", self.objective, OBJECTIVES)
        if self.structure is not None:
            full_structure(self.structure)
        if self.architecture is not None and self.architecture != "none":
            name = index.create("shrink", "architecture", self.architecture).name
            raise UserError(
                f"architecture {name} makes no packs yet; use none here.",
                field="architecture",
                given=self.architecture,
                nearest="none",
            )
        if self.device.runtime != "python":
            raise UserError(
                f"{self.device.name} does not run language packs (its runtime is {self.device.runtime}).",
                field="device",
                given=self.device.name,
                nearest="raspberry-pi-zero-2w",
            )


@dataclass(frozen=True)
class Outcome:
    """The written pack, the chosen candidate, all candidates, and what the packing took."""

    pack: Path
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    budget: Budget
    objective: str
    seconds: float
    memory: MemoryPlan
    layers: tuple[Layer, ...] = ()
    """What a structure method did to each matrix of the pack."""
    sensitivity: tuple[LayerBits, ...] = ()
    """What layers lose at fewer bits, where that was measured, and the bits of `mixed`."""
    advice: str | None = None
    """Which plan without the structure is better, where one is predicted to be."""

    def record(self) -> dict[str, Any]:
        """As `pack --json` prints it."""
        return {
            "pack": str(self.pack),
            "plan": self.chosen.plan.record(),
            "candidates": [candidate.record(self.budget) for candidate in self.candidates],
            "layers": [layer.record() for layer in self.layers],
            "sensitivity": [layer.record() for layer in self.sensitivity],
            "advice": self.advice,
            "seconds": round(self.seconds, 2),
        }


def device_budget(budget: Budget, device: Device) -> Budget:
    """`budget` with the device's memory and storage as limits where none is set."""
    return replace(
        budget,
        ram_mib=budget.ram_mib if budget.ram_mib is not None else device.ram_mib,
        storage_mib=budget.storage_mib if budget.storage_mib is not None else device.storage_mib,
    )


def pack_files(folder: Path) -> dict[str, bytes | Path]:
    """What of a checkpoint belongs into its pack besides the weights: tokenizer and licence, where it has
    them. A tokenizer of older files is made here, once for all."""
    found: dict[str, bytes | Path] = {
        name: folder / name for name in (*TOKENIZER_FILES, *LICENCE_FILES) if (folder / name).is_file()
    }
    if "tokenizer.json" not in found and can_be_made(folder):
        found["tokenizer.json"] = tokenizer_json(folder)
    return found


def add_files(writer: PackWriter, folder: Path) -> None:
    """Write the checkpoint's `pack_files` into a pack."""
    for name, data in pack_files(folder).items():
        writer.add_file(name, data)


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` for candidate packs, removed at the end whatever happens."""
    remove_stale_partials(output)
    folder = partial_path(output)
    with explain_write_errors(output):
        folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


def pack_model(job: Job, tell: Callable[[str], None] = lambda text: None) -> Outcome:
    """Search, measure, choose, write. Raises UserError (BudgetError) before any work when nothing can fit."""
    check_goal(job.output)
    job = for_sealing(job)
    if is_gguf(job.model):
        refuse_version(job, "a GGUF file")
        from haversack.plan._gguf_job import GgufJob
        from haversack.plan._language_job import pack_language

        gguf = GgufJob.of(job.model, job.precision, job.requantize)
        return pack_language(job, gguf.model, gguf, tell)
    if job.requantize is not None:
        raise UserError(
            f"--requantize is for GGUF files; {job.model} is none.", field="requantize", given=job.requantize
        )
    with model_of(job) as folder:
        return _pack_folder(job, folder, tell)


def _pack_folder(job: Job, folder: Path, tell: Callable[[str], None]) -> Outcome:
    source: Any = open_folder(folder)
    apart = is_encoder(source.config) or is_speech(source.config) or is_text_to_text(source.config)
    if job.key is not None and apart:
        raise UserError(
            f"{job.model} is no decoder language model, and only these are sealed.",
            field="seal",
            given=job.model,
        )
    if job.attention is not None and apart:
        raise UserError(
            f"--attention is for decoder language models; {job.model} is none.",
            field="attention",
            given=job.attention,
        )
    if apart:
        refuse_version(job, "no decoder language model")
    if is_encoder(source.config):
        from haversack.plan._encoder_job import pack_encoder

        return pack_encoder(job, source, tell)
    if is_speech(source.config):
        from haversack.plan._speech_job import pack_speech

        return pack_speech(job, source, tell)
    from haversack.plan._language_job import pack_language

    return pack_language(job, source, None, tell)


def half_of_this_machine_mib() -> float:
    """The default of `--work-ram-mib`."""
    return float(machine()["ram_mib"]) / 2
