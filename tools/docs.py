"""Write the generated pages: docs/systems.md, docs/methods/, docs/schemas/.

`python tools/docs.py` writes them, `--check` only compares and exits with 1 when one is out of date. Run it
after adding a method, a parameter, a system or a field of `--json`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from haversack.bench import stored_result
from haversack.cli._records import OUTPUTS
from haversack.core import index
from haversack.core.expert_store import store_schema
from haversack.core.index import MethodEntry
from haversack.core.pack import pack_schema
from haversack.core.systems import STATES, Evidence, System, evidence, files_of_systems, page_of, systems

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "haversack"
GENERATED = ("methods", "schemas")


def pages() -> dict[Path, str]:
    """Every generated file and its content."""
    made = {DOCS / "systems.md": systems_page(), DOCS / "methods" / "README.md": methods_page()}
    for entry in index.methods():
        page = ROOT / page_of(entry.file)
        assert page not in made, f"two methods would share {page}"
        made[page] = method_page(entry)
    for file in files_without_slot():
        made[ROOT / page_of(file)] = file_page(file)
    for name, kind in OUTPUTS.items():
        made[DOCS / "schemas" / f"{name}-output.schema.json"] = schema_text(msgspec.json.schema(kind))
    made[DOCS / "schemas" / "pack.schema.json"] = schema_text(pack_schema())
    made[DOCS / "schemas" / "expert-store.schema.json"] = schema_text(store_schema())
    return made


def schema_text(schema: dict[str, object]) -> str:
    return json.dumps(schema, indent=2) + "\n"


def files_without_slot() -> Iterator[str]:
    """Files that belong to a system without filling a slot."""
    methods = {entry.file for entry in index.methods()}
    for files in files_of_systems().values():
        yield from (file for file in files if file not in methods)


# systems.md


def systems_page() -> str:
    rows = [(system, evidence(system, stored_result(system.slug))) for system in systems()]
    counted = ", ".join(f"{sum(proof.state == name for _, proof in rows)} {name}" for name in STATES)
    lines = [
        "# The systems",
        "",
        "Written by `tools/docs.py`; do not edit. `haversack systems` prints the same, with stored ratios.",
        "",
        f"The {len(rows)} published systems that Haversack is to contain: {counted}. The state is computed",
        "from what is there (`src/haversack/core/systems.py`). The published figure is the paper's own, from",
        "its own hardware: context for our ratio, never a comparison.",
        "",
        "| # | system | room | command | state | published |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(system_row(system, proof) for system, proof in rows)]) + "\n"


def system_row(system: System, proof: Evidence) -> str:
    links = [f"[{Path(file).stem}]({page_of(file).removeprefix('docs/')})" for file in proof.files]
    state = proof.state + (f": {', '.join(links)}" if links else "")
    paper = f"[{cell(system.name)}](https://arxiv.org/abs/{system.arxiv})" if system.arxiv else system.name
    parts = (
        str(system.number),
        f"{paper}: {cell(system.title)}",
        system.room,
        f"`{system.command}`",
        state,
        cell(system.published),
    )
    return f"| {' | '.join(parts)} |"


# methods/


def methods_page() -> str:
    lines = [
        "# The methods",
        "",
        "Written by `tools/docs.py`; do not edit. A stage has slots, a method fills a slot, a plan is one",
        "choice per slot. Each name leads to its page, the page to the file and its test.",
    ]
    place = None
    for entry in index.methods():
        if entry.place != place:
            place = entry.place
            lines += ["", f"## {place}", "", "| method | in one sentence |", "|---|---|"]
        link = page_of(entry.file).removeprefix("docs/methods/")
        lines.append(f"| [{entry.name}]({link}) | {cell(entry.summary)} |")
    return "\n".join(lines) + "\n"


def method_page(entry: MethodEntry) -> str:
    text = docstring(entry.file)
    lines = [
        f"# {entry.name}",
        "",
        "Written by `tools/docs.py` from the file; do not edit.",
        "",
        entry.summary,
        "",
        f"- fills **{entry.place}**",
        f"- paper: {entry.paper if entry.paper != '-' else 'none'}",
    ]
    if entry.system is not None:
        lines.append(f"- system: {entry.system} of [the systems](../../systems.md)")
    for label in ("provides", "requires", "excludes"):
        traits = sorted(getattr(entry, label))
        if traits:
            lines.append(f"- {label}: {', '.join(f'`{trait}`' for trait in traits)}")
    lines += [f"- file: {link(entry.file)}", *test_lines(entry.file), ""]
    if entry.parameters:
        lines += ["## Parameters", "", "| name | default | allowed | what it is |", "|---|---|---|---|"]
        for each in entry.parameters:
            allowed = f"any {each.annotation}"
            if isinstance(each.allowed, range):
                allowed = f"{each.allowed[0]} to {each.allowed[-1]} in steps of {each.allowed.step}"
            elif each.allowed is not None:
                allowed = ", ".join(f"`{value}`" for value in each.allowed)
            default = f"`{each.default}`" if each.default != "" else "none"
            lines.append(f"| `{each.name}` | {default} | {cell(allowed)} | {cell(each.help)} |")
        lines.append("")
    return "\n".join([*lines, "## Notes", "", text, ""])


def file_page(file: str) -> str:
    title, _, rest = docstring(file).partition("\n")
    numbers = [str(number) for number, files in files_of_systems().items() if file in files]
    lines = [
        f"# {title}",
        "",
        "Written by `tools/docs.py` from the file; do not edit.",
        "",
        f"- system: {', '.join(numbers)} of [the systems](../../systems.md)",
        f"- file: {link(file)}",
        *test_lines(file),
        "",
        rest.strip(),
        "",
    ]
    return "\n".join(lines)


def docstring(file: str) -> str:
    """The file's own words; a line that begins with a label (`Cost: ...`) becomes a paragraph."""
    text = ast.get_docstring(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))) or ""
    return re.sub(r"\n+([A-Z][A-Za-z ]{2,24}): ", r"\n\n**\1:** ", text)


def link(file: str) -> str:
    return f"[`src/haversack/{file}`](../../../src/haversack/{file})"


def test_of(file: str) -> Path | None:
    """The test file of a content file: `test_NAME.py` in the room's tests, else the first that imports it,
    else (methods) the first that chooses it by its slot and name."""
    path = Path(file)
    tests = sorted((ROOT / "tests" / path.parts[0]).rglob("test_*.py"))
    module = ".".join(("haversack", *path.with_suffix("").parts))
    package, _, name = module.rpartition(".")
    imports = re.compile(rf"{re.escape(module)}\b|from {re.escape(package)} import .*\b{re.escape(name)}\b")
    named = [test for test in tests if test.stem == f"test_{path.stem}"]
    found = named or [test for test in tests if imports.search(test.read_text(encoding="utf-8"))]
    for entry in index.methods():
        if entry.file == file and not found:
            chosen = re.compile(rf"""\b{entry.slot}\b.*["']{re.escape(entry.name)}[:"']""")
            found = [test for test in tests if chosen.search(test.read_text(encoding="utf-8"))]
    return found[0].relative_to(ROOT) if found else None


def test_lines(file: str) -> list[str]:
    test = test_of(file)
    return [f"- test: [`{test}`](../../../{test})"] if test is not None else []


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    made = pages()
    there = {path for folder in GENERATED for path in (DOCS / folder).rglob("*") if path.is_file()}
    stale = sorted(
        path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    )
    left_over = sorted(there - set(made))
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date; run: make docs", file=sys.stderr)
        for path in left_over:
            print(f"{path.relative_to(ROOT)} belongs to nothing any more; run: make docs", file=sys.stderr)
        return 1 if stale or left_over else 0
    for path in left_over:
        path.unlink()
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
