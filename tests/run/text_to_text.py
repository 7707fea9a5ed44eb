"""Small encoders with a decoder in hub folders: configs, drawn weights, a tokenizer with sentinels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture

SENTINELS = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz.,"
PIECES = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS, *(f"\u2581{letter}" for letter in LETTERS)]
VOCABULARY = len(PIECES) + SENTINELS + 3  # a little more than the tokenizer has, as the hub's
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_heads": 4,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 40,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "is_encoder_decoder": True,
}
SWITCH: dict[str, Any] = {
    **SIZES,
    "model_type": "switch_transformers",
    "num_experts": 4,
    "expert_capacity": 6,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "switch": SWITCH,
    "switch-everywhere": {
        **SWITCH,
        "num_layers": 3,
        "num_decoder_layers": 3,
        "num_sparse_encoder_layers": 3,
        "num_sparse_decoder_layers": 3,
        "router_bias": True,
        "dense_act_fn": "gelu_new",
    },
    "switch-untied": {
        **SWITCH,
        "tie_word_embeddings": False,
        "expert_capacity": 64,
        "num_sparse_encoder_layers": 0,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    },
    "t5": {**SIZES, "model_type": "t5", "feed_forward_proj": "relu"},
    "t5-gated": {
        **SIZES,
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "num_decoder_layers": 3,
        "tie_word_embeddings": False,
    },
    "mt5": {**SIZES, "model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def draw(config: dict[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    """Weights by the hub's own names, large enough that texts do not repeat themselves."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in read_architecture(config, reader=True).tensors().items():
        if len(shape) == 1:
            values = rng.standard_normal(shape) * 0.2 + (not name.endswith("bias"))
        elif "relative" in name or name == "shared.weight":
            values = rng.standard_normal(shape)
        else:
            values = rng.standard_normal(shape) * 1.5 / np.sqrt(shape[1])
            if name.endswith((".q.weight", ".k.weight")):
                values *= 0.4  # scores are not scaled by the heads' width
        found[name] = values.astype(np.float32)
    return found


def tokenizer_json() -> str:
    """A unigram vocabulary of letters, T5's way: what the hub's tokenizer.json of these families says."""
    spaced = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    sentinels = [f"<extra_id_{number}>" for number in range(SENTINELS - 1, -1, -1)]
    special = {**{text: number for number, text in enumerate(PIECES[:3])}}
    special |= {text: len(PIECES) + number for number, text in enumerate(sentinels)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": one, "type_id": 0}} for one in "AB")
    scores = [(text, 0.0 if text in special else -float(3 + place % 7)) for place, text in enumerate(PIECES)]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": number, "content": text, **flags} for text, number in special.items()],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, spaced]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [first, end],
                "pair": [first, end, second, end],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
            },
            "decoder": spaced,
            "model": {
                "type": "Unigram",
                "unk_id": 2,
                "vocab": [*scores, *((text, 0.0) for text in sentinels)],
                "byte_fallback": False,
            },
        }
    )


def write_folder(path: Path, config: dict[str, Any] | None = None, seed: int = 1) -> Path:
    """A checkpoint folder in the hub's format."""
    config = SWITCH if config is None else config
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(tokenizer_json())
    tensors = [
        (name, "f32", values.shape, np.ascontiguousarray(values).tobytes())
        for name, values in draw(config, seed).items()
    ]
    write_safetensors(path / "model.safetensors", tensors)
    return path
