"""A training run that is killed and resumed ends with the same bits as one that is not."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
RUN = Path(__file__).with_name("_resume_run.py")


def start(work: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(RUN), str(REFERENCE), str(work), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def weights_hash(work: Path, name: str) -> str:
    output, _ = start(work, name).communicate(timeout=120)
    return output.splitlines()[-1]


@pytest.mark.parametrize("name", ["code", "code-moe"])
def test_killed_run_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = weights_hash(whole, name)
    process = start(broken, name)
    assert process.stdout is not None
    for line in process.stdout:  # the first report; checkpoints follow every step
        if line.startswith("{") and json.loads(line)["step"] >= 1:
            break
    deadline = time.monotonic() + 60
    while not list(broken.glob(f"{name}-*/state.pt")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    (state,) = broken.glob(f"{name}-*/state.pt")
    torch = pytest.importorskip("torch")
    done = torch.load(state, weights_only=True)["done_steps"]
    assert 1 <= done < 40, f"the run was to be killed half-way, not after {done} steps"
    assert weights_hash(broken, name) == expected
