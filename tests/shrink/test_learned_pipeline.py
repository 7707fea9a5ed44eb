"""Methods that learn from outside: memory as planned, a kill that leaves nothing, PyTorch that is missing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.core.memory import run_measured
from haversack.core.pack import check_pack
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.models._bundled import bundled_names, model_folder
from haversack.plan._enumerate import precision_choices
from haversack.plan._structure import Structures
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import memory_plan
from haversack.shrink._reconstruction import record_of
from haversack.shrink.precision.omniquant import OmniQuant
from haversack.shrink.precision.tesseraq import TesseraQ

MAIN = "import sys; from haversack.cli import main; sys.exit(main())"
WITHOUT = "import sys; sys.modules['torch'] = None; from haversack.cli import main; sys.exit(main())"
BOARD = ("--device", "raspberry-pi-zero-2w", "--effort", "1", "--calibration-tokens", "2048")

if "code" not in bundled_names():
    pytest.skip("the bundled model `code` is not installed", allow_module_level=True)


def write(folder, **fields):
    """A small Llama with the bundled tokenizer and random weights, as a hub folder."""
    folder.mkdir(parents=True)
    config = json.loads((model_folder("code") / "config.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, **fields}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors = []
    for name, shape in read_architecture(config).tensors().items():
        values = rng.normal(size=shape) / shape[-1] ** 0.5 if len(shape) == 2 else np.ones(shape)
        tensors.append((name, "f16", shape, values.astype(np.float16).tobytes()))
    write_safetensors(folder / "model.safetensors", tensors)
    shutil.copy(model_folder("code") / "tokenizer.json", folder)
    return folder


def pack(folder, goal, precision, *, program=MAIN, **options):
    line = [sys.executable, "-c", program, "pack", folder, *BOARD, "-o", goal, "--precision", precision]
    return subprocess.Popen([str(each) for each in line], **options)


CHILD = """
import sys
from pathlib import Path
import numpy as np
from haversack.core import index
from haversack.core.pack import PackWriter
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress

folder = Path(sys.argv[1])
source = HubFolder.open(folder)
walk = LanguageWalk(read_architecture(source.config))
texts = np.random.default_rng(1).integers(0, 3000, (6, 256)).astype(np.int32)
with PackWriter(folder.parent / "a.pack") as writer:
    method = index.create("shrink", "precision", sys.argv[2])
    compress(source, walk, method, writer, texts=texts, policy=Policy(), folder=folder.parent)
    writer.finish({})
"""


@pytest.mark.parametrize(
    "method", [OmniQuant(epochs=1, activations="int8-dynamic"), TesseraQ(steps=1)], ids=lambda each: each.name
)
def test_the_peak_stays_below_the_plan(method, tmp_path):
    pytest.importorskip("torch", reason="learning needs PyTorch")
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "head_dim": 64}
    folder = write(tmp_path / "hub", num_key_value_heads=2, num_hidden_layers=1, vocab_size=3000, **sizes)
    done = run_measured(
        [sys.executable, "-c", CHILD, str(folder), str(method)],
        files=[folder / "model.safetensors"],
        env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "config.json").read_text())
    plan = memory_plan(LanguageWalk(read_architecture(config)), method, 6 * 256, None, 256)
    assert any("learning through the largest block" in label for label, _ in plan.lines)
    assert 0.5 * plan.total_mib <= done.peak_mib <= plan.total_mib


def signalled(process, how):
    """What a process writes before it ends by `how`. An interrupt that falls into a callback of the garbage
    collector is lost in Python, so it is sent again, as a person would."""
    for _ in range(6):
        process.send_signal(how)
        try:
            return process.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("it did not end")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_while_learning_nothing_is_left(how, tmp_path):
    pytest.importorskip("torch", reason="learning needs PyTorch")
    folder, goal = write(tmp_path / "hub"), tmp_path / "out" / "a.pack"
    goal.parent.mkdir()
    process = pack(folder, goal, "omniquant:epochs=100000", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(goal.parent.glob("a.pack.partial-*/0.pack*")):  # the candidate being written
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    said = signalled(process, how)
    assert not goal.exists()
    if how == signal.SIGINT:
        assert process.returncode == 130 and (b"Traceback" not in said or b"Exception ignored" in said)
        assert not list(goal.parent.iterdir())
        return
    assert all(each.name.startswith("a.pack.partial-") for each in goal.parent.iterdir())
    again = pack(folder, goal, "round-to-nearest:bits=4", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert [each.name for each in goal.parent.iterdir()] == ["a.pack"] and check_pack(goal) == []


@pytest.mark.parametrize("precision", ["omniquant:bits=4", "tesseraq:bits=4,start=searched"])
def test_without_pytorch_one_sentence_says_how_to_get_it(precision, tmp_path):
    done = pack(
        write(tmp_path / "hub"),
        tmp_path / "a.pack",
        precision,
        program=WITHOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    _, said = done.communicate(timeout=120)
    assert done.returncode == 2, said
    assert b"needs torch, which is not installed; run: pip install 'haversack[workshop]'" in said
    assert b"Traceback" not in said and sorted(each.name for each in tmp_path.iterdir()) == ["hub"]


def test_the_planner_learns_only_what_is_named():
    choices = precision_choices(None)
    assert not [each for each in choices if each.startswith(("omniquant", "tesseraq"))]
    assert precision_choices("tesseraq:bits=4,steps=7") == ["tesseraq:bits=4,group=64,steps=7"]


def test_a_structure_s_factors_are_not_learned_and_undeclared_blocks_are_refused(tmp_path):
    walk = LanguageWalk(read_architecture(json.loads((model_folder("code") / "config.json").read_text())))
    with pytest.raises(UserError, match="omniquant looks at whole layers"):
        Structures(walk, None).compression("omniquant", "low-rank:rank=0.5")
    with pytest.raises(UserError, match="tesseraq learns through blocks that are declared"):
        record_of(object(), 0, "tesseraq")
