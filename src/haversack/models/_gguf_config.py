"""The hub config that a GGUF file's metadata stands for, family by family.

Fields that GGUF does not state (a window every so many blocks, a scale of the embedding) are fixed by its
architecture's name, as they are in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from haversack.core.errors import DamagedFileError, UserError, nearest_name
from haversack.formats.gguf import GgufArray, GgufFile
from haversack.models._gguf_names import FAMILIES
from haversack.models._rope import Rope

MIXTURES = ("smallthinker",)
"""Architectures whose mixtures are read."""
GATINGS = {1: True, 2: False}
"""expert_gating_func -> whether routers apply a softmax, else a sigmoid."""
FULL_EVERY, FIXED_WINDOW = 4, 4096
"""SmallThinker: with a window, every fourth block, the first among them, sees everything and has no
positions; the window is that of llama.cpp's loader, whatever number the file has."""
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
LLAMA3_FACTORS = (1.0, 4.0)
"""The frequency factors that every model with the scaling llama3 has."""


class Metadata:
    """The keys of one architecture, read one by one; what is wrong names the key."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def _found(self, key: str) -> tuple[str, Any]:
        full = key if "." in key and key.startswith("tokenizer.") else f"{self.architecture}.{key}"
        value = self.file.metadata.get(full)
        if isinstance(value, GgufArray):
            numbers = self.file.numbers(full)
            if numbers is None or numbers.size == 0 or bool((numbers != numbers[0]).any()):
                raise UserError(
                    f"{self.file.path}: {full} differs between blocks, which no family here does.", field=full
                )
            value = numbers[0].item()
        return full, value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        full, value = self._found(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise DamagedFileError(self.file.path, f"it has no {full}", field=full)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DamagedFileError(
                self.file.path, f"{full} is {value!r}, no whole number above 0", field=full
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number of at least 0."""
        full, value = self._found(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise DamagedFileError(self.file.path, f"it has no {full}", field=full)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise DamagedFileError(self.file.path, f"{full} is {value!r}, no finite number", field=full)
        import numpy as np

        return float(str(np.float32(value)))  # the shortest decimal that the stored f32 stands for

    def has(self, key: str) -> bool:
        """True when the key is there."""
        return self._found(key)[1] is not None

    def text(self, key: str) -> str | None:
        """A text, None when there is none."""
        value = self._found(key)[1]
        return value if isinstance(value, str) else None

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._found(key)[1]
        return value if isinstance(value, bool) else default


def read_config(file: GgufFile) -> dict[str, Any]:
    """The hub config of `file`. Raises UserError for an architecture that is not known (naming the nearest),
    DamagedFileError for metadata that is missing or cannot be."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise DamagedFileError(
            file.path, "it has no general.architecture, so nothing says what model it is", field="model"
        )
    from haversack.models.language import families

    known = sorted(name for name, family in FAMILIES.items() if family in families())
    if architecture not in known:
        nearest = nearest_name(architecture, known)
        hint = f"; the nearest is {nearest}" if nearest else ""
        raise UserError(
            f"{file.path}: the architecture {architecture[:80]!r} is not known (known are "
            f"{', '.join(known)}){hint}.",
            field="general.architecture",
            given=architecture,
            nearest=nearest,
        )
    meta = Metadata(file, architecture)
    mixed = meta.has("expert_count") and meta.number("expert_count") > 0
    if mixed and architecture not in MIXTURES:
        raise UserError(
            f"{file.path}: it is a mixture of experts ({architecture}.expert_count), which is read from GGUF "
            f"for {', '.join(MIXTURES)} alone; give the checkpoint folder that it was made of, or a dense "
            "model.",
            field=f"{architecture}.expert_count",
            given=architecture,
            nearest=MIXTURES[0],
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise DamagedFileError(file.path, "it has no matrix token_embd.weight", field="model")
    config = _common(meta, embedding.shape[0])
    config.update(_SPECIAL.get(architecture, _plain)(meta, config))
    return config


def _common(meta: Metadata, vocabulary: int) -> dict[str, Any]:
    file = meta.file
    width, heads = meta.whole("embedding_length"), meta.whole("attention.head_count")
    tensors = file.tensors
    config: dict[str, Any] = {
        "model_type": FAMILIES[meta.architecture],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": meta.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.whole("attention.head_count_kv", heads),
        "intermediate_size": meta.whole("feed_forward_length"),
        "max_position_embeddings": meta.whole("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": "float16",
    }
    start = meta._found("tokenizer.ggml.bos_token_id")[1]
    if isinstance(start, int) and 0 <= start < vocabulary:
        config["bos_token_id"] = start
    ends = [meta._found(f"tokenizer.ggml.{key}")[1] for key in END_KEYS]
    ends = list(dict.fromkeys(end for end in ends if isinstance(end, int) and 0 <= end < vocabulary))
    if ends:
        config["eos_token_id"] = ends
    if meta.has("attention.key_length") or width % heads == 0:
        config["head_dim"] = meta.whole("attention.key_length", width // heads)
        if meta.whole("attention.value_length", config["head_dim"]) != config["head_dim"]:
            raise UserError(
                f"{file.path}: keys and values of different widths, which no family here has.",
                field=f"{meta.architecture}.attention.value_length",
            )
    return config


def _rms(meta: Metadata) -> dict[str, Any]:
    return {"rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon")}


def _rope(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary positions of whole heads."""
    theta = meta.number("rope.freq_base", 10000.0)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    turned = meta.whole("rope.dimension_count", head)
    if turned != head:
        raise UserError(
            f"{meta.file.path}: {meta.architecture}.rope.dimension_count={turned} turns a part of a head of "
            f"{head}, which this family does not do.",
            field=f"{meta.architecture}.rope.dimension_count",
            given=turned,
            nearest=head,
        )
    found: dict[str, Any] = {"rope_theta": theta}
    scaling, factor = meta.text("rope.scaling.type"), meta.number("rope.scaling.factor", 0.0)
    if "rope_freqs.weight" in meta.file.tensors:
        found["rope_scaling"] = _llama3(meta.file, head, theta)
    elif scaling == "linear" and factor not in (0.0, 1.0):
        found["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling == "yarn":
        found["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": factor or 1.0,
            "original_max_position_embeddings": meta.whole(
                "rope.scaling.original_context_length", config["max_position_embeddings"]
            ),
        }
    elif scaling not in (None, "none", "linear"):
        raise UserError(
            f"{meta.file.path}: {meta.architecture}.rope.scaling.type={scaling!r} is not known here (known "
            "are none, linear, yarn and the factors of llama3).",
            field=f"{meta.architecture}.rope.scaling.type",
            given=scaling,
        )
    return found


def _llama3(file: GgufFile, width: int, theta: float) -> dict[str, Any]:
    """The scaling whose factors are `rope_freqs.weight`: found again, and compared with every factor."""
    import numpy as np

    entry = file.tensors["rope_freqs.weight"]
    if entry.kind != "f32" or entry.shape != (width // 2,):
        raise DamagedFileError(
            file.path, f"rope_freqs.weight is no f32 of {width // 2} numbers", field="model"
        )
    given = np.frombuffer(file.bytes("rope_freqs.weight"), "<f4")
    factor = float(np.nanmax(given))
    low, high = LLAMA3_FACTORS
    plain = Rope(width, theta).inverse_frequencies()
    for power in range(2, 21):
        original = 1 << power
        rope = Rope(width, theta, "llama3", factor, original, low, high)
        if factor >= 1 and np.allclose(plain / given, rope.inverse_frequencies(), rtol=1e-5, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UserError(
        f"{file.path}: rope_freqs.weight holds factors of no known scaling; pack the original checkpoint.",
        field="rope_freqs.weight",
    )


def _plain(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama and what is like it: biases are there when their tensors are."""
    tensors = meta.file.tensors
    return {
        **_rms(meta),
        **_rope(meta, config),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _qwen(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    found = _plain(meta, config)
    del found["mlp_bias"]
    if meta.architecture == "qwen2":
        del found["attention_bias"]  # the family has them on query, key and value, always
    return {**found, "use_sliding_window": False}


def _smollm3(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {**_plain(meta, config), "no_rope_layer_interval": 4}


def _gemma(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_rms(meta),
        **_rope(meta, config),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
    }


def _gemma2(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    found = _gemma(meta, config)
    # Of the sizes published, the largest alone scales by its width over its heads.
    large = config["num_hidden_layers"] == 46
    scale = config["hidden_size"] // config["num_attention_heads"] if large else config.get("head_dim", 256)
    return {
        **found,
        "query_pre_attn_scalar": scale,
        "sliding_window": meta.whole("attention.sliding_window", 4096),
        "attn_logit_softcapping": meta.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": meta.number("final_logit_softcapping", 30.0),
    }


def _gemma3(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    found = _gemma(meta, config)
    large = config["num_hidden_layers"] == 62
    scale = config["hidden_size"] // config["num_attention_heads"] if large else config.get("head_dim", 256)
    softcap = meta.number("final_logit_softcapping", 0.0)
    return {
        **found,
        "rope_theta": meta.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": meta.number("rope.freq_base_swa", 10_000.0),
        "query_pre_attn_scalar": scale,
        "sliding_window": meta.whole("attention.sliding_window", 4096),
        "sliding_window_pattern": 6,
        **({"final_logit_softcapping": softcap} if softcap else {}),
    }


def _smallthinker(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    window = meta._found("attention.sliding_window")[1]
    slides = isinstance(window, int) and window > 0
    if slides and window != FIXED_WINDOW:
        full = f"{meta.architecture}.attention.sliding_window"
        raise UserError(
            f"{meta.file.path}: {full}={window}, but llama.cpp reads SmallThinker with windows of "
            f"{FIXED_WINDOW} whatever the file says; give the checkpoint folder that it was made of.",
            field=full,
            given=window,
            nearest=FIXED_WINDOW,
        )
    layout = [int(slides and index % FULL_EVERY != 0) for index in range(layers)]
    gating = meta.whole("expert_gating_func", 2)
    if gating not in GATINGS:
        raise UserError(
            f"{meta.file.path}: {meta.architecture}.expert_gating_func={gating} is none of SmallThinker's "
            "(1, softmax, or 2, sigmoid).",
            field=f"{meta.architecture}.expert_gating_func",
            given=gating,
            nearest=2,
        )
    return {
        **_rms(meta),
        **_rope(meta, config),
        "moe_ffn_hidden_size": meta.whole("expert_feed_forward_length", config["intermediate_size"]),
        "moe_num_primary_experts": meta.whole("expert_count"),
        "moe_num_active_primary_experts": meta.whole("expert_used_count"),
        "moe_primary_router_apply_softmax": GATINGS[gating],
        "rope_layout": layout if slides else [1] * layers,
        "sliding_window_layout": layout,
        **({"sliding_window_size": window} if slides else {}),
    }


def _partial(meta: Metadata, config: Mapping[str, Any]) -> float:
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return meta.whole("rope.dimension_count", head) / head


def _layer_norm(meta: Metadata) -> dict[str, Any]:
    return {"layer_norm_eps": meta.number("attention.layer_norm_epsilon")}


def _phi2(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_layer_norm(meta),
        "rope_theta": meta.number("rope.freq_base", 10000.0),
        "partial_rotary_factor": _partial(meta, config),
        "hidden_act": "gelu_new",
        "qk_layernorm": "blk.0.attn_q_norm.weight" in meta.file.tensors,
    }


def _phi3(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    window = meta._found("attention.sliding_window")[1]
    found = {
        **_rms(meta),
        "rope_theta": meta.number("rope.freq_base", 10000.0),
        "partial_rotary_factor": _partial(meta, config),
        "hidden_act": "silu",
        "original_max_position_embeddings": meta.whole(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        ),
        **({"sliding_window": window} if isinstance(window, int) and window > 0 else {}),
    }
    factors = {key: f"rope_factors_{key}.weight" for key in ("short", "long")}
    if any(name in meta.file.tensors for name in factors.values()):
        import numpy as np

        scaling: dict[str, Any] = {"type": "longrope"}
        for key, name in factors.items():
            entry = meta.file.tensors.get(name)
            if entry is None or entry.kind != "f32":
                raise DamagedFileError(meta.file.path, f"it has no f32 {name}", field="model")
            factors_of = np.frombuffer(meta.file.bytes(name), "<f4")
            scaling[f"{key}_factor"] = [float(str(factor)) for factor in factors_of]
        found["rope_scaling"] = scaling
    return found


def _stablelm(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    tensors = meta.file.tensors
    return {
        **_layer_norm(meta),
        "rope_theta": meta.number("rope.freq_base", 10000.0),
        "partial_rotary_factor": _partial(meta, config),
        "hidden_act": "silu",
        "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
    }


def _gpt2(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_positions": config["max_position_embeddings"],
        "n_inner": config["intermediate_size"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": meta.number("attention.layer_norm_epsilon"),
    }


_SPECIAL: dict[str, Callable[[Metadata, Mapping[str, Any]], dict[str, Any]]] = {
    "qwen2": _qwen,
    "qwen3": _qwen,
    "smollm3": _smollm3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi2": _phi2,
    "phi3": _phi3,
    "stablelm": _stablelm,
    "gpt2": _gpt2,
    "smallthinker": _smallthinker,
}
