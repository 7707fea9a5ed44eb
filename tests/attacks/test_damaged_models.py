"""Checkpoint folders whose config and weights do not fit: refused before anything is computed."""

import json
import time

import numpy as np
import pytest

from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import UserError
from haversack.formats.safetensors import write_safetensors
from haversack.run._engine import Engine

WIDTH, INNER, VOCABULARY = 32, 48, 257
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "vocab_size": VOCABULARY,
}
BLOCK = "model.layers.0"
SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, WIDTH),
    f"{BLOCK}.input_layernorm.weight": (WIDTH,),
    f"{BLOCK}.self_attn.q_proj.weight": (WIDTH, WIDTH),
    f"{BLOCK}.self_attn.k_proj.weight": (16, WIDTH),
    f"{BLOCK}.self_attn.v_proj.weight": (16, WIDTH),
    f"{BLOCK}.self_attn.o_proj.weight": (WIDTH, WIDTH),
    f"{BLOCK}.post_attention_layernorm.weight": (WIDTH,),
    f"{BLOCK}.mlp.gate_proj.weight": (INNER, WIDTH),
    f"{BLOCK}.mlp.up_proj.weight": (INNER, WIDTH),
    f"{BLOCK}.mlp.down_proj.weight": (WIDTH, INNER),
    "model.norm.weight": (WIDTH,),
}


def folder(path, config=None, shapes=None, kind="f32"):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    size = {"f32": 4, "i32": 4, "u8": 1}[kind]
    tensors = [
        (name, kind, shape, bytes(size * int(np.prod(shape)))) for name, shape in (shapes or SHAPES).items()
    ]
    write_safetensors(path / "model.safetensors", tensors)
    return path


def refused(path, **options):
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        Engine.open(path, **options)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return caught.value


def test_the_whole_one_opens(tmp_path):
    with Engine.open(folder(tmp_path / "m")) as engine:
        assert engine.architecture.vocabulary == VOCABULARY


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -32}, "hidden_size"),
        ({"hidden_size": 2**62}, "hidden_size"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 32.5}, "hidden_size"),
        ({"hidden_size": 1e308}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"intermediate_size": [48]}, "intermediate_size"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": {}}, "rope_theta"),
        ({"hidden_act": "sillu"}, "hidden_act"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_an_impossible_config_names_its_field(tmp_path, changed, field):
    error = refused(folder(tmp_path / "m", changed))
    assert error.field == field and field in str(error)


@pytest.mark.parametrize(
    "scaling", [3, [], {"rope_type": "spiral"}, {"rope_type": "linear", "factor": -1}, {"type": {}}]
)
def test_an_impossible_rope_scaling_is_refused(tmp_path, scaling):
    refused(folder(tmp_path / "m", {"rope_scaling": scaling}))


def test_an_unknown_architecture_names_the_nearest(tmp_path):
    error = refused(folder(tmp_path / "m", {"model_type": "lama", "architectures": ["LamaForCausalLM"]}))
    assert error.nearest == "llama"
    refused(folder(tmp_path / "n", {"model_type": ["llama"], "architectures": [["Llama"]]}))
    refused(folder(tmp_path / "o", {"model_type": "../../etc/passwd", "architectures": None}))


@pytest.mark.parametrize("name", SHAPES)
def test_a_missing_tensor_is_named(tmp_path, name):
    error = refused(
        folder(tmp_path / "m", shapes={key: shape for key, shape in SHAPES.items() if key != name})
    )
    assert name in str(error)


@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_of_the_wrong_shape_is_named(tmp_path, name):
    for shape in (
        (SHAPES[name][0] + 1, *SHAPES[name][1:]),
        (),
        (*SHAPES[name], 1),
        (*SHAPES[name][::-1], 2),
    ):
        assert name in str(refused(folder(tmp_path / "m", shapes={**SHAPES, name: shape})))


def test_more_layers_than_tensors_is_told_at_once(tmp_path):
    assert "model.layers.1." in str(refused(folder(tmp_path / "m", {"num_hidden_layers": 4000})))


@pytest.mark.parametrize("kind", ["i32", "u8"])
def test_tensors_of_a_type_that_is_no_weight_are_named(tmp_path, kind):
    assert kind in str(refused(folder(tmp_path / "m", kind=kind)))


def test_a_budget_no_run_meets_is_refused_before_weights_are_read(tmp_path):
    error = refused(folder(tmp_path / "m"), budget=Budget(ram_mib=0.5))
    assert isinstance(error, BudgetError) and error.failures[0].field == "ram_mib"
    with Engine.open(tmp_path / "m", budget=Budget(ram_mib=float(error.nearest))):
        pass  # what the refusal calls feasible is


def test_tokens_beyond_the_vocabulary_or_the_context_are_refused(tmp_path):
    with Engine.open(folder(tmp_path / "m")) as engine:
        for tokens in ([VOCABULARY], [-1], list(range(33))):
            numbers, positions = np.asarray(tokens, np.int32), np.arange(len(tokens), dtype=np.int32)
            cache = engine.cache(32)
            with pytest.raises(UserError) as caught:
                engine.step(numbers, positions, None, cache)
            assert "\n" not in str(caught.value) and cache.length == 0
