"""Wherever weights live, the tokens are the same, and memory stays what the plan says."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import DamagedFileError
from haversack.core.memory import run_measured
from haversack.run import Engine

TEXT = np.random.default_rng(3).integers(3, 280, 50).astype(np.int32)
WAYS = ["mapped", "copied", "streamed", "streamed:keep=1", "streamed:keep=99"]


def logits_of(engine: Engine) -> np.ndarray:
    cache = engine.cache(60)
    rows = [engine.step(TEXT[:40], cache=cache, want="all")[0]]
    rows += [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(40, 50)]
    return np.concatenate(rows)


@pytest.mark.parametrize("kind", ["folder", "pack"])
@pytest.mark.parametrize("way", WAYS)
def test_residency_changes_no_bit(way: str, kind: str, request: Any) -> None:
    source = request.getfixturevalue(kind)
    with Engine.open(source) as engine:
        plain = logits_of(engine)
    with Engine.open(source, residency=way) as engine:
        assert np.array_equal(logits_of(engine), plain)
        assert engine.plan["residency"] == way


@pytest.mark.parametrize("tied", [True, False])
def test_a_large_vocabulary_streams_in_parts(
    tied: bool, tmp_path: Path, make_pack: Any, tiny_config: Any
) -> None:
    config = {**tiny_config, "vocab_size": 40_000, "tie_word_embeddings": tied}
    pack = make_pack(tmp_path / "wide.pack", config)
    with Engine.open(pack) as engine:
        plain = logits_of(engine)
    with Engine.open(pack, residency="streamed") as engine:
        assert len(list(engine.held.head())) > 2
        assert np.array_equal(logits_of(engine), plain)


def test_a_broken_off_pass_starts_over(pack: Path) -> None:
    """Blocks asked for out of order, head skipped: what arrives is always the block that was asked for."""
    with Engine.open(pack) as engine:
        plain = logits_of(engine)
    with Engine.open(pack, residency="streamed") as engine:
        for block in (1, 0, 2, 2, 0):
            with engine.held.weights(block) as weights:
                name = f"model.layers.{block}.mlp.up_proj.weight"
                assert bytes(weights[name].data) == bytes(engine.model.source.bytes(name))
        engine.step(TEXT[:3], cache=engine.cache(), want="none")
        assert np.array_equal(logits_of(engine), plain)


def test_a_file_truncated_while_running_is_found(pack: Path, tmp_path: Path) -> None:
    shutil.copytree(pack, tmp_path / "cut.pack")
    with Engine.open(tmp_path / "cut.pack", residency="streamed") as engine:
        os.truncate(tmp_path / "cut.pack" / "weights.safetensors", 20_000)
        with pytest.raises(DamagedFileError, match="ends at byte"):
            logits_of(engine)
            logits_of(engine)


@pytest.mark.parametrize("residency", ["mapped", "copied", "streamed"])
def test_altered_weights_are_found_before_use(residency: str, pack: Path, tmp_path: Path) -> None:
    shutil.copytree(pack, tmp_path / "altered.pack")
    with (tmp_path / "altered.pack" / "weights.safetensors").open("r+b") as file:
        file.seek(30_000)
        byte = file.read(1)
        file.seek(30_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DamagedFileError):
        Engine.open(tmp_path / "altered.pack", residency=residency)


# A model whose weights are most of its memory: 60 MiB in f32 blocks of 7 MiB.
LARGE = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 960,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, make_folder: Any, tiny_config: Any) -> Path:
    return make_folder(tmp_path_factory.mktemp("large") / "large", {**tiny_config, **LARGE})


def forget(path: Path) -> None:
    """Let the page cache forget `path`: what an earlier run left there is not this run's memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_in_fresh_process(model: Path, *options: str, code: int = 0) -> tuple[dict[str, Any], float]:
    argv = [
        sys.executable,
        "-c",
        "import sys; from haversack.cli import main; sys.exit(main())",
        "run",
        str(model),
    ]
    forget(model / "model.safetensors")
    argv += ["--prompt", "the second one", "--max-tokens", "12", "--ignore-end", "--json", *options]
    done = run_measured(argv, files=[model / "model.safetensors"], timeout=120)
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout), done.peak_mib


@pytest.mark.parametrize("residency", ["mapped", "copied", "streamed"])
def test_measured_memory_stays_below_the_plan(residency: str, large: Path) -> None:
    record, peak = run_in_fresh_process(large, "--residency", residency)
    planned = record["ram_mib"]["planned"]
    assert peak <= planned
    assert peak > planned - 40  # the plan is no mere upper bound
    assert peak - 24 < record["ram_mib"]["measured"] < peak + 8  # pieces on their way are seen from outside


def test_streamed_weights_use_what_the_budget_leaves(large: Path) -> None:
    plain, _ = run_in_fresh_process(large)
    for budget in (90, 105):
        record, peak = run_in_fresh_process(large, "--residency", "streamed", "--ram-mib", str(budget))
        assert peak <= budget
        assert record["text"] == plain["text"]
    assert plain["ram_mib"]["planned"] > 105


def test_a_budget_too_small_is_refused_before_loading(large: Path) -> None:
    record, peak = run_in_fresh_process(large, "--ram-mib", "80", code=2)
    assert record["field"] == "ram_mib" and record["nearest"] > 100
    assert peak < 75  # 60 MiB of weights were not touched
    again, peak = run_in_fresh_process(large, "--ram-mib", str(record["nearest"]))
    assert again["tokens"] == 12 and peak <= record["nearest"]


def test_the_nearest_budget_works(folder: Path) -> None:
    with pytest.raises(BudgetError) as refused:
        Engine.open(folder, budget=Budget(ram_mib=30), tokens=(10, 10))
    nearest = refused.value.nearest
    with Engine.open(folder, budget=Budget(ram_mib=nearest), tokens=(10, 10)) as engine:
        assert engine.memory_plan((10, 10)).total_mib <= nearest
