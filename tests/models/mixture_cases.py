"""The cases of record.py that are mixtures of experts: their configs, and how each field of one may be got
wrong.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
DROPPED = ("intermediate_size", "hidden_act")


def cases(tiny: Config, yarn: Config) -> dict[str, tuple[Config, int]]:
    """Name -> (config, length of the prompt)."""
    small = {key: value for key, value in tiny.items() if key not in DROPPED}
    mixtral = {**tiny, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    olmoe = {
        **tiny,
        "model_type": "olmoe",
        "intermediate_size": 40,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "rope_theta": 300.0,
        "clip_qkv": None,
    }
    qwen2 = {
        **tiny,
        "model_type": "qwen2_moe",
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 56,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "rope_theta": 400.0,
    }
    qwen3 = {
        **tiny,
        "model_type": "qwen3_moe",
        "head_dim": 24,
        "moe_intermediate_size": 40,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "rope_theta": 500.0,
    }
    smallthinker = {
        **small,
        "model_type": "smallthinker",
        "head_dim": 20,
        "moe_ffn_hidden_size": 64,
        "moe_num_primary_experts": 6,
        "moe_num_active_primary_experts": 3,
        "moe_primary_router_apply_softmax": False,
        "norm_topk_prob": True,
        "rope_layout": [0, 1, 1, 1],
        "sliding_window_layout": [0, 1, 1, 1],
        "sliding_window_size": 12,
        "rope_theta": 300.0,
    }
    return {
        "mixtral": ({**mixtral, "rope_theta": 300.0}, 40),
        "mixtral-window": (
            {
                **mixtral,
                "num_local_experts": 6,
                "num_experts_per_tok": 3,
                "sliding_window": 11,
                "head_dim": 24,
                "tie_word_embeddings": True,
            },
            32,
        ),
        "olmoe": (olmoe, 40),
        "olmoe-normalized": (
            {
                **olmoe,
                "norm_topk_prob": True,
                "attention_bias": True,
                "num_key_value_heads": 4,
                "num_experts_per_tok": 2,
                "hidden_act": "gelu",
            },
            32,
        ),
        "qwen2_moe": (qwen2, 40),
        "qwen2_moe-mixed": (
            {
                **qwen2,
                "decoder_sparse_step": 2,
                "norm_topk_prob": True,
                "use_sliding_window": True,
                "sliding_window": 10,
                "max_window_layers": 3,
                "qkv_bias": False,
                "num_hidden_layers": 5,
                "mlp_only_layers": [1],
            },
            32,
        ),
        "qwen3_moe": (qwen3, 40),
        "qwen3_moe-window": (
            {
                **qwen3,
                "norm_topk_prob": False,
                "attention_bias": True,
                "use_sliding_window": True,
                "sliding_window": 9,
                "mlp_only_layers": [],
                "decoder_sparse_step": 2,
                "rope_scaling": yarn,
            },
            32,
        ),
        "smallthinker": (smallthinker, 40),
        "smallthinker-softmax": (
            {
                **smallthinker,
                "moe_primary_router_apply_softmax": True,
                "tie_word_embeddings": True,
                "rope_layout": [1] * 4,
                "sliding_window_layout": [0] * 4,
                "num_key_value_heads": 1,
                "moe_num_active_primary_experts": 2,
            },
            32,
        ),
    }


def mutations(config: Config) -> dict[str, Config]:
    """Name -> fields to change, for every field that a mixture's config has of its own."""
    found: dict[str, Config] = {}
    for field in ("num_experts_per_tok", "moe_num_active_primary_experts"):
        if field in config:
            found["one expert more"] = {field: config[field] + 1}
            found["one expert fewer"] = {field: config[field] - 1}
    if config["model_type"] in ("olmoe", "qwen2_moe", "qwen3_moe"):
        found["normalized"] = {"norm_topk_prob": not config["norm_topk_prob"]}
    if config["model_type"] == "smallthinker":
        softmax = config["moe_primary_router_apply_softmax"]
        found["scores"] = {"moe_primary_router_apply_softmax": not softmax}
        found["positions elsewhere"] = {"rope_layout": [1, 0, 1, 1]}
        found["windows elsewhere"] = {"sliding_window_layout": [1, 1, 0, 0], "sliding_window_size": 12}
        if any(config["sliding_window_layout"]):
            found["wider window"] = {"sliding_window_size": config["sliding_window_size"] + 1}
            found["narrower window"] = {"sliding_window_size": config["sliding_window_size"] - 1}
    if "max_window_layers" in config and config["model_type"] == "qwen2_moe":
        found["blocks with a window"] = {"max_window_layers": config["max_window_layers"] - 1}
    return found
