"""Linformer: attention of an encoder over k learned mixtures of the keys and values.

Paper: Wang et al., "Linformer: Self-Attention with Linear Complexity" (2020).
What is here: K' = E K and V' = F V with E, F [k, longest length], so that attention costs n k in place of
n^2. `linformerize` replaces the self-attention of encoders such as BERT, RoBERTa and ViT, whatever its
linear layers are (dense or factored). Padding is masked before the mixing, a shorter text uses the first
columns of E and F, all heads share them, and `share="key-value"` makes F the same as E.
Cost: 4 n k d for the mixing and 4 n k d for the attention, against 4 n^2 d; 2 k * longest more weights a
layer.
Limits: E and F start as the random projections of the paper's theorem and must be trained; not for causal
attention; no text longer than `max_len`.
"""

from __future__ import annotations

import copy as copying
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.core.errors import UserError, not_allowed

SYSTEM = 38
SHARED = ("heads", "key-value")
NAMES = (("query", "key", "value", None), ("q_proj", "k_proj", "v_proj", "o_proj"))


class LinformerAttention(nn.Module):
    """Self-attention over `projected` mixtures; the linear layers keep the names they had."""

    def __init__(self, layers: dict[str, nn.Module], heads: int, max_len: int, k: int, share: str) -> None:
        super().__init__()
        self.names, self.num_attention_heads, self.max_len, self.projected = tuple(layers), heads, max_len, k
        for name, layer in layers.items():
            self.add_module(name, layer)
        like = next(layers[self.names[1]].parameters())

        def draw() -> nn.Parameter:
            drawn = torch.empty(k, max_len, dtype=like.dtype, device=like.device)
            return nn.Parameter(drawn if drawn.is_meta else drawn.normal_(0.0, k**-0.5))

        self.mix_keys = draw()
        self.mix_values = self.mix_keys if share == "key-value" else draw()

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Context [batch, n, width] of `hidden_states` [batch, n, width]; the mask says what is padding.

        Raises UserError for more than `max_len` tokens, a causal mask, a cache or rotary positions.
        """
        batch, length, _width = hidden_states.shape
        if length > self.max_len:
            raise UserError(
                f"a text of {length} tokens is longer than the {self.max_len} that this Linformer was made "
                "for; cut it, or linformerize with a larger max_len.",
                field="max_len",
                given=length,
                nearest=self.max_len,
            )
        for name in ("cache", "past_key_values", "position_embeddings"):
            if kwargs.get(name) is not None:
                raise UserError(f"Linformer attention takes no {name}.", field="model", given=name)
        query, keys, values = (getattr(self, name)(hidden_states) for name in self.names[:3])
        mask = None if attention_mask is None else real_tokens(attention_mask, batch, length)
        if mask is not None:
            keys, values = keys * mask.to(keys.dtype), values * mask.to(values.dtype)
        keys = self.mix_keys[:, :length] @ keys
        values = self.mix_values[:, :length] @ values
        mixed = functional.scaled_dot_product_attention(
            self._heads(query), self._heads(keys), self._heads(values)
        )
        mixed = mixed.transpose(1, 2).reshape(query.shape)
        if len(self.names) == 4:
            mixed = getattr(self, self.names[3])(mixed)
        return mixed, None

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), x.shape[1], self.num_attention_heads, -1).transpose(1, 2)


def real_tokens(mask: Tensor, batch: int, length: int) -> Tensor:
    """1 for tokens, 0 for padding, [batch, n, 1], from a mask [batch, n] or [batch, 1, n or 1, n].

    Raises UserError for a mask whose rows differ (causal attention).
    """
    if mask.ndim == 4:
        if mask.shape[2] > 1 and not torch.equal(mask, mask[:, :, :1].expand_as(mask)):
            raise causal("a mask whose rows differ")
        mask = mask[:, 0, 0]
        real = mask if mask.dtype == torch.bool else mask >= 0
    else:
        real = mask > 0
    return real[:, -length:].expand(batch, length)[:, :, None]


def causal(what: str) -> UserError:
    """The refusal of causal attention."""
    return UserError(
        f"Linformer mixes all positions, and {what} is causal attention; use low-rank weights (factorize).",
        field="model",
        given=what,
        nearest="factorize",
    )


def linformerize(
    model: nn.Module, max_len: int, k: int = 128, *, share: str = "heads", copy: bool = True
) -> nn.Module:
    """The encoder with Linformer attention for texts up to `max_len` tokens, through `k` mixtures.

    Raises UserError for a decoder, for a model without such attention, for k < 1 and k > max_len.
    """
    if share not in SHARED:
        raise not_allowed("share", share, SHARED)
    for name, value in (("max_len", max_len), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value} is no positive whole number.", field=name, given=str(value))
    if k > max_len:
        raise UserError(
            f"k={k} mixtures of {max_len} positions cost more than attention; use k={max_len // 4 or 1}.",
            field="k",
            given=k,
            nearest=max_len // 4 or 1,
        )
    model = copying.deepcopy(model) if copy else model
    if getattr(getattr(model, "config", None), "is_decoder", False):
        raise causal(f"{type(model).__name__} as a decoder")
    found = [(module, names) for module in model.modules() if (names := _attention(module))]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no self-attention with query, key and value layers of their own.",
            field="model",
            given=type(model).__name__,
        )
    made: dict[int, nn.Module] = {}
    for module, names in found:
        layers = {name: getattr(module, name) for name in names}
        heads = int(module.num_attention_heads)  # type: ignore[arg-type]
        made[id(module)] = LinformerAttention(layers, heads, max_len, k, share).train(module.training)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if id(child) in made:
                parent._modules[key] = made[id(child)]
    return made.get(id(model), model)


def _attention(module: Any) -> tuple[str, ...] | None:
    """The names of its linear layers, when it is self-attention. Raises UserError when it is causal."""
    for names in NAMES:
        wanted = tuple(name for name in names if name is not None)
        if not all(isinstance(getattr(module, name, None), nn.Module) for name in wanted):
            continue
        if isinstance(module, LinformerAttention) or not hasattr(module, "num_attention_heads"):
            return None
        if getattr(module, "is_causal", False) or getattr(module, "is_decoder", False):
            raise causal(type(module).__name__)
        return wanted
    return None
