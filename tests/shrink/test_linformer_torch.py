"""Linformer attention: its equations, its padding, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from haversack.core.errors import UserError
from haversack.shrink.structure import factorize, linformerize
from haversack.shrink.structure.linformer_torch import LinformerAttention, real_tokens

LENGTH, MIXTURES = 32, 8


def bert(**changes: Any) -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = BertConfig(**shape, vocab_size=80, max_position_embeddings=64, **changes)
    return BertModel(config, add_pooling_layer=False).eval()


def hidden(model: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, attention_mask=mask).last_hidden_state  # type: ignore[no-any-return]


TOKENS = torch.randint(0, 80, (2, 20), generator=torch.Generator().manual_seed(2))


def test_it_is_the_paper_s_equation() -> None:
    model = linformerize(bert(), LENGTH, MIXTURES)
    attention: Any = model.encoder.layer[0].attention.self
    assert isinstance(attention, LinformerAttention)
    x = torch.randn(2, 20, 48)
    with torch.no_grad():
        found, _ = attention(x)
        query, key, value = attention.query(x), attention.key(x), attention.value(x)
        for head in range(4):
            part = slice(12 * head, 12 * head + 12)
            keys = attention.mix_keys[:, :20] @ key[..., part]
            values = attention.mix_values[:, :20] @ value[..., part]
            weights = torch.softmax(query[..., part] @ keys.transpose(1, 2) / math.sqrt(12), -1)
            torch.testing.assert_close(found[..., part], weights @ values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_nothing(attention: str) -> None:
    """Whatever stands in the padding, and however much of it there is."""
    model = linformerize(bert(attn_implementation=attention), LENGTH, MIXTURES)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, 13:] = 0
    other = TOKENS.clone()
    other[0, 13:] = 7
    one, two = hidden(model, TOKENS, mask), hidden(model, other, mask)
    torch.testing.assert_close(one[0, :13], two[0, :13])
    torch.testing.assert_close(one[1], two[1])
    alone = hidden(model, TOKENS[:1, :13])
    torch.testing.assert_close(one[0, :13], alone[0], atol=1e-5, rtol=1e-4)


def test_names_of_weights_stay_and_new_ones_are_learned() -> None:
    before = bert()
    model = linformerize(before, LENGTH, MIXTURES)
    added = set(model.state_dict()) - set(before.state_dict())
    assert added == {
        f"encoder.layer.{i}.attention.self.mix_{what}" for i in (0, 1) for what in ("keys", "values")
    }
    assert set(before.state_dict()) <= set(model.state_dict())
    model.train()(TOKENS).last_hidden_state.square().mean().backward()
    gradient = model.encoder.layer[0].attention.self.mix_keys.grad
    assert gradient[:, :20].abs().max() > 0 and gradient[:, 20:].abs().max() == 0
    one = linformerize(before, LENGTH, MIXTURES, share="key-value").encoder.layer[0].attention.self
    assert one.mix_keys is one.mix_values


def test_it_combines_with_low_rank_either_way() -> None:
    first, _ = factorize(linformerize(bert(), LENGTH, MIXTURES), 8)
    second = linformerize(factorize(bert(), 8)[0], LENGTH, MIXTURES)
    assert set(first.state_dict()) == set(second.state_dict())
    assert hidden(first, TOKENS).shape == hidden(second, TOKENS).shape == (2, 20, 48)


def test_vision_transformers_take_it() -> None:
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    model = ViTModel(ViTConfig(**shape, image_size=8, patch_size=2, num_channels=1)).eval()
    made = linformerize(model, 17, MIXTURES)
    assert sum(isinstance(each, LinformerAttention) for each in made.modules()) == 1
    assert made(torch.randn(2, 1, 8, 8)).last_hidden_state.shape == (2, 17, 48)


def test_longer_texts_are_refused() -> None:
    model = linformerize(bert(), LENGTH, MIXTURES)
    hidden(model, torch.zeros(1, LENGTH, dtype=torch.long))
    with pytest.raises(UserError) as caught:
        hidden(model, torch.zeros(1, LENGTH + 1, dtype=torch.long))
    assert (caught.value.given, caught.value.nearest) == (LENGTH + 1, LENGTH)


def test_causal_attention_is_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with pytest.raises(UserError, match="causal"):
        linformerize(bert(is_decoder=True), LENGTH, MIXTURES)
    shape = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    with pytest.raises(UserError, match=r"causal|no self-attention"):
        linformerize(LlamaForCausalLM(LlamaConfig(**shape, vocab_size=80)), LENGTH, MIXTURES)
    triangle = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    with pytest.raises(UserError, match="causal"):
        real_tokens(triangle, 1, 6)
    attention = linformerize(bert(), LENGTH, MIXTURES).encoder.layer[0].attention.self
    with pytest.raises(UserError, match="position_embeddings"):
        attention(torch.zeros(1, 4, 48), position_embeddings=torch.zeros(1))


@pytest.mark.parametrize(("length", "k"), [(0, 1), (32, 0), (32, 33), (32, 2.5), (True, 1)])
def test_bad_sizes_are_refused(length: Any, k: Any) -> None:
    with pytest.raises(UserError):
        linformerize(bert(), length, k)
    with pytest.raises(UserError, match="share"):
        linformerize(bert(), 32, 8, share="layers")
