"""Switch Transformers, T5 and mT5 give what `transformers` gives; what cannot be is refused by its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.text_to_text import CASES, SIZES, SWITCH, VOCABULARY, draw, write_folder

from haversack.core.errors import UserError
from haversack.models import read_architecture
from haversack.models._architecture import Mixture
from haversack.models._distance import DistanceBias, bucket_of, distance_table
from haversack.models._spans import span_counts, spans_left_out
from haversack.run import Engine
from haversack.run._reading import states

BAR = 1e-4
CLASSES = {"switch_transformers": "SwitchTransformers", "t5": "T5", "mt5": "MT5"}


def reference(config: dict[str, Any], weights: dict[str, np.ndarray]) -> Any:
    """The model of transformers with these weights."""
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    name = CLASSES[config["model_type"]]
    own = {key: value for key, value in config.items() if key != "model_type"}
    made = getattr(transformers, f"{name}Config")(**own)
    if "lm_head.weight" in weights:
        made.tie_word_embeddings = False  # what a checkpoint with its own output matrix comes to
    model = getattr(transformers, f"{name}ForConditionalGeneration")(made).eval()
    held = {key: torch.from_numpy(value) for key, value in weights.items()}
    for side in ("encoder", "decoder"):
        held.setdefault(f"{side}.embed_tokens.weight", held.get("shared.weight"))
    held.setdefault("lm_head.weight", held.get("shared.weight"))
    held.setdefault("shared.weight", held["decoder.embed_tokens.weight"])
    missing, unexpected = model.load_state_dict(held, strict=False)
    assert not missing and not unexpected
    for module in model.decoder.modules():
        if hasattr(module, "expert_capacity"):  # what is written comes token by token and reaches none
            module.expert_capacity = 1 << 20
    return model


@pytest.mark.parametrize("name", CASES)
def test_states_logits_and_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    """Texts of a few tokens and of so many that experts reach their capacity; what is written is drawn, so
    that every step has another token.
    """
    config = CASES[name]
    weights = draw(config)
    model = reference(config, weights)
    import torch

    folder = write_folder(tmp_path / name, config)
    with Engine.open(folder) as engine, torch.no_grad():
        for length in (5, 90):
            ids = np.random.default_rng(length).integers(3, VOCABULARY - 3, length).astype(np.int32)
            theirs = model.get_encoder()(torch.from_numpy(ids.astype(np.int64))[None])[0]
            ours = states(engine, ids)
            assert float(np.abs(ours - theirs[0].numpy()).max()) <= BAR * float(theirs.abs().max())
            cache = engine.cache(25)
            row, tokens = engine.read(ids, cache)[0], [0]
            for _ in range(24):
                wanted = model.decoder(
                    input_ids=torch.tensor([tokens]), encoder_hidden_states=theirs, use_cache=False
                )[0][:, -1]
                scaled = config.get("tie_word_embeddings", True) and config["model_type"] != "mt5"
                wanted = model.lm_head(wanted * (config["d_model"] ** -0.5 if scaled else 1.0))[0].numpy()
                assert float(np.abs(row - wanted).max()) <= BAR * float(np.abs(wanted).max())
                assert int(row.argmax()) == int(wanted.argmax())
                tokens.append(int(ids[len(tokens) % length]))
                row = engine.step(tokens[-1:], cache=cache)[0][0]


def test_generation_equals_that_of_transformers(tmp_path: Path) -> None:
    model = reference(SWITCH, draw(SWITCH))
    import torch

    ids = np.random.default_rng(4).integers(3, VOCABULARY - 3, 40)
    model.generation_config.eos_token_id = None
    theirs = model.generate(torch.from_numpy(ids)[None], max_new_tokens=20, do_sample=False)[0].tolist()
    with Engine.open(write_folder(tmp_path / "m")) as engine:
        cache, tokens = engine.cache(21), [0]
        row = engine.read(ids.astype(np.int32), cache)
        for _ in range(20):
            tokens.append(int(row[0].argmax()))
            row = engine.step(tokens[-1:], cache=cache)[0]
    assert tokens == theirs


def test_capacity_drops_the_last_tokens_of_a_text(tmp_path: Path) -> None:
    """Twelve equal tokens choose one expert, which takes six: the first six and the last six differ, and
    with room for all they do not differ in what the experts give them."""
    ids = np.full(12, 9, np.int32)
    with_room = {**SWITCH, "expert_capacity": 12}
    found = {}
    for name, config in (("full", SWITCH), ("room", with_room)):
        with Engine.open(write_folder(tmp_path / name, config)) as engine:
            seen = []
            engine.observe(lambda routing, seen=seen: seen.append((routing.block, routing.shares.copy())))
            states(engine, ids)
            found[name] = dict(seen)
    first = min(found["full"])
    assert (found["full"][first][:6] > 0).all() and (found["full"][first][6:] == 0).all()
    assert (found["room"][first] > 0).all()


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (16, 40), (8, 20), (64, 256)])
def test_buckets_equal_those_of_transformers(buckets: int, reach: int, both_ways: bool) -> None:
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    module = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-2 * reach, 2 * reach + 1)
    theirs = module.T5Attention._relative_position_bucket(
        torch.from_numpy(distances), bidirectional=both_ways, num_buckets=buckets, max_distance=reach
    ).numpy()
    assert (bucket_of(distances, buckets, reach, both_ways) == theirs).all()
    rows = np.random.default_rng(1).standard_normal((buckets, 3)).astype(np.float32)
    table = distance_table(rows, DistanceBias("w", buckets, 3, reach, both_ways))
    assert np.array_equal(table[:, np.clip(distances, -reach, reach) + reach], rows[theirs].T)


def test_which_blocks_have_experts() -> None:
    def sparse(**fields: Any) -> list[int]:
        found = read_architecture({**SWITCH, **fields}, reader=True)
        return [block.index for block in found.blocks if block.mixture is not None]

    assert sparse() == [1, 3, 5, 7]
    assert sparse(num_sparse_encoder_layers=4) == [0, 1, 2, 3, 5, 7]
    assert sparse(num_sparse_encoder_layers=0) == [1, 5, 7]  # every fourth from the second on
    assert sparse(encoder_sparse_step=0, decoder_sparse_step=3) == [5]
    found = read_architecture(SWITCH, reader=True)
    mixtures = [
        branch.layer for b in found.blocks for branch in b.branches if isinstance(branch.layer, Mixture)
    ]
    assert [mixture.capacity for mixture in mixtures] == [6, 6, None, None]
    assert found.reader is not None and found.reader.blocks == 4 and found.head_scale == 0.125


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"is_gated_act": True}, "is_gated_act"),
        ({"router_dtype": "bfloat16"}, "router_dtype"),
        ({"num_selected_experts": 2}, "num_selected_experts"),
        ({"expert_capacity": 0}, "expert_capacity"),
        ({"num_experts": 60000}, "num_experts"),
        ({"dense_act_fn": "tanhh"}, "dense_act_fn"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder"),
        ({"architectures": ["SwitchTransformersEncoderModel"]}, "architectures"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance"),
        ({"d_model": None}, "d_model"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        read_architecture({**SWITCH, **fields}, reader=True)
    assert caught.value.field == field


@pytest.mark.parametrize("name", CASES)
def test_what_needs_a_decoder_alone_refuses_them(name: str) -> None:
    with pytest.raises(UserError, match="an encoder with a decoder") as caught:
        read_architecture(CASES[name])
    assert caught.value.field == "model_type"


def test_an_activation_that_t5_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match="feed_forward_proj"):
        read_architecture({**SIZES, "model_type": "t5", "feed_forward_proj": "gated-sine"}, reader=True)


@pytest.mark.parametrize("length", [2, 3, 10, 100, 512])
def test_spans_left_out_put_back_are_the_text(length: int) -> None:
    tokens = np.arange(1000, 1000 + length, dtype=np.int32)
    sentinels = list(range(50))
    read, written = spans_left_out(tokens, sentinels, 7, np.random.default_rng(length))
    left, spans = span_counts(length, len(sentinels))
    assert (len(read), len(written)) == (length - left + spans + 1, left + spans + 2)
    gone: dict[int, list[int]] = {}
    for token in written[:-1].tolist():
        if token < 1000:
            last = gone.setdefault(token, [])
        else:
            last.append(token)
    back = [one for token in read[:-1].tolist() for one in gone.get(token, [token])]
    assert back == tokens.tolist() and written[-1] == read[-1] == 7 and gone[sentinels[spans]] == []
