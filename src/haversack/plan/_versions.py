"""What is packed of a target that evolves: an adapter merged into it, the family that the pack belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core._files import partial_path, remove
from haversack.core._record import FamilyEntry
from haversack.core.errors import UserError
from haversack.formats.safetensors import HubFolder
from haversack.models._adapter import merged_tensors, read_adapter, require_above, require_tokenizer
from haversack.models._bundled import model_folder
from haversack.models._family import FAMILY_FILE, declared_family, family_json, family_of, require_family
from haversack.models._hub_write import config_text, write_folder
from haversack.models.language import read_architecture

if TYPE_CHECKING:
    from haversack.plan._job import Job


def refuse_version(job: Job, what: str) -> None:
    """Raises UserError where an adapter or a family is asked for with a model that has none."""
    field = "adapter" if job.adapter is not None else "family" if job.family is not None else None
    if field is not None:
        raise UserError(
            f"--{field} is for checkpoints of decoder language models; {job.model} is {what}.",
            field=field,
            given=job.model,
        )


@contextmanager
def model_of(job: Job) -> Iterator[Path]:
    """The checkpoint folder that is packed: the model's own, or, with an adapter, one beside the output that
    has it merged and is removed at the end.

    Raises UserError for an adapter that is not of this base or touches the anchor of its family.
    """
    folder = model_folder(job.model)
    if job.adapter is None:
        yield folder
        return
    source: Any = HubFolder.open(folder)
    architecture = read_architecture(source.config)
    adapter = read_adapter(job.adapter, architecture)
    require_tokenizer(job.adapter, folder)
    family = family_of_job(job, source)
    said = declared_family(adapter)
    if said is not None:
        require_family(source, architecture, said, f"the adapter {job.adapter}")
        family = family or said
    if family is not None:
        require_above(adapter, family.anchor_layers, family.name)
    scratch = partial_path(job.output)
    scratch.mkdir()
    try:
        goal = scratch / folder.resolve().name
        texts = {"config.json": config_text(source.config)}
        if family is not None:
            texts[FAMILY_FILE] = family_json(family)
        write_folder(goal, merged_tensors(source, architecture, adapter.pairs), texts, carry=folder)
        yield goal
    finally:
        remove(scratch)


def family_of_job(job: Job, source: Any) -> FamilyEntry | None:
    """The family that the pack of `source` belongs to: that of `job.family` where it is given, else what the
    folder's own family.json says.

    Raises UserError when the anchor of `source` is another.
    """
    architecture = read_architecture(source.config)
    own = family_of(source, architecture)
    if job.family is None:
        return own
    from haversack.run._source import open_source

    found = declared_family(open_source(job.family))
    if found is None:
        raise UserError(
            f"{job.family} belongs to no family; give a draft made by haversack train draft.",
            field="family",
            given=job.family,
        )
    require_family(source, architecture, found, job.family)
    return found


def version_facts(job: Job, family: FamilyEntry | None) -> list[tuple[str, str]]:
    """Lines of the report."""
    found = []
    if job.adapter is not None:
        found.append(("adapter", f"{job.adapter.resolve().name}, merged before packing"))
    if family is not None:
        anchor = f"anchor of {family.anchor_layers} blocks, {family.anchor_sha256[:12]}"
        found.append(("family", f"{family.name}: {anchor} (in float, before packing)"))
    return found
