"""Bits by layer as a precision method: what the text says is what is stored, each layer as GPTQ stores it."""

import numpy as np
import pytest

from haversack.core import index
from haversack.core.errors import UserError
from haversack.models import read_architecture
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, stored_kinds
from haversack.shrink._precision import InputStatistics
from haversack.shrink.precision.gptq import Gptq
from haversack.shrink.precision.mixed import Mixed, bits_by_block, text_of

WALK = LanguageWalk(
    read_architecture(
        {
            "model_type": "llama",
            "vocab_size": 100,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        }
    )
)


def test_bits_there_and_back():
    assert bits_by_block("4448.3344") == ((4, 4, 4, 8), (3, 3, 4, 4))
    assert text_of(bits_by_block("4448.3344")) == "4448.3344"
    assert bits_by_block("") == ()


@pytest.mark.parametrize("wrong", ["4445.4444", "44..44", ".", "4 4", "4444."])
def test_what_is_no_list_of_bits_is_refused(wrong):
    with pytest.raises(UserError, match="no list of bits") as refused:
        index.create("shrink", "precision", f"mixed:layers={wrong}")
    assert refused.value.field == "layers"


def test_every_matrix_is_stored_as_its_layer_says():
    kinds = stored_kinds(WALK, Mixed(layers="4448.3344", group=32), Policy())
    for block, widths in enumerate(((4, 4, 4, 8), (3, 3, 4, 4))):
        for names, bits in zip(WALK.products(block), widths, strict=True):
            assert {kinds[name] for name in names} == {Gptq(bits=bits, group=32).stored(1, 1)}
    every = stored_kinds(WALK, Mixed(), Policy())
    assert every == stored_kinds(WALK, Gptq(bits=8), Policy())


def test_layers_of_another_model_are_refused():
    with pytest.raises(UserError, match=r"\[2, 4\] layers by block, and the model has \[4, 4\]") as refused:
        stored_kinds(WALK, Mixed(layers="44.4444"), Policy())
    assert refused.value.nearest == "8888.8888"


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_layer_is_what_gptq_makes_of_it(bits):
    draw = np.random.default_rng(bits)
    inputs = draw.standard_normal((256, 64))
    (names, *_) = WALK.products(1)
    weights = {name: draw.standard_normal(WALK.shape(name)).astype(np.float32) for name in names}
    method = Mixed(layers=f"8888.{bits}448", group=32).for_walk(WALK)
    ours = method.quantize(weights, InputStatistics(256, inputs.T @ inputs))
    theirs = Gptq(bits=bits, group=32).quantize(weights, InputStatistics(256, inputs.T @ inputs))
    for name in names:
        assert np.array_equal(ours[name].codes, theirs[name].codes)
        assert np.array_equal(ours[name].scales, theirs[name].scales)
