"""Language models: one file a family, found by its name.

A family's file has `read(config)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core.errors import UserError, nearest_name
from haversack.models.language._features import refuse_features

if TYPE_CHECKING:
    from haversack.models._architecture import Architecture


def families() -> tuple[str, ...]:
    """The names of the families, which are the `model_type`s of their configs."""
    files = (file.stem for file in Path(__file__).parent.glob("*.py"))
    return tuple(sorted(name for name in files if not name.startswith("_") and not name.endswith("_torch")))


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a hub config describes.

    Raises UserError for a family we do not have (naming the nearest three and what differs), for every field
    that cannot be, and for one that asks for what we do not compute.
    """
    family = config.get("model_type")
    known = families()
    if not isinstance(family, str) or not family:
        listed = config.get("architectures")
        named = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else None
        found = [name for name in known if named and named.lower() == f"{name}forcausallm"]
        if not found:
            raise UserError(
                f"config.json has no model_type; known are {', '.join(known)}.",
                field="model_type",
                given=named,
                nearest=nearest_name(named.removesuffix("ForCausalLM"), known) if named else None,
            )
        family = found[0]
    if family not in known:
        from haversack.models.language._nearest import unknown_family

        raise unknown_family(family, config, known)
    refuse_features(config, family)
    architecture: Architecture = import_module(f"{__name__}.{family}").read(config)
    return architecture
