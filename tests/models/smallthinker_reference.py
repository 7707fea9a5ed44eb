"""SmallThinker in plain numpy, f64, from its specification: the whole text anew for every token, no cache.

A layer with input x: the router reads x itself, before any norm; a = x + attention(norm(x)), with positions
and a window only where the layouts say so; y = a + sum over the chosen experts of their shares times
down(relu(gate h) * up h), h = norm(a). Shares: sigmoids of the chosen logits over their sum, or a softmax of
the chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def reference(
    config: dict[str, Any], weights: dict[str, np.ndarray], prompt: np.ndarray, decoded: int
) -> tuple[np.ndarray, list[int]]:
    """Logits f32 [prompt + decoded - 1, vocabulary] and the greedily decoded tokens."""
    text = [int(token) for token in prompt]
    tokens: list[int] = []
    for _ in range(decoded):
        rows = logits(config, weights, np.asarray(text + tokens))
        tokens.append(int(rows[-1].argmax()))
    return rows.astype(np.float32), tokens


def logits(config: dict[str, Any], weights: dict[str, np.ndarray], text: np.ndarray) -> np.ndarray:
    """f64 [text, vocabulary]."""
    held = {name: values.astype(np.float64) for name, values in weights.items()}
    x = held["model.embed_tokens.weight"][text]
    for index in range(config["num_hidden_layers"]):
        own = f"model.layers.{index}."
        layer = {name.removeprefix(own): values for name, values in held.items() if name.startswith(own)}
        ratings = x @ layer["block_sparse_moe.primary_router.weight"].T
        a = x + attention(config, index, layer, norm(config, x, layer["input_layernorm.weight"]))
        h = norm(config, a, layer["post_attention_layernorm.weight"])
        x = a + np.stack([experts(config, layer, h[i], ratings[i]) for i in range(len(h))])
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return norm(config, x, held["model.norm.weight"]) @ held[head].T


def norm(config: dict[str, Any], x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config["rms_norm_eps"]) * weight


def attention(config: dict[str, Any], index: int, layer: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    width, heads, n = config["head_dim"], config["num_attention_heads"], len(x)
    shared = heads // config["num_key_value_heads"]
    q, k, v = (
        (x @ layer[f"self_attn.{name}_proj.weight"].T).reshape(n, -1, width).transpose(1, 0, 2)
        for name in "qkv"
    )
    if config["rope_layout"][index]:
        q, k = turned(config, q), turned(config, k)
    k, v = k.repeat(shared, axis=0), v.repeat(shared, axis=0)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width)
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    unseen = distance < 0
    if config["sliding_window_layout"][index]:
        unseen |= distance >= config["sliding_window_size"]
    scores[:, unseen] = -np.inf
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    seen = (powers / powers.sum(axis=-1, keepdims=True)) @ v
    return seen.transpose(1, 0, 2).reshape(n, -1) @ layer["self_attn.o_proj.weight"].T


def turned(config: dict[str, Any], x: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * config["rope_theta"] ** (-np.arange(half) / half)
    one, two = x[..., :half], x[..., half:]
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([one * cosine - two * sine, two * cosine + one * sine], axis=-1)


def experts(
    config: dict[str, Any], layer: dict[str, np.ndarray], h: np.ndarray, ratings: np.ndarray
) -> np.ndarray:
    chosen = np.argsort(-ratings)[: config["moe_num_active_primary_experts"]]
    if config.get("moe_primary_router_apply_softmax"):
        scores = np.exp(ratings[chosen] - ratings[chosen].max())
    else:
        scores = 1 / (1 + np.exp(-ratings[chosen]))
    total = np.zeros_like(h)
    for number, share in zip(chosen, scores / scores.sum(), strict=True):
        gate, up, down = (
            layer[f"block_sparse_moe.experts.{number}.{name}.weight"] for name in ("gate", "up", "down")
        )
        total += share * (down @ (np.maximum(gate @ h, 0) * (up @ h)))
    return total
