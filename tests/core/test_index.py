"""The method index: read from syntax trees, refusing what does not declare itself, creating what is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core import _declarations, index
from haversack.core._declarations import DeclarationError, ParameterEntry, build, from_json
from haversack.core.errors import UserError

METHOD = '''"""Some method: its title.

More of it.
"""
from dataclasses import dataclass
from haversack.core.method import Method, parameter
raise RuntimeError("imported")

@dataclass(frozen=True)
class Some(Method):
    name = "{name}"
    stage = "shrink"
    slot = "precision"
    paper = "-"
    summary = (
        "In two "
        "pieces."
    )
    provides = frozenset({{"weight-type:int4"}})
    {extra}

    bits: int = parameter(4, allowed=(4, 8), help="bits")
    share: float | None = parameter(None, help="a share")
    steps: int = parameter(3, allowed=range(1, 9, 2), help="steps")
'''


def package(folder: Path, **files: str) -> Path:
    root = folder / "haversack"
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_declarations_are_read_without_importing(tmp_path: Path) -> None:
    (entry,) = build(package(tmp_path, shrink__some=METHOD.format(name="some", extra="system = 8")))
    assert (entry.name, entry.place, entry.system) == ("some", "shrink: precision", 8)
    assert (entry.title, entry.summary) == ("Some method: its title.", "In two pieces.")
    assert (entry.module, entry.class_name) == ("haversack.shrink.some", "Some")
    assert entry.provides == {"weight-type:int4"}
    assert [parameter.name for parameter in entry.parameters] == ["bits", "share", "steps"]
    assert entry.parameters[2].allowed == range(1, 9, 2)


def test_two_methods_of_one_name_fail(tmp_path: Path) -> None:
    text = METHOD.format(name="some", extra="")
    with pytest.raises(DeclarationError, match=r"two methods named some: shrink/a\.py and shrink/b\.py"):
        build(package(tmp_path, shrink__a=text, shrink__b=text))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('stage = "shrink"', 'stage = "shrunk"', "no slot shrunk: precision"),
        ('slot = "precision"', 'slot = "decode"', "no slot shrink: decode"),
        ("weight-type:int4", "weight-type:int5", "TRAITS does not have"),
        ("weight-type:int4", "wait-type", "TRAITS does not have"),
        ('name = "some"', "", "declares no name"),
        ('name = "some"', "name = NAME", "is no literal"),
        ("allowed=(4, 8)", "allowed=BITS", "is no literal"),
        ("parameter(4, allowed", "parameter(5, allowed", "default 5, which is not allowed"),
        ('parameter(4, allowed=(4, 8), help="bits")', "4", "is not declared by parameter"),
        ("@dataclass(frozen=True)", "@dataclass", "is not a frozen dataclass"),
    ],
)
def test_what_does_not_declare_itself_fails_the_build(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = METHOD.format(name="some", extra="")
    assert old in text
    root = package(tmp_path, shrink__some=text.replace(old, new))
    with pytest.raises(DeclarationError, match=said):
        build(root)
    program = [sys.executable, "-m", "haversack.core._declarations", str(root), str(tmp_path / "index.json")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 1
    assert "shrink/some.py" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "index.json").exists()


def test_the_build_step_writes_what_is_read_back(tmp_path: Path) -> None:
    goal = tmp_path / "index.json"
    assert _declarations.main([str(index.PACKAGE), str(goal)]) == 0
    assert from_json(goal.read_text()) == build()
    with pytest.raises(ValueError, match="no index of this version"):
        from_json(json.dumps({"format": 1, "methods": []}))


def test_the_build_step_needs_only_the_standard_library() -> None:
    program = (
        "import sys, haversack.core._declarations as d; d.build();"
        "third = {'numpy', 'msgspec', 'typer', 'rich', 'tokenizers', 'jinja2'} & set(sys.modules);"
        "sys.exit(str(third) if third else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_machinery_holds_no_methods(tmp_path: Path) -> None:
    text = METHOD.format(name="some", extra="")
    assert build(package(tmp_path, shrink___some=text, shrink___parts__some=text)) == ()


def test_the_index_follows_the_files(cache: Path) -> None:
    """In a source checkout what the files say is what is found, and it is kept for the next process."""
    index._of_files.cache_clear()
    assert index.methods() == build()
    assert [path.name.startswith("index-") for path in cache.iterdir()] == [True]


def test_filters_and_unknown_names() -> None:
    assert {entry.slot for entry in index.methods("run")} >= {"residency", "attention", "decode"}
    assert all(entry.slot == "precision" for entry in index.methods("shrink", "precision"))
    with pytest.raises(UserError, match="did you mean shrink"):
        index.methods("shrnk")
    with pytest.raises(UserError, match="did you mean residency"):
        index.methods("run", "residence")
    with pytest.raises(UserError, match="did you mean gptq"):
        index.find("shrink", "precision", "gptp")


def test_create_converts_by_annotation_and_checks() -> None:
    made = index.create("shrink", "precision", "gptq:bits=8,damping=0.1")
    assert (made.bits, made.damping, str(made)) == (8, 0.1, "gptq:bits=8,damping=0.1")
    for text, field in (
        ("gptq:bits=5", "bits"),
        ("gptq:bits=eight", "bits"),
        ("gptq:bit=4", "bit"),
        ("gptq:fast", "variant"),
        (":bits=4", "method"),
    ):
        with pytest.raises(UserError) as caught:
            index.create("shrink", "precision", text)
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("int", "-3", -3),
        ("float", "3", 3.0),
        ("float", "1e-3", 1e-3),
        ("bool", "no", False),
        ("bool", "True", True),
        ("str", "3", "3"),
        ("int | None", "none", None),
        ("int | None", "3", 3),
        ("int | str", "3", 3),
        ("int | str", "auto", "auto"),
    ],
)
def test_conversion(annotation: str, text: str, value: object) -> None:
    converted = index.convert(text, ParameterEntry("x", annotation, None, None, ""))
    assert converted == value
    assert type(converted) is type(value)


@given(st.text(max_size=12))
def test_what_is_no_number_is_refused_in_words(text: str) -> None:
    parameter = ParameterEntry("x", "int", 1, None, "")
    try:
        value = index.convert(text, parameter)
    except UserError as error:
        assert error.field == "x"
        assert "a whole number" in str(error)
    else:
        assert value == int(text)


def test_slot_of_a_name() -> None:
    assert index.slot_of("gptq") == ("shrink", "precision")
    with pytest.raises(UserError, match="did you mean gptq"):
        index.slot_of("gptk")


def test_conflicts_are_what_was_declared() -> None:
    def method(name: str, **sets: set[str]) -> index.MethodEntry:
        declared = {key: frozenset(sets.get(key, ())) for key in ("provides", "requires", "excludes")}
        texts = {key: name for key in ("name", "paper", "summary", "title", "module", "class_name", "file")}
        return index.MethodEntry(**texts, stage="run", slot=name, system=None, parameters=(), **declared)

    mapped = method("mapped", provides={"mapped-weights"})
    tree = method("tree", requires={"tree-mask"})
    dense = method("dense", provides={"tree-mask"})
    sealed = method("sealed", excludes={"mapped-weights"})
    typed = method("typed", excludes={"weight-type"})
    assert index.conflicts([mapped, dense, tree]) == []
    assert index.conflicts([mapped, sealed]) == ["sealed does not work with mapped (mapped-weights)"]
    assert index.conflicts([mapped, tree]) == ["tree needs tree-mask, which nothing chosen provides"]
    assert index.conflicts([tree], {"tree-mask"}) == []
    assert index.conflicts([typed], {"weight-type:int4"}) == ["typed does not work with weight-type"]
