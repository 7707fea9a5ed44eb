"""Streamed experts: the tokens of the same model in memory, in the bytes that were allowed, or a clear
refusal."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import tokenizer_json
from tests.run.experts import (
    OLMOE,
    drawn_profile,
    flip_a_bit,
    mixed_bits,
    require_a_clear_end,
    write_expert_pack,
)

from haversack.core._record import STORE_NAME
from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.memory import run_measured
from haversack.core.pack import Pack, check_pack
from haversack.run import Engine
from haversack.run._paths import PROFILE_NAME

TEXT = np.random.default_rng(3).integers(3, 280, 40).astype(np.int32)
EVICTIONS = ("intent", "printed", "frequency", "lru", "fifo", "none")
PREDICTIONS = ("paths", "gate", "none")


def logits_of(engine: Engine) -> np.ndarray:
    cache = engine.cache(60)
    rows = [engine.step(TEXT[:24], cache=cache, want="all")[0]]
    rows += [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(24, 40)]
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def expert_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_expert_pack(tmp_path_factory.mktemp("experts") / "mixed.pack")


@pytest.fixture(scope="module")
def plain(expert_pack: Path) -> np.ndarray:
    with Engine.open(expert_pack, residency="mapped") as engine:
        return logits_of(engine)


@pytest.mark.parametrize("way", ["copied", "streamed", "streamed:keep=1"])
def test_the_pack_runs_like_any_other(way: str, expert_pack: Path, plain: np.ndarray) -> None:
    assert check_pack(expert_pack) == []
    with Engine.open(expert_pack, residency=way) as engine:
        assert np.array_equal(logits_of(engine), plain)


@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_no_buffer_no_guess_and_no_eviction_changes_a_bit(
    predict: str, eviction: str, expert_pack: Path, plain: np.ndarray
) -> None:
    for kib in (0, 150, 400, 4000):
        way = f"streamed:edgemoe,buffer_kib={kib},eviction={eviction},predict={predict}"
        with Engine.open(expert_pack, residency=way) as engine:
            assert engine.plan["residency"].startswith("streamed:edgemoe")
            assert np.array_equal(logits_of(engine), plain)
            told = engine.held.record(1.0)
            assert told["peak_nbytes"] <= engine.held.budget == told["buffer_nbytes"]
            assert told["hits"] + told["late"] + told["demands"] == told["asked"] > 0
            assert told["predict"] == predict and "times_bound" in told
            assert "experts:" in engine.held.words() and "storage:" in engine.held.words(1.0)
            if kib == 4000 and eviction != "none":
                assert told["evictions"] == 0


def test_a_router_before_attention_announces_its_choice(tmp_path: Path) -> None:
    config = {
        **OLMOE,
        "model_type": "smallthinker",
        "norm_topk_prob": True,
        "head_dim": 16,
        "moe_ffn_hidden_size": 96,
        "moe_num_primary_experts": 6,
        "moe_num_active_primary_experts": 2,
        "rope_theta": 1e4,
        "rope_layout": [0, 1, 1],
        "sliding_window_layout": [0, 1, 1],
        "sliding_window_size": 16,
    }
    pack = write_expert_pack(tmp_path / "ahead.pack", config, profile=False)
    with Engine.open(pack) as engine:
        plain = logits_of(engine)
    with Engine.open(pack, residency="streamed:edgemoe,buffer_kib=200") as engine:
        assert np.array_equal(logits_of(engine), plain)
        assert engine.held.predict == "gate"  # auto, without a profile


def test_tokens_are_those_of_the_model_in_memory_while_storage_is_slow(
    expert_pack: Path, plain: np.ndarray
) -> None:
    with Engine.open(expert_pack, residency="streamed:edgemoe,buffer_kib=150,mb_s=200") as engine:
        assert np.array_equal(logits_of(engine), plain)
        assert engine.held.record()["stall_s"] > 0


def test_the_name_reads_back(expert_pack: Path) -> None:
    from haversack.core import index

    method = index.create("run", "residency", "streamed:edgemoe:eviction=lru,buffer_kib=99")
    assert str(method) == "streamed:edgemoe:buffer_kib=99,eviction=lru"
    assert index.create("run", "residency", str(method)) == method
    assert str(index.create("run", "residency", "streamed:edgemoe")) == "streamed:edgemoe"
    with pytest.raises(UserError, match="eviction=random is not supported"):
        index.create("run", "residency", "streamed:edgemoe,eviction=random")


def test_a_model_without_a_store_is_refused_with_advice(folder: Path, pack: Path) -> None:
    for source in (folder, pack):
        with pytest.raises(UserError, match=r"needs expert-store.*haversack pack MODEL"):
            Engine.open(source, residency="streamed:edgemoe")


def test_paths_without_a_profile_are_refused(tmp_path: Path) -> None:
    pack = write_expert_pack(tmp_path / "bare.pack", profile=False)
    with pytest.raises(UserError, match=r"has no expert-profile\.json, which predict=paths reads"):
        Engine.open(pack, residency="streamed:edgemoe,predict=paths")


def copy_of(pack: Path, goal: Path) -> Path:
    shutil.copytree(pack, goal)
    return goal


def test_a_profile_of_another_model_is_refused(expert_pack: Path, tmp_path: Path) -> None:
    from haversack.models import read_architecture
    from haversack.models._experts import experts_of

    pack = write_expert_pack(tmp_path / "a.pack", profile=False, identity="one")
    experts = experts_of(read_architecture(OLMOE))
    assert experts is not None
    from haversack.core.pack import PackWriter

    source = Pack.open(pack)
    with PackWriter(tmp_path / "b.pack") as writer:
        writer.keep_experts("one", experts.owners)
        for name, entry in source.tensors.items():
            writer.add_tensor(name, entry.kind, entry.shape, [source.bytes(name)], entry.group, entry.layout)
        writer.add_file(PROFILE_NAME, drawn_profile(experts, "another").to_bytes())
        writer.finish({"architecture": OLMOE})
    with pytest.raises(UserError, match="made of another model"):
        Engine.open(tmp_path / "b.pack", residency="streamed:edgemoe")


def test_a_flipped_bit_in_one_expert_is_found_before_use(
    expert_pack: Path, plain: np.ndarray, tmp_path: Path
) -> None:
    damaged = copy_of(expert_pack, tmp_path / "damaged.pack")
    flip_a_bit(damaged, "model.layers.2.mlp.experts.3.up_proj.weight")
    with (
        Engine.open(damaged, residency="streamed:edgemoe,buffer_kib=200") as engine,
        pytest.raises(DamagedFileError, match="expert 3 of layer 2 was altered, by its checksum"),
    ):
        logits_of(engine)
    (finding,) = check_pack(damaged)
    assert finding.file == STORE_NAME


def test_a_store_truncated_while_running_ends_clearly(expert_pack: Path, tmp_path: Path) -> None:
    cut = copy_of(expert_pack, tmp_path / "cut.pack")
    with Engine.open(cut, residency="streamed:edgemoe,buffer_kib=150,eviction=none") as engine:
        os.truncate(cut / STORE_NAME, 20_000)
        with pytest.raises(DamagedFileError, match="ends at byte"):
            logits_of(engine)


def test_another_model_s_store_is_refused(expert_pack: Path, tmp_path: Path) -> None:
    other = write_expert_pack(tmp_path / "other.pack", identity="other")
    mixed = copy_of(expert_pack, tmp_path / "mixed.pack")
    shutil.copy(other / STORE_NAME, mixed / STORE_NAME)
    with pytest.raises(DamagedFileError, match="experts of another model"):
        Engine.open(mixed, residency="streamed:edgemoe")


@pytest.mark.parametrize("stalls", [True, False])
def test_storage_that_stalls_or_fails_ends_the_step(expert_pack: Path, stalls: bool) -> None:
    require_a_clear_end(expert_pack, "streamed:edgemoe,buffer_kib=150", stalls, logits_of)


# Most of its 84 MiB are experts: 4 layers of 8, 2.25 MiB each.
LARGE = {**OLMOE, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_experts": 8}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.pack"
    return write_expert_pack(path, LARGE, lambda layer, expert: 32, tokenizer=tokenizer_json())


def run_in_fresh_process(model: Path, *options: str, code: int = 0) -> tuple[dict[str, Any], float]:
    files = list(Pack.open(model).files)
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    program = "import sys; from haversack.cli import main; sys.exit(main())"
    argv = [sys.executable, "-c", program, "run", str(model), "--prompt", "the second one"]
    argv += ["--max-tokens", "12", "--ignore-end", "--json", *options]
    done = run_measured(argv, files=files, timeout=120)
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout), done.peak_mib


def test_the_process_stays_inside_its_budget_as_the_system_measures_it(large: Path) -> None:
    plain, most = run_in_fresh_process(large, "--residency", "copied")
    assert most > 120
    for budget, predict in itertools.product((78, 95), ("paths", "gate")):
        way = f"streamed:edgemoe,predict={predict}"
        record, peak = run_in_fresh_process(large, "--residency", way, "--ram-mib", str(budget))
        assert peak <= budget
        assert record["ram_mib"]["planned"] <= budget
        assert peak > record["ram_mib"]["planned"] - 40  # the plan is no mere upper bound
        assert record["text"] == plain["text"]
        told = record["experts"]
        assert told["buffer_nbytes"] > told["peak_nbytes"] > 0.6 * told["buffer_nbytes"]
        assert told["asked"] and told["times_bound"] >= 0.9


def test_a_budget_below_one_layer_s_experts_names_what_is_needed(large: Path) -> None:
    record, peak = run_in_fresh_process(large, "--residency", "streamed:edgemoe", "--ram-mib", "60", code=2)
    assert record["field"] == "ram_mib" and 60 < record["nearest"] < 80
    again, peak = run_in_fresh_process(
        large, "--residency", "streamed:edgemoe", "--ram-mib", str(record["nearest"])
    )
    assert again["tokens"] == 12 and peak <= record["nearest"]
    with pytest.raises(BudgetError):
        Engine.open(large, residency="streamed:edgemoe", budget=Budget(ram_mib=30), tokens=(10, 10))


def test_the_pack_exports_what_it_holds(expert_pack: Path, plain: np.ndarray, tmp_path: Path) -> None:
    from haversack.run._source import open_model
    from haversack.run.export import export

    pack = write_expert_pack(tmp_path / "named.pack", tokenizer=tokenizer_json())
    export(open_model(pack), "safetensors", tmp_path / "folder", weights="f32")
    with Engine.open(tmp_path / "folder") as engine:
        assert np.allclose(logits_of(engine), plain, atol=1e-3)


def test_every_width_is_there(expert_pack: Path) -> None:
    kinds = {entry.kind for entry in Pack.open(expert_pack).tensors.values() if entry.file == STORE_NAME}
    assert kinds == {"int2", "int4", "int8", "f16", "f32"}
    assert {mixed_bits(layer, expert) for layer in range(3) for expert in range(6)} == {2, 4, 8, 16, 32}
