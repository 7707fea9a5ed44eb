"""Where a GGUF file keeps the tensors of each family: its names beside the hub's.

Most differ in name alone. Some families keep several matrices in one tensor, one after the other; Llama's
query and key have the two halves of every head interleaved, since its positions turn neighbours there;
Gemma's norms are kept with the one that is added to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from haversack.core.errors import UserError
from haversack.models._architecture import Architecture

FAMILIES: dict[str, str] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi2": "phi",
    "phi3": "phi3",
    "stablelm": "stablelm",
    "gpt2": "gpt2",
    "smallthinker": "smallthinker",
}
"""general.architecture -> our family."""
INTERLEAVED = ("llama", "smollm3")

BIASED = ("llama", "phi", "gpt2")
UNBIASED = ("attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""What has no bias in other families' files."""

_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
_LLAMA = {
    **_ATTENTION,
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA2 = {
    **_LLAMA,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_GPT2 = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.query": "attn_qkv",
    "attn.key": "attn_qkv",
    "attn.value": "attn_qkv",
    "attn.output": "attn_output",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
_PHI3 = {
    **_LLAMA,
    "self_attn.q_proj": "attn_qkv",
    "self_attn.k_proj": "attn_qkv",
    "self_attn.v_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_up",
    "mlp.up_proj": "ffn_up",
}
_PHI2 = {
    **_ATTENTION,
    "self_attn.dense": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_SMALLTHINKER = {**_LLAMA, "block_sparse_moe.primary_router": "ffn_gate_inp"}
_EXPERTS = ("block_sparse_moe.experts.",)
"""Experts lie in one tensor, one after the other: ffn_gate_exps, ffn_up_exps, ffn_down_exps."""
_MODULES: dict[str, Mapping[str, str]] = {
    "smallthinker": _SMALLTHINKER,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gpt2": _GPT2,
    "phi3": _PHI3,
    "phi": _PHI2,
}
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}
_BLOCKS = ("model.layers.", "transformer.h.")


@dataclass(frozen=True)
class Place:
    """A tensor of ours in a GGUF file: rows from `first` on of the tensor `name`, which has `rows` in all.

    `heads` and `shift` as in `Rearranged`.
    """

    name: str
    first: int
    rows: int
    heads: int = 0
    shift: float = 0.0


def places(architecture: Architecture) -> dict[str, Place]:
    """Our name of every tensor -> its place, in order of use. Raises UserError for a family that GGUF has no
    name for."""
    family = "llama" if architecture.family == "mistral" else architecture.family
    if family not in FAMILIES.values():
        raise UserError(
            f"GGUF has no names for the family {architecture.family} (it has them for "
            f"{', '.join(sorted(FAMILIES.values()))}).",
            field="model",
            given=architecture.family,
        )
    heads = _interleaved(architecture) if family in INTERLEAVED else {}
    norms = _norm_weights(architecture) if family.startswith("gemma") else frozenset()
    shapes = architecture.tensors()
    names = {name: _name(family, name) for name in shapes}
    rows: dict[str, int] = {}
    first: dict[str, int] = {}
    for name, shape in shapes.items():
        first[name] = rows.get(names[name], 0)
        rows[names[name]] = first[name] + shape[0]
    return {
        name: Place(place, first[name], rows[place], heads.get(name, 0), 1.0 if name in norms else 0.0)
        for name, place in names.items()
    }


def _name(family: str, name: str) -> str:
    """The name of GGUF for a tensor of ours."""
    module, _, what = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{what}"
    for prefix in _BLOCKS:
        if module.startswith(prefix):
            index, _, inside = module.removeprefix(prefix).partition(".")
            inside = inside.partition(".norms.")[0]  # a norm for each head, one after the other
            if inside.startswith(_EXPERTS):
                return f"blk.{index}.ffn_{inside.rpartition('.')[2]}_exps.{what}"
            known = _MODULES.get(family, {**_LLAMA, **_PHI2})
            bare = what == "bias" and family not in BIASED and known.get(inside, "") in UNBIASED
            if inside in known and not bare:
                return f"blk.{index}.{known[inside]}.{what}"
    raise UserError(f"GGUF has no name for the tensor {name} of {family}.", field="model", given=name)


def _interleaved(architecture: Architecture) -> dict[str, int]:
    found = {}
    for block in architecture.blocks:
        attention = block.attention
        if attention is None:
            continue
        for linear, heads in (
            (attention.query, attention.heads),
            (attention.key, attention.key_value_heads),
        ):
            found[linear.weight] = heads
            if linear.bias is not None:
                found[linear.bias] = heads
    return found


def _norm_weights(architecture: Architecture) -> frozenset[str]:
    norms = [norm for block in architecture.blocks for branch in block.branches for norm in branch.norms()]
    if architecture.final_norm is not None:
        norms.append(architecture.final_norm)
    return frozenset(norm.weight for norm in norms if norm.offset)
