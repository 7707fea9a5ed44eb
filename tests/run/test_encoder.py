"""Texts into encoders: tokens and pairs, pooling as the folder says, heads in words, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.encoders import write_encoder, write_pooling

from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import UserError
from haversack.run._answers import classify, fill, label, task_of
from haversack.run._encoder import Encoder
from haversack.run._pooling import MODES, Pooling, normalized, pool

TEXTS = ["the old cat sees a dog .", "a tree", "the big red house and the small blue river ."]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "bert", "bert")


def test_pooling_by_hand() -> None:
    hidden = np.array([[1.0, -2.0], [3.0, 5.0], [-1.0, 0.0]], np.float32)
    assert pool(hidden, ("mean",)).tolist() == [1.0, 1.0]
    assert pool(hidden, ("cls",)).tolist() == [1.0, -2.0]
    assert pool(hidden, ("last", "max")).tolist() == [-1.0, 0.0, 3.0, 5.0]
    assert np.allclose(pool(hidden, ("mean-sqrt",)), [3 / 3**0.5] * 2)
    assert np.allclose(pool(hidden, ("weighted-mean",)), [(1 + 6 - 3) / 6, (-2 + 10) / 6])
    assert normalized(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)).tolist() == [
        [np.float32(0.6), np.float32(0.8)],
        [0.0, 0.0],
    ]


@pytest.mark.parametrize(
    ("mode", "name"), [("mean_tokens", "mean"), ("cls_token", "cls"), ("max_tokens", "max")]
)
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_follow_the_folders_files(mode: str, name: str, normalize: bool, plain: Path) -> None:
    write_pooling(plain, mode, normalize=normalize)
    with Encoder.open(plain) as encoder:
        assert encoder.pooling == Pooling((name,), normalize)
        vectors = encoder.embed(TEXTS)
        hidden = encoder.encode(TEXTS).sequence
    wanted = np.stack([pool(states, (name,)) for states in hidden])
    assert np.array_equal(vectors, normalized(wanted) if normalize else wanted)


def test_without_the_files_it_is_the_plain_mean(plain: Path) -> None:
    with Encoder.open(plain) as encoder:
        assert encoder.pooling == Pooling(("mean",), False, None)
        both = encoder.embed(TEXTS, pooling=Pooling(("cls", "mean"), True))
    assert both.shape == (3, 128) and np.allclose((both * both).sum(axis=1), 1, atol=1e-6)


def test_a_text_has_the_same_bits_alone_and_among_others(plain: Path) -> None:
    with Encoder.open(plain) as encoder:
        together = encoder.embed(TEXTS * 40)
        for index, text in enumerate(TEXTS):
            alone = encoder.embed([text])[0]
            assert all(np.array_equal(row, alone) for row in together[index::3])


def test_a_text_that_is_too_long(plain: Path) -> None:
    long = "the cat sees the dog and " * 5
    with Encoder.open(plain) as encoder:
        with pytest.raises(UserError, match=r"has 32 tokens and this model takes 24.*--truncate"):
            encoder.embed([long])
        (cut,) = encoder.tokens([long], truncate=True)
        assert len(cut) == 24
        assert encoder.tokenizer.written(int(cut.ids[-1])) == "[SEP]"
        assert encoder.tokenizer.written(int(cut.ids[0])) == "[CLS]"
        (pair,) = encoder.tokens([("a cat", long)], truncate=True)
        assert len(pair) == 24 and pair.types.tolist() == [0] * 4 + [1] * 20
    write_pooling(plain, "mean_tokens", normalize=True, longest=9)
    with Encoder.open(plain) as encoder, pytest.raises(UserError, match="takes 9"):
        encoder.embed([TEXTS[2]])


@pytest.mark.parametrize("texts", [[], [""], ["a", "  \n"], "a cat"])
def test_empty_texts_are_refused(texts: Any, plain: Path) -> None:
    with Encoder.open(plain) as encoder, pytest.raises(UserError):
        encoder.embed(texts)


def test_a_pair_has_types(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "pairs", "bert", "ForSequenceClassification")
    with Encoder.open(folder) as encoder:
        (tokens,) = encoder.tokens([("a cat", "the dog")])
        assert tokens.types.tolist() == [0, 0, 0, 0, 1, 1, 1]
        one, other = classify(encoder, [("a cat", "the dog"), ("the dog", "a cat")])
        assert one != other


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_heads_in_words(family: str, tmp_path: Path) -> None:
    with Encoder.open(write_encoder(tmp_path / "c", family, "ForSequenceClassification")) as encoder:
        assert task_of(encoder) == "classify"
        for classes in classify(encoder, TEXTS):
            assert {choice.name for choice in classes} == {"joy", "fear", "none"}
            assert abs(sum(choice.score for choice in classes) - 1) < 1e-5
            assert classes == sorted(classes, key=lambda choice: -choice.score)
    with Encoder.open(write_encoder(tmp_path / "t", family, "ForTokenClassification")) as encoder:
        assert task_of(encoder) == "label"
        (found,) = label(encoder, ["the cat sees"])
        assert [one.token for one in found] == ["the", "cat", "sees"]
    with Encoder.open(write_encoder(tmp_path / "m", family, "ForMaskedLM")) as encoder:
        assert task_of(encoder) == "fill"
        mask = "[MASK]" if family == "bert" else "<mask>"
        (masks,) = fill(encoder, [f"the {mask} sees a {mask} ."], top=3)
        assert [len(choices) for choices in masks] == [3, 3]
        logits = encoder.encode([f"the {mask} sees a {mask} ."], want=("head",)).head[0]
        assert masks[0][0].token == int(logits[2].argmax())
        with pytest.raises(UserError, match="has no mask"):
            fill(encoder, ["the cat"])


def test_problems_of_a_sequence_head(tmp_path: Path) -> None:
    one = {"id2label": {"0": "score"}}
    for problem, low, high in (("regression", -1e9, 1e9), ("multi_label_classification", 0, 1)):
        folder = write_encoder(
            tmp_path / problem, "bert", "ForSequenceClassification", problem_type=problem, **one
        )
        with Encoder.open(folder) as encoder:
            ((choice,),) = classify(encoder, ["a cat"])
            raw = float(encoder.encode(["a cat"], want=("head",)).head[0, 0])
            wanted = raw if problem == "regression" else 1 / (1 + np.exp(-raw))
            assert low <= choice.score <= high and abs(choice.score - wanted) < 1e-6


def test_another_models_tokenizer_is_refused(plain: Path, tmp_path: Path) -> None:
    config = json.loads((plain / "config.json").read_text())
    small = write_encoder(tmp_path / "small", "bert", vocab_size=config["vocab_size"] - 9)
    with Encoder.open(small) as encoder, pytest.raises(UserError, match="belongs to another model"):
        encoder.embed(["a cat"])
    (plain / "tokenizer.json").unlink()
    with Encoder.open(plain) as encoder, pytest.raises(UserError, match=r"no tokenizer\.json"):
        encoder.embed(["a cat"])


def test_a_budget_is_checked_before_weights_are_read(plain: Path) -> None:
    with pytest.raises(BudgetError):
        Encoder.open(plain, budget=Budget(ram_mib=10))


@pytest.mark.parametrize("option", [{"residency": "floating"}, {"activations": "int8-static"}])
def test_options_outside_their_lists_are_refused(option: dict[str, str], plain: Path) -> None:
    with pytest.raises(UserError, match="allowed"):
        Encoder.open(plain, **option)


@pytest.mark.parametrize(
    "damage",
    [
        {"modules.json": "["},
        {"modules.json": '{"a": 1}'},
        {"modules.json": '[{"type": "x.Dense", "path": "2_Dense"}]'},
        {"modules.json": '[{"type": "x.Pooling", "path": "../../etc"}]'},
        {"modules.json": '[{"type": "x.Pooling"}]'},
        {"modules.json": "[" * 100_000},
        {"1_Pooling/config.json": "{}"},
        {"1_Pooling/config.json": '{"word_embedding_dimension": 7, "pooling_mode_cls_token": true}'},
        {"sentence_bert_config.json": '{"max_seq_length": "many"}'},
    ],
)
def test_files_of_pooling_that_do_not_hold(damage: dict[str, str], plain: Path) -> None:
    write_pooling(plain, "mean_tokens", normalize=True)
    for name, text in damage.items():
        (plain / name).write_text(text)
    with pytest.raises(UserError) as error:
        Encoder.open(plain)
    assert "\n" not in str(error.value)


def test_every_pooling_of_a_record_comes_back() -> None:
    for mode in MODES:
        pooling = Pooling((mode,), True, 77)
        assert Pooling.of_record(json.loads(json.dumps(pooling.record()))) == pooling


@pytest.mark.parametrize(
    "record",
    [
        3,
        [],
        {},
        {"modes": "mean", "normalize": True},
        {"modes": ["sum"], "normalize": True},
        {"modes": [[]], "normalize": True},
        {"modes": ["mean"], "normalize": 1},
        {"modes": ["mean"], "normalize": True, "longest": "all"},
        {"modes": ["mean"], "normalize": True, "longest": -1},
    ],
)
def test_a_pooling_that_no_pack_holds_is_refused(record: Any) -> None:
    with pytest.raises(UserError):
        Pooling.of_record(record)
