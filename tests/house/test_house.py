"""The rules of the house that no other tool checks: file sizes, light imports, the time of --help, floors."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from haversack.core.index import PACKAGE, source_root

ROOT = source_root()
assert ROOT is not None
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
NATIVE = sorted([*ROOT.glob("native/**/*.cpp"), *ROOT.glob("native/**/*.h")])
HEAVY = ("numpy", "msgspec", "typer", "rich", "tokenizers", "jinja2", "torch", "transformers")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_no_file_is_longer_than_500_lines() -> None:
    others = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tools/*"), *ROOT.glob("reference/*.py")]
    long = {
        name: count
        for path, name in zip([*FILES, *NATIVE, *others], names([*FILES, *NATIVE, *others]), strict=True)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long


def test_every_file_says_what_it_is() -> None:
    silent = [
        path
        for path in FILES
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not names(silent)


@pytest.mark.parametrize("line", [["--help"], ["--version"], []])
def test_the_front_page_imports_nothing_heavy(line: list[str]) -> None:
    program = (
        "import sys; from haversack.cli import main; code = main(sys.argv[1:]);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *line], capture_output=True, text=True)
    assert done.stdout
    assert done.stderr.strip() == "[]"


def test_a_command_s_help_imports_no_numbers() -> None:
    from haversack.cli._app import command_names

    program = (
        "import sys; from haversack.cli import main; main(sys.argv[1:]);"
        "print([name for name in ('numpy', 'torch', 'tokenizers') if name in sys.modules], file=sys.stderr)"
    )
    for name in command_names():
        done = subprocess.run(
            [sys.executable, "-c", program, name, "--help"], capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == "[]", name


def test_help_answers_in_time() -> None:
    """0.3 s of the processor, the best of five: time that other programs take from the clock is not ours."""
    for line in (["--help"], ["systems", "--help"]):
        program = [sys.executable, "-c", f"from haversack.cli import main; main({line})"]
        best = float("inf")
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(program, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert best < 0.3, line


def test_importing_any_room_starts_nothing() -> None:
    """Packages import in any order without PyTorch, threads or the native module."""
    rooms = sorted(
        ".".join(("haversack", *path.parent.relative_to(PACKAGE).parts))
        for path in FILES
        if path.name == "__init__.py"
    )
    program = (
        "import sys, threading, importlib\n"
        f"for room in {rooms}: importlib.import_module(room)\n"
        "heavy = [m for m in ('torch', 'transformers', 'haversack._native') if m in sys.modules]\n"
        "sys.exit(str(heavy) if heavy or threading.active_count() > 1 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_bench_has_the_rows_of_all_its_files() -> None:
    """Loading a bench imports every file of its folder that declares rows: those of any other would not
    exist."""
    from haversack.bench import bench_names, find_bench

    left_out = []
    for name in bench_names():
        functions = {measure.function.__module__ for measure in find_bench(name).measures}
        for path in (PACKAGE / "bench" / name.replace("-", "_")).glob("*.py"):
            if "@bench.measure(" in path.read_text(encoding="utf-8"):
                module = ".".join(("haversack", *path.relative_to(PACKAGE).with_suffix("").parts))
                if module not in functions:
                    left_out.append(path)
    assert not names(left_out)


def test_a_full_run_of_a_bench_has_the_time_that_its_rows_take() -> None:
    """As declared: what is measured last is not left out for what came before."""
    from haversack.bench import bench_names, find_bench
    from haversack.bench._harness import FULL_SECONDS

    taken = {name: sum(one.seconds for one in find_bench(name).measures) for name in bench_names()}
    assert not {name: seconds for name, seconds in taken.items() if seconds > FULL_SECONDS}


def test_engines_do_not_import_torch_modules() -> None:
    """run, and the floors below it, know no file NAME_torch.py, not even inside a function."""
    guilty = []
    for path in FILES:
        room = path.relative_to(PACKAGE).parts[0]
        if room not in ("core", "kernels", "formats", "run", "plan", "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            if any(
                part.endswith("_torch") or part == "torch" for name in modules for part in name.split(".")
            ):
                guilty.append(path)
    assert not names(guilty)


def test_rooms_import_only_from_floors_below() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_nothing_private_is_told() -> None:
    """Tracked text names no machine, and no registry but by its public name."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout of the repository")
    guilty = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".sh", ".cpp", ".h", ".txt", ".json", ".yaml", "") and (
            path.is_file()
        ):
            text = path.read_text(encoding="utf-8", errors="replace")
            if "/wo" + "rk/" in text or "/ro" + "ot/" in text:
                guilty.append(name)
    assert not guilty
