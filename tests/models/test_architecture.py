"""Configs as the hub spells them, in old and new forms, and the frequencies of rotary positions."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.models import Rope, read_architecture
from haversack.models.language import families

BASE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}


def read(family: str, **changes: Any) -> Any:
    return read_architecture({"model_type": family, **BASE, **changes})


def windows(architecture: Any) -> list[int | None]:
    return [block.attention.window for block in architecture.blocks]


def test_the_families() -> None:
    assert families() == (
        "gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "mixtral", "olmoe", "opt", "phi",
        "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smallthinker", "smollm3", "stablelm",
    )  # fmt: skip


def test_defaults_of_fields_that_a_config_leaves_out() -> None:
    assert windows(read("mistral")) == [4096] * 4
    assert windows(read("mistral", sliding_window=None)) == [None] * 4
    assert read("smollm3").tied and not read("llama").tied
    assert read("qwen3").blocks[0].attention.head_width == 128
    assert [block.attention.rope is None for block in read("smollm3").blocks] == [False, False, False, True]
    assert read("smollm3").blocks[0].attention.rope.theta == 2e6
    assert read("llama").blocks[0].attention.rope.theta == 1e4
    assert read("mixtral").blocks[0].attention.rope.theta == 1e6
    for family, experts, top in (
        ("mixtral", 8, 2),
        ("olmoe", 64, 8),
        ("qwen2_moe", 60, 4),
        ("qwen3_moe", 128, 8),
        ("smallthinker", 32, 4),
    ):
        mixture = read(family).blocks[0].mixture
        assert (len(mixture.experts), mixture.top) == (experts, top)
        assert mixture.normalized is (family in ("mixtral", "smallthinker"))
    assert read("qwen2_moe").blocks[0].mixture.shared.width == 5632
    assert read("smallthinker").blocks[0].mixture.tap == "residual" and read("smallthinker").tied


def test_which_blocks_of_qwen_have_experts() -> None:
    for family in ("qwen2_moe", "qwen3_moe"):
        found = read(family, decoder_sparse_step=2, mlp_only_layers=[3]).blocks
        assert [block.mixture is not None for block in found] == [False, True, False, False]
        assert found[0].branches[1].layer.width == BASE["intermediate_size"]


def test_products_of_a_mixture_are_in_order_of_use() -> None:
    late, early = (read(family).blocks[0] for family in ("mixtral", "smallthinker"))
    assert late.products().index((late.mixture.router,)) == 2  # behind attention's two
    assert early.products()[0] == (early.mixture.router,)
    twin = read("smallthinker", moe_enable_early_router=False).blocks[0]
    assert twin.mixture.tap == "normed" and twin.products().index((twin.mixture.router,)) == 2
    assert len(early.matrices()) == len(set(early.matrices())) == 4 + 1 + 3 * 32


def test_windows_of_late_blocks() -> None:
    assert windows(read("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=3)) == [
        None, None, None, 8,
    ]  # fmt: skip
    assert (
        windows(read("qwen2", use_sliding_window=False, sliding_window=8, max_window_layers=0)) == [None] * 4
    )
    kinds = ["sliding_attention", "full_attention"] * 2
    assert (
        windows(read("qwen3", use_sliding_window=True, sliding_window=8, layer_types=kinds)) == [8, None] * 2
    )


def test_biases() -> None:
    assert read("qwen2").blocks[0].attention.query.bias == "model.layers.0.self_attn.q_proj.bias"
    assert read("qwen2").blocks[0].attention.output.bias is None
    assert read("llama", attention_bias=True).blocks[0].attention.output.bias is not None
    assert "model.layers.3.mlp.down_proj.bias" in read("llama", mlp_bias=True).tensors()


def test_tensors_in_order_of_use() -> None:
    architecture = read("llama")
    names = list(architecture.tensors())
    assert names[0] == "model.embed_tokens.weight" and names[-1] == "lm_head.weight"
    assert len(names) == 3 + 4 * 9
    assert names.index("model.layers.0.mlp.down_proj.weight") < names.index(
        "model.layers.1.input_layernorm.weight"
    )
    tied = read("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in tied.tensors()
    assert tied.head.weight == tied.embedding


def test_cache_bytes() -> None:
    architecture = read("llama")
    assert architecture.cache_nbytes(10) == 2 * 4 * 10 * 4 * 32 * 4
    assert architecture.cache_nbytes(10, "int8") == 2 * 4 * 10 * 4 * (32 + 4)


def test_architectures_without_a_model_type() -> None:
    assert read_architecture({**BASE, "architectures": ["LlamaForCausalLM"]}).family == "llama"
    with pytest.raises(UserError) as refused:
        read_architecture({**BASE, "architectures": ["Qwen9ForCausalLM"]})
    assert refused.value.field == "model_type"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted(
    {
        *BASE,
        "model_type",
        "head_dim",
        "hidden_act",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "layer_types",
    }
    | {
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "no_rope_layers",
        "bos_token_id",
        "eos_token_id",
    }
    | {"rms_norm_eps", "attention_bias", "mlp_bias", "tie_word_embeddings", "no_rope_layer_interval"}
    | {"layer_norm_eps", "layer_norm_epsilon", "partial_rotary_factor", "query_pre_attn_scalar"}
    | {"attn_logit_softcapping", "final_logit_softcapping", "rope_local_base_freq", "sliding_window_pattern"}
    | {"hidden_activation", "activation_function", "use_parallel_residual", "qk_layernorm", "use_qkv_bias"}
    | {"n_embd", "n_layer", "n_head", "n_inner", "n_positions", "scale_attn_weights", "ffn_dim"}
    | {"word_embed_proj_dim", "do_layer_norm_before", "_remove_final_layer_norm", "enable_bias"}
    | {"original_max_position_embeddings", "use_bidirectional_attention", "add_cross_attention"}
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(families()), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4))
def test_any_config_is_read_or_refused(family: str, changes: dict[str, Any]) -> None:
    """Whatever stands in a config: an architecture, or one sentence."""
    if isinstance(changes.get("num_hidden_layers"), int) and changes["num_hidden_layers"] > 50:
        changes["num_hidden_layers"] = 50
    try:
        architecture = read("llama" if "model_type" in changes else family, **changes)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert architecture.tensors()


def test_frequencies_by_hand() -> None:
    plain = Rope(4, 100.0).inverse_frequencies()
    assert np.allclose(plain, [1.0, 0.1])
    assert np.allclose(Rope(4, 100.0, "linear", 4.0).inverse_frequencies(), [0.25, 0.025])
    dynamic = Rope(4, 100.0, "dynamic", 2.0, 10)
    assert np.array_equal(dynamic.inverse_frequencies(10), plain)
    assert np.allclose(dynamic.inverse_frequencies(20), [1.0, (100 * 3.0**2) ** -0.5])
    low = Rope(4, 100.0, "llama3", 8.0, 20, 1.0, 4.0).inverse_frequencies()
    assert np.allclose(low[1], 0.1 / 8)  # wavelength 62.8 is beyond 20 / 1
    smooth = (20 / (2 * np.pi) - 1) / 3
    assert np.allclose(low[0], (1 - smooth) / 8 + smooth)


def test_reading_needs_no_torch_and_no_numpy() -> None:
    import subprocess

    code = (
        "import sys, haversack.models as m; m.read_architecture(dict(model_type='llama', hidden_size=64, "
        "vocab_size=9, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, "
        "max_position_embeddings=8));"
        "assert not {'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
