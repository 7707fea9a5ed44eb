"""R-Sparse: the specification's numbers, exactness of the definition, the search, recipes, what is refused;
packs that run the same in every way of running them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.run.conftest import CONFIG, draw, write_folder

from haversack.core.errors import UserError
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.formats.safetensors import HubFolder
from haversack.kernels import unpack_channels
from haversack.models import read_architecture
from haversack.plan._structure import create_structure, full_structure, takes
from haversack.run import Engine, Limits, generate
from haversack.run._forms import pack_findings
from haversack.run._pool import Part, Together
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, stored_kinds, stored_nbytes
from haversack.shrink.precision.keep import Keep
from haversack.shrink.precision.round_to_nearest import RoundToNearest
from haversack.shrink.structure._row_sparse import (
    Sparsified,
    by_columns,
    names_of,
    normal_share,
    recipe_text,
    sparsified,
)
from haversack.shrink.structure.r_sparse import (
    RSparse,
    channel_scales,
    check_rank,
    decomposed,
    evolved,
    limits_of,
    product,
    read_recipe,
    split_budget,
    threshold,
    without_sinks,
)

TEXTS = np.random.default_rng(1).integers(1, 280, (4, 64)).astype(np.int32)
TEXT = np.random.default_rng(3).integers(1, 280, 40).astype(np.int32)


def test_budgets_are_those_of_the_specification():
    assert split_budget(4096, 4096, 0.5, 0.9) == (1843, 102, pytest.approx(0.55))
    assert split_budget(14336, 4096, 0.5, 0.98)[:2] == (2007, 31)
    assert split_budget(4096, 4096, 0.5, 1.0).rank == 1
    assert split_budget(64, 64, 0.5, 0.0).channels == 1


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(8, 2000),
    columns=st.integers(8, 2000),
    sparsity=st.floats(0, 0.95),
    alpha=st.floats(0, 1),
)
def test_a_split_stays_in_its_budget(rows, columns, sparsity, alpha):
    channels, rank, quantile = split_budget(rows, columns, sparsity, alpha)
    budget = rows * columns * (1 - sparsity)
    assert channels * rows + (rank - 1) * (rows + columns) <= budget + rows
    assert 0 <= quantile <= 1


def test_scales_are_the_norms_of_columns_and_of_scaled_right_vectors():
    weight = np.random.default_rng(0).standard_normal((30, 50)).astype(np.float32)
    down, _ = decomposed(weight)
    assert np.allclose(channel_scales(weight), np.linalg.norm(weight, axis=0), rtol=1e-5)
    assert np.allclose(channel_scales(weight), np.linalg.norm(down, axis=0), rtol=1e-4)


def test_the_definition_is_exact_at_full_rank_and_at_a_threshold_of_nothing():
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal((40, 60)).astype(np.float32), rng.standard_normal((9, 60)).astype("f4")
    down, up = decomposed(weight)
    mask = rng.random((9, 60)) < 0.4
    assert np.abs(product(weight, x, mask, down, up) - x @ weight.T).max() < 1e-4
    everything = np.abs(x) > limits_of(0.0, channel_scales(weight), 60)
    assert everything.all()
    assert np.abs(product(weight, x, everything, None, None) - x @ weight.T).max() < 1e-4


def test_thresholds_let_the_asked_share_of_inputs_through():
    rng = np.random.default_rng(2)
    inputs, scales = rng.standard_normal((300, 64)).astype(np.float32), rng.random(64).astype(np.float32)
    limits = limits_of(threshold(inputs, scales, 0.55), scales, 64)
    assert abs(float((np.abs(inputs) > limits).mean()) - 0.45) < 0.005
    found = threshold(inputs, None, 0.55)
    assert found == pytest.approx(float(np.quantile(np.abs(inputs), 0.55)), rel=1e-6)
    assert limits_of(1.0, np.array([0.0, 2.0], np.float32), 2).tolist() == [
        pytest.approx(float(np.finfo(np.float32).max)),
        0.5,
    ]


def test_a_sink_is_left_out_of_the_quantile():
    inputs = np.random.default_rng(3).standard_normal((100, 16)).astype(np.float32)
    sunk = inputs.copy()
    sunk[0] *= 1000
    assert len(without_sinks(sunk)) == 99 and len(without_sinks(inputs)) == 100
    assert threshold(sunk, None, 0.5) == pytest.approx(threshold(inputs[1:], None, 0.5))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("sparsity=1.0 is no share", lambda: RSparse(sparsity=1.0)),
        ("sparsity=-0.1 is no share", lambda: RSparse(sparsity=-0.1)),
        ("sparsity=nan is no share", lambda: RSparse(sparsity=float("nan"))),
        ("alpha=1.1 is no share", lambda: RSparse(alpha=1.1)),
        ("alpha=much is no share", lambda: RSparse(alpha="much")),
        ("has 5 numbers; this model needs 14", lambda: read_recipe("1 .5 1 .5 1", 7)),
        ("holds what is no number", lambda: read_recipe("1 half", 1)),
        ("alpha=2.0 is no share", lambda: read_recipe("2 .5", 1)),
        ("cannot be read", lambda: RSparse(recipe="/nowhere/recipe.txt").shares(["a"])),
        ("rank=65 is above", lambda: check_rank(65, 64, 96)),
        ("63 tokens are too few", lambda: threshold(np.ones((63, 4), np.float32), None, 0.5)),
        ("not finite", lambda: threshold(np.full((64, 4), np.nan, np.float32), None, 0.5)),
        ("no layout by columns", lambda: Sparsified(RSparse(), RoundToNearest(bits=8), ["a"])),
        ("no layout by columns", lambda: Sparsified(RSparse(), RoundToNearest(bits=4, group=32), ["a"])),
    ],
)
def test_what_cannot_be_is_refused(words, call):
    with pytest.raises(UserError, match=words):
        call()


def test_recipes_go_out_as_they_come_in():
    recipe = {f"{name}": (0.9 - 0.01 * index, 0.5) for index, name in enumerate("qkvogud")}
    back = read_recipe(recipe_text(recipe), 7)
    assert back == [pytest.approx(pair) for pair in recipe.values()]


def test_the_search_finds_what_is_good_and_never_loses_its_start():
    wanted = np.array([1.0, 0.6, 0.9])
    seen: list[float] = []

    def fitness(genes):
        seen.append(float(np.square(genes - wanted).sum()))
        return seen[-1]

    best, loss = evolved(fitness, 3, 7)
    assert loss == min(seen) < float(np.square(1 - wanted).sum()) / 4
    assert len(seen) == 32 + 5 * 30
    again, _ = evolved(lambda genes: float(np.square(genes - wanted).sum()), 3, 7)
    assert np.array_equal(best, again)


def test_the_share_of_small_normal_numbers():
    x = np.sort(np.square(np.random.default_rng(0).standard_normal(200_000)))
    for share in (0.0, 0.3, 0.5, 0.7):
        assert normal_share(share) == pytest.approx(x[: int(share * len(x))].sum() / x.sum(), abs=2e-3)


def test_a_sparsified_matrix_meets_its_budget_and_is_near_its_definition():
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((96, 128)).astype(np.float32)
    inputs = rng.standard_normal((200, 128)).astype(np.float32)
    one = sparsified(weight, by_columns(weight, Keep(kind="f32")), inputs, 0.5, 0.9)
    got = one.matrix.multiply(inputs)
    rows, active = one.matrix.counts.tolist()
    read = one.matrix.row_nbytes(active / rows) / one.matrix.weights.nbytes
    assert abs(active / rows / 128 - 0.45) < 0.01 and read < 0.52
    down, up = decomposed(weight)
    rank = int(one.form["rank"])
    mask = np.abs(inputs) > one.matrix.limits
    wanted = product(weight, inputs, mask, down[:rank], up[:, :rank])
    assert np.abs(got - wanted).max() < 0.02  # factors are f16


# Packs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), CONFIG)


def packed(checkpoint: Path, goal: Path, method: RSparse, inner=None) -> tuple[Pack, Sparsified]:
    source = HubFolder.open(checkpoint)
    walk = LanguageWalk(read_architecture(source.config))
    sparse = Sparsified(method, inner or Keep(kind="f32"), names_of(walk))
    with PackWriter(goal) as writer:
        compress(source, walk, sparse, writer, texts=TEXTS, policy=Policy(), folder=goal.parent)
        writer.add_file("tokenizer.json", checkpoint / "tokenizer.json")
        writer.finish({"architecture": source.config, "plan": {"structure": method.full_name}})
    assert sum(entry.nbytes for entry in Pack.open(goal).tensors.values()) == stored_nbytes(
        walk, stored_kinds(walk, sparse, Policy())
    )
    return Pack.open(goal), sparse


@pytest.fixture(scope="module")
def pack(checkpoint, tmp_path_factory) -> Path:
    return packed(checkpoint, tmp_path_factory.mktemp("pack") / "a.pack", RSparse(alpha=0.9))[0].path


def steps(engine: Engine, cuts: list[int]) -> np.ndarray:
    cache, rows, at = engine.cache(64), [], 0
    for count in cuts:
        rows.append(engine.step(TEXT[at : at + count], cache=cache, want="all")[0])
        at += count
    return np.concatenate(rows)


@pytest.mark.parametrize("activations", ["f32", "int8-dynamic"])
def test_eight_tokens_at_once_equal_eight_steps(checkpoint, tmp_path, activations):
    inner = RoundToNearest(bits=4, group=64) if activations != "f32" else Keep(kind="f16")
    pack, _ = packed(checkpoint, tmp_path / "a.pack", RSparse(alpha=0.9), inner)
    assert check_pack(pack.path) == [] and pack_findings(pack.path) == []
    for way in ("mapped", "copied", "streamed"):
        with Engine.open(pack.path, residency=way, activations=activations) as engine:
            found = [steps(engine, cuts) for cuts in ([40], [1] * 40, [3, 8, 1, 20, 8])]
            for other in found[1:]:
                assert np.array_equal(other.view(np.uint32), found[0].view(np.uint32))
            stats = engine.tally.stats()
            assert stats["rows"] == 120 and 0.3 < stats["sparsity"] < 0.6


def test_a_prompt_is_read_whole_however_it_is_cut_and_what_follows_is_sparse(pack, checkpoint):
    with Engine.open(pack) as engine, Engine.open(checkpoint) as plain:
        for prefill in ("whole", "chunked:tokens=16"):
            with Engine.open(pack, prefill=prefill) as one:
                cache = one.cache(64)
                logits = one.slots.prefill.prefill(one, TEXT[:30], cache)
                wanted, _ = plain.step(TEXT[:30], cache=plain.cache(64))
                assert np.abs(logits - wanted).max() < 1e-4, "a prompt meets the whole matrices"
                assert one.tally.stats()["rows"] == 0
                one.step(TEXT[30:31], cache=cache)
                assert one.tally.stats()["rows"] == 1 and cache.sparse_from == 30
        together = Together(engine, 2)
        together.caches[0].sparse_from = 30
        together.step([Part(0, TEXT[:30]), Part(1, TEXT[:10])])
        both = together.step([Part(0, TEXT[30:31]), Part(1, TEXT[10:11])])
        alone = engine.cache(64)
        alone.sparse_from = 30
        engine.step(TEXT[:30], cache=alone)
        assert np.array_equal(both[0], engine.step(TEXT[30:31], cache=alone)[0][-1])
        other = engine.cache(64)
        engine.step(TEXT[:10], cache=other)
        assert np.array_equal(both[1], engine.step(TEXT[10:11], cache=other)[0][-1])


def test_drafts_and_conversations_give_the_plain_tokens(pack):
    limits = Limits(max_tokens=12, end=())
    with Engine.open(pack) as engine:
        plain = [token.id for token in generate(engine, "def f(x):", limits)]
    with Engine.open(pack, decode="linear-draft", draft=pack) as engine:
        assert [token.id for token in generate(engine, "def f(x):", limits)] == plain


def test_drift_is_told_with_what_to_do(pack):
    with Engine.open(pack) as engine:
        for form in engine.tally.entries.values():
            assert form["sparsity"] == 0.5
        steps(engine, [40])
        assert engine.tally.stats()["drift"] is None
        for name, counts in engine.tally.counts.items():
            counts[1] = counts[0] * engine.tally.entries[name]["shape"][1]
        assert "--calibration" in engine.tally.stats()["drift"]


def test_a_search_is_no_worse_than_its_starts_and_the_same_every_time(checkpoint, tmp_path):
    pack, found = packed(checkpoint, tmp_path / "a.pack", RSparse(sparsity=0.6, alpha="search"))
    _, again = packed(checkpoint, tmp_path / "b.pack", RSparse(sparsity=0.6, alpha="search"))
    assert found.recipe == again.recipe and len(found.recipe) == 21
    assert any(alpha != 1 for alpha, _ in found.recipe.values())
    (tmp_path / "recipe.txt").write_text(recipe_text(found.recipe))
    told = RSparse(recipe=str(tmp_path / "recipe.txt")).shares(list(found.recipe))
    for name, pair in found.recipe.items():
        assert told[name] == pytest.approx(pair, abs=1e-5)
    assert pack.forms


def test_the_columns_are_the_matrix(pack, checkpoint):
    from haversack.run._weights import bind

    source, name = Pack.open(pack), "model.layers.1.mlp.down_proj.weight"
    bound = bind(source, [name])[name]
    assert np.array_equal(bound.dense(), draw(CONFIG)[name])
    assert np.array_equal(unpack_channels(bound.matrix.weights), draw(CONFIG)[name])


def test_names_and_combinations_of_plans():
    assert full_structure("r-sparse") == "r-sparse:sparsity=0.5,alpha=0.95"
    assert full_structure("r-sparse:alpha=search,seed=3") == "r-sparse:sparsity=0.5,alpha=search,seed=3"
    assert isinstance(create_structure("r-sparse"), RSparse)
    assert takes("r-sparse", "keep:kind=bf16") and takes("r-sparse", "round-to-nearest:bits=4,group=128")
    assert not takes("r-sparse", "gptq:bits=4") and not takes("r-sparse", "round-to-nearest:bits=8")
