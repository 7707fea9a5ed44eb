"""What every method owes, whatever its stage: its declaration, its refusals, its test and its page."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from haversack.core import index
from haversack.core.errors import UserError
from haversack.core.index import PACKAGE, MethodEntry, source_root
from haversack.core.method import Method
from haversack.core.systems import page_of

ROOT = source_root()
assert ROOT is not None
METHODS = index.methods()
# Stages whose methods have a suite here; a method of any other stage fails until its stage has one.
SUITES = {
    "shrink": "test_shrink.py",
    "run": "test_run.py",
    "train": "test_train.py",
    "share": "test_share.py",
}

every_method = pytest.mark.parametrize("entry", METHODS, ids=lambda entry: f"{entry.stage}-{entry.name}")


def tools() -> Any:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("docs")
    finally:
        sys.path.pop(0)


def kind_of(entry: MethodEntry) -> type[Method]:
    kind = getattr(importlib.import_module(entry.module), entry.class_name)
    assert isinstance(kind, type)
    return kind


def test_there_are_methods() -> None:
    assert {entry.place for entry in METHODS} >= {"shrink: precision", "run: residency", "run: decode"}


@every_method
def test_its_stage_has_a_suite(entry: MethodEntry) -> None:
    assert (Path(__file__).parent / SUITES.get(entry.stage, "none")).is_file()


@every_method
def test_the_class_is_what_the_index_says(entry: MethodEntry) -> None:
    kind = kind_of(entry)
    assert issubclass(kind, Method)
    assert dataclasses.is_dataclass(kind)
    for key in ("name", "stage", "slot", "paper", "summary", "system", "provides", "requires", "excludes"):
        assert getattr(kind, key) == getattr(entry, key), key
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert list(fields) == [parameter.name for parameter in entry.parameters]
    for parameter in entry.parameters:
        field = fields[parameter.name]
        assert field.default == parameter.default
        allowed = field.metadata["allowed"]
        assert (None if allowed is None else list(allowed)) == (
            None if parameter.allowed is None else list(parameter.allowed)
        )
        assert parameter.help, f"{parameter.name} is not explained"


@every_method
def test_it_is_frozen(entry: MethodEntry) -> None:
    made = index.create(entry.stage, entry.slot, entry.name)
    for parameter in entry.parameters:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, parameter.name, parameter.default)
    assert made == kind_of(entry)()
    assert hash(made) == hash(kind_of(entry)())


@every_method
def test_it_is_written_and_read_back(entry: MethodEntry) -> None:
    """Every allowed value of every parameter: as text, and the same method again."""
    assert str(index.create(entry.stage, entry.slot, entry.name)) == entry.name
    for parameter in entry.parameters:
        for value in list(parameter.allowed or ())[:40]:
            made = kind_of(entry)(**{parameter.name: value})
            again = index.create(entry.stage, entry.slot, str(made))
            assert again == made
            assert type(getattr(again, parameter.name)) is type(value)


@every_method
def test_what_it_does_not_know_is_refused_in_a_sentence(entry: MethodEntry) -> None:
    wrong = ["no_such_parameter=1"]
    for parameter in entry.parameters:
        kinds = {kind.strip() for kind in parameter.annotation.split("|")}
        if parameter.allowed is not None or not kinds & {"str", "Path"}:
            wrong.append(f"{parameter.name}=no-such-value")
        if parameter.allowed is not None and kinds & {"int", "float"}:
            wrong.append(f"{parameter.name}=987654321")
    for text in wrong:
        with pytest.raises(UserError) as caught:
            index.create(entry.stage, entry.slot, f"{entry.name}:{text}")
        assert caught.value.exit_code == 2
        assert caught.value.field == text.partition("=")[0]
        assert "\n" not in str(caught.value)


@every_method
def test_the_file_opens_with_title_and_paper(entry: MethodEntry) -> None:
    text = (PACKAGE / entry.file).read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text)) or ""
    assert entry.title and entry.title == said.partition("\n")[0]
    assert "Paper: " in said or "Papers: " in said
    assert len(text.splitlines()) <= 350, "look for the two ideas in it"
    assert not Path(entry.file).name.startswith("_")
    assert sum(other.file == entry.file for other in METHODS) == 1, "one method, one file"


@every_method
def test_it_has_a_test_and_a_page(entry: MethodEntry) -> None:
    assert tools().test_of(entry.file) is not None
    assert (ROOT / page_of(entry.file)).is_file()
