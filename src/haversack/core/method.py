"""A method fills a slot. It is a frozen dataclass that declares itself; nothing of it runs at import.

Example of a method file::

    @dataclass(frozen=True)
    class RoundToNearest(Method):
        name = "round-to-nearest"
        stage = "shrink"
        slot = "precision"
        paper = "-"
        summary = "Each weight to the nearest of 2^bits levels, one scale a group."
        provides = frozenset({"weight-type:int4", "weight-type:int8"})

        bits: int = parameter(4, allowed=(4, 8), help="bits a weight")
        group: int = parameter(64, allowed=(32, 64, 128), help="weights that share a scale")

Class variables and parameters are literals, so that the index (core/index.py) reads them from the syntax tree
without importing the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from haversack.core.errors import UserError, not_allowed

STAGES: dict[str, tuple[str, ...]] = {
    "shrink": ("precision", "structure", "architecture"),
    "run": ("residency", "attention", "context", "prefill", "decode", "steps", "tokens", "blocks", "devices"),
    "train": ("parameters", "gradient", "precision", "aggregation"),
    "share": ("cut",),
    "collect": ("capture", "gate", "transport", "curate", "export"),
}

# The closed vocabulary of what a method provides, requires or excludes. A trait is a key, or `key:value`.
TRAITS: dict[str, tuple[str, ...]] = {
    "weight-layout": ("rows-1", "rows16-1", "columns-1"),
    "weight-type": (
        "f32",
        "f16",
        "bf16",
        "int8",
        "int4",
        "int3",
        "int2",
        "nested",
        "ternary",
        "low-rank",
        "row-sparse",
    ),
    "activation-type": ("f32", "int8-dynamic", "int8-static"),
    "batch": (),
    "tree-mask": (),
    "mapped-weights": (),
    "expert-store": ("experts", "matrices"),
    "sealed-weights": (),
    "static-shapes": (),
    "router-position": ("before-attention", "after-attention"),
    "context-limit": (),
    "draft-model": (),
    "head-predictor": (),
    "shadow-outliers": (),
    "blocks-at-hand": (),
    "encoder-decoder": (),
}


def parameter(default: Any, *, allowed: Sequence[Any] | None = None, help: str = "") -> Any:
    """A dataclass field whose allowed values stand beside its default.

    `allowed` is a tuple of values, or a `range`, which allows exactly its members. None allows any value of
    the annotated type.
    """
    return dataclasses.field(default=default, metadata={"allowed": allowed, "help": help})


@dataclass(frozen=True)
class Method:
    """Base of every method. Raises UserError when a parameter is outside its declared values."""

    name: ClassVar[str] = ""
    stage: ClassVar[str] = ""
    slot: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    system: ClassVar[int | None] = None
    provides: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset()
    excludes: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            allowed = field.metadata.get("allowed")
            value = getattr(self, field.name)
            if allowed is not None and value not in allowed:
                raise not_allowed(field.name, value, allowed)

    def __str__(self) -> str:
        """`name:key=value,...` with the parameters that differ from their defaults; `parse_choice` reads it
        back."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}:{','.join(changed)}" if changed else self.name


def parse_choice(text: str) -> tuple[str, dict[str, str]]:
    """Split `name`, `name:variant`, `name:key=value,key=value` or `name:variant:key=value` into a name and
    its parameters.

    A bare word after the colon is the parameter `variant`, or the rest of the name of a method that is a
    variant of another (`streamed:edgemoe`).
    """
    name, _, rest = text.partition(":")
    if not name:
        raise UserError(
            f"{text!r} names no method; write NAME or NAME:key=value,...", field="method", given=text
        )
    first, colon, others = rest.partition(":")
    if colon and "=" not in first:
        rest = f"{first},{others}"
    parameters: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if equals:
            parameters[key.strip()] = value.strip()
        else:
            parameters["variant"] = part.strip()
    return name, parameters
