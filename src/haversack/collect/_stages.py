"""A stage of the pipeline: a pure function over a clip that writes one folder.

The built-in ones are the files of `collect/stages/`; a stage of your own is any importable module with a
`STAGE`. The order is that of the list; a clip that a stage drops goes no further.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from haversack.collect.bundle import Manifest
from haversack.core.errors import UserError, unknown_name

METRICS = "metrics.json"


@dataclass(frozen=True)
class Clip:
    """What a stage reads: the bundle's folder, its manifest, and the folders that earlier stages wrote."""

    path: Path
    manifest: Manifest
    stages: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Outcome:
    """What a stage found: numbers, and why the clip goes no further (None: it does)."""

    metrics: dict[str, Any]
    drop_reason: str | None = None


@dataclass(frozen=True)
class Stage:
    """`run(clip, out)` writes into the empty folder `out` and returns its outcome. A new `version` runs
    again on every clip."""

    name: str
    version: str
    run: Callable[[Clip, Path], Outcome]

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.name}@{self.version}"


def built_in() -> dict[str, str]:
    """Names of the stages that come with the package -> their modules, in order."""
    folder = Path(__file__).parent / "stages"
    files = sorted(path.stem for path in folder.glob("c[0-9]*.py"))
    return {name.replace("_", "-"): f"haversack.collect.stages.{name}" for name in files}


def load_stages(names: Sequence[str] | None = None) -> list[Stage]:
    """The stages of `names` in that order (default: all built-in ones); a name with a dot is a module of
    yours. Raises UserError for a name that is none and for a module without a `STAGE`."""
    known = built_in()
    found = []
    for name in names if names is not None else list(known):
        if "." not in name and name not in known:
            raise unknown_name("stage", name, known, field="stages")
        try:
            stage = importlib.import_module(known.get(name, name)).STAGE
        except (ImportError, AttributeError) as error:
            raise UserError(f"{name} is no stage ({error}).", field="stages", given=name) from error
        if not isinstance(stage, Stage):
            raise UserError(f"{name}.STAGE is no Stage.", field="stages", given=name)
        found.append(stage)
    if len({stage.name for stage in found}) != len(found) or not found:
        raise UserError("stages are named once each, and at least one.", field="stages")
    return found
