"""Method declarations: read from the syntax trees of the files, checked, written and read as JSON.

Run as a program it is the build's step: `python -m haversack.core._declarations PACKAGE GOAL` writes the
index of a package folder, and fails for a duplicate, an unknown trait, stage or slot, or a value that is no
literal. It uses the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core.method import STAGES, TRAITS

if TYPE_CHECKING:
    import ast

PACKAGE = Path(__file__).resolve().parents[1]
FORMAT = 2  # of the JSON; a cached index of another format is read again from the files
_TEXTS = ("name", "stage", "slot", "paper", "summary")
_SETS = ("provides", "requires", "excludes")


class DeclarationError(Exception):
    """A method that does not declare itself as core/method.py asks; fails the build."""


@dataclass(frozen=True)
class ParameterEntry:
    """One parameter of a method: `annotation` as written, `allowed` None where any value of it will do."""

    name: str
    annotation: str
    default: Any
    allowed: tuple[Any, ...] | range | None
    help: str


@dataclass(frozen=True)
class MethodEntry:
    """What a method declares, and where: `module` to import, `file` relative to the package, `title` of its
    page (the first line of the file's docstring)."""

    name: str
    stage: str
    slot: str
    paper: str
    summary: str
    title: str
    system: int | None
    provides: frozenset[str]
    requires: frozenset[str]
    excludes: frozenset[str]
    parameters: tuple[ParameterEntry, ...]
    module: str
    class_name: str
    file: str

    @property
    def place(self) -> str:
        """`stage: slot`, as people read it."""
        return f"{self.stage}: {self.slot}"


def read_file(path: Path, package: Path = PACKAGE) -> list[MethodEntry]:
    """The methods that a file declares, from its syntax tree. Raises DeclarationError naming file and
    line."""
    import ast

    text = path.read_text(encoding="utf-8")
    if "(Method)" not in text:
        return []
    tree = ast.parse(text, str(path))
    inside = path.relative_to(package)
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    module = ".".join((package.name, *inside.with_suffix("").parts))
    return [
        _read_class(node, title, module, inside.as_posix())
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "Method" for base in node.bases)
    ]


def _read_class(node: ast.ClassDef, title: str, module: str, file: str) -> MethodEntry:
    import ast

    declared: dict[str, Any] = {}
    parameters = []
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            key, value = statement.targets[0].id, statement.value
            if key in (*_TEXTS, *_SETS, "system"):
                declared[key] = _literal(value, f"{key} of {node.name}", file)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            key, annotation = statement.target.id, ast.unparse(statement.annotation)
            if annotation.startswith("ClassVar"):
                if key in (*_TEXTS, *_SETS, "system") and statement.value is not None:
                    declared[key] = _literal(statement.value, f"{key} of {node.name}", file)
            else:
                parameters.append(_read_parameter(key, annotation, statement, file))
    where = f"{file}:{node.lineno}: {node.name}"
    if not any("frozen=True" in ast.unparse(decorator) for decorator in node.decorator_list):
        raise DeclarationError(f"{where} is not a frozen dataclass")
    for key in _TEXTS:
        if not isinstance(declared.get(key), str) or not declared[key]:
            raise DeclarationError(f"{where} declares no {key}")
    if declared["stage"] not in STAGES or declared["slot"] not in STAGES[declared["stage"]]:
        raise DeclarationError(f"{where}: there is no slot {declared['stage']}: {declared['slot']}")
    for key in _SETS:
        for trait in declared.setdefault(key, frozenset()):
            if not _is_trait(trait):
                raise DeclarationError(f"{where} {key} {trait!r}, which core/method.py TRAITS does not have")
    return MethodEntry(
        **{key: declared[key] for key in (*_TEXTS, *_SETS)},
        title=title,
        system=declared.get("system"),
        parameters=tuple(parameters),
        module=module,
        class_name=node.name,
        file=file,
    )


def _read_parameter(name: str, annotation: str, statement: ast.AnnAssign, file: str) -> ParameterEntry:
    import ast

    where = f"{file}:{statement.lineno}: parameter {name}"
    call = statement.value
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or call.func.id != "parameter"
        or len(call.args) != 1
    ):
        raise DeclarationError(f"{where} is not declared by parameter(default, allowed=..., help=...)")
    options = {
        word.arg: _literal(word.value, f"parameter {name}", file) for word in call.keywords if word.arg
    }
    default, allowed = _literal(call.args[0], f"parameter {name}", file), options.get("allowed")
    if allowed is not None and default not in allowed:
        raise DeclarationError(f"{where} has the default {default!r}, which is not allowed by itself")
    if isinstance(allowed, list | set | frozenset):
        allowed = tuple(allowed)
    return ParameterEntry(name, annotation, default, allowed, options.get("help", ""))


def _literal(node: ast.expr, what: str, file: str) -> Any:
    """The value of a literal, `frozenset({...})`, `frozenset()` or `range(...)`."""
    import ast

    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        arguments = [_literal(argument, what, file) for argument in node.args]
        if node.func.id == "frozenset":
            return frozenset(*arguments)
        if node.func.id == "range":
            return range(*arguments)
    try:
        return ast.literal_eval(node)
    except ValueError:
        said = (
            f"{file}:{node.lineno}: {what} is no literal ({ast.unparse(node)}), so the index cannot read it"
        )
        raise DeclarationError(said) from None


def _is_trait(trait: Any) -> bool:
    if not isinstance(trait, str):
        return False
    key, colon, value = trait.partition(":")
    return key in TRAITS and (not colon or value in TRAITS[key])


def build(package: Path = PACKAGE) -> tuple[MethodEntry, ...]:
    """The whole index, read from the files of `package`. Raises DeclarationError for duplicates."""
    entries: dict[tuple[str, str, str], MethodEntry] = {}
    for path in sources(package):
        for entry in read_file(path, package):
            key = (entry.stage, entry.slot, entry.name)
            if key in entries:
                raise DeclarationError(
                    f"{entry.place} has two methods named {entry.name}: {entries[key].file} and {entry.file}"
                )
            entries[key] = entry
    stages = list(STAGES)
    order = sorted(entries, key=lambda key: (stages.index(key[0]), STAGES[key[0]].index(key[1]), key[2]))
    return tuple(entries[key] for key in order)


def sources(package: Path) -> Iterator[Path]:
    """The files that may hold methods: those without an underscore."""
    for folder, folders, files in os.walk(package):
        folders[:] = sorted(name for name in folders if not name.startswith(("_", ".")))
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("_"):
                yield Path(folder, name)


def to_json(entries: Sequence[MethodEntry]) -> str:
    """The index as `core/_index.json` holds it."""
    return json.dumps({"format": FORMAT, "methods": [_plain(entry) for entry in entries]}, indent=1) + "\n"


def from_json(text: str) -> tuple[MethodEntry, ...]:
    """What `to_json` wrote. Raises ValueError for anything else."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("this is no index of this version")
    entries = []
    for record in document["methods"]:
        parameters = tuple(
            ParameterEntry(**{**each, "allowed": _allowed(each["allowed"])})
            for each in record.pop("parameters")
        )
        record.update({key: frozenset(record[key]) for key in _SETS})
        entries.append(MethodEntry(**record, parameters=parameters))
    return tuple(entries)


def _plain(entry: MethodEntry) -> dict[str, Any]:
    record = dict(entry.__dict__)
    record.update({key: sorted(record[key]) for key in _SETS})
    record["parameters"] = [
        {**each.__dict__, "allowed": _allowed_plain(each.allowed)} for each in entry.parameters
    ]
    return record


def _allowed_plain(allowed: Sequence[Any] | None) -> Any:
    if isinstance(allowed, range):
        return {"range": [allowed.start, allowed.stop, allowed.step]}
    return None if allowed is None else list(allowed)


def _allowed(plain: Any) -> tuple[Any, ...] | range | None:
    if isinstance(plain, Mapping):
        return range(*plain["range"])
    return None if plain is None else tuple(plain)


def main(arguments: Sequence[str]) -> int:
    """Write the index of the package folder `arguments[0]` to the file `arguments[1]`."""
    package, goal = Path(arguments[0]).resolve(), Path(arguments[1])
    try:
        text = to_json(build(package))
    except DeclarationError as error:
        print(f"method index: {error}", file=sys.stderr)
        return 1
    goal.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
