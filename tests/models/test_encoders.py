"""Encoders give what `transformers` gave: tracked recordings, and live where PyTorch is installed.

The bar of every comparison: max |difference| <= 1e-4 x max |value|, over padded batches with token types.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.models import read_architecture, read_encoder
from haversack.run._encode import positions_of
from haversack.run._encoder import Encoder

BAR = 1e-4


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "record_encoders", Path(__file__).with_name("record_encoders.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


record_encoders = _module()
NAMES = sorted(record_encoders.CASES)


def answer(source: Any, batch: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """What the engine gives for a batch, the real tokens' rows behind one another."""
    with Encoder.open(source, **options) as encoder:
        one = encoder.architecture
        want = ["sequence"]
        if one.pooler is not None:
            want.append("pooled")
        if one.head is not None:
            want.append("head")
        said = encoder.encode_ids(batch["ids"], batch["mask"], batch["types"], want=want)
    found = {"sequence": np.concatenate(said.sequence)}
    if said.pooled is not None:
        found["pooled"] = said.pooled
    if said.head is not None:
        found["head"] = np.concatenate(said.head) if isinstance(said.head, list) else said.head
    return found


def difference(found: dict[str, np.ndarray], stored: Any) -> float:
    """Largest difference to a recording, over its largest value."""
    worst = 0.0
    for key in ("sequence", "pooled", "head"):
        if key in stored:
            near = np.abs(record_encoders.kept(found[key]) - stored[key]).max()
            worst = max(worst, float(near / stored[f"{key}_largest"]))
    return worst


@pytest.fixture(scope="module")
def case(memory_source: Any) -> Any:
    """Config, weights, batch and recording of a case, made once."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            stored = np.load(record_encoders.RECORDINGS / f"{name}.npz")
            config = json.loads(stored["config"].tobytes())
            weights, batch = record_encoders.draw(name, config)
            made[name] = (config, weights, batch, dict(stored))
        return made[name]

    return get


def test_every_case_is_recorded() -> None:
    recorded = sorted(path.stem for path in record_encoders.RECORDINGS.glob("*.npz"))
    assert recorded == NAMES
    for name in NAMES:
        stored = np.load(record_encoders.RECORDINGS / f"{name}.npz")
        assert json.loads(stored["config"].tobytes()) == record_encoders.CASES[name]
    assert sum(path.stat().st_size for path in record_encoders.RECORDINGS.iterdir()) < 2**18


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("residency", ["mapped", "copied"])
def test_recording(name: str, residency: str, case: Any, memory_source: Any) -> None:
    config, weights, batch, stored = case(name)
    found = answer(memory_source(config, weights), batch, residency=residency)
    assert difference(found, stored) <= BAR
    for key, values in found.items():
        if f"{key}_largest" in stored:
            assert abs(np.abs(values).max() / stored[f"{key}_largest"] - 1) <= BAR


@pytest.mark.parametrize("name", NAMES)
def test_live(name: str, case: Any, memory_source: Any) -> None:
    pytest.importorskip("torch", reason="live parity needs PyTorch")
    pytest.importorskip("transformers", reason="live parity needs transformers")
    config, _, _, _ = case(name)
    weights, batch = record_encoders.draw(name, config, "-live")  # a batch that was not recorded
    found = answer(memory_source(config, weights), batch)
    for key, values in record_encoders.reference(config, weights, batch).items():
        assert np.abs(found[key] - values).max() <= BAR * np.abs(values).max(), key


def mutations(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> fields to change, for every field of `config` that matters."""
    masked = config["architectures"][0].endswith("MaskedLM")
    found: dict[str, dict[str, Any]] = {
        "eps": {"layer_norm_eps": config["layer_norm_eps"] * 2},
        "activation": {"hidden_act": "relu" if config["hidden_act"] != "relu" else "gelu"},
        "near activation": {"hidden_act": "gelu_new" if config["hidden_act"] == "gelu" else "gelu"},
        "heads": {"num_attention_heads": 2},
    }
    if config["model_type"] != "bert":
        found["where positions begin"] = {"pad_token_id": config["pad_token_id"] + 1}
    if masked and config.get("tie_word_embeddings") is False:
        found["tied head"] = {"tie_word_embeddings": True}
    return found


MUTATED = [(name, change) for name in NAMES for change in mutations(record_encoders.CASES[name])]


@pytest.mark.parametrize(("name", "change"), MUTATED)
def test_a_wrong_config_fails_the_bar(name: str, change: str, case: Any, memory_source: Any) -> None:
    config, weights, batch, stored = case(name)
    wrong = {**copy.deepcopy(config), **mutations(config)[change]}
    found = answer(memory_source(wrong, weights), batch)
    assert difference(found, stored) > BAR


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_matters(name: str, case: Any, memory_source: Any) -> None:
    """Leaving out any one tensor of the first or last block, or outside them, breaks the bar: norms' weights
    become ones, all else zeros. Keys' biases alone change nothing, since softmax forgets what is added to all
    scores of a query."""
    config, weights, batch, stored = case(name)
    last = f".{config['num_hidden_layers'] - 1}."
    for tensor in weights:
        if (".layer." in tensor and ".0." not in tensor and last not in tensor) or "key.bias" in tensor:
            continue
        norm = ("LayerNorm" in tensor or "layer_norm" in tensor) and tensor.endswith("weight")
        changed = {**weights, tensor: (np.ones_like if norm else np.zeros_like)(weights[tensor])}
        found = answer(memory_source(config, changed), batch)
        assert difference(found, stored) > BAR, tensor


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_types_positions_and_order_matter(name: str, case: Any, memory_source: Any) -> None:
    config, weights, batch, stored = case(name)
    source = memory_source(config, weights)
    no_types = {**batch, "types": np.zeros_like(batch["types"])}
    assert difference(answer(source, no_types), stored) > BAR
    turned = {**batch, "ids": batch["ids"][:, ::-1], "mask": batch["mask"][:, ::-1]}
    assert difference(answer(source, turned), stored) > BAR


@pytest.mark.parametrize("name", ["bert-masked", "roberta-sequence", "xlm-roberta-token"])
@pytest.mark.parametrize("activations", ["f32", "int8-dynamic"])
def test_neither_padding_nor_neighbours_change_a_bit(
    name: str, activations: str, case: Any, memory_source: Any
) -> None:
    config, weights, batch, _ = case(name)
    pad = config["pad_token_id"]
    wider = {
        "ids": np.pad(batch["ids"], ((0, 0), (0, 3)), constant_values=pad),
        "mask": np.pad(batch["mask"], ((0, 0), (0, 3))),
        "types": np.pad(batch["types"], ((0, 0), (0, 3))),
    }
    with Encoder.open(memory_source(config, weights), activations=activations) as encoder:
        together = encoder.encode_ids(**wider, want=["sequence", "head"])
        for index in range(len(batch["ids"])):
            kept = batch["mask"][index].astype(bool)
            alone = encoder.encode_ids(
                batch["ids"][index : index + 1, kept], None, batch["types"][index : index + 1, kept],
                want=["sequence", "head"],
            )  # fmt: skip
            assert (alone.sequence[0] == together.sequence[index]).all()
            assert (np.asarray(alone.head[0]) == np.asarray(together.head[index])).all()


def test_positions_of_roberta_skip_padding() -> None:
    config = {**record_encoders.CASES["roberta"], "pad_token_id": 1}
    ids = np.array([0, 5, 6, 2, 1, 1], np.int32)
    assert positions_of(read_encoder(config), ids).tolist() == [2, 3, 4, 5, 1, 1]
    assert positions_of(read_encoder(record_encoders.CASES["bert"]), ids).tolist() == [0, 1, 2, 3, 4, 5]
    assert read_encoder(config).context == config["max_position_embeddings"] - 2


def test_bert_base_has_its_published_parameters() -> None:
    config = {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
    }
    shapes = read_encoder(config).tensors().values()
    assert sum(int(np.prod(shape)) for shape in shapes) == 109_482_240


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"architectures": ["BertForQuestionAnswering"]}, "architectures"),
        ({"num_attention_heads": 7}, "num_attention_heads"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"id2label": {"0": "a", "2": "b"}, "architectures": ["BertForTokenClassification"]}, "id2label"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as error:
        read_encoder({**record_encoders.CASES["bert"], **changes})
    assert error.value.field == field


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(["bert-sequence", "roberta-masked", "xlm-roberta-token"]),
    st.dictionaries(
        st.sampled_from([*record_encoders.CASES["bert-token"], "problem_type", "num_labels", "is_decoder"]),
        values,
        max_size=3,
    ),
)
def test_any_config_is_read_or_refused(name: str, changes: dict[str, Any]) -> None:
    """Whatever stands in a config: an architecture, or one sentence."""
    config = {**record_encoders.CASES[name], **changes, "model_type": name.rpartition("-")[0]}
    if isinstance(config.get("num_hidden_layers"), int):
        config["num_hidden_layers"] = min(config["num_hidden_layers"], 20)
    try:
        assert read_encoder(config).tensors()
    except UserError as error:
        assert str(error) and "\n" not in str(error)


def test_a_decoder_is_asked_of_no_encoder() -> None:
    with pytest.raises(UserError, match="encoder"):
        read_architecture(record_encoders.CASES["bert"])


def older(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names that the first checkpoints bear: gamma and beta, no prefix."""
    renamed = {}
    for name, values in weights.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[name.removeprefix("bert.")] = values
    return renamed


@pytest.mark.parametrize("name", ["bert", "bert-masked"])
def test_other_names_of_the_same_tensors(name: str, case: Any, memory_source: Any) -> None:
    config, weights, batch, stored = case(name)
    assert difference(answer(memory_source(config, older(weights)), batch), stored) <= BAR
    prefixed = {("bert." + key if name == "bert" else key): value for key, value in weights.items()}
    assert difference(answer(memory_source(config, prefixed), batch), stored) <= BAR


def test_a_missing_head_and_half_a_pooler_are_named(case: Any, memory_source: Any) -> None:
    config, weights, _, _ = case("bert-token")
    less = {name: values for name, values in weights.items() if name != "classifier.weight"}
    with pytest.raises(UserError, match=r"classifier\.weight of its token head is missing"):
        Encoder.open(memory_source(config, less))
    config, weights, batch, _ = case("bert")
    half = {name: values for name, values in weights.items() if name != "pooler.dense.bias"}
    with pytest.raises(UserError, match=r"pooler\.dense\.bias"):
        Encoder.open(memory_source(config, half))
    none = {name: values for name, values in weights.items() if "pooler" not in name}
    with Encoder.open(memory_source(config, none)) as encoder:
        encoder.encode_ids(batch["ids"], batch["mask"])
        with pytest.raises(UserError, match="has no pooler"):
            encoder.encode_ids(batch["ids"], batch["mask"], want=["pooled"])


def test_nan_weights_are_no_result(case: Any, memory_source: Any) -> None:
    config, weights, batch, _ = case("bert")
    name = "encoder.layer.1.output.dense.bias"
    damaged = {**weights, name: np.full_like(weights[name], np.nan)}
    with (
        Encoder.open(memory_source(config, damaged)) as encoder,
        pytest.raises(UserError, match="not finite"),
    ):
        encoder.encode_ids(batch["ids"], batch["mask"])


def test_token_numbers_out_of_range_are_named(case: Any, memory_source: Any) -> None:
    config, weights, _, _ = case("bert")
    with Encoder.open(memory_source(config, weights)) as encoder:
        for ids, types in (([[160]], None), ([[-1]], None), ([[5]], [[3]]), ([[5] * 41], None), ([], None)):
            with pytest.raises(UserError):
                encoder.encode_ids(ids, None, types)
