"""A model of the user's own in the bench of DHSA: a tiny checkpoint that chats, files of LongBench's form."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from haversack.bench import Outcome, Run, Unavailable, _needles, find_bench
from haversack.bench._own_model import VARIABLE, OwnModel, Question, answered
from haversack.bench.dhsa import users_model
from haversack.core.errors import UserError
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.run.attention._predictor import FILE, BoundaryPredictor, fingerprint, shapes

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2200,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": 256,
}
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
EXAMPLE: dict[str, Any] = {
    "input": "",
    "context": "x = 1\ny = 2\n" * 400,
    "answers": ["z = 3"],
    "length": 2400,
    "dataset": "lcc",
    "language": "python",
    "all_classes": None,
    "_id": "a1",
}


def run(seconds: float = 600) -> Run:
    return Run(False, 1, time.monotonic() + seconds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn Llama that reads bytes and has a chat's marks, with a drawn boundary predictor beside it."""
    path = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(3)
    tensors = {
        name: (0.25 * rng.standard_normal(shape) if len(shape) > 1 else np.ones(shape)).astype(np.float32)
        for name, shape in read_architecture(CONFIG).checkpoint_tensors().items()
    }
    write_safetensors(
        path / "model.safetensors", [(n, "f32", one.shape, one.tobytes()) for n, one in tensors.items()]
    )
    (path / "config.json").write_text(json.dumps(CONFIG))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    own = OwnModel.open(path)
    drawn = {name: (0.4 * rng.standard_normal(one)).astype(np.float32) for name, one in shapes(16).items()}
    BoundaryPredictor(drawn, 4, 4, fingerprint(own.model.source, own.model.architecture), -9.0).write(
        path / FILE
    )
    return path


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of data."""
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    return tmp_path


def write(data: Path, *changes: dict[str, Any], name: str = "lcc") -> None:
    (data / "longbench").mkdir(exist_ok=True)
    lines = [json.dumps(EXAMPLE | {"dataset": name} | change) for change in changes]
    (data / "longbench" / f"{name}.jsonl").write_text("\n".join(lines))


def test_rows_without_a_model_or_data_say_what_to_give(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for measure in (users_model.needles, users_model.longbench):
        with pytest.raises(Unavailable, match=f"let {VARIABLE} name a pack"):
            measure(run())
    monkeypatch.setenv(VARIABLE, str(folder))
    with pytest.raises(Unavailable, match="longbench/ of the folder that HAVERSACK_DATA names"):
        users_model.longbench(run())
    monkeypatch.setenv(VARIABLE, str(data / "absent"))
    with pytest.raises(UserError, match="absent"):
        users_model.needles(run())


def test_needles_are_asked_in_the_chats_form_dense_and_sparse(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    monkeypatch.setattr(_needles, "DEPTHS", (0.1, 0.8))
    own = OwnModel.open(folder)
    (first, *_), *_ = users_model.needle_rounds(own, "A tale.\n" * 50, [1024], 1)
    text = own.tokenizer.decode(first.tokens)
    assert text.startswith("[user]Below is a long text") and text.endswith("Answer:[assistant]")
    assert 1024 - 8 <= len(first.tokens) <= 1024
    asked = next(needle for needle in _needles.NEEDLES if needle.question in text)
    assert first.score(asked.fact) == 1 and first.score("nothing") == 0
    found = users_model.needles(run())
    assert set(found) == {row.id for row in users_model.NEEDLE_ROWS}
    for each, against in zip(found.values(), ("dense", "blocks"), strict=True):
        assert isinstance(each, Outcome) and each.baseline is not None and each.baseline.name == against
        assert 0 <= each.ours.values[0] <= 1
        assert "of 4 needles in Python source, to 2,048 tokens" in each.note, "2,200 tokens hold two lengths"


def test_longbench_is_read_cut_asked_and_scored(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    write(data, {}, {"context": "x = 4\n", "_id": "a2"})
    write(data, {"input": "Who?", "answers": ["Ada"]}, name="qasper")
    write(data, {}, name="vcsum")
    own, files = OwnModel.open(folder), users_model.longbench_files()
    assert [path.stem for path in files] == ["lcc", "qasper"], "a Chinese task is not scored"
    first, second = users_model.longbench_rounds(own, files, {})
    assert [one.group for one in first] == ["lcc", "qasper"] and [one.group for one in second] == ["lcc"]
    code, question = (own.tokenizer.decode(one.tokens) for one in first)
    assert code.startswith("Write the next line") and code.endswith("Next line:\n"), "code is no chat"
    assert question.startswith("[user]A question") and question.endswith("Who?\nAnswer:[assistant]")
    for one in first:
        assert CONFIG["max_position_embeddings"] - 20 < len(one.tokens) + one.most <= 2200
    assert first[0].score("z = 3\nand more") == 1 and first[1].score("It is Ada") == 0.5
    found = users_model.longbench(run())
    for each in found.values():
        assert isinstance(each, Outcome) and "3 examples of 2 tasks" in each.note
        assert "lcc: " in each.note and "qasper: " in each.note
    write(data, {}, {"answers": []})
    with pytest.raises(UserError, match="line 2 has no answer"):
        users_model.longbench(run())


def test_every_side_answers_the_same_questions_and_time_ends_all(folder: Path) -> None:
    own = OwnModel.open(folder)
    lengths = [300, 700]

    def rounds() -> Any:
        for seed in range(3):
            drawn = np.random.default_rng(seed)
            yield [
                Question(
                    drawn.integers(0, 256, length).tolist(), 6, lambda said: hash(said) % 997, str(length)
                )
                for length in lengths
            ]

    ways = {"dense": "dense", "all": "dhsa:budget=1024,tail=0", "few": "dhsa:mode=sliding,budget=256,tail=0"}
    told = answered(own, ways, rounds(), run())
    assert told.count == 6 and told.scores["dense"] == told.scores["all"], "every key is dense attention"
    assert told.scores["dense"] != told.scores["few"]
    means = told.means("few")
    assert told.mean("few") == pytest.approx(sum(means.values()) / 2) and list(means) == ["300", "700"]

    cut = answered(own, ways, rounds(), run(), seconds=0.05)
    assert cut.count == 2 and {len(each["300"]) for each in cut.scores.values()} == {1}
    with pytest.raises(Unavailable, match="no question could be put"):
        answered(own, ways, rounds(), run(), seconds=-1)


def test_a_model_without_a_predictor_is_taught_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    own = OwnModel.open(folder)
    assert users_model.taught_predictor(own, "text " * 400, run()) is None
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in folder.iterdir():
        if path.name != FILE:
            (bare / path.name).symlink_to(path)
    monkeypatch.setattr(users_model, "DOCUMENTS", 3)
    monkeypatch.setattr(users_model, "DOCUMENT_TOKENS", 96)
    pytest.importorskip("torch", reason="needs the extra workshop")
    text = "".join(f"{number} is {number * 7919 % 1000}; " for number in range(300))
    taught = users_model.taught_predictor(OwnModel.open(bare), text, run())
    assert taught is not None
    BoundaryPredictor.open(taught).require(own.model.source, own.model.architecture, taught)
    assert users_model.ways(OwnModel.open(bare), text, run())["DHSA"].endswith(f",predictor={taught}")


def test_the_users_model_is_measured_last() -> None:
    last = {row.id for measure in find_bench("dhsa").measures[-2:] for row in measure.rows}
    assert last == {"needle", "needle-blocks", "longbench", "longbench-blocks"}
