"""What a config says that a model has and that its family here does not compute: refused by name, never left
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.core.errors import UserError

MARKS: dict[str, tuple[str, ...]] = {
    "a mixture of experts": (
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
        "moe_num_primary_experts",
        "num_experts_per_tok",
    ),
    "state-space layers": ("state_size", "ssm_cfg", "mamba_d_state", "ssm_state_size", "time_step_rank"),
    "recurrent layers": ("attention_hidden_size", "lru_width", "rescale_every"),
    "linear attention": ("linear_num_key_heads", "linear_num_value_heads", "linear_attn_config"),
    "latent attention": ("kv_lora_rank",),
    "an encoder beside the decoder": (
        "is_encoder_decoder",
        "add_cross_attention",
        "encoder_layers",
        "num_decoder_layers",
    ),
    "attention in both directions": ("type_vocab_size", "use_bidirectional_attention"),
    "a part that sees": ("vision_config", "image_token_id", "image_token_index", "mm_projector_type"),
    "a part that hears": ("audio_config", "num_mel_bins"),
    "attention biased by distance": ("alibi", "attn_config.alibi", "relative_attention_num_buckets"),
    "a bound on queries and keys": ("clip_qkv",),
    "multipliers of its own": (
        "logit_scale",
        "logits_scaling",
        "embedding_multiplier",
        "residual_multiplier",
        "attention_multiplier",
        "scale_emb",
        "scale_depth",
    ),
    "embeddings for each block": ("hidden_size_per_layer_input", "vocab_size_per_layer_input"),
    "positions turned in neighbouring pairs": ("rope_interleave", "rope_interleaved"),
}
"""What a config has -> the fields that tell; a dot leads into a table."""
OWN = {
    "a mixture of experts": (
        "mixtral",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe",
        "smallthinker",
        "switch_transformers",
    ),
    "an encoder beside the decoder": ("mt5", "switch_transformers", "t5"),
    "attention biased by distance": ("mt5", "switch_transformers", "t5"),
}
"""What a config has -> the families that compute it."""
LEFT_OVER = (
    "encoder_layers",
    "num_decoder_layers",
    "type_vocab_size",
    "image_token_id",
    "image_token_index",
)
"""Fields that configs inherit from a model they were made of. They help to tell a family we do not have; in
one that we have they mean nothing."""


def marks_of(config: Mapping[str, Any]) -> dict[str, str]:
    """What a config has of MARKS -> the field that says so."""
    found: dict[str, str] = {}
    for what, fields in MARKS.items():
        for field in fields:
            if _says(_field(config, field)):
                found.setdefault(what, field)
    if config.get("is_causal") is False:
        found.setdefault("attention in both directions", "is_causal")
    return found


def _field(config: Mapping[str, Any], field: str) -> Any:
    table, _, inner = field.partition(".")
    value = config.get(table)
    if not inner:
        return value
    return value.get(inner) if isinstance(value, dict) else None


def _says(value: Any) -> bool:
    """False for what switches a feature off or multiplies by one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return bool(value)
    return value not in (0, 1)


def refuse_features(config: Mapping[str, Any], family: str) -> None:
    """Raises UserError for a config of a known family that asks for what that does not compute."""
    own = {field: value for field, value in config.items() if field not in LEFT_OVER}
    for what, field in marks_of(own).items():
        if family in OWN.get(what, ()):
            continue
        said = " ".join(str(_field(config, field)).split())[:80]
        raise UserError(
            f"config.json: {field}={said} says that the model has {what}, which {family} here has not.",
            field=field,
            given=_field(config, field),
        )
