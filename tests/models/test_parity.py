"""The engine gives what `transformers` gave: tracked recordings, and live where PyTorch is installed.

The bar of every comparison: max |difference| <= 1e-4 x max |logit| over prompt and 32 decoded steps, greedy
tokens identical.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.models import read_architecture
from haversack.run import Engine

BAR = 1e-4
NAMES = sorted(path.stem for path in (Path(__file__).parent / "recordings").glob("*.npz"))


@dataclass
class Answer:
    logits: np.ndarray  # f32 [prompt + decoded - 1, vocabulary]
    tokens: list[int]


def answer(source: Any, prompt: np.ndarray, decoded: int, **options: Any) -> Answer:
    """The engine's logits and greedy tokens."""
    with Engine.open(source, **options) as engine:
        # The context bounds a cache; these tests go on beyond it, as the reference does.
        cache = engine.cache(len(prompt) + decoded)
        cache.horizon = len(prompt)
        rows = [engine.step(prompt, cache=cache, want="all")[0]]
        tokens: list[int] = []
        for index in range(decoded):
            tokens.append(int(rows[-1][-1].argmax()))
            if index < decoded - 1:
                rows.append(engine.step(tokens[-1:], cache=cache)[0])
    return Answer(np.concatenate(rows), tokens)


def recorded(record: Any, name: str) -> tuple[dict[str, Any], Any]:
    stored = np.load(record.RECORDINGS / f"{name}.npz")
    return json.loads(stored["config"].tobytes()), stored


def difference(found: Answer, stored: Any) -> float:
    """Largest difference to a recording over its largest logit, in the rows that `found` has."""
    rows = stored["rows"] < len(found.logits)
    ours = found.logits[stored["rows"][rows]][:, stored["columns"]]
    return float(np.abs(ours - stored["logits"][rows]).max() / stored["largest"].max())


@pytest.fixture(scope="module")
def drawn(record: Any, memory_source: Any) -> Any:
    """A case's weights and prompt, drawn once."""
    kept: dict[str, Any] = {}

    def draw(name: str) -> Any:
        if name not in kept:
            config, stored = recorded(record, name)
            shapes = read_architecture(config).tensors()
            weights = record.draw_weights(shapes, record.seed_of(name))
            kept[name] = (config, weights, record.draw_prompt(name, record.CASES[name][1]), stored)
        return kept[name]

    return draw


def test_every_case_is_recorded(record: Any) -> None:
    assert sorted(record.CASES) == NAMES
    for name in NAMES:
        assert recorded(record, name)[0] == json.loads(json.dumps(record.CASES[name][0]))
    size = sum(path.stat().st_size for path in record.RECORDINGS.iterdir())
    assert size < 2 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_recording(name: str, record: Any, drawn: Any, memory_source: Any) -> None:
    config, weights, prompt, stored = drawn(name)
    found = answer(memory_source(config, weights), prompt, record.DECODED)
    assert found.tokens == stored["tokens"].tolist()
    assert (found.logits[stored["rows"]].argmax(axis=1) == stored["argmax"]).all()
    assert difference(found, stored) <= BAR
    assert abs(np.abs(found.logits[stored["rows"]]).max() / stored["largest"].max() - 1) <= BAR


@pytest.mark.parametrize("name", NAMES)
def test_live(name: str, record: Any, drawn: Any, memory_source: Any) -> None:
    pytest.importorskip("torch", reason="live parity needs PyTorch")
    pytest.importorskip("transformers", reason="live parity needs transformers")
    config, weights, _, _ = drawn(name)
    prompt = record.draw_prompt(name + "-live", record.CASES[name][1] + 5)  # a prompt that was not recorded
    logits, tokens = record.reference(config, weights, prompt, record.DECODED)
    found = answer(memory_source(config, weights), prompt, record.DECODED)
    assert found.tokens == tokens
    assert float(np.abs(found.logits - logits).max()) <= BAR * float(np.abs(logits).max())


def _scaled(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    name = "rope_scaling" if "rope_scaling" in config else "rope_parameters"
    return {name: {**config[name], **changes}}


def mutations(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> fields to change, for every field of `config` that matters."""
    found: dict[str, dict[str, Any]] = {
        "eps": {"rms_norm_eps": 3e-3},
        "activation": {"hidden_act": "relu"},
        "no activation of its own": {
            "hidden_act": "gelu_pytorch_tanh" if config["hidden_act"] == "silu" else "silu"
        },
    }
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if "rope_theta" in scaling:
        found["rope theta"] = _scaled(config, rope_theta=scaling["rope_theta"] * 1.02)
    else:
        theta = config.get("rope_theta", 2e6 if config["model_type"] == "smollm3" else 1e4)
        found["rope theta"] = {"rope_theta": theta * 1.02}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind:
        other = {"rope_type": "default", "type": "default"}
        found["no rope scaling"] = _scaled(config, **other)
        found["rope factor"] = _scaled(config, factor=scaling["factor"] * 1.05)
    if kind == "dynamic":
        found["context of the scaling"] = {"max_position_embeddings": config["max_position_embeddings"] + 8}
    for field, value in (
        ("low_freq_factor", 1.3),
        ("high_freq_factor", 3.5),
        ("original_max_position_embeddings", 48),
        ("beta_fast", 6.0),
        ("beta_slow", 1.0),
        ("mscale", 0.75),
        ("mscale_all_dim", 0.5),
        ("truncate", True),
    ):
        if field in scaling and scaling[field] != value:
            found[f"rope {field}"] = _scaled(config, **{field: value})
    if kind == "yarn":
        found["attention factor"] = _scaled(config, attention_factor=1.0)
    if config.get("sliding_window") is not None:
        found["wider window"] = {"sliding_window": config["sliding_window"] + 1}
        found["narrower window"] = {"sliding_window": config["sliding_window"] - 1}
    elif config["model_type"] == "mistral":
        found["a window"] = {"sliding_window": 20}
    if config.get("use_sliding_window"):
        found["no window"] = {"use_sliding_window": False}
    if "max_window_layers" in config:
        found["layers with a window"] = {"max_window_layers": config["max_window_layers"] + 1}
    if "layer_types" in config:
        found["layer pattern"] = {"layer_types": config["layer_types"][::-1]}
    if config["model_type"] == "smollm3":
        turned = config.get("no_rope_layers", [1, 1, 1, 0])
        found["pattern without positions"] = {"no_rope_layers": [1, *turned[:-1]]}
        found["positions everywhere"] = {"no_rope_layers": [1] * 4}
        if "no_rope_layers" not in config:
            found["interval without positions"] = {"no_rope_layer_interval": 3}
    return found


MUTATED = [
    (name, change)
    for name in NAMES
    for change in mutations(
        json.loads(np.load(Path(__file__).parent / "recordings" / f"{name}.npz")["config"].tobytes())
    )
]


@pytest.mark.parametrize(("name", "change"), MUTATED)
def test_a_wrong_config_fails_the_bar(
    name: str, change: str, record: Any, drawn: Any, memory_source: Any
) -> None:
    config, weights, prompt, stored = drawn(name)
    wrong = {**copy.deepcopy(config), **mutations(config)[change]}
    assert difference(answer(memory_source(config, weights), prompt, 1), stored) <= BAR
    found = answer(memory_source(wrong, weights), prompt, 1)
    assert difference(found, stored) > BAR


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_matters(name: str, record: Any, drawn: Any, memory_source: Any) -> None:
    """Leaving out any one tensor of the first or last block, or outside them, breaks the bar: norms become
    ones, biases
    and matrices zeros. So a tensor that is read wrongly, or not at all, cannot pass."""
    config, weights, prompt, stored = drawn(name)
    last = f".{config['num_hidden_layers'] - 1}."
    for tensor in weights:
        if "layers" in tensor and ".0." not in tensor and last not in tensor:
            continue
        neutral = np.ones_like if "norm" in tensor else np.zeros_like
        changed = {**weights, tensor: neutral(weights[tensor])}
        found = answer(memory_source(config, changed), prompt, 1)
        assert difference(found, stored) > BAR, tensor


def test_a_tied_head_is_not_an_untied_one(record: Any, drawn: Any, memory_source: Any) -> None:
    config, weights, prompt, stored = drawn("llama")
    tied = {**config, "tie_word_embeddings": True}
    found = answer(memory_source(tied, weights), prompt, 1)
    assert difference(found, stored) > BAR


@pytest.mark.parametrize("newer", [True, False])
def test_both_spellings_of_rope_are_one(newer: bool, record: Any) -> None:
    config = copy.deepcopy(record.CASES["llama-yarn"][0])
    scaling, theta = config.pop("rope_scaling"), config.pop("rope_theta")
    if newer:
        config["rope_parameters"] = {**scaling, "rope_theta": theta}
    else:
        config["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
        config["rope_theta"] = theta
    assert read_architecture(config) == read_architecture(record.CASES["llama-yarn"][0])
