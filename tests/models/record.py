"""Makes the recordings that parity is tested against: configs, drawn weights' seeds, and what `transformers`
answers.

    python tests/models/record.py            # needs torch and transformers; writes tests/models/recordings/

Weights are not stored: `draw_weights` makes them anew from a seed, the same on every machine. Each recording
holds the prompt, 32 greedily decoded tokens and, for every position of the prompt's end and of the decoding,
some of the logits in f32.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def beside(name: str) -> ModuleType:
    """The file NAME.py of this folder, however this one was loaded."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORDINGS = Path(__file__).parent / "recordings"
DECODED = 32
KEPT_ROWS = 8  # prompt positions whose logits are kept
KEPT_LOGITS = 48  # logits kept of each row: the largest, the smallest and some between

TINY = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_FULL = {
    **YARN,
    "original_max_position_embeddings": 64,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "mscale": 0.7,
    "mscale_all_dim": 0.4,
    "truncate": False,
}

# name -> (config, length of the prompt)
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "llama": ({**TINY, "model_type": "llama", "rope_theta": 300.0}, 40),
    "llama-biases": (
        {**TINY, "model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 24},
        24,
    ),
    "llama-tied-gelu": (
        {**TINY, "model_type": "llama", "tie_word_embeddings": True, "hidden_act": "gelu"},
        24,
    ),
    "llama-linear": ({**TINY, "model_type": "llama", "rope_scaling": {"type": "linear", "factor": 3.0}}, 24),
    "llama-dynamic": (
        {
            **TINY,
            "model_type": "llama",
            "max_position_embeddings": 32,
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.5},
        },
        48,
    ),
    "llama-llama3": ({**TINY, "model_type": "llama", "rope_theta": 500.0, "rope_scaling": LLAMA3}, 40),
    "llama-yarn": ({**TINY, "model_type": "llama", "rope_theta": 500.0, "rope_scaling": YARN}, 40),
    "llama-yarn-full": (
        {
            **TINY,
            "model_type": "llama",
            "head_dim": 32,
            "rope_parameters": {**YARN_FULL, "rope_theta": 700.0},
        },
        40,
    ),
    "mistral": ({**TINY, "model_type": "mistral", "sliding_window": 12, "head_dim": 20}, 40),
    "mistral-whole": (
        {**TINY, "model_type": "mistral", "sliding_window": None, "rope_scaling": YARN, "rope_theta": 900.0},
        24,
    ),
    "qwen2": (
        {
            **TINY,
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 10,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
        },
        40,
    ),
    "qwen2-yarn": ({**TINY, "model_type": "qwen2", "rope_scaling": YARN, "rope_theta": 2000.0}, 24),
    "qwen3": (
        {
            **TINY,
            "model_type": "qwen3",
            "head_dim": 24,
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
        40,
    ),
    "qwen3-linear": (
        {
            **TINY,
            "model_type": "qwen3",
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 400.0},
        },
        24,
    ),
    "smollm3": ({**TINY, "model_type": "smollm3", "tie_word_embeddings": True, "rope_theta": 800.0}, 40),
    "smollm3-window": (
        {
            **TINY,
            "model_type": "smollm3",
            "no_rope_layers": [1, 0, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 8,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_scaling": YARN,
        },
        40,
    ),
}

PLAIN = {key: value for key, value in TINY.items() if key != "rms_norm_eps"}
GEMMA = {
    **TINY,
    "num_attention_heads": 4,
    "head_dim": 24,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "rope_theta": 300.0,
}
GEMMA2 = {
    **GEMMA,
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 40,
    "sliding_window": 11,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 9.0,
}
GEMMA3 = {
    **GEMMA2,
    "model_type": "gemma3_text",
    "num_hidden_layers": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_theta": 900.0,
    "rope_local_base_freq": 200.0,
}
PHI = {
    **PLAIN,
    "model_type": "phi",
    "num_key_value_heads": 4,
    "layer_norm_eps": 1e-3,
    "hidden_act": "gelu_new",
    "rope_theta": 300.0,
}
PHI3 = {**TINY, "model_type": "phi3", "rope_theta": 300.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.5, 1.7, 2.0, 2.2, 2.5],
    "long_factor": [1.1, 1.5, 2.1, 3.0, 4.5, 6.0, 8.0, 9.0],
}
STABLELM = {
    **PLAIN,
    "model_type": "stablelm",
    "layer_norm_eps": 1e-3,
    "use_qkv_bias": True,
    "rope_theta": 300.0,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 320,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 96,
    "layer_norm_epsilon": 1e-3,
    "activation_function": "gelu_new",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "ffn_dim": 96,
    "max_position_embeddings": 96,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "word_embed_proj_dim": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CASES |= {
    # As Qwen1.5's configs are: no shared key heads, windows named but off, late windows' first block.
    "qwen1.5": (
        {
            **TINY,
            "model_type": "qwen2",
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 2000.0,
            "use_sliding_window": False,
            "sliding_window": 10,
            "max_window_layers": 2,
        },
        40,
    ),
    "gemma": ({**GEMMA, "model_type": "gemma"}, 40),
    "gemma-biases": (
        {
            **GEMMA,
            "model_type": "gemma",
            "num_key_value_heads": 1,
            "hidden_act": "gelu",
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        24,
    ),
    "gemma2": (GEMMA2, 40),
    "gemma2-pattern": (
        {
            **GEMMA2,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
        24,
    ),
    "gemma3": (
        {**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 3},
        40,
    ),
    "gemma3-tables": (
        {
            **{key: value for key, value in GEMMA3.items() if not key.startswith("rope_")},
            "final_logit_softcapping": 7.0,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 150.0},
            },
        },
        24,
    ),
    "phi": ({**PHI, "partial_rotary_factor": 0.5}, 40),
    "phi-norms": (
        {
            **PHI,
            "num_key_value_heads": 2,
            "qk_layernorm": True,
            "hidden_size": 80,
            "partial_rotary_factor": 0.4,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        24,
    ),
    "phi3": ({**PHI3, "sliding_window": 12}, 40),
    # Beyond the first context from the start, and on the way.
    "phi3-long": (
        {
            **PHI3,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_scaling": LONGROPE,
        },
        40,
    ),
    "phi3-switch": (
        {
            **PHI3,
            "tie_word_embeddings": True,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_scaling": LONGROPE,
        },
        20,
    ),
    "phi3-partial": (
        {
            **PHI3,
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 16,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": LONGROPE["short_factor"][:6],
                "long_factor": LONGROPE["long_factor"][:6],
                "attention_factor": 1.3,
            },
        },
        24,
    ),
    "stablelm": ({**STABLELM, "partial_rotary_factor": 0.25}, 40),
    "stablelm-parallel": (
        {
            **STABLELM,
            "use_qkv_bias": False,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "partial_rotary_factor": 0.5,
        },
        24,
    ),
    "gpt2": (GPT2, 40),
    "gpt2-scaled": (
        {
            **GPT2,
            "n_inner": 96,
            "activation_function": "gelu",
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "tie_word_embeddings": False,
        },
        24,
    ),
    "gpt2-unscaled": ({**GPT2, "scale_attn_weights": False}, 24),
    "opt": (OPT, 40),
    "opt-350m": ({**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 40}, 24),
    "opt-bare": (
        {
            **OPT,
            "enable_bias": False,
            "_remove_final_layer_norm": True,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
        },
        24,
    ),
}

CASES |= beside("mixture_cases").cases(TINY, YARN)

# Where the head is the embedding, a large one makes every token follow itself.
EMBEDDINGS = {
    **dict.fromkeys(("gemma", "gemma-biases", "gemma2", "gemma2-pattern", "gemma3", "gemma3-tables"), 0.1),
    **dict.fromkeys(("gpt2", "gpt2-unscaled"), 0.15),
    **dict.fromkeys(("opt", "opt-350m", "qwen1.5", "phi3-switch"), 0.3),
    **dict.fromkeys(("mixtral-window", "smallthinker-softmax"), 0.3),
}


def seed_of(name: str) -> int:
    """The seed of a case's weights and prompt."""
    return sum(ord(letter) * 31**index for index, letter in enumerate(name)) % 2**31


def weights_of(name: str) -> dict[str, np.ndarray]:
    """The weights of a case."""
    from haversack.models import read_architecture

    shapes = read_architecture(CASES[name][0]).checkpoint_tensors()
    return draw_weights(shapes, seed_of(name), EMBEDDINGS.get(name, 1.0))


def draw_weights(
    shapes: dict[str, tuple[int, ...]], seed: int, embeddings: float = 1.0
) -> dict[str, np.ndarray]:
    """Weights that all matter: matrices 1.5 / sqrt(inputs), biases and norm weights N(0, 0.3) around 0 and 1,
    `embeddings` (and learned positions) of that deviation.

    Drawn with integer arithmetic and one division, so that every machine gets the same bits.
    """
    weights = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        rng = np.random.Generator(np.random.Philox(seed * 1000 + index))
        sums = rng.integers(-(2**20), 2**20, size=(12, *shape)).sum(axis=0)  # nearly normal
        normal = sums.astype(np.float64) / 2**20 / 2.0
        if len(shape) == 2:
            embeds = any(part in name for part in ("embed", "wte", "wpe"))
            inputs = shape[0] if ".c_" in name else shape[1]  # GPT-2's are [inputs, outputs]
            scale = embeddings if embeds else 1.5 / np.sqrt(inputs)
            weights[name] = (normal * scale).astype(np.float32)
        else:
            weights[name] = ((0.0 if name.endswith("bias") else 1.0) + 0.3 * normal).astype(np.float32)
    return weights


def draw_prompt(name: str, length: int) -> np.ndarray:
    """The prompt of a case, i32 [length]."""
    rng = np.random.Generator(np.random.Philox(seed_of(name)))
    return rng.integers(3, TINY["vocab_size"], size=length).astype(np.int32)


def kept_rows(length: int) -> list[int]:
    """The prompt positions whose logits are kept; the last is among them."""
    return sorted({round(at) for at in np.linspace(0, length - 1, KEPT_ROWS)})


def reference(
    config: dict[str, Any], weights: dict[str, np.ndarray], prompt: np.ndarray, decoded: int
) -> Any:
    """What the model's own implementation answers: logits f32 [prompt + decoded - 1, vocabulary] and the
    decoded tokens.
    """
    own = "smallthinker_reference" if config["model_type"] == "smallthinker" else "reference"
    return beside(own).reference(config, weights, prompt, decoded)


def record(name: str) -> None:
    """Write the recording of one case."""
    config, length = CASES[name]
    weights = weights_of(name)
    prompt = draw_prompt(name, length)
    logits, tokens = reference(config, weights, prompt, DECODED)
    rows = [*kept_rows(length)[:-1], *range(length - 1, len(logits))]
    columns = np.linspace(0, logits.shape[1] - 1, KEPT_LOGITS).round().astype(np.int16)
    np.savez_compressed(
        RECORDINGS / f"{name}.npz",
        config=np.frombuffer(json.dumps(config).encode(), np.uint8),
        tokens=np.asarray(tokens, np.int32),
        rows=np.asarray(rows, np.int32),
        columns=columns,
        logits=logits[rows][:, columns],
        largest=np.abs(logits[rows]).max(axis=1),
        argmax=logits[rows].argmax(axis=1).astype(np.int32),
    )


if __name__ == "__main__":
    RECORDINGS.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or CASES:
        record(chosen)
        print(chosen)
