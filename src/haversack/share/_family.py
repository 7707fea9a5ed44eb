"""Whether a draft and a model belong together, by hash: their tokens, their anchor, the draft model
itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core.errors import UserError
from haversack.models import _family as models_family

if TYPE_CHECKING:
    from haversack.run._engine import Engine
    from haversack.run._source import Model


@dataclass(frozen=True)
class Family:
    """What a pack says of the family that it is of; empty where it is of none. Targets of a family share its
    anchor's weights, and so does its draft."""

    name: str = ""
    anchor: str = ""


def family_of(model: Model) -> Family:
    """What the pack declares, or a checkpoint folder's family.json once its anchor has that hash.

    Raises UserError for a folder whose anchor is another than it says.
    """
    found = models_family.family_of(model.source, model.architecture)
    return Family() if found is None else Family(found.name[:200], found.anchor_sha256)


def tokenizer_hash(model: Model) -> bytes:
    """SHA-256 of every token's number and text: equal where numbers mean the same."""
    table = sorted((number, text) for text, number in model.tokenizer().table().items())
    return hashlib.sha256(json.dumps(table).encode()).digest()


def version_of(model: Model) -> str:
    """What tells this version of a model from others: changes with its weights (of a pack), or with its files
    (of a folder)."""
    record = getattr(model.source, "record", None)
    if record is not None:
        said = repr([(name, entry.size, entry.pieces) for name, entry in sorted(record.files.items())])
    else:
        files = sorted(Path(file) for file in model.source.files)
        said = repr([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def draft_hash(engine: Engine) -> bytes:
    """SHA-256 of all that decides a draft model's distributions: its weights as they are stored, its shapes,
    and the types that it computes in."""
    source: Any = engine.model.source
    kinds = (engine.activations, engine.cache_type, str(engine.slots.attention))
    digest = hashlib.sha256(repr((engine.architecture, kinds)).encode())
    record = getattr(source, "record", None)
    if record is not None:  # its files carry checksums, which were checked when it was opened
        for name, entry in sorted(record.files.items()):
            digest.update(repr((name, entry.size, entry.pieces)).encode())
    else:
        for name in sorted(engine.architecture.tensors()):
            digest.update(name.encode())
            digest.update(source.bytes(name))
    return digest.digest()


def require_pair(ours: Family, theirs: Family) -> None:
    """Raises UserError when a draft's family (`theirs`) is not the model's (`ours`)."""
    if ours.anchor == theirs.anchor:
        return

    def named(one: Family) -> str:
        return f"{one.name or 'a family'} ({one.anchor[:12]})" if one.anchor else "no family"

    raise UserError(
        f"the draft is of {named(theirs)} and the server's model of {named(ours)}: their anchors differ, so "
        "the draft would guess at another model; use the draft of the model's own family.",
        field="family",
        given=theirs.anchor or None,
        nearest=ours.anchor or None,
    )
