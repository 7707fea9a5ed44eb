"""MobileQuant learned: folds are exact, gradients go where they should, integers equal the simulation."""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from haversack.core.errors import UserError  # noqa: E402
from haversack.models._blocks_torch import through_blocks  # noqa: E402
from haversack.models.language import read_architecture  # noqa: E402
from haversack.shrink.precision import mobilequant_torch as learning  # noqa: E402
from haversack.shrink.precision._mobilequant_integer import Multiplier, run_integer, whole_root  # noqa: E402
from haversack.shrink.precision._mobilequant_learned_torch import (  # noqa: E402
    Ranges,
    Transformed,
    tied_channels,
)
from haversack.shrink.precision.mobilequant import Where, activation_grid  # noqa: E402
from haversack.shrink.precision.mobilequant_torch import Job, Rates, Recipe, logits, quantize, simulate  # noqa: E402

LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
FAMILIES = {
    "llama": LLAMA,
    "grouped": LLAMA | {"num_key_value_heads": 2},
    "gemma": LLAMA | {"model_type": "gemma", "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"},
    "stablelm": LLAMA
    | {"model_type": "stablelm", "layer_norm_eps": 1e-5, "use_qkv_bias": True, "tie_word_embeddings": False},
}


FAST = Rates(let=1e-2, lwc=1e-1, lrl=1e-3)
"""For so few steps."""


@functools.cache
def made(family):
    """A random model of a family with two outlier channels a norm, and texts for it."""
    architecture = read_architecture(FAMILIES[family])
    rng = np.random.default_rng(3)
    tensors = {}
    for name, shape in architecture.tensors().items():
        values = rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.1)
        if len(shape) == 1 and "norm" in name and name.endswith("weight"):
            values += 0.0 if family == "gemma" else 1.0
        tensors[name] = values.astype(np.float32)
    for block in architecture.blocks:
        tensors[block.branches[0].norm.weight][:2] += 8
    return architecture, tensors, rng.integers(0, 40, (8, 24)).astype(np.int32)


def plain(family):
    architecture, tensors, texts = made(family)
    return logits(architecture, {name: torch.from_numpy(value) for name, value in tensors.items()}, texts)


def lost(found, exact):
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_learned_leaves_the_float_model_as_it_is(family):
    architecture, tensors, texts = made(family)
    job = Job(architecture, tensors, texts, Recipe(), print)
    rounding = job.rounding(architecture.blocks)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, values in rounding.transforms.named_parameters():
            values.copy_(torch.randn_like(values) if "shifts" in name else torch.rand_like(values) + 0.5)
        watching = Transformed(job.bits, rounding.transforms, job.tensors)
        found = through_blocks(architecture, job.entries, job.tensors, watching)
    assert lost(found.numpy(), job.targets.numpy()) < 1e-4
    expected = {"llama": 2, "gemma": 2, "stablelm": 2, "grouped": 0}[family]
    assert len(rounding.transforms.queries) == expected
    assert len(rounding.transforms.shifts) == (
        2 if family == "stablelm" else 0
    )  # norm -> q, k, v have biases


def test_channels_that_a_rotation_mixes_share_a_scale():
    layer = read_architecture(FAMILIES["stablelm"]).blocks[0].attention
    assert layer.rope.width == 2 and layer.head_width == 8
    assert tied_channels(layer).tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    whole = read_architecture(LLAMA).blocks[0].attention
    assert tied_channels(whole).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_free_scale_of_queries_is_not_exact():
    """Why channels are tied: scaling one of a rotated pair alone changes what is computed."""
    architecture, tensors, texts = made("llama")
    before = plain("llama")
    moved = {name: value.copy() for name, value in tensors.items()}
    at = "model.layers.0.self_attn"
    moved[f"{at}.q_proj.weight"][0] /= 3
    moved[f"{at}.k_proj.weight"][0] *= 3
    weights = {name: torch.from_numpy(value) for name, value in moved.items()}
    assert lost(logits(architecture, weights, texts), before) > 1e-3


def test_gradients_of_what_is_clipped_go_into_the_range_alone():
    where = Where("x", "output")
    ranges = Ranges({where: activation_grid(-1.0, 3.0, 8)})
    x = torch.tensor([0.5, 9.0], requires_grad=True)
    found = ranges(where, x)
    assert found.detach().numpy() == pytest.approx([0.5, 3.0], abs=4 / 255)
    found.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]
    assert float(ranges.stretch.grad) != 0 and float(ranges.lift.grad) != 0
    ranges.zero_grad()
    ranges(where, torch.tensor([0.5])).sum().backward()
    assert float(ranges.lift.grad) == 0  # inside the range the offset cancels


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_equal_the_simulation(family, bits):
    architecture, tensors, texts = made(family)
    model = quantize(architecture, tensors, texts, Recipe(bits=bits, mode="smoothed"))
    simulated = simulate(model, texts)
    whole = []
    for text in texts:
        found, step = run_integer(model, text)
        assert found.dtype == np.int64
        whole.append(found * step)
    # Codes beside a rounding's edge may fall to its other side, which is worth less than the grids lose.
    assert lost(np.stack(whole), simulated) < 0.5 * lost(simulated, plain(family))
    assert (np.stack(whole).argmax(-1) == simulated.argmax(-1)).mean() > 0.9


def test_learning_end_to_end_beats_what_it_begins_with_and_is_repeatable():
    architecture, tensors, texts = made("llama")
    before = plain("llama")
    recipe = Recipe(bits=4, epochs=8, batch=4, rates=FAST)
    heard = []
    one = quantize(architecture, tensors, texts, recipe, heard.append)
    two = quantize(architecture, tensors, texts, recipe)
    start = quantize(architecture, tensors, texts, Recipe(bits=4, mode="smoothed"))
    assert lost(simulate(one, texts), before) < 0.95 * lost(simulate(start, texts), before)
    assert all((one.matrices[name].codes == two.matrices[name].codes).all() for name in one.matrices)
    assert len(heard) == 8 and "epoch 8 of 8" in heard[-1]


def test_layer_by_layer_learns_too():
    """Each block comes nearer to the float one; what the whole model loses need not fall with it."""
    architecture, tensors, texts = made("llama")
    heard = []
    recipe = Recipe(bits=4, mode="layerwise", epochs=12, batch=4, rates=FAST)
    quantize(architecture, tensors, texts, recipe, heard.append)
    for block in architecture.blocks:
        said = [text for text in heard if text.startswith(f"block {block.index}:")]
        losses = [float(text.rpartition(" ")[2]) for text in said]
        assert len(losses) == 12 and np.median(losses[6:]) < losses[0]


def test_checkpointing_changes_nothing_that_is_learned():
    architecture, tensors, texts = made("grouped")
    found = [
        quantize(architecture, tensors, texts, Recipe(epochs=1, batch=4, checkpointed=each))
        for each in (True, False)
    ]
    one, two = (simulate(model, texts[:2]) for model in found)
    assert lost(one, two) < 1e-3


def test_a_loss_that_is_no_number_keeps_the_last_good_state(monkeypatch):
    architecture, tensors, texts = made("llama")
    calls = []
    whole = learning.through_blocks

    def breaks(*args, **kwargs):
        found = whole(*args, **kwargs)
        if "checkpointed" in kwargs:
            calls.append(1)
            return found * float("nan") if len(calls) > 2 else found
        return found

    monkeypatch.setattr(learning, "through_blocks", breaks)
    heard = []
    model = quantize(architecture, tensors, texts, Recipe(epochs=2, batch=2), heard.append)
    assert len(calls) == 3 and "last good state is kept" in heard[-1]
    assert np.isfinite(simulate(model, texts[:2])).all()


def test_no_text_and_what_is_not_finite_are_refused():
    architecture, tensors, texts = made("llama")
    with pytest.raises(UserError, match="no tokens"):
        quantize(architecture, tensors, texts[:0])
    name = "model.layers.1.mlp.up_proj.weight"
    broken = tensors | {name: np.full_like(tensors[name], np.nan)}
    with pytest.raises(UserError, match="up_proj"):
        quantize(architecture, broken, texts)
    large = tensors | {name: np.full_like(tensors[name], 3e38)}
    with pytest.raises(UserError, match=r"layers\.1"):
        quantize(architecture, large, texts)
    with pytest.raises(UserError):
        Recipe(bits=6)
    model = quantize(architecture, tensors, texts, Recipe(mode="nearest"))
    with pytest.raises(UserError, match="0 to 39"):
        run_integer(model, np.array([40]))


def test_asymmetric_weights_are_simulated():
    architecture, tensors, texts = made("llama")
    before = plain("llama")
    found = quantize(architecture, tensors, texts, Recipe(bits=4, mode="smoothed", symmetric=False))
    assert int(found.matrices["model.layers.0.mlp.up_proj.weight"].grid.high) == 15
    whole = np.stack([np.multiply(*run_integer(found, text)) for text in texts])
    simulated = simulate(found, texts)
    assert lost(whole, simulated) < 0.5 * lost(simulated, before)


def test_fixed_point_multipliers_are_near_what_they_stand_for():
    rng = np.random.default_rng(0)
    factors = np.exp(rng.uniform(-14, 3, 200))
    x = rng.integers(-(1 << 24), 1 << 24, (50, 200))
    exact = x * factors
    assert (np.abs(Multiplier.of(factors)(x) - exact) < 0.51 + 2.0**-29 * np.abs(exact)).all()
    squares = rng.integers(0, 1 << 60, 1000)
    roots = whole_root(squares)
    assert (roots * roots <= squares).all() and ((roots + 1) ** 2 > squares).all()
