"""Architectures beyond the list: the nearest three, and what differs. Features beyond it: refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from haversack.core.errors import UserError
from haversack.models import read_architecture
from haversack.models.language import families

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
RMS = {"rms_norm_eps": 1e-5, "rope_theta": 1e4}
LAYER = {"layer_norm_eps": 1e-5, "rope_theta": 1e4}


def refused(config: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as error:
        read_architecture(config)
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("config", "first", "differs"),
    [
        (
            {"model_type": "mixtral2", **SIZES, **RMS, "num_local_experts": 8},
            "mixtral",
            "mixtral (its config tells no difference)",
        ),
        (
            {"model_type": "granitemoe", **SIZES, **RMS, "num_experts": 8, "logits_scaling": 6.0},
            None,
            "without multipliers of its own",
        ),
        ({"model_type": "mamba", "state_size": 16, "layer_norm_epsilon": 1e-5}, None, "without state-space"),
        ({"model_type": "bart", "is_encoder_decoder": True}, None, "without an encoder beside the decoder"),
        ({"model_type": "bloom", "layer_norm_epsilon": 1e-5}, None, "without attention biased by distance"),
        ({"model_type": "mpt", "attn_config": {"alibi": True}}, None, "without attention biased by distance"),
        ({"model_type": "gpt_bigcode", "n_positions": 64, "layer_norm_epsilon": 1e-5}, "gpt2", "with rotary"),
        (
            {"model_type": "gpt_neox", "use_parallel_residual": True, **SIZES, **LAYER},
            "phi",
            "with layers one after the other",
        ),
        ({"model_type": "stablelm_epoch", **SIZES, **RMS}, None, "stablelm (with layer norms)"),
        ({"model_type": "gemma3", "vision_config": {"layers": 2}}, "gemma3_text", "without a part that sees"),
        (
            {"model_type": "llava", "vision_config": {"layers": 2}, **SIZES},
            "llama",
            "without a part that sees",
        ),
        (
            {"model_type": "granite", **SIZES, **RMS, "embedding_multiplier": 12.0},
            None,
            "multipliers of its own",
        ),
        (
            {"model_type": "deepseek_v3", **SIZES, **RMS, "kv_lora_rank": 512},
            None,
            "without latent attention",
        ),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else None,
)
def test_the_nearest_three_and_what_differs(config: dict[str, Any], first: str | None, differs: str) -> None:
    error = refused(config)
    said = str(error)
    assert error.field == "model_type" and error.nearest in families()
    assert first is None or error.nearest == first
    listed = said.partition("the nearest are ")[2]
    named = {part.split(" (")[0].removeprefix("and ") for part in listed.replace(" and ", ", ").split("), ")}
    assert len(named) == 3 and named <= set(families())
    assert differs in said


def test_what_is_alike_comes_first() -> None:
    """Norms and positions count, not only letters."""
    layered = str(refused({"model_type": "xyz", "layer_norm_epsilon": 1e-5, "n_positions": 64}))
    assert "gpt2 (its config tells no difference)" in layered and "opt (" in layered
    turned = refused({"model_type": "xyz", **SIZES, **RMS})
    assert not {"gpt2", "opt", "phi", "stablelm"} & set(str(turned).replace("(", " ").split())


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llama", "num_local_experts", 8),
        ("qwen2", "is_causal", False),
        ("qwen2", "vision_config", {"depth": 2}),
        ("mistral", "is_encoder_decoder", True),
        ("llama", "embedding_multiplier", 12.0),
        ("opt", "add_cross_attention", True),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("gemma3_text", "partial_rotary_factor", 0.5),
        ("gemma", "partial_rotary_factor", 0.5),
        ("gemma", "hidden_activation", "relu"),
        ("gpt2", "add_cross_attention", True),
        ("gpt2", "pruned_heads", {"0": [1]}),
        ("opt", "layer_norm_elementwise_affine", False),
        ("phi3", "mlp_bias", True),
        ("phi3", "attention_bias", True),
        ("phi3", "lm_head_bias", True),
        ("stablelm", "partial_rotary_factor", 0.05),
        ("phi", "partial_rotary_factor", 1.5),
        ("olmoe", "clip_qkv", 8.0),
        ("mixtral", "kv_lora_rank", 64),
        ("smallthinker", "use_qk_norm", True),
        ("smallthinker", "moe_shared_primary_experts", 1),
    ],
)
def test_a_feature_that_is_not_computed_is_refused_by_name(family: str, field: str, value: Any) -> None:
    config = {"model_type": family, **SIZES, "rope_theta": 1e4}
    read_architecture(config)
    error = refused({**config, field: value})
    assert error.field == field and field in str(error)


def test_what_a_config_has_inherited_is_no_feature() -> None:
    plain = {"model_type": "llama", **SIZES}
    left = {"type_vocab_size": 2, "encoder_layers": 12, "num_experts": 0, "logit_scale": 1.0}
    switched_off = {"is_encoder_decoder": False, "alibi": False, "num_local_experts": 1, "clip_qkv": None}
    assert read_architecture({**plain, **left, **switched_off}) == read_architecture(plain)


@pytest.mark.parametrize(
    ("family", "scaling", "field"),
    [
        ("phi3", {"type": "linear", "factor": 2.0}, "type"),
        ("phi3", {"rope_type": "dynamic", "factor": 2.0}, "rope_type"),
        ("phi3", {"type": "longrope", "short_factor": [1.0] * 8}, "long_factor"),
        ("phi3", {"type": "longrope", "short_factor": [1.0] * 7, "long_factor": [1.0] * 8}, "short_factor"),
        ("phi3", {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [0.0] * 8}, "long_factor"),
        (
            "phi3",
            {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "long_mscale": 1.2},
            "long_mscale",
        ),
        ("gemma2", {"full_attention": {"rope_type": "default"}}, "rope_parameters"),
    ],
)
def test_scalings_that_cannot_be(family: str, scaling: dict[str, Any], field: str) -> None:
    name = "rope_parameters" if field == "rope_parameters" else "rope_scaling"
    assert refused({"model_type": family, **SIZES, name: scaling}).field == field


def test_a_config_that_asks_for_a_million_norms() -> None:
    wide = {**SIZES, "hidden_size": 65536, "num_attention_heads": 8192, "num_hidden_layers": 4096}
    error = refused({"model_type": "stablelm", **wide, "qk_layernorm": True, "partial_rotary_factor": 0.5})
    assert error.field == "num_attention_heads" and error.nearest == 16


def test_a_config_that_asks_for_a_million_experts() -> None:
    for family, field in (("mixtral", "num_local_experts"), ("qwen3_moe", "num_experts")):
        error = refused({"model_type": family, **SIZES, "num_hidden_layers": 4096, field: 65536})
        assert error.field == field and error.nearest == 16


def test_the_first_name_of_longrope() -> None:
    table = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    base = {"model_type": "phi3", **SIZES, "original_max_position_embeddings": 32}
    new = read_architecture({**base, "rope_scaling": {"type": "longrope", **table}})
    for name in ("su", "yarn"):
        assert read_architecture({**base, "rope_scaling": {"type": name, **table}}) == new


def test_errors_name_fields_as_the_config_does() -> None:
    gpt2 = {
        "model_type": "gpt2",
        "vocab_size": 320,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
    }
    assert read_architecture(gpt2).width == 64
    for field, value in (
        ("n_embd", -1),
        ("n_head", 5),
        ("n_positions", 0),
        ("activation_function", "swishh"),
    ):
        error = refused({**gpt2, field: value})
        assert error.field == field and field in str(error)
    without = {key: value for key, value in gpt2.items() if key != "n_embd"}
    assert "no n_embd" in str(refused(without))
    assert read_architecture({**without, "hidden_size": 64}).width == 64
    assert refused({**without, "hidden_size": 0}).field == "hidden_size"
    opt = {"model_type": "opt", **SIZES, "ffn_dim": "wide"}
    assert refused(opt).field == "ffn_dim"
