"""Parity has teeth: what is read wrongly from a config, or not at all from a checkpoint, fails the bar."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models import mixture_cases
from tests.models.parity import BAR, NAMES, answer, difference

from haversack.models import read_architecture
from haversack.models._architecture import Architecture, Block, Branch, Mixture
from haversack.models._checkpoint import checkpoint, hub_tensors
from haversack.run import Engine
from haversack.run._routing import RoutingTrace
from haversack.run._source import Model

SWITCHES = "phi3-switch"  # its prompt ends before what it shows begins
EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
THETA = {"smollm3": 2e6, "gemma3_text": 1e6, "mixtral": 1e6}

# field -> what it may be changed to; the first that differs is taken
FIELDS: dict[str, tuple[Any, ...]] = {
    "query_pre_attn_scalar": (48,),
    "attn_logit_softcapping": (4.0,),
    "final_logit_softcapping": (11.0,),
    "rope_local_base_freq": (206.0,),
    "sliding_window_pattern": (2,),
    "partial_rotary_factor": (1.0,),  # not with longrope, which has a divisor for each pair
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False, True),
}
SCALING: dict[str, Any] = {
    "low_freq_factor": 1.3,
    "high_freq_factor": 3.5,
    "original_max_position_embeddings": 48,
    "beta_fast": 6.0,
    "beta_slow": 1.0,
    "mscale": 0.75,
    "mscale_all_dim": 0.5,
    "truncate": True,
    "attention_factor": 1.25,
}


def _scaled(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    name = "rope_scaling" if "rope_scaling" in config else "rope_parameters"
    return {name: {**config[name], **changes}}


def _positions(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Changes of rotary positions."""
    found: dict[str, dict[str, Any]] = {}
    family = config["model_type"]
    if family in ("gpt2", "opt"):
        return found
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in scaling.values()):
        for kind, table in scaling.items():
            found[f"theta of {kind}"] = _scaled(config, **{kind: {**table, "rope_theta": 185.0}})
        table = scaling["full_attention"]
        found["no scaling"] = _scaled(config, full_attention={**table, "rope_type": "default"})
        found["rope factor"] = _scaled(config, full_attention={**table, "factor": 4.4})
        return found
    if "rope_theta" in scaling:
        found["rope theta"] = _scaled(config, rope_theta=scaling["rope_theta"] * 1.02)
    else:
        found["rope theta"] = {"rope_theta": config.get("rope_theta", THETA.get(family, 1e4)) * 1.02}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind:
        found["no rope scaling"] = _scaled(config, rope_type="default", type="default")
    if "factor" in scaling:
        found["rope factor"] = _scaled(config, factor=scaling["factor"] * 1.05)
    if kind in ("dynamic", "longrope") and "attention_factor" not in scaling:
        found["context of the scaling"] = {"max_position_embeddings": config["max_position_embeddings"] + 8}
    if kind == "longrope":
        original = config["original_max_position_embeddings"]
        found["the long factors begin later"] = {"original_max_position_embeddings": original + 20}
        for name in ("long_factor", *(("short_factor",) if SWITCHED(config) else ())):
            changed = [scaling[name][0] * 1.05, *scaling[name][1:]]
            found[f"rope {name}"] = _scaled(config, **{name: changed})
    for field, value in SCALING.items():
        if field in scaling and scaling[field] != value:
            found[f"rope {field}"] = _scaled(config, **{field: value})
    if kind in ("yarn", "longrope"):
        found["no attention factor"] = _scaled(config, attention_factor=1.0)
    return found


def SWITCHED(config: dict[str, Any]) -> bool:  # noqa: N802 - the one case of that name
    return config["model_type"] == "phi3" and config["tie_word_embeddings"]


def _windows(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Changes of windows and of which blocks have one."""
    found: dict[str, dict[str, Any]] = {}
    family, window = config["model_type"], config.get("sliding_window")
    if window is not None and config.get("use_sliding_window", True):
        found["wider window"] = {"sliding_window": window + 1}
        found["narrower window"] = {"sliding_window": window - 1}
    elif window is not None:
        found["a window that is off"] = {"use_sliding_window": True}
    elif family == "mistral" or (family == "phi3" and "rope_scaling" in config):
        found["a window"] = {"sliding_window": 12}
    if config.get("use_sliding_window"):
        found["no window"] = {"use_sliding_window": False}
        if "max_window_layers" in config and family != "qwen2_moe":
            found["layers with a window"] = {"max_window_layers": config["max_window_layers"] + 1}
    types = config.get("layer_types")
    if types:
        found["layer pattern"] = {"layer_types": [*types[1:], types[0]]}
    elif family == "gemma2":
        found["layer pattern"] = {"layer_types": ["full_attention", "sliding_attention"] * 2}
    if family == "smollm3":
        turned = config.get("no_rope_layers", [1, 1, 1, 0])
        found["pattern without positions"] = {"no_rope_layers": [1, *turned[:-1]]}
        found["positions everywhere"] = {"no_rope_layers": [1] * 4}
        if "no_rope_layers" not in config:
            found["interval without positions"] = {"no_rope_layer_interval": 3}
    return found


def mutations(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> fields to change, for every field of `config` that matters."""
    found: dict[str, dict[str, Any]] = {}
    for field in EPS:
        if field in config:
            found["eps"] = {field: 3 * config[field]}
    fields = [field for field in ACTIVATIONS if field in config]
    for value in ("relu", "silu", "gelu", "gelu_pytorch_tanh") if fields else ():
        same = {"gelu_new": "gelu_pytorch_tanh"}.get(config[fields[0]], config[fields[0]])
        if value != same and (config["model_type"] != "gemma" or not value.startswith("gelu")):
            found[f"activation {value}"] = dict.fromkeys(fields, value)
    longrope = (config.get("rope_scaling") or {}).get("type") == "longrope"
    for field, values in FIELDS.items():
        if longrope and field == "partial_rotary_factor":
            continue
        other = [value for value in values if value != config.get(field)]
        if config.get(field) is not None and other:
            found[field] = {field: other[0]}
            if field.endswith("softcapping"):
                found[f"no {field}"] = {field: None}
    if config["model_type"] == "gpt2" and "scale_attn_by_inverse_layer_idx" not in config:
        found["scale by block"] = {"scale_attn_by_inverse_layer_idx": True}
    if config.get("qk_layernorm"):
        found["no norm of heads"] = {"qk_layernorm": False}
    if config["model_type"] == "stablelm" and not config.get("use_parallel_residual"):
        found["side by side"] = {"use_parallel_residual": True}
    if config.get("do_layer_norm_before") and not config.get("_remove_final_layer_norm"):
        found["norms after"] = {"do_layer_norm_before": False}
        found["no final norm"] = {"_remove_final_layer_norm": True}
    if not config.get("tie_word_embeddings", True):
        found["tied head"] = {"tie_word_embeddings": True}
    return found | _positions(config) | _windows(config) | mixture_cases.mutations(config)


def _config(name: str) -> dict[str, Any]:
    stored = np.load(Path(__file__).parent / "recordings" / f"{name}.npz")
    config: dict[str, Any] = json.loads(stored["config"].tobytes())
    return config


MUTATED = [(name, change) for name in NAMES for change in mutations(_config(name))]


@pytest.mark.parametrize(("name", "change"), MUTATED)
def test_a_wrong_config_fails_the_bar(
    name: str, change: str, record: Any, drawn: Any, memory_source: Any
) -> None:
    config, weights, prompt, stored = drawn(name)
    wrong = {**copy.deepcopy(config), **mutations(config)[change]}
    decoded = record.DECODED if name == SWITCHES else 1
    assert difference(answer(memory_source(config, weights), prompt, decoded), stored) <= BAR
    found = answer(memory_source(wrong, weights), prompt, decoded)
    assert difference(found, stored) > BAR


def _in_blocks(change: Callable[[Block], Block]) -> Callable[[Architecture], Architecture]:
    return lambda a: replace(a, blocks=tuple(change(block) for block in a.blocks))


def _in_norms(**changes: Any) -> Callable[[Architecture], Architecture]:
    """`changes` to the norms around layers."""

    def branch(one: Branch) -> Branch:
        norms = {name: getattr(one, name) for name in ("norm", "post_norm", "after_norm")}
        return replace(one, **{n: norm and replace(norm, **changes) for n, norm in norms.items()})

    return _in_blocks(lambda block: replace(block, branches=tuple(map(branch, block.branches))))


def _in_mixtures(**changes: Any) -> Callable[[Architecture], Architecture]:
    """`changes` to the mixtures of experts."""

    def branch(one: Branch) -> Branch:
        return replace(one, layer=replace(one.layer, **changes)) if isinstance(one.layer, Mixture) else one

    return _in_blocks(lambda block: replace(block, branches=tuple(map(branch, block.branches))))


def _shifted(architecture: Architecture, offset: int) -> Architecture:
    assert architecture.positions is not None
    return replace(architecture, positions=replace(architecture.positions, offset=offset))


# What no config says, because the family itself does: (case, what) -> the architecture got wrong.
BUILT_IN: dict[tuple[str, str], Callable[[Architecture], Architecture]] = {
    ("gemma", "embedding scale"): lambda a: replace(a, embedding_scale=1.0),
    ("gemma2", "embedding scale"): lambda a: replace(a, embedding_scale=7.9),
    ("gemma3", "embedding scale"): lambda a: replace(a, embedding_scale=8.1),
    ("gemma", "norm offset"): _in_norms(offset=0.0),
    ("gemma2", "norm offset"): _in_norms(offset=0.0),
    ("gemma3", "norm offset"): _in_norms(offset=0.0),
    ("gemma", "last norm's offset"): lambda a: replace(a, final_norm=replace(a.final_norm, offset=0.0)),
    ("opt", "offset of positions"): lambda a: _shifted(a, 1),
    ("opt-350m", "offset of positions"): lambda a: _shifted(a, 0),
    ("gpt2", "offset of positions"): lambda a: _shifted(a, 1),
    ("opt", "eps"): _in_norms(eps=1e-3),
    ("opt", "last norm's eps"): lambda a: replace(a, final_norm=replace(a.final_norm, eps=0.1)),
    ("gpt2", "kind of norm"): _in_norms(kind="rms"),
    ("phi", "one after the other"): _in_blocks(lambda block: replace(block, parallel=False)),
    ("stablelm-parallel", "one after the other"): _in_blocks(lambda block: replace(block, parallel=False)),
    ("phi3", "gate and up exchanged"): lambda a: replace(a, parts=_exchanged(a)),
    ("mixtral", "shares as they are"): _in_mixtures(normalized=False),
    ("mixtral", "sigmoids"): _in_mixtures(scoring="sigmoid"),
    ("olmoe", "a softmax of the chosen"): _in_mixtures(scored="chosen"),
    ("qwen2_moe", "the shared expert in full"): _in_mixtures(shared_gate=None),
    ("qwen2_moe", "no shared expert"): _in_mixtures(shared=None),
    ("smallthinker", "a router behind the norm"): _in_mixtures(tap="normed"),
    ("smallthinker", "shares as they are"): _in_mixtures(normalized=False),
    ("smallthinker-softmax", "a softmax of all"): _in_mixtures(scored="all"),
}


def _exchanged(architecture: Architecture) -> Any:
    """The parts of gate and up in the other order."""
    width = architecture.blocks[0].branches[1].layer.width  # type: ignore[union-attr]
    return tuple(
        replace(part, first=width - part.first) if "gate_up" in part.holder else part
        for part in architecture.parts
    )


@pytest.mark.parametrize(("name", "what"), BUILT_IN)
def test_a_wrong_architecture_fails_the_bar(name: str, what: str, drawn: Any, memory_source: Any) -> None:
    config, weights, prompt, stored = drawn(name)
    right = read_architecture(config)
    for architecture, holds in ((right, True), (BUILT_IN[name, what](right), False)):
        source = checkpoint(memory_source(config, weights), architecture)
        found = answer(Model(source, architecture, {}, "f32", ()), prompt, 1)
        assert (difference(found, stored) <= BAR) is holds


def _unchosen(architecture: Architecture, source: Any, prompt: np.ndarray, rows: np.ndarray) -> set[str]:
    """The tensors of the last block's experts that no prompt position among `rows` chose."""
    mixture = architecture.blocks[-1].mixture
    if mixture is None:
        return set()
    trace = RoutingTrace()
    with Engine.open(source) as engine:
        engine.observe(trace)
        engine.step(prompt, cache=engine.cache(len(prompt)), want="none")
    chosen = trace.chosen(architecture.blocks[-1].index)[1][rows[rows < len(prompt)]]
    left = [expert for number, expert in enumerate(mixture.experts) if number not in chosen]
    assert len(left) < len(mixture.experts) / 2
    return {linear.weight for expert in left for group in expert.products() for linear in group}


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_matters(name: str, drawn: Any, memory_source: Any) -> None:
    """Leaving out any one tensor of the first or last block, or outside them, breaks the bar: norms become
    ones, biases and matrices zeros. So a tensor that is read wrongly, or not at all, cannot pass.

    Two kinds of tensors cannot matter: without rotary positions a bias on the keys adds the same to every
    product of a query, which the softmax takes away again; and no row that is compared may have chosen an
    expert of the last block.
    """
    config, weights, prompt, stored = drawn(name)
    architecture = read_architecture(config)
    view = checkpoint(memory_source(config, weights), architecture)
    shapes = architecture.tensors()
    plain = {n: np.frombuffer(view.bytes(n), np.float32).reshape(shape) for n, shape in shapes.items()}
    inner = {n for block in architecture.blocks[1:-1] for n in block.tensors()}
    norms = {norm.weight for block in architecture.blocks for b in block.branches for norm in b.norms()}
    idle = {
        block.attention.key.bias
        for block in architecture.blocks
        if block.attention is not None and block.attention.rope is None
    }
    if architecture.final_norm is not None:
        norms.add(architecture.final_norm.weight)
    idle |= _unchosen(architecture, memory_source(config, weights), prompt, stored["rows"])
    for tensor in shapes:
        if tensor in inner or tensor in idle:
            continue
        neutral = np.ones_like if tensor in norms else np.zeros_like
        changed = dict(hub_tensors(architecture, {**plain, tensor: neutral(plain[tensor])}))
        found = answer(memory_source(config, changed), prompt, 1)
        assert difference(found, stored) > BAR, tensor
