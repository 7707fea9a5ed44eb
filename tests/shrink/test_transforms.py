"""Folding scales and shifts changes no float output, on every family; what is not exact is no pair."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import record, record_encoders

from haversack.core.errors import UserError
from haversack.kernels import Matrix
from haversack.models import read_architecture, read_encoder
from haversack.shrink._encoder import EncoderWalk
from haversack.shrink._language import LanguageWalk
from haversack.shrink._transforms import column_peaks, fold, pairs_of

BAR = 1e-4
NAMES, ENCODER_NAMES = sorted(record.CASES), sorted(record_encoders.CASES)
TOKENS = 24


@functools.cache
def case(name):
    """A walk over one of the small models that parity is tested on, and its weights."""
    encoder = name in ENCODER_NAMES
    config = (record_encoders.CASES if encoder else record.CASES)[name]
    architecture = read_encoder(config) if encoder else read_architecture(config[0])
    weights = record.draw_weights(architecture.tensors(), record.seed_of(name))
    walk = EncoderWalk(architecture, None) if encoder else LanguageWalk(architecture)
    return walk, weights


def held(walk, tensors):
    return {n: Matrix.from_array(v) if walk.is_matrix(n) else v for n, v in tensors.items()}


@pytest.mark.parametrize("name", [*NAMES, *ENCODER_NAMES])
def test_folding_changes_no_output(name):
    @settings(max_examples=3, deadline=None, derandomize=True)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 1.0]))
    def check(seed, spread):
        rng = np.random.default_rng(seed)
        walk, weights = case(name)
        for block in range(min(walk.blocks, 2)):
            hidden = rng.normal(size=(TOKENS, walk.width)).astype(np.float32)
            plain = {n: weights[n] for n in walk.names(block)}
            changed = {n: values.copy() for n, values in plain.items()}
            for pair in walk.pairs(block):
                channels = len(changed[pair.producer])
                scale = np.exp(spread * rng.normal(size=channels))
                shift = rng.normal(size=channels) if pair.shifts else None
                fold(changed, pair, scale, shift)
                touched = {pair.producer, *pair.consumers}
                assert all(not np.array_equal(changed[n], plain[n]) for n in touched)
            exact = walk.run(block, hidden, held(walk, plain), None)
            found = walk.run(block, hidden, held(walk, changed), None)
            assert np.abs(found - exact).max() <= BAR * np.abs(exact).max()

    check()


def kinds(name, block=0):
    walk, _ = case(name)
    return [(pair.kind, len(pair.consumers), pair.shifts) for pair in walk.pairs(block)]


def test_pairs_are_those_that_are_exact():
    norms = [("norm", 3, False), ("norm", 2, False)]
    assert kinds("llama") == [norms[0], norms[1], ("gate", 1, False)], "grouped queries: values feed no pair"
    assert kinds("qwen1.5") == [norms[0], ("linear", 1, False), norms[1], ("gate", 1, False)]
    assert kinds("gpt2") == [("norm", 3, True), ("linear", 1, True), ("norm", 1, True)], "nothing passes GELU"
    assert kinds("opt") == [("norm", 3, True), ("linear", 1, True), ("norm", 1, True), ("gate", 1, False)]
    assert kinds("opt-350m") == [("linear", 1, True), ("gate", 1, False)], "norms after sums feed the sum too"
    assert kinds("phi") == [("norm", 4, True), ("linear", 1, True)], "one norm before both layers"
    assert kinds("stablelm-parallel")[0] == ("norm", 5, False)
    assert kinds("gemma2") == [norms[0], norms[1], ("gate", 1, False)]
    assert kinds("bert") == [("linear", 1, True)]
    assert kinds("bert-relu") == [("linear", 1, True), ("gate", 1, False)]


def test_scaling_grouped_values_as_if_each_had_one_query_breaks_the_model():
    """What the missing pair protects from."""
    walk, weights = case("llama")
    tensors = {n: weights[n].copy() for n in walk.names(0)}
    attention = walk.architecture.blocks[0].attention
    scale = np.exp(np.random.default_rng(0).normal(size=attention.value.outputs)).astype(np.float32)
    tensors[attention.value.weight] /= scale[:, None]
    tensors[attention.output.weight] *= np.tile(scale, attention.heads // attention.key_value_heads)
    hidden = np.random.default_rng(1).normal(size=(TOKENS, walk.width)).astype(np.float32)
    exact = walk.run(0, hidden, held(walk, {n: weights[n] for n in tensors}), None)
    found = walk.run(0, hidden, held(walk, tensors), None)
    assert np.abs(found - exact).max() > 100 * BAR * np.abs(exact).max()


def test_the_norm_of_gemma_keeps_the_one_that_it_adds():
    walk, weights = case("gemma")
    pair = walk.pairs(0)[0]
    tensors = {n: weights[n].copy() for n in walk.names(0)}
    before = 1 + tensors[pair.producer]
    fold(tensors, pair, np.full(walk.width, 4.0))
    assert np.allclose(1 + tensors[pair.producer], before / 4, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_cannot_be_are_refused_and_nothing_is_changed(scale):
    walk, weights = case("llama")
    tensors = {n: weights[n].copy() for n in walk.names(0)}
    scales = np.ones(walk.width)
    scales[3] = scale
    pair = walk.pairs(0)[0]
    with pytest.raises(UserError, match="positive") as caught:
        fold(tensors, pair, scales)
    assert pair.producer in str(caught.value)
    assert all(np.array_equal(tensors[n], weights[n]) for n in tensors)


def test_a_shift_without_biases_is_refused():
    walk, weights = case("llama")
    with pytest.raises(UserError, match="no biases"):
        fold(dict(weights), walk.pairs(0)[0], np.ones(walk.width), np.ones(walk.width))


def test_pairs_come_from_the_block_s_record_alone():
    architecture = read_architecture(record.CASES["opt"][0])
    pair = pairs_of(architecture.blocks[1])[0]
    at = "model.decoder.layers.1"
    assert (
        pair.producer == f"{at}.self_attn_layer_norm.weight"
        and pair.bias == f"{at}.self_attn_layer_norm.bias"
    )
    assert pair.consumers == tuple(f"{at}.self_attn.{x}_proj.weight" for x in "qkv")
    assert pair.biases == tuple(f"{at}.self_attn.{x}_proj.bias" for x in "qkv")


def test_column_peaks_are_over_all_matrices():
    one, two = np.array([[1.0, -4.0]], np.float32), np.array([[-3.0, 2.0], [0.5, 0.0]], np.float32)
    assert column_peaks({"a": one, "b": two}, ("a", "b")).tolist() == [3.0, 4.0]
