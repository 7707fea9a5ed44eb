"""Experts streamed matrix by matrix: the tokens of the model in memory at every size, in the bytes that were
allowed, or a clear refusal."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.run.conftest import tokenizer_json
from tests.run.experts import OLMOE, SMALLTHINKER, flip_a_bit, require_a_clear_end, write_expert_pack
from tests.run.test_edgemoe import run_in_fresh_process

from haversack.cli._records import RunOutput
from haversack.core._record import STORE_NAME
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.expert_store import ExpertStore
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.models import read_architecture
from haversack.models._experts import experts_of
from haversack.run import Engine, Limits, generate
from haversack.run.residency.smallthinker import SmallThinker, order_of_use, overlapped

TEXT = np.random.default_rng(3).integers(3, 280, 40).astype(np.int32)
SIZES = (0, 60, 150, 400, 4000)
"""KiB of the buffer, from one layer's choice to everything."""


def four_bits(layer: int, expert: int) -> int:
    return 4


def logits_of(engine: Engine) -> np.ndarray:
    cache = engine.cache(60)
    rows = [engine.step(TEXT[:24], cache=cache, want="all")[0]]
    rows += [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(24, 40)]
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    goal = tmp_path_factory.mktemp("matrices") / "ahead.pack"
    return write_expert_pack(
        goal, SMALLTHINKER, profile=False, matrices=True, bits=four_bits, tokenizer=tokenizer_json()
    )


@pytest.fixture(scope="module")
def plain(pack: Path) -> dict[str, np.ndarray]:
    found = {}
    for activations in ("f32", "int8-dynamic"):
        with Engine.open(pack, residency="copied", activations=activations) as engine:
            found[activations] = logits_of(engine)
    return found


def test_experts_are_used_by_how_many_tokens_chose_them() -> None:
    assert order_of_use([[5, 2], [2, 7], [1, 2]]) == [2, 5, 1, 7]
    assert order_of_use([[3, 0]]) == [3, 0]


def test_reading_behind_attention_gains_what_the_bound_says() -> None:
    assert overlapped(1, 1, 0) == 2
    assert overlapped(0, 1, 1) == 1
    assert overlapped(2, 1, 1) == pytest.approx(4 / 3)


@pytest.mark.parametrize("activations", ["f32", "int8-dynamic"])
@pytest.mark.parametrize("early", ["true", "false"])
def test_no_size_no_order_and_no_micro_batch_changes_a_bit(
    early: str, activations: str, pack: Path, plain: dict[str, np.ndarray]
) -> None:
    for kib, (batch, keeps) in itertools.product(SIZES, ((1, "true"), (8, "true"), (256, "false"))):
        way = f"streamed:smallthinker,buffer_kib={kib},early={early},micro_batch={batch},keeps={keeps}"
        with Engine.open(pack, residency=way, activations=activations) as engine:
            assert np.array_equal(logits_of(engine), plain[activations])
            told = engine.held.record(1.0)
            assert told["peak_nbytes"] <= engine.held.budget == told["buffer_nbytes"]
            assert told["hits"] + told["late"] + told["demands"] == told["asked"] > 0
            assert told["unit"] == "matrix" and told["preloads"] == 0
            assert (told["prefetched"] > 0) == (early == "true")
            assert 0 < told["neurons"]["activated"] < told["neurons"]["examined"]
            if kib == 4000 and keeps == "true":
                assert told["evictions"] == 0 and told["demands"] <= 3 * 6 * 3
            assert "above zero" in engine.held.words(1.0)


def test_every_matrix_of_a_choice_is_examined_once(pack: Path) -> None:
    with Engine.open(pack, residency="streamed:smallthinker,buffer_kib=4000") as engine:
        cache = engine.cache(4)
        for token in TEXT[:4]:
            engine.step([token], cache=cache)
        told = engine.held.record()
        assert told["asked"] == 4 * 3 * 3 * 2  # tokens, layers, matrices, experts
        assert told["neurons"]["examined"] == 4 * 3 * 2 * 96
        assert told["prefetched"] == told["demands"]


@pytest.mark.parametrize("kind", ["olmoe", "without gates"])
def test_other_mixtures_are_served_without_reading_ahead(kind: str, tmp_path: Path) -> None:
    config = OLMOE
    goal = write_expert_pack(tmp_path / "after.pack", config, profile=False, matrices=True)
    with Engine.open(goal, residency="copied") as engine:
        expected = logits_of(engine)
    for kib in (0, 300) if kind == "olmoe" else (100,):
        with Engine.open(goal, residency=f"streamed:smallthinker,buffer_kib={kib}") as engine:
            assert np.array_equal(logits_of(engine), expected)
            told = engine.held.record()
            assert told["prefetched"] == 0 < told["demands"]
            assert told["neurons"] == {"examined": 0, "activated": 0}  # SiLU makes no zeros


def test_slow_storage_is_waited_for_and_reading_early_waits_less(
    pack: Path, plain: dict[str, np.ndarray]
) -> None:
    for early in ("true", "false"):
        way = f"streamed:smallthinker,buffer_kib=0,mb_s=100,early={early}"
        with Engine.open(pack, residency=way) as engine:
            assert np.array_equal(logits_of(engine), plain["f32"])
            assert engine.held.record()["stall_s"] > 0


def test_the_interpreter_changes_hands_faster_while_it_is_open(pack: Path) -> None:
    before = sys.getswitchinterval()
    with Engine.open(pack, residency="streamed:smallthinker"):
        assert sys.getswitchinterval() == pytest.approx(2e-4)
    assert sys.getswitchinterval() == before


def test_answers_in_a_batch_and_with_a_draft_are_the_plain_ones(pack: Path) -> None:
    def answer(**slots: Any) -> list[int]:
        with Engine.open(pack, **slots) as engine:
            made = generate(engine, TEXT[:20], Limits(max_tokens=16, end=()))
            for _ in made:
                pass
            return made.tokens

    expected = answer(residency="copied")
    assert answer(residency="streamed:smallthinker,buffer_kib=100") == expected
    drafted = {"decode": "linear-draft:length=4", "draft": str(pack)}
    assert answer(residency="streamed:smallthinker,buffer_kib=100", **drafted) == expected


def test_records_are_matrices_at_pages_in_order_of_use(pack: Path) -> None:
    assert check_pack(pack) == []
    with ExpertStore.open(pack / STORE_NAME) as store:
        assert list(store.records)[:4] == [(0, 0, "gate"), (0, 0, "up"), (0, 0, "down"), (0, 1, "gate")]
        assert all(record.offset % 4096 == 0 for record in store.records.values())
        assert len(store.records) == 3 * 6 * 3
    assert Pack.open(pack).record.provenance["store_records"] == "parts"


@pytest.mark.parametrize(
    ("experts", "layers", "hidden", "nbytes", "pages", "whole_gb"),
    [(64, 52, 2560, 1_105_920, 270, 11.04), (32, 32, 1536, 663_552, 162, 2.04)],
)
def test_matrices_of_the_released_models_fill_whole_pages(
    experts: int, layers: int, hidden: int, nbytes: int, pages: int, whole_gb: float
) -> None:
    from haversack.run.residency._edgemoe_held import Room
    from haversack.shrink.precision.q4_0 import Q40

    for rows, columns in ((768, hidden), (hidden, 768)):
        assert Q40().stored(rows, columns).nbytes(rows, columns) == nbytes == pages * 4096
    assert round(experts * layers * 3 * nbytes / 1e9, 2) == whole_gb
    assert Room.sized(nbytes, [("int4", nbytes)]).held - 4096 == nbytes
    cached = {2560: (6144, 6.79), 1536: (768, 0.51)}[hidden]
    assert round(cached[0] * nbytes / 1e9, 2) == cached[1]


def test_the_smallest_buffer_is_one_layer_s_choice(pack: Path) -> None:
    fitted = SmallThinker().fitted(Pack.open(pack), read_architecture(SMALLTHINKER))
    held = sorted((room.held for room in fitted.rooms.values()), reverse=True)
    assert len(held) == 3 * 6 * 3
    assert fitted.least <= 3 * 2 * held[0]
    with Engine.open(pack, residency="streamed:smallthinker,buffer_kib=0") as engine:
        assert engine.held.budget == fitted.least


def test_whole_experts_are_refused_and_so_are_matrices_by_others(pack: Path, tmp_path: Path) -> None:
    whole = write_expert_pack(tmp_path / "whole.pack", SMALLTHINKER, profile=False)
    with pytest.raises(UserError, match=r"needs expert-store:matrices.*--precision q4_0"):
        Engine.open(whole, residency="streamed:smallthinker")
    with pytest.raises(UserError, match=r"streamed:edgemoe needs expert-store:experts"):
        Engine.open(pack, residency="streamed:edgemoe")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rope_layout", [0, 1], "rope_layout.* is not a list of 3 zeros and ones"),
        ("sliding_window_layout", [0, 1, 1, 1], "sliding_window_layout.* is not a list of 3 zeros and ones"),
        ("moe_num_active_primary_experts", 7, "is more than moe_num_primary_experts=6"),
        ("moe_layer_layout", [1, 0, 1], "has dense blocks"),
        ("norm_topk_prob", False, "norm_topk_prob"),
    ],
)
def test_configs_that_cannot_be_are_refused(field: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_architecture({**SMALLTHINKER, field: value})


def copy_of(pack: Path, goal: Path) -> Path:
    shutil.copytree(pack, goal)
    return goal


def test_a_flipped_bit_in_one_matrix_is_found_before_use(pack: Path, tmp_path: Path) -> None:
    damaged = copy_of(pack, tmp_path / "damaged.pack")
    flip_a_bit(damaged, "model.layers.1.block_sparse_moe.experts.3.up.weight")
    with (
        Engine.open(damaged, residency="streamed:smallthinker,buffer_kib=100") as engine,
        pytest.raises(DamagedFileError, match="expert 3 of layer 1, up was altered, by its checksum"),
    ):
        logits_of(engine)


def test_a_store_truncated_while_running_ends_clearly(pack: Path, tmp_path: Path) -> None:
    cut = copy_of(pack, tmp_path / "cut.pack")
    with Engine.open(cut, residency="streamed:smallthinker,buffer_kib=0") as engine:
        os.truncate(cut / STORE_NAME, 20_000)
        with pytest.raises(DamagedFileError, match="ends at byte"):
            logits_of(engine)


def test_another_model_s_store_and_one_of_another_size_are_refused(pack: Path, tmp_path: Path) -> None:
    other = write_expert_pack(
        tmp_path / "other.pack", SMALLTHINKER, profile=False, matrices=True, bits=four_bits, identity="other"
    )
    mixed = copy_of(pack, tmp_path / "mixed.pack")
    shutil.copy(other / STORE_NAME, mixed / STORE_NAME)
    with pytest.raises(DamagedFileError, match="experts of another model"):
        Engine.open(mixed, residency="streamed:smallthinker")
    wide = write_expert_pack(
        tmp_path / "wide.pack", SMALLTHINKER, profile=False, matrices=True, bits=lambda layer, expert: 8
    )
    shutil.copy(wide / STORE_NAME, mixed / STORE_NAME)
    with pytest.raises(DamagedFileError, match=r"it has \d+ bytes instead of \d+"):
        Engine.open(mixed, residency="streamed:smallthinker")


@pytest.mark.parametrize("stalls", [True, False])
def test_storage_that_stalls_or_fails_ends_the_step(pack: Path, stalls: bool) -> None:
    require_a_clear_end(pack, "streamed:smallthinker,buffer_kib=0", stalls, logits_of, sound=60_000)


def test_parts_of_an_expert_that_come_apart_are_refused(tmp_path: Path) -> None:
    experts = experts_of(read_architecture(SMALLTHINKER))
    assert experts is not None
    names = list(experts.part_owners)[:2]
    with PackWriter(tmp_path / "x.pack") as writer:
        writer.keep_experts("drawn", experts.part_owners)
        for name in names:
            writer.add_tensor(name, "f32", (96, 64), [np.zeros((96, 64), np.float32)])
        with pytest.raises(ValueError, match=r"the experts' tensors .* were not given"):
            writer.finish({"architecture": SMALLTHINKER})


# Most of its 62 MiB are experts.
LARGE = {
    **SMALLTHINKER,
    "hidden_size": 256,
    "moe_ffn_hidden_size": 768,
    "moe_num_primary_experts": 9,
    "head_dim": 64,
}


def test_the_process_stays_inside_its_budget_as_the_system_measures_it(tmp_path: Path) -> None:
    goal = write_expert_pack(
        tmp_path / "large.pack",
        LARGE,
        lambda layer, expert: 32,
        profile=False,
        matrices=True,
        tokenizer=tokenizer_json(),
    )
    plain, most = run_in_fresh_process(goal, "--residency", "copied")
    assert most > 100
    way = ("--residency", "streamed:smallthinker", "--ram-mib")
    record, peak = run_in_fresh_process(goal, *way, "80")
    assert peak <= 80 and record["ram_mib"]["planned"] <= 80
    assert record["text"] == plain["text"]
    told = record["experts"]
    assert told["buffer_nbytes"] >= told["peak_nbytes"] > 0.6 * told["buffer_nbytes"]
    assert told["unit"] == "matrix" and told["prefetched"] == told["demands"]
    refused, _ = run_in_fresh_process(goal, *way, "60", code=2)
    assert refused["field"] == "ram_mib" and 60 < refused["nearest"] < 80
    again, peak = run_in_fresh_process(goal, *way, str(refused["nearest"]))
    assert again["tokens"] == 12 and peak <= refused["nearest"]
    assert msgspec.convert(again, RunOutput).experts.unit == "matrix"  # as the schema says
