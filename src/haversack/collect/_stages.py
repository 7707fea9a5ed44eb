"""A stage of the pipeline: a pure function over a clip that writes one folder.

The built-in ones are the files of `collect/stages/`; a stage of your own is any importable module with a
`STAGE`. The order is that of the list; a clip that a stage drops goes no further.

`pipeline.toml` in the store has a table of settings for a stage, under its name. Settings other than none
give the stage, and every one after it, a version of their own: what was made under others stays, and is not
taken for it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from haversack.collect.bundle import Manifest
from haversack.core.errors import UserError, unknown_name

METRICS = "metrics.json"
SETTINGS = "pipeline.toml"


@dataclass(frozen=True)
class Clip:
    """What a stage reads: the bundle's folder, its manifest, the folders that earlier stages wrote, the
    stage's settings; `store` is the folder of what the stages made of all clips."""

    path: Path
    manifest: Manifest
    stages: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    store: Path | None = None

    def record(self, stage: str, file: str) -> dict[str, Any]:
        """What an earlier stage wrote as JSON. Raises UserError where it did not run."""
        folder = self.stages.get(stage)
        if folder is None or not (folder / file).is_file():
            raise UserError(f"{stage} did not run on this clip; name it before this stage.", field="stages")
        found: dict[str, Any] = json.loads((folder / file).read_text(encoding="utf-8"))
        return found

    def peers(self, stage: str, file: str) -> list[dict[str, Any]]:
        """What a stage wrote as JSON for the store's other clips, in the order of their names."""
        if self.store is None:
            return []
        here = self.manifest.clip_uuid
        paths = sorted(self.store.glob(f"*/{stage}@*/{file}"))
        return [
            json.loads(path.read_text(encoding="utf-8"))
            for path in paths
            if path.parent.parent.name != here and ".partial-" not in path.parent.name
        ]


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
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.name}@{self.version}"


def built_in() -> dict[str, str]:
    """Names of the stages that come with the package -> their modules, in order."""
    folder = Path(__file__).parent / "stages"
    files = sorted(path.stem for path in folder.glob("c[0-9]*.py"))
    return {name.replace("_", "-"): f"haversack.collect.stages.{name}" for name in files}


def read_settings(root: Path) -> dict[str, dict[str, Any]]:
    """The tables of a store's `pipeline.toml`, none without the file. Raises UserError for one that is no
    TOML or has other things than tables."""
    path = root / SETTINGS
    if not path.is_file():
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML ({error}).", field="settings", given=str(path)) from error
    if not all(isinstance(table, dict) for table in found.values()):
        raise UserError(f"{path} holds more than tables named for stages.", field="settings", given=str(path))
    return found


def load_stages(
    names: Sequence[str] | None = None, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Stage]:
    """The stages of `names` in that order (default: all built-in ones) with their `settings`; a name with a
    dot is a module of yours. Raises UserError for a name that is none, for a module without a `STAGE`, and
    for settings of a stage that is not there."""
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
    given = settings or {}
    for name in given:
        if name not in known and name not in {stage.name for stage in found}:
            raise unknown_name("stage", name, known, field="settings")
    made, chain = [], ""
    for stage in found:
        if given.get(stage.name):
            text = json.dumps([chain, stage.name, given[stage.name]], sort_keys=True, default=str)
            chain = hashlib.sha256(text.encode()).hexdigest()[:8]
        version = f"{stage.version}-{chain}" if chain else stage.version
        made.append(replace(stage, version=version, settings=dict(given.get(stage.name, {}))))
    return made
