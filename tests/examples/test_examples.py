"""Every example is short, runs as it stands, and shows what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from haversack.core.index import source_root
from haversack.models._bundled import bundled_names

ROOT = source_root()
assert ROOT is not None
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "answer_by_schema.py": "'stars': ",
    "at_once.py": "same bits: True",
    "complete.py": "measured",
    "learn_my_labels.py": "this is a function",
    "pack_for_a_board.py": "refused: ",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    if "code" not in bundled_names():
        pytest.skip("the weights of code are not in this checkout")
    assert len(path.read_text().splitlines()) <= 60
    assert path.name in (ROOT / "examples" / "README.md").read_text()
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert SAYS[path.name] in done.stdout
    assert "Traceback" not in done.stderr
