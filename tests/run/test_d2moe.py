"""D2MoE at run time: the schedule, the budget, the tokens of the same bits in memory, many texts at once."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.run.conftest import tokenizer_json
from tests.run.experts import (
    LARGE_NESTED,
    OLMOE,
    drawn_routers,
    flip_a_bit,
    require_a_clear_end,
    with_router,
    write_expert_pack,
    write_nested_pack,
)
from tests.run.test_edgemoe import logits_of, run_in_fresh_process

from haversack.core._record import STORE_NAME
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.storage import FailingStorage
from haversack.run import Engine
from haversack.run._levels import BitRouters, Uniform
from haversack.run._pool import Part, Together
from haversack.run._routing import RoutingTrace
from haversack.run.residency.d2moe import Planes, demand, makespan, schedule, waves

I64 = np.int64


def test_the_published_example() -> None:
    needs = np.array([[1], [4]], I64)  # A: one token, B: four; a plane loads in 2, a token takes 1
    assert makespan(schedule(needs, "id-order"), needs, [2], [1]) == (8.0, 3.0)
    assert schedule(needs) == [(1, 0), (0, 0)]
    assert makespan(schedule(needs), needs, [2], [1]) == (7.0, 2.0)


def test_a_token_needs_all_planes_below_its_own() -> None:
    experts, levels = np.array([[0, 2], [2, 0], [1, 2]]), np.array([[2, 0], [1, 0], [0, 2]])
    needs = demand(experts, levels, 4, 3)
    assert needs.tolist() == [[2, 1, 1], [1, 0, 0], [3, 2, 1], [0, 0, 0]]
    exact = demand(experts, levels, 4, 3, nested=False)
    assert exact.tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert schedule(needs) == [(2, 0), (0, 0), (2, 1), (1, 0), (0, 1), (0, 2), (2, 2)]
    assert schedule(needs, resident={(0, 0), (0, 1), (2, 1)})[:4] == [(0, 0), (0, 1), (2, 0), (2, 1)]


needed = st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(exact=needed, seed=st.integers(0, 99), budget=st.integers(3, 12))
def test_orders_keep_planes_ascending_and_waves_keep_the_budget(
    exact: list[list[int]], seed: int, budget: int
) -> None:
    needs = np.array(exact, I64)[:, ::-1].cumsum(axis=1)[:, ::-1]
    items = [(int(e), int(p)) for e, p in np.argwhere(needs)]
    rng = np.random.default_rng(seed)
    resident = {item for item in items if rng.random() < 0.4}
    for order in ("hebf", "id-order"):
        found = schedule(needs, order, resident)
        assert sorted(found) == items
        for expert in range(len(needs)):
            assert [p for e, p in found if e == expert] == sorted(p for e, p in items if e == expert)
    parts = waves(needs, dict.fromkeys(items, 1), budget, resident)
    assert (sum(parts, np.zeros_like(needs)) == needs).all()
    assert all(np.count_nonzero(part) <= budget for part in parts)
    if len(items) <= budget:
        assert len(parts) <= 1


@settings(max_examples=40, deadline=None)
@given(
    exact=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=3),
    load=st.floats(0.1, 4),
)
def test_no_order_beats_the_optimum(exact: list[list[int]], load: float) -> None:
    needs = np.array(exact, I64)[:, ::-1].cumsum(axis=1)[:, ::-1]
    times = ([load, load / 2], [1.0, 0.5])
    best = makespan(schedule(needs, "optimal", load_s=times[0], compute_s=times[1]), needs, *times)[0]
    reading = sum(times[0][p] for _, p in np.argwhere(needs))
    for order in ("hebf", "id-order"):
        took, waited = makespan(schedule(needs, order), needs, *times)
        assert took >= best - 1e-9 >= -1e-9 and took >= reading - 1e-9
        assert took == pytest.approx(waited + float((needs * np.array(times[1])).sum()))


def test_an_optimum_of_many_planes_is_refused() -> None:
    with pytest.raises(UserError, match="best order of 8 planes is not looked for"):
        schedule(np.ones((4, 2), I64), "optimal", load_s=[1, 1], compute_s=[1, 1])
    with pytest.raises(UserError, match="schedule=random is not supported"):
        schedule(np.ones((1, 1), I64), "random")


def test_high_planes_of_the_running_layer_leave_first() -> None:
    budget = Planes(layers=4, planes=3)
    keys = [(layer, 0, plane) for layer in range(4) for plane in range(3)]
    leaves = sorted(keys, key=lambda key: budget.keep(key, 1))
    assert leaves[:3] == [(1, 0, 2), (1, 0, 1), (1, 0, 0)]
    assert [key[2] for key in leaves[3:]] == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert leaves[3:6] == [(0, 0, 2), (3, 0, 2), (2, 0, 2)]  # layer 2 runs next
    budget.used((1, 0, 2))
    assert budget.keep((1, 0, 2), 1) > budget.keep((1, 5, 2), 1)


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nested_pack(tmp_path_factory.mktemp("nested") / "nested.pack", tokenizer=tokenizer_json())


@pytest.fixture(scope="module")
def plain(nested: Path) -> np.ndarray:
    with Engine.open(nested, residency="mapped") as engine:
        return logits_of(engine)


@pytest.mark.parametrize("way", ["copied", "streamed", "streamed:keep=1"])
def test_the_pack_runs_like_any_other(way: str, nested: Path, plain: np.ndarray) -> None:
    with Engine.open(nested, residency=way) as engine:
        assert np.array_equal(logits_of(engine), plain)


@pytest.mark.parametrize("eviction", ["planes", "intent", "lru", "none"])
@pytest.mark.parametrize("order", ["hebf", "id-order"])
def test_no_buffer_no_order_and_no_eviction_changes_a_bit(
    order: str, eviction: str, nested: Path, plain: np.ndarray
) -> None:
    for kib in (0, 60, 150, 4000):
        way = f"streamed:d2moe,buffer_kib={kib},schedule={order},eviction={eviction}"
        with Engine.open(nested, residency=way) as engine:
            assert np.array_equal(logits_of(engine), plain)
            told = engine.held.record(1.0)
            assert told["peak_nbytes"] <= engine.held.budget == told["buffer_nbytes"]
            assert told["hits"] + told["late"] + told["demands"] == told["asked"] > 0
            assert 0 < sum(told["plane_nbytes"]) < told["nbytes"]  # which counts pages and their entries
            assert 2 < told["mean_bits"] < 4
            assert "planes used" in engine.held.words() and "waited" in engine.held.words(1.0)


def test_copies_give_the_same_tokens_wherever_they_are(tmp_path: Path) -> None:
    pack = write_nested_pack(tmp_path / "copies.pack", copies=True)
    with Engine.open(pack) as engine:
        plain = logits_of(engine)
    for kib in (0, 150):
        with Engine.open(pack, residency=f"streamed:d2moe,buffer_kib={kib}") as engine:
            assert np.array_equal(logits_of(engine), plain)


def test_bits_given_are_those_of_all_tokens(nested: Path, plain: np.ndarray, tmp_path: Path) -> None:
    for level, bits in enumerate((2, 3, 4)):
        with Engine.open(nested) as engine:
            engine.forward.levels = Uniform(level)
            wanted = logits_of(engine)
        with Engine.open(nested, residency=f"streamed:d2moe,bits={bits},buffer_kib=90") as engine:
            assert np.array_equal(logits_of(engine), wanted)
            assert engine.held.mean_bits == bits
        assert not np.array_equal(wanted, plain)
    bare = write_nested_pack(tmp_path / "bare.pack", router=False)
    with Engine.open(bare) as engine:
        assert np.array_equal(logits_of(engine), wanted)  # without routers all bits are read
    with pytest.raises(UserError, match="bits=5 is not supported"):
        Engine.open(nested, residency="streamed:d2moe,bits=5")


@pytest.mark.parametrize("residency", ["mapped", "streamed:d2moe,buffer_kib=90"])
def test_many_texts_at_once_get_their_own_bits(residency: str, nested: Path) -> None:
    texts = [np.random.default_rng(n).integers(3, 280, 12 + n).astype(np.int32) for n in range(7)]
    alone = []
    with Engine.open(nested) as engine:
        for text in texts:
            cache = engine.cache(40)
            rows = [engine.step(text[:9], cache=cache)[0][0]]
            rows += [engine.step(text[9 + i : 10 + i], cache=cache)[0][0] for i in range(3)]
            alone.append(np.stack(rows))
    with Engine.open(nested, residency=residency) as engine:
        together = Together(engine, len(texts), 40)
        rows = [together.step([Part(slot, text[:9]) for slot, text in enumerate(texts)])]
        for i in range(3):
            rows.append(together.step([Part(slot, text[9 + i : 10 + i]) for slot, text in enumerate(texts)]))
    for slot in range(len(texts)):
        assert np.array_equal(np.stack([row[slot] for row in rows]), alone[slot])


AHEAD = {
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
SHARED = {
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 80,
    "decoder_sparse_step": 1,
}


@pytest.mark.parametrize("changes", [AHEAD, SHARED], ids=["router before attention", "shared expert"])
def test_other_families_of_experts(changes: dict[str, object], tmp_path: Path) -> None:
    pack = write_nested_pack(tmp_path / "other.pack", {**OLMOE, **changes})
    with Engine.open(pack) as engine:
        plain = logits_of(engine)
    with Engine.open(pack, residency="streamed:d2moe,buffer_kib=90") as engine:
        assert np.array_equal(logits_of(engine), plain)


def test_an_observer_is_told_the_levels(nested: Path) -> None:
    seen: list[np.ndarray] = []
    with Engine.open(nested) as engine:
        engine.observe(lambda routing: seen.append(routing.levels.copy()))
        logits_of(engine)
        trace = RoutingTrace()
        engine.observe(trace)
        logits_of(engine)
    assert {int(level) for one in seen for level in one.reshape(-1)} == {0, 1, 2}
    assert trace.blocks == [0, 1, 2]


def test_no_plane_outlives_its_place(nested: Path) -> None:
    """What left the buffer is held by nobody: whenever a read begins, all planes alive fit the buffer."""
    import gc

    from haversack.kernels.nested import Plane

    with Engine.open(nested, residency="streamed:d2moe,buffer_kib=0") as engine:
        held, alive = engine.held, []
        load = held.buffer._load

        def loading(*given: object) -> object:
            gc.collect()
            alive.append(sum(one.nbytes for one in gc.get_objects() if isinstance(one, Plane)))
            return load(*given)

        held.buffer._load = loading
        gc.freeze()  # what was there before is not looked through again
        try:
            engine.step(np.arange(3, 23), cache=engine.cache(20))
        finally:
            gc.unfreeze()
        assert len(alive) > 30 and max(alive) <= held.budget


def test_slow_storage_makes_bubbles_that_are_counted(nested: Path, plain: np.ndarray) -> None:
    with Engine.open(nested, residency="streamed:d2moe,buffer_kib=60,mb_s=200") as engine:
        assert np.array_equal(logits_of(engine), plain)
        assert engine.held.record()["stall_s"] > 0


def test_routers_read_back_and_are_bound_to_their_model(nested: Path, tmp_path: Path) -> None:
    from haversack.models import read_architecture
    from haversack.models._experts import experts_of

    experts = experts_of(read_architecture(OLMOE))
    assert experts is not None
    routers = drawn_routers(experts, 64, (2, 3, 4), "drawn")
    data = routers.to_bytes()
    again = BitRouters.of_bytes(data, tmp_path)
    x = np.random.default_rng(1).standard_normal((9, 64)).astype(np.float32)
    chosen = np.random.default_rng(2).integers(0, 6, (9, 2)).astype(np.int32)
    assert np.array_equal(again(1, x, chosen), routers(1, x, chosen))
    for row in range(9):
        one = again(1, x[row : row + 1], chosen[row : row + 1])
        assert np.array_equal(one[0], routers(1, x, chosen)[row])
    for damaged in (data[:-1], b"", data[:40], data[:60] + b"\1" + data[61:], bytes(len(data))):
        with pytest.raises(DamagedFileError, match="holds no bit routers"):
            BitRouters.of_bytes(damaged, tmp_path)
    for changed in ("other", "drawn"):
        width = (2, 3, 4) if changed == "other" else (2, 3)
        pack = write_nested_pack(tmp_path / f"{changed}.pack", router=False)
        wrong = with_router(pack, drawn_routers(experts, 64, width, changed), tmp_path / f"{changed}-2.pack")
        with pytest.raises(UserError, match="trained for another model"):
            Engine.open(wrong)


def test_other_packs_are_refused_with_advice(nested: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weight-type:nested"):
        Engine.open(write_expert_pack(tmp_path / "plain.pack"), residency="streamed:d2moe")
    with pytest.raises(UserError, match="expert-store"):
        Engine.open(folder, residency="streamed:d2moe")
    with pytest.raises(UserError, match="streamed:edgemoe does not work with weight-type:nested"):
        Engine.open(nested, residency="streamed:edgemoe")
    with pytest.raises(UserError, match="stored as nested, which takes f32 activations"):
        Engine.open(nested, activations="int8-dynamic")


def test_a_flipped_bit_in_one_plane_is_found_before_use(nested: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(nested, tmp_path / "damaged.pack"))
    flip_a_bit(damaged, "model.layers.1.mlp.experts.2.up_proj.weight.plane3")
    with (
        Engine.open(damaged, residency="streamed:d2moe,buffer_kib=90") as engine,
        pytest.raises(DamagedFileError, match="expert 2 of layer 1, plane3 was altered"),
    ):
        logits_of(engine)


def test_another_model_s_store_is_refused(nested: Path, tmp_path: Path) -> None:
    other = write_nested_pack(tmp_path / "other.pack", identity="other", router=False)
    mixed = Path(shutil.copytree(nested, tmp_path / "mixed.pack"))
    shutil.copy(other / STORE_NAME, mixed / STORE_NAME)
    with pytest.raises(DamagedFileError, match=r"of another model|is not the one"):
        Engine.open(mixed, residency="streamed:d2moe")


def test_a_store_truncated_while_running_ends_clearly(nested: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(nested, tmp_path / "cut.pack"))
    with Engine.open(cut, residency="streamed:d2moe,buffer_kib=0,eviction=none") as engine:
        os.truncate(cut / STORE_NAME, 20_000)
        with pytest.raises(DamagedFileError, match="ends at byte"):
            logits_of(engine)


@pytest.mark.parametrize("stalls", [True, False])
def test_storage_that_stalls_or_fails_ends_the_step(nested: Path, stalls: bool) -> None:
    require_a_clear_end(nested, "streamed:d2moe,buffer_kib=60", stalls, logits_of)


def test_after_a_failed_step_the_engine_steps_again(nested: Path, plain: np.ndarray) -> None:
    with Engine.open(nested, residency="streamed:d2moe,buffer_kib=60") as engine:
        engine.held.store._file._storage = FailingStorage(sound=30_000)
        with pytest.raises(UserError, match="Input/output error"):
            logits_of(engine)
        engine.held.store._file._storage = None
        assert np.array_equal(logits_of(engine), plain)
        assert all(item.pins == 0 for item in engine.held.buffer.shelf.items.values())


def test_the_name_reads_back() -> None:
    from haversack.core import index

    method = index.create("run", "residency", "streamed:d2moe:eviction=lru,bits=3")
    assert str(method) == "streamed:d2moe:eviction=lru,bits=3"
    assert index.create("run", "residency", str(method)) == method
    with pytest.raises(UserError, match="schedule=optimal is not supported"):
        index.create("run", "residency", "streamed:d2moe,schedule=optimal")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.pack"
    return write_nested_pack(path, LARGE_NESTED, tokenizer=tokenizer_json(), alike=True)


def test_the_process_stays_inside_its_budget_as_the_system_measures_it(large: Path) -> None:
    way = ("--residency", "streamed:d2moe")
    plain, most = run_in_fresh_process(large, "--residency", "copied")
    refused, _ = run_in_fresh_process(large, *way, "--ram-mib", "40", code=2)
    assert refused["field"] == "ram_mib" and 40 < refused["nearest"] < 90
    for budget in (refused["nearest"], refused["nearest"] + 10):
        record, peak = run_in_fresh_process(large, *way, "--ram-mib", str(budget))
        assert peak <= budget < most and record["ram_mib"]["planned"] <= budget
        assert record["text"] == plain["text"]
        told = record["experts"]
        assert told["buffer_nbytes"] >= told["peak_nbytes"] > 0.6 * told["buffer_nbytes"]
        assert len(told["plane_nbytes"]) == 3 and 2 < told["mean_bits"] < 4


def test_every_pair_of_orders_and_sizes_reads_each_plane_once_where_all_fit(nested: Path) -> None:
    for order, kib in itertools.product(("hebf", "id-order"), (4000,)):
        with Engine.open(nested, residency=f"streamed:d2moe,buffer_kib={kib},schedule={order}") as engine:
            logits_of(engine)
            told = engine.held.record()
            assert told["evictions"] == 0 and told["demands"] == len(engine.held.buffer.shelf.items)
