"""MobileQuant's maths: known numbers, the precision map, exact folds, costs, and what is refused."""

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.models.language import read_architecture
from haversack.shrink._transforms import pairs_of
from haversack.shrink.precision._mobilequant_costs import costs, planned_peak
from haversack.shrink.precision._mobilequant_model import QuantizedModel, modules
from haversack.shrink.precision.mobilequant import (
    CLIP_START,
    MobileQuant,
    Where,
    activation_grid,
    precision_map,
    rows_apart,
    weight_grid,
)

LLAMA = {
    "model_type": "llama",
    "vocab_size": 65,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def test_the_asymmetric_grid_of_the_specification():
    grid = activation_grid(-1, 3, 8)
    assert float(grid.scale) == pytest.approx(4 / 255)
    assert float(grid.scale) == pytest.approx(0.0156863, abs=5e-8)
    assert (int(grid.zero), grid.low, grid.high) == (64, 0, 255)
    assert grid.codes(np.array([-1.0, 0.0, 3.0, 9.0])).tolist() == [0, 64, 255, 255]


def test_the_symmetric_grid_of_the_specification():
    weight = np.array([[-0.7, 0.35]], np.float32)
    grid = weight_grid(weight, 4, per_channel=True, symmetric=True)
    assert float(grid.scale[0, 0]) == pytest.approx(0.1, rel=5e-4)  # as f16 keeps it
    assert grid.codes(weight).tolist() == [[-7, 4]]
    assert (grid.low, grid.high) == (-8, 7)


def test_learned_clipping_begins_near_the_whole_range():
    assert 1 / (1 + np.exp(-CLIP_START)) == pytest.approx(0.98201, abs=5e-6)


def test_scales_are_kept_away_from_zero_and_infinity():
    assert float(activation_grid(0, 0, 8).scale) == pytest.approx(1e-5)
    assert float(activation_grid(-1e30, 1e30, 8).scale) == pytest.approx(1e6)


def test_what_has_how_many_bits():
    bits = precision_map(read_architecture(LLAMA))
    at = "model.layers.1"
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        assert bits[Where(f"{at}.{name}.weight", "output")] == 8
        assert Where(f"{at}.{name}.weight", "input") not in bits  # the norm's output already is
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert bits[Where(f"{at}.{name}.weight", "input")] == 8
        assert bits[Where(f"{at}.{name}.weight", "output")] == 16
    attention = f"{at}.self_attn.o_proj.weight"
    assert [bits[Where(attention, place)] for place in ("key", "scores", "shares")] == [8, 16, 16]
    assert bits[Where(f"{at}.input_layernorm.weight", "input")] == 16
    assert bits[Where(f"{at}.input_layernorm.weight", "output")] == 8
    assert bits[Where(f"{at}.mlp.down_proj.weight", "activated")] == 8
    assert Where("lm_head.weight", "input") not in bits and Where("model.norm.weight", "output") not in bits
    full = precision_map(read_architecture(LLAMA), full=True)
    assert set(full) == set(bits) and set(full.values()) == {8}


def test_the_down_matrix_always_has_a_grid_for_each_row():
    block = read_architecture(LLAMA).blocks[0]
    eight, four = rows_apart(block, 8), rows_apart(block, 4)
    assert [name for name, each in eight.items() if each] == ["model.layers.0.mlp.down_proj.weight"]
    assert all(four.values())


def test_grouped_queries_have_no_pair_from_value_to_output():
    whole = pairs_of(read_architecture(LLAMA).blocks[0])
    shared = pairs_of(read_architecture(LLAMA | {"num_key_value_heads": 2}).blocks[0])
    assert [pair.kind for pair in whole] == ["norm", "linear", "norm", "gate"]
    assert [pair.kind for pair in shared] == ["norm", "norm", "gate"]


@pytest.mark.parametrize("weight_bits", [8, 4])
def test_half_the_bit_operations_of_16_bit_activations_exactly(weight_bits):
    architecture = read_architecture(LLAMA)
    ours, wide = (costs(architecture, weight_bits, bits, 64) for bits in (8, 16))
    assert ours.matrix_operations / wide.matrix_operations == 0.5
    assert ours.matrix_nbytes / wide.matrix_nbytes == 0.5
    full = costs(architecture, weight_bits, 8, 64, full=True)
    assert ours.all_operations > full.all_operations  # softmax and norms stay at 16 bits
    assert 0.5 < ours.all_nbytes / wide.all_nbytes < 1
    macs = sum(one.inputs * one.outputs for block in architecture.blocks for one in block.matrices())
    assert ours.matrix_operations == macs * weight_bits * 8


def test_the_planned_peak_of_a_large_model_is_its_weights_and_one_block():
    tiny_llama = read_architecture(
        LLAMA
        | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
        | {"num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False}
        | {"max_position_embeddings": 2048}
    )
    lines = dict(planned_peak(tiny_llama).lines)
    assert lines["weights in f32"] == 4 * 1_100_048_384
    assert sum(lines.values()) < 12 << 30


def refused(**changes):
    with pytest.raises(UserError) as error:
        precision_map(read_architecture({**LLAMA, **changes}))
    return str(error.value)


def test_a_graph_that_is_not_known_is_refused_by_what_is_strange():
    assert "norms of heads" in refused(model_type="qwen3", head_dim=16)
    found = refused(model_type="gemma2", query_pre_attn_scalar=16, head_dim=16, sliding_window=8)
    assert "norms after a layer" in found and "soft cap" in found and "gptq" not in found


def test_learned_positions_are_refused():
    config = {
        "model_type": "gpt2",
        "vocab_size": 65,
        "n_embd": 64,
        "n_layer": 1,
        "n_head": 4,
        "n_positions": 64,
    }
    with pytest.raises(UserError, match="learned positions"):
        precision_map(read_architecture(config))


def test_bad_parameters_are_refused_with_what_is_allowed():
    for choice in ({"bits": 5}, {"mode": "both"}, {"epochs": 0}):
        with pytest.raises(UserError):
            MobileQuant(**choice)
    with pytest.raises(UserError, match="no structure"):
        MobileQuant().quantize({}, None)
    with pytest.raises(UserError, match="16"):
        costs(read_architecture(LLAMA), 8, 4, 16)


def test_both_files_name_every_activation_once():
    architecture = read_architecture(LLAMA)
    where = precision_map(architecture)
    grids = {one: activation_grid(-1, 2, bits) for one, bits in where.items()}
    model = QuantizedModel(architecture, 8, {}, {}, grids)
    ranges, config = model.ranges(), model.config()
    assert (
        sum(len(sides) for sides in ranges.values()) == len(where) == len(set(modules(architecture).values()))
    )
    assert set(ranges["model.layers.0.self_attn.qk"]) == {"input2", "output"}
    low, high = ranges["model.layers.0.mlp.mul"]["output"]
    assert (high - low) / 255 == pytest.approx(3 / 255)
    assert config["model.layers.0.mlp.mul"]["output"]["bitwidth"] == 8
    assert config["model.layers.1.self_attn.softmax"]["output"]["bitwidth"] == 16
