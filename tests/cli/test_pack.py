"""`haversack pack` from outside: a real checkpoint folder in, a pack that runs out, and every refusal in
one sentence.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from haversack.cli import main
from haversack.core.pack import Pack
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.models._bundled import bundled_names, model_folder

MAIN = "import sys; from haversack.cli import main; sys.exit(main())"
BOARD = ("--device", "raspberry-pi-zero-2w")
QUICK = ("--effort", "1", "--calibration-tokens", "4096")

if "code" not in bundled_names():
    pytest.skip("the bundled model `code` is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small Llama with the bundled tokenizer and random weights, as a hub folder."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    folder.mkdir()
    config = json.loads((model_folder("code") / "config.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors = []
    for name, shape in read_architecture(config).tensors().items():
        values = (
            1 + 0.1 * rng.normal(size=shape) if len(shape) == 1 else rng.normal(size=shape) / shape[-1] ** 0.5
        )
        tensors.append((name, "f16", shape, values.astype(np.float16).tobytes()))
    write_safetensors(folder / "model.safetensors", tensors)
    shutil.copy(model_folder("code") / "tokenizer.json", folder)
    return folder


def run(capsys, *arguments):
    code = main(["pack", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(capsys, *arguments):
    """The record of a refusal; exit code 2, one sentence, no traceback."""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 2, (out, err)
    record = json.loads(out)
    assert "Traceback" not in out + err and "\n" not in record["error"]
    return record


def test_a_checkpoint_becomes_a_pack_that_runs(capsys, checkpoint, tmp_path):
    goal = tmp_path / "tiny.pack"
    code, out, _ = run(capsys, checkpoint, *BOARD, "--ram-mib", "300", "-o", goal, *QUICK, "--json")
    assert code == 0, out
    record = json.loads(out)
    assert record["pack"] == str(goal) and record["seconds"] > 0
    candidates = record["candidates"]
    measured = [one for one in candidates if one["source"] == "measured"]
    assert measured and len(candidates) > 50
    for one in candidates:
        assert set(one) >= {"plan", "source", "quality", "storage_mib", "ram_mib", "tokens_per_s", "fits"}
    chosen = next(one for one in measured if one["plan"] == record["plan"])
    assert chosen["fits"] and chosen["ram_mib"] <= 300
    assert chosen["tokens_per_s"]["here"] > 0 and chosen["tokens_per_s"]["device_predicted"] > 0
    pack = Pack.open(goal)
    assert pack.check() == []
    assert pack.record.plan == record["plan"] and pack.record.activations == record["plan"]["activations"]
    assert pack.nbytes / 2**20 == pytest.approx(chosen["storage_mib"], abs=0.2)
    assert "<svg" in (goal / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.pack"]
    assert main(["run", str(goal), "--prompt", "def f(x):", "--max-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]


def test_fixed_slots_are_kept_and_a_table_is_shown(capsys, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "180")
    goal = tmp_path / "a.pack"
    code, out, err = run(
        capsys, checkpoint, *BOARD, "-o", goal, *QUICK,
        "--precision", "gptq:bits=4,group=32", "--activations", "int8-dynamic", "--residency", "copied",
    )  # fmt: skip
    assert code == 0, err
    assert "gptq:bits=4,group=32" in out and "report" in out and "memory: planned" in out
    plan = Pack.open(goal).record.plan
    assert plan["activations"] == "int8-dynamic" and plan["residency"] == "copied"
    kinds = {entry.kind for entry in Pack.open(goal).tensors.values()}
    assert kinds == {"int4", "int8", "f32"}


def test_the_same_seed_gives_the_same_weights(capsys, checkpoint, tmp_path):
    sums = []
    for name in ("a.pack", "b.pack"):
        code, *_ = run(
            capsys, checkpoint, *BOARD, "-o", tmp_path / name, *QUICK, "--precision", "gptq:bits=8"
        )
        assert code == 0
        sums.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert sums[0] == sums[1]


def test_a_budget_that_no_plan_meets_is_refused_before_any_work(capsys, checkpoint, tmp_path):
    record = refused(
        capsys, checkpoint, *BOARD, "--ram-mib", "1", "--storage-mib", "0.01", "-o", tmp_path / "no.pack"
    )
    assert record["field"] == "ram_mib" and record["given"] == 1
    assert {failure["field"] for failure in record["failures"]} == {"ram_mib", "storage_mib"}
    assert 30 < record["nearest"] < 200
    assert list(tmp_path.iterdir()) == []
    code, out, err = run(capsys, checkpoint, *BOARD, "--ram-mib", "1", "-o", tmp_path / "no.pack")
    assert code == 2 and out == "" and err.count("\n") == 1 and "needs at least" in err


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"--device": "raspberry-pi-zero"}, "device", "did you mean raspberry-pi-zero-2w"),
        ({"--device": "cortex-m4f"}, "device", "does not run language packs"),
        ({"--objective": "best"}, "objective", "quality, speed, size"),
        ({"--precision": "gtpq"}, "precision", "did you mean gptq"),
        ({"--precision": "gptq:bits=5"}, "bits", "use bits=4"),
        ({"--structure": "low-renk"}, "structure", "did you mean low-rank"),
        ({"--calibration": "missing.txt", "--precision": "gptq:bits=8"}, "calibration", "cannot be read"),
        ({"--evaluation": "missing.txt"}, "evaluation", "cannot be read"),
        ({"--work-ram-mib": "10"}, "work_ram_mib", "needs at least"),
        ({"-o": "no/such/folder/a.pack"}, "output", "does not exist"),
    ],
)
def test_mistakes_are_named(capsys, checkpoint, tmp_path, monkeypatch, changes, field, said):
    monkeypatch.chdir(tmp_path)
    options = {"--device": "raspberry-pi-zero-2w", "-o": "a.pack"} | changes
    record = refused(capsys, checkpoint, *QUICK, *(word for pair in options.items() for word in pair))
    assert record["field"] == field
    assert said in record["error"]
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_not_there_are_named(capsys, tmp_path):
    for name in ("codee", "none", "./none"):
        record = refused(capsys, name, *BOARD, "-o", tmp_path / "a.pack")
        assert record["field"] == "model" and "checkpoint folder" in record["error"]


def test_weights_that_are_not_finite_are_named(capsys, checkpoint, tmp_path):
    folder = tmp_path / "nan"
    shutil.copytree(checkpoint, folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-2:] = np.float16("nan").tobytes()
    (folder / "model.safetensors").write_bytes(data)
    record = refused(capsys, folder, *BOARD, "-o", tmp_path / "a.pack", *QUICK)
    assert "not finite" in record["error"] and record["given"].endswith(".weight")
    assert [path.name for path in tmp_path.iterdir()] == ["nan"]


def test_calibration_from_another_tokenizer_is_refused(capsys, checkpoint, tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(60_000))
    record = refused(
        capsys, checkpoint, *BOARD, "-o", tmp_path / "a.pack", *QUICK,
        "--precision", "gptq:bits=8", "--calibration", tmp_path / "tokens.npy",
    )  # fmt: skip
    assert "another tokenizer" in record["error"]
    assert not (tmp_path / "a.pack").exists()


def start(checkpoint, goal, *, limit=None):
    """The command as a process of its own; `limit` is the largest file it may write, as a full disk would."""

    def bound():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    argv = [sys.executable, "-c", MAIN, "pack", str(checkpoint), *BOARD, "-o", str(goal), *QUICK]
    argv += ["--precision", "gptq:bits=4,group=32", "--json"]
    return subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=bound if limit else None,
        env={**os.environ, "XDG_CACHE_HOME": str(Path(goal).parent / "cache")},
    )


def test_a_file_system_that_takes_no_more_ends_in_one_sentence(checkpoint, tmp_path):
    out, err = (process := start(checkpoint, tmp_path / "a.pack", limit=100_000)).communicate(timeout=120)
    assert process.returncode == 2, (out, err)
    assert "Traceback" not in err and "cannot be written" in json.loads(out)["error"]
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pack_leaves_the_old_one_whole(capsys, checkpoint, tmp_path, way):
    goal = tmp_path / "a.pack"
    assert (
        run(capsys, checkpoint, *BOARD, "-o", goal, *QUICK, "--precision", "round-to-nearest:bits=8")[0] == 0
    )
    before = (goal / "weights.safetensors").read_bytes()
    process = start(checkpoint, goal)
    until = time.monotonic() + 60
    while time.monotonic() < until and not any("partial" in path.name for path in tmp_path.iterdir()):
        time.sleep(0.005)
    process.send_signal(way)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if way == signal.SIGKILL else 130)
    assert Pack.open(goal).check() == [] and (goal / "weights.safetensors").read_bytes() == before
    if way == signal.SIGINT:
        assert not any("partial" in path.name for path in tmp_path.iterdir())
    # What a kill left behind is gone after the next pack.
    assert (
        run(capsys, checkpoint, *BOARD, "-o", goal, *QUICK, "--precision", "round-to-nearest:bits=8")[0] == 0
    )
    assert not any("partial" in path.name for path in tmp_path.iterdir())
