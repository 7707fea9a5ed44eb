"""SmoothQuant: the scales of its definition, what they save on the kernels, what it refuses."""

import numpy as np
import pytest
from tests.shrink.test_transforms import case

from haversack.core.errors import UserError
from haversack.kernels import Matrix, matmul, pack_int8
from haversack.shrink._activations import Activations
from haversack.shrink._block import BlockView
from haversack.shrink._pipeline import Policy, stored_kinds
from haversack.shrink.precision.round_to_nearest import round_to_nearest
from haversack.shrink.precision.smoothquant import SmoothQuant, smoothing_scales


def test_the_scales_are_the_published_ones():
    inputs, weights = np.array([16.0, 1.0, 0.25], np.float32), np.array([1.0, 4.0, 0.0], np.float32)
    assert smoothing_scales(inputs, weights, 0.5) == pytest.approx([4.0, 0.5, 0.5 / 1e-5**0.5])
    assert smoothing_scales(inputs, weights, 0.8) == pytest.approx(
        [16**0.8, 4 ** -(1 - 0.8), 0.25**0.8 / 1e-5**0.2]
    )


def test_a_channel_that_was_never_seen_is_left_alone():
    scales = smoothing_scales(np.array([0.0, 4.0], np.float32), np.array([1.0, 1.0], np.float32), 0.5)
    assert scales.tolist() == [1.0, 2.0]


def view(name, folder, spread=0.0, pieces=4, length=24):
    """Block 0 of a small family; `spread` grows some channels of its norms and shrinks the columns behind."""
    walk, weights = case(name)
    rng = np.random.default_rng(2)
    tensors = {n: weights[n].copy() for n in walk.names(0)}
    states = Activations(pieces, length, walk.width, folder)
    for piece in range(pieces):
        states.write(piece, rng.normal(size=(length, walk.width)).astype(np.float32))
    block = BlockView(walk, 0, tensors, states)
    for pair in block.pairs:
        if pair.kind == "norm" and spread:
            block.fold(pair, np.where(np.arange(walk.width) % 20 == 3, 1 / spread, 1.0))
    return block


def lost_by_kernels(block):
    """Share by which int8 weights and activations change the block's product behind its first norm."""
    pair = block.pairs[0]
    lost = total = 0.0
    for x in block.inputs(pair.consumers[0], 10**6):
        for name in pair.consumers:
            codes, scales = round_to_nearest(block.tensors[name], 8, None, "leaning")
            found = matmul(x, pack_int8(codes, scales[:, 0]), activations="int8-dynamic")
            exact = matmul(x, Matrix.from_array(block.tensors[name]))
            lost += np.square(found - exact).sum()
            total += np.square(exact).sum()
    return lost / total


def test_outliers_cost_less_on_the_kernels_that_run_the_pack(tmp_path):
    plain = view("llama", tmp_path, spread=60.0)
    before = lost_by_kernels(plain)
    exact = plain.run(0)
    SmoothQuant().transform(plain)
    assert np.abs(plain.run(0) - exact).max() <= 1e-4 * np.abs(exact).max()
    assert lost_by_kernels(plain) < 0.3 * before


def test_only_norms_or_every_exact_pair(tmp_path):
    changed = {}
    for choice in ("norms", "all"):
        block = view("qwen1.5", tmp_path)
        before = {n: values.copy() for n, values in block.tensors.items()}
        SmoothQuant(pairs=choice).transform(block)
        changed[choice] = {n for n in before if not np.array_equal(before[n], block.tensors[n])}
    assert not any("o_proj" in n or "down_proj" in n for n in changed["norms"])
    assert any("o_proj" in n for n in changed["all"]) and any("down_proj" in n for n in changed["all"])


def test_smoothed_activations_are_as_hard_as_the_weights_they_meet(tmp_path):
    """With alpha 0.5 the largest input of a channel times s is the largest weight of its column."""
    block = view("llama", tmp_path, spread=60.0)
    SmoothQuant(alpha=0.5).transform(block)
    pair = block.pairs[0]
    inputs = block.ranges()[pair.consumers[0]].largest
    weights = np.max([np.abs(block.tensors[n]).max(axis=0) for n in pair.consumers], axis=0)
    assert np.allclose(inputs, weights, rtol=1e-3)


def test_matrices_without_a_norm_before_them_are_listed_and_kept_only_if_allowed():
    walk, _ = case("opt-350m")
    names = [name for block in range(walk.blocks) for group in walk.products(block) for name in group]
    assert list(SmoothQuant().refused(walk)) == names
    assert not SmoothQuant(pairs="all").refused(walk), "values and outputs are a pair"
    assert not SmoothQuant().refused(case("opt")[0])
    with pytest.raises(
        UserError, match=r"q_proj.weight \(no norm before it\).* and 21 more; allow"
    ) as caught:
        stored_kinds(walk, SmoothQuant(), Policy())
    assert caught.value.nearest == "round-to-nearest"
    kinds = stored_kinds(walk, SmoothQuant(), Policy(kept="f16"))
    assert {kinds[name].kind for name in names} == {"f16"}


def test_inputs_that_are_not_finite_are_named(tmp_path):
    block = view("llama", tmp_path)
    block.tensors[block.pairs[0].producer][5] = np.inf
    with pytest.raises(
        UserError, match=r"inputs of model\.layers\.0\.self_attn\.q_proj\.weight .* not finite"
    ):
        SmoothQuant().transform(block)
