"""The methods there are, found without importing any: name, slot, parameters and constraints of each.

A method declares itself with literals (core/method.py), so its file's syntax tree says everything. The build
writes what it finds to `core/_index.json`, and a duplicate, an unknown trait or a value that is no literal
fails it. In a source checkout the files themselves decide: when one changed, the index is read from them
again and kept in the user's cache.

>>> [entry.name for entry in methods("shrink", "precision")]
['gptq', 'keep', 'round-to-nearest']
>>> create("shrink", "precision", "gptq:bits=8")        # imports that one module
Gptq(bits=8, group=64, ...)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from haversack.core._declarations import (
    FORMAT,
    PACKAGE,
    DeclarationError,
    MethodEntry,
    ParameterEntry,
    build,
    from_json,
    sources,
    to_json,
)
from haversack.core.errors import UserError, not_allowed, unknown_name
from haversack.core.method import STAGES, Method, parse_choice

__all__ = [
    "DeclarationError",
    "MethodEntry",
    "ParameterEntry",
    "conflicts",
    "convert",
    "create",
    "find",
    "methods",
    "slot_of",
    "source_root",
]


def methods(stage: str | None = None, slot: str | None = None) -> tuple[MethodEntry, ...]:
    """Every method, or those of a stage, or of one slot; by stage, slot and name.

    Raises UserError for a stage or slot that does not exist.
    """
    _check_slot(stage, slot)
    return tuple(
        entry
        for entry in _entries()
        if (stage is None or entry.stage == stage) and (slot is None or entry.slot == slot)
    )


def find(stage: str, slot: str, name: str) -> MethodEntry:
    """The method `name` of a slot. Raises UserError naming the nearest when there is none."""
    entries = {entry.name: entry for entry in methods(stage, slot)}
    if name not in entries:
        raise unknown_name(slot, name, entries, field=slot)
    return entries[name]


def slot_of(name: str) -> tuple[str, str]:
    """(stage, slot) that the method `name` fills: `--method NAME` is short for that slot's option.

    Raises UserError for an unknown name, and for one that fills several slots (name the slot then).
    """
    found = [entry for entry in methods() if entry.name == name]
    if not found:
        raise unknown_name("method", name, {entry.name for entry in methods()})
    if len(found) > 1:
        options = ", ".join(f"--{entry.slot} {name}" for entry in found)
        raise UserError(
            f"{name} fills {', '.join(entry.place for entry in found)}; write one of {options}.",
            field="method",
            given=name,
            nearest=f"--{found[0].slot} {name}",
        )
    return found[0].stage, found[0].slot


def create(stage: str, slot: str, text: str) -> Method:
    """The method that `name`, `name:variant` or `name:key=value,...` describes; imports its module only.

    Values are converted by the parameter's annotation. Raises UserError for an unknown name, an unknown
    parameter, a value that is not of its type, or one outside the declared values.
    """
    name, given = parse_choice(text)
    variant = f"{name}:{given.get('variant')}"
    if "variant" in given and any(entry.name == variant for entry in methods(stage, slot)):
        name = variant
        del given["variant"]
    entry = find(stage, slot, name)
    known = {parameter.name: parameter for parameter in entry.parameters}
    values = {}
    for key, value in given.items():
        if key not in known:
            if not known:
                raise UserError(f"{name} has no parameters, and got {key}={value}.", field=key, given=value)
            raise unknown_name(f"parameter of {name}", key, known, field=key)
        values[key] = convert(value, known[key])
    kind = getattr(importlib.import_module(entry.module), entry.class_name)
    made: Method = kind(**values)
    return made


def convert(text: str, parameter: ParameterEntry) -> Any:
    """A parameter's value from how it is written on a command line; UserError when it is not of its type."""
    kinds = [kind.strip() for kind in parameter.annotation.split("|")]
    if "None" in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        if kind == "bool" and text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        if kind in ("int", "float"):
            with contextlib.suppress(ValueError):
                return int(text) if kind == "int" else float(text)
        if kind not in ("int", "float", "bool", "None"):
            return text
    if parameter.allowed is not None:
        raise not_allowed(parameter.name, text, list(parameter.allowed))
    wanted = " or ".join(_WORDS.get(kind, kind) for kind in kinds)
    raise UserError(
        f"{parameter.name}={text} is not {wanted}; the default is {parameter.default}.",
        field=parameter.name,
        given=text,
        nearest=parameter.default,
    )


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False}
_BOOLEANS["0"] = False
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "None": "none"}


def conflicts(chosen: Iterable[MethodEntry], given: Iterable[str] = ()) -> list[str]:
    """Why methods of different slots cannot work together by their declarations; empty when they can.

    `given`: traits that hold whatever is chosen (the pack's weight types, the engine's own).
    """
    entries = tuple(chosen)
    found = []
    for entry in entries:
        others = [other for other in entries if other is not entry]
        provided = set(given).union(*(other.provides for other in others))
        for trait in sorted(entry.excludes):
            for other in others:
                if _provides(other.provides, trait):
                    found.append(f"{entry.name} does not work with {other.name} ({trait})")
            if _provides(set(given), trait):
                found.append(f"{entry.name} does not work with {trait}")
        for trait in sorted(entry.requires):
            if not _provides(provided, trait):
                found.append(f"{entry.name} needs {trait}, which nothing chosen provides")
    return found


def _provides(provided: Iterable[str], trait: str) -> bool:
    """Whether a trait, or any value of it where it is named alone, is among `provided`."""
    return any(each == trait or each.partition(":")[0] == trait for each in provided)


def source_root() -> Path | None:
    """The repository's root when the package runs from a source checkout, else None."""
    root = PACKAGE.parents[1]
    return root if PACKAGE.parent.name == "src" and (root / "pyproject.toml").is_file() else None


def _entries() -> tuple[MethodEntry, ...]:
    if source_root() is None:
        return _installed()
    return _of_files(_stamp())


@functools.cache
def _installed() -> tuple[MethodEntry, ...]:
    return from_json((PACKAGE / "core" / "_index.json").read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=1)
def _of_files(stamp: str) -> tuple[MethodEntry, ...]:
    from haversack.core import _files

    # One file a checkout, its first line the stamp: checkouts that are used in turn keep theirs.
    kept = _files.cache_folder() / f"index-{_files.fingerprint(str(PACKAGE))}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        first, _, rest = kept.read_text(encoding="utf-8").partition("\n")
        if first == stamp:
            return from_json(rest)
    entries = build()
    with contextlib.suppress(OSError, UserError):  # a cache that cannot be written costs time, nothing else
        kept.parent.mkdir(parents=True, exist_ok=True)
        _files.write_atomically(kept, f"{stamp}\n{to_json(entries)}".encode())
    return entries


def _stamp() -> str:
    """Changes when a source file does: names, sizes and times of all of them, a few milliseconds."""
    from haversack.core import _files

    text = [f"{FORMAT} {sys.version_info[:2]} {PACKAGE}"]
    for path in sources(PACKAGE):
        state = path.stat()
        text.append(f"{path} {state.st_size} {state.st_mtime_ns}")
    for name in ("_declarations.py", "method.py"):
        text.append(str((PACKAGE / "core" / name).stat().st_mtime_ns))
    return _files.fingerprint("\n".join(text))


def _check_slot(stage: str | None, slot: str | None) -> None:
    if stage is not None and stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    slots = STAGES[stage] if stage else [each for group in STAGES.values() for each in group]
    if slot is not None and slot not in slots:
        raise unknown_name(f"slot of {stage}" if stage else "slot", slot, slots, field="slot")
