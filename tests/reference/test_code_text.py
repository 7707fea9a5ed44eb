"""The list of training text: its hashes, its exclusions, and nothing held out in what is trained on."""

import hashlib
import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType

import pytest

REFERENCE = Path(__file__).resolve().parents[2] / "reference"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, REFERENCE / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


code_text = load("code_text")
FILES = code_text.listed_files()


def library_or_skip() -> Path:
    if platform.python_version() != code_text.RELEASE:
        pytest.skip(f"needs the standard library of CPython {code_text.RELEASE}")
    folder = code_text.running_stdlib()
    if not (folder / "test" / "test_json").is_dir():
        pytest.skip("this Python comes without the tests of its standard library")
    return Path(folder)


def test_hashes_are_those_of_the_running_library() -> None:
    texts = code_text.read_text(library_or_skip())
    assert [path for path, _ in texts["train"]] == [file.path for file in FILES if file.part == "train"]
    assert [path for path, _ in texts["held-out"]] == [file.path for file in FILES if file.part == "held-out"]


def test_selection_gives_the_tracked_list_again() -> None:
    assert code_text.select(library_or_skip()) == FILES


def test_held_out_is_whole_packages_and_disjoint() -> None:
    assert len({file.path for file in FILES}) == len(FILES)
    assert len({file.sha256 for file in FILES}) == len(FILES)
    for file in FILES:
        assert (file.part == "held-out") == code_text.is_below(file.path, code_text.HELD_OUT), file.path
        assert not code_text.is_below(file.path, code_text.HELD_BACK), file.path
        assert not code_text.is_below(file.path, code_text.EXCLUDED_FOLDERS), file.path
    assert sum(file.size for file in FILES if file.part == "held-out") >= 300_000


def test_no_training_file_repeats_a_held_out_one() -> None:
    texts = code_text.read_text(library_or_skip())
    held_out = {line for _, text in texts["held-out"] for line in code_text.long_lines(text)}
    for path, text in texts["train"]:
        lines = code_text.long_lines(text)
        if len(lines) >= 20:  # the few lines of a tiny file are import statements
            assert len(lines & held_out) < code_text.NEAR_DUPLICATE_SHARE * len(lines), path


def test_other_release_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "Lib").mkdir()
    with pytest.raises(code_text.TextDiffersError, match=r"Run this script with CPython .* --stdlib DIR"):
        code_text.read_text(tmp_path / "Lib")


def test_changed_file_is_named(tmp_path: Path) -> None:
    content = b"answer = 42\n"
    (tmp_path / "kept.py").write_bytes(content)
    (tmp_path / "changed.py").write_bytes(content + b"\n")
    digest = hashlib.sha256(content).hexdigest()
    rows = "".join(f"train\t{digest}\t{len(content)}\t{name}\n" for name in ("kept.py", "changed.py"))
    (tmp_path / "list.tsv").write_text(rows, encoding="utf-8")
    with pytest.raises(code_text.TextDiffersError, match=r"1 of the listed .*changed\.py \(differs\)"):
        code_text.read_text(tmp_path, tmp_path / "list.tsv")
