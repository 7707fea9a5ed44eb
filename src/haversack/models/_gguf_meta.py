"""The metadata and extra tensors that say in GGUF what an `Architecture` is: `_gguf_config` turned round."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.formats.gguf import TensorOut
from haversack.models._architecture import Architecture, Attention, FeedForward
from haversack.models._gguf_names import FAMILIES
from haversack.models._rope import Rope

Entries = dict[str, tuple[str, Any]]
SCALED = ("llama3", "default", "linear", "yarn", "longrope")


def name_of(architecture: Architecture) -> str:
    """general.architecture. Raises UserError for a family without one."""
    family = "llama" if architecture.family == "mistral" else architecture.family
    for name, ours in FAMILIES.items():
        if ours == family:
            return name
    raise UserError(
        f"GGUF has no name for the family {architecture.family}.", field="model", given=architecture.family
    )


def architecture_entries(architecture: Architecture) -> Entries:
    """Every key of the architecture. Raises UserError for what GGUF has no key for."""
    name = name_of(architecture)
    attention, feed_forward = first_layers(architecture)
    final = architecture.final_norm
    eps = final.eps if final is not None else 1e-5
    rms = final is not None and final.kind == "rms"
    entries: Entries = {
        "general.architecture": ("string", name),
        f"{name}.vocab_size": ("u32", architecture.vocabulary),
        f"{name}.context_length": ("u32", architecture.context),
        f"{name}.embedding_length": ("u32", architecture.width),
        f"{name}.block_count": ("u32", len(architecture.blocks)),
        f"{name}.feed_forward_length": ("u32", feed_forward.width),
        f"{name}.attention.head_count": ("u32", attention.heads),
        f"{name}.attention.head_count_kv": ("u32", attention.key_value_heads),
        f"{name}.attention.key_length": ("u32", attention.head_width),
        f"{name}.attention.value_length": ("u32", attention.head_width),
        f"{name}.attention.layer_norm{'_rms' if rms else ''}_epsilon": ("f32", eps),
    }
    rope = widest_rope(architecture)
    if rope is not None:
        entries.update(_rope_entries(name, rope))
    local = narrowest_rope(architecture)
    if name == "gemma3" and local is not None:
        entries["gemma3.rope.freq_base_swa"] = ("f32", local.theta)
    windows = [block.attention.window for block in architecture.blocks if block.attention is not None]
    seen = [window for window in windows if window is not None]
    if name in ("gemma2", "gemma3", "phi3"):
        entries[f"{name}.attention.sliding_window"] = ("u32", max(seen, default=0))
    if attention.softcap is not None:
        entries["gemma2.attn_logit_softcapping"] = ("f32", attention.softcap)
    if architecture.logit_softcap is not None:
        entries[f"{name}.final_logit_softcapping"] = ("f32", architecture.logit_softcap)
    if name == "stablelm":
        entries["stablelm.use_parallel_residual"] = ("bool", architecture.blocks[0].parallel)
    return entries


def first_layers(architecture: Architecture) -> tuple[Attention, FeedForward]:
    """The first attention and feed-forward: every block has layers of their sizes."""
    layers = [branch.layer for branch in architecture.blocks[0].branches]
    attention = next(layer for layer in layers if isinstance(layer, Attention))
    feed_forward = next(layer for layer in layers if isinstance(layer, FeedForward))
    return attention, feed_forward


def widest_rope(architecture: Architecture) -> Rope | None:
    """The positions of blocks that see everything, or of any."""
    ropes = [
        (block.attention.window is None, block.attention.rope)
        for block in architecture.blocks
        if block.attention is not None and block.attention.rope is not None
    ]
    return max(ropes, key=lambda pair: pair[0])[1] if ropes else None


def narrowest_rope(architecture: Architecture) -> Rope | None:
    """The positions of blocks with a window."""
    for block in architecture.blocks:
        if block.attention is not None and block.attention.window is not None:
            return block.attention.rope
    return None


def _rope_entries(name: str, rope: Rope) -> Entries:
    if rope.scaling not in SCALED or rope.style != "half":
        raise UserError(
            f"GGUF has no words for positions of the kind {rope.scaling} ({rope.style}).",
            field="rope_scaling",
            given=rope.scaling,
        )
    entries: Entries = {
        f"{name}.rope.dimension_count": ("u32", rope.width),
        f"{name}.rope.freq_base": ("f32", rope.theta),
    }
    if rope.scaling in ("linear", "yarn"):
        entries[f"{name}.rope.scaling.type"] = ("string", rope.scaling)
        entries[f"{name}.rope.scaling.factor"] = ("f32", rope.factor)
    if rope.scaling in ("yarn", "longrope"):
        entries[f"{name}.rope.scaling.original_context_length"] = ("u32", rope.original_context)
    if rope.scaling == "longrope":
        entries[f"{name}.rope.scaling.attn_factor"] = ("f32", rope.attention_factor)
    return entries


def extra_tensors(architecture: Architecture) -> Iterator[TensorOut]:
    """Factors of the positions that GGUF keeps as tensors."""
    rope = widest_rope(architecture)
    if rope is None:
        return
    found: dict[str, Any] = {}
    if rope.scaling == "llama3":
        plain = Rope(rope.width, rope.theta).inverse_frequencies()
        found["rope_freqs.weight"] = plain / rope.inverse_frequencies()
    if rope.scaling == "longrope":
        for key in ("short", "long"):
            found[f"rope_factors_{key}.weight"] = np.asarray(getattr(rope, key))
    for name, factors in found.items():
        data = np.ascontiguousarray(factors, "<f4")
        yield TensorOut(name, "f32", data.shape, partial(_whole, data))


def _whole(data: Any) -> list[Any]:
    return [data.data]
