"""The methods chosen for a run: found by name, checked against one another's declarations."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from haversack.core import index
from haversack.core.errors import UserError
from haversack.core.method import Method

if TYPE_CHECKING:
    from haversack.run._engine import Engine

NAMES = ("residency", "attention", "context", "prefill", "decode")
GIVEN = ("batch", "tree-mask")
"""Traits of the engine itself, whatever is chosen."""
ADVICE = {
    "expert-store:experts": "Packs of mixture-of-experts models have one: haversack pack MODEL --device "
    "DEVICE.",
    "head-predictor": "Packs made with --precision q4_0:predictor=64 have one.",
    "expert-store:matrices": "Packs of mixture-of-experts models that are made with --precision q4_0 or "
    "--residency streamed:smallthinker have one: haversack pack MODEL --device DEVICE --precision q4_0.",
    "shadow-outliers": "Packs made with --precision mllm-npu have them.",
    "weight-type:nested": "Such packs come from haversack pack MODEL --device DEVICE --precision d2moe.",
}
"""What to do where a trait is missing."""


@dataclass(frozen=True)
class Slots:
    """One method a slot."""

    residency: Any
    attention: Any
    context: Any
    prefill: Any
    decode: Any

    def record(self) -> dict[str, str]:
        """Slot -> method, as a plan prints it."""
        return {name: str(getattr(self, name)) for name in NAMES}

    def prepare(self, engine: Engine) -> None:
        """Let the methods open what they need beside the model (a draft)."""
        for name in NAMES:
            prepare = getattr(getattr(self, name), "prepare", None)
            if prepare is not None:
                prepare(engine)


def choose(
    *,
    draft: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    traits: Collection[str] = (),
    **chosen: str | Method,
) -> Slots:
    """The methods that `chosen` names, one for each of NAMES, for a model that provides `traits`.

    Raises UserError for an unknown name or parameter, and for methods that exclude one another.
    """
    known = {(entry.slot, entry.name): entry for entry in index.methods("run")}
    methods: dict[str, Any] = {}
    for slot in NAMES:
        choice = chosen[slot]
        plain = known.get((slot, choice)) if isinstance(choice, str) else None
        if plain is not None:  # no parameters: one look at the index serves all slots
            methods[slot] = getattr(import_module(plain.module), plain.class_name)()
        else:
            methods[slot] = index.create("run", slot, choice) if isinstance(choice, str) else choice
    decode = methods["decode"]
    if hasattr(decode, "draft"):
        if draft is not None:
            methods["decode"] = replace(decode, draft=os.fspath(draft))
        elif not decode.draft:
            raise UserError(
                f"--decode {decode.name} needs a draft model: --draft NAME_OR_FOLDER.", field="draft"
            )
    elif draft is not None:
        raise UserError(
            f"--decode {decode.name} takes no draft; use --decode linear-draft.",
            field="draft",
            given=os.fspath(draft),
            nearest="linear-draft",
        )
    sealed = "sealed-weights" in traits
    methods["residency"] = _with_key(methods["residency"], key, sealed)
    given = {*GIVEN, *traits, *(("draft-model",) if hasattr(decode, "draft") else ())}
    entries = [known.get((slot, methods[slot].name)) for slot in NAMES]
    found = index.conflicts([entry for entry in entries if entry is not None], given)
    if found:
        missing = (trait for entry in entries if entry is not None for trait in entry.requires - given)
        advice = " ".join(ADVICE[trait] for trait in missing if trait in ADVICE)
        said = f"this plan cannot run: {'; '.join(found)}. {advice}".strip()
        raise UserError(said, field="plan", given=found[0])
    return Slots(**methods)


def _with_key(residency: Any, key: str | os.PathLike[str] | None, sealed: bool) -> Any:
    """`residency` with the file of the key. Raises UserError where key, weights and residency do not meet."""
    opens = hasattr(residency, "key")
    if sealed and not opens:
        raise UserError(
            f"these weights are sealed, so --residency {residency.name} cannot run them; use --residency "
            "sealed --key KEYFILE.",
            field="residency",
            given=residency.name,
            nearest="sealed",
        )
    if opens and not sealed:
        raise UserError(
            f"these weights are not sealed, so --residency {residency.name} cannot run them; haversack pack "
            "--seal --key KEYFILE seals them.",
            field="residency",
            given=residency.name,
            nearest="mapped",
        )
    if opens:
        if key is not None:
            return replace(residency, key=os.fspath(key))
        if not residency.key:
            raise UserError(
                f"--residency {residency.name} needs the key of the pack: --key KEYFILE.", field="key"
            )
    elif key is not None:
        raise UserError(
            f"--residency {residency.name} takes no key; sealed packs are run with --residency sealed.",
            field="key",
            given=os.fspath(key),
            nearest="sealed",
        )
    return residency
