"""Texts: those that ship, those a user brings, and those that are refused."""

import ast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.models._calibration import default_text, segments, token_text


def words(text):
    """A plain tokenizer: four characters a token, 1000 tokens."""
    data = text.encode()
    return [sum(data[at : at + 4]) % 1000 for at in range(0, len(data), 4)]


def letters(text):
    return [ord(character) % 1000 for character in text]


def test_the_shipped_texts_share_no_file_and_hold_enough():
    calibration, evaluation = default_text("calibration"), default_text("evaluation")
    assert len(calibration.encode()) > 650_000 and len(evaluation.encode()) > 450_000
    lines = {line for line in calibration.splitlines() if len(line) > 60 and not line.startswith("#")}
    shared = [line for line in evaluation.splitlines() if line in lines]
    assert len(shared) < 20
    with pytest.raises(UserError, match="purpose=training"):
        default_text("training")


def test_the_evaluation_text_is_python_source():
    tops = [line for line in default_text("evaluation").splitlines() if line.startswith(("def ", "class "))]
    assert len(tops) > 300
    ast.parse(
        "\n".join(f"{line.partition(':')[0]}: pass" for line in tops[:3] if line.rstrip().endswith(":"))
    )


@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
def test_without_a_file_the_shipped_text_is_taken(purpose):
    found = token_text(words, 1000, purpose, None, 1000)
    assert found.source == "default"
    assert found.byte_count == len(default_text(purpose).encode())
    part = found.part(5000)
    assert len(part.tokens) == 5000 and part.byte_count == pytest.approx(20_000, rel=0.02)


def test_a_users_text_and_tokens_are_taken(tmp_path):
    (tmp_path / "mine.txt").write_text("a line of text\n" * 300)
    found = token_text(words, 1000, "calibration", tmp_path / "mine.txt", 100)
    assert found.source == "mine.txt" and found.byte_count == 4500
    np.save(tmp_path / "mine.npy", np.arange(500))
    assert token_text(words, 1000, "calibration", tmp_path / "mine.npy", 100).tokens.tolist() == list(
        range(500)
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\xff\xfe\x00text", "not UTF-8"),
        (b"too short", "too short: 3 tokens, 100 are needed"),
    ],
)
def test_bad_texts_are_refused_in_one_sentence(tmp_path, content, said):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        token_text(words, 1000, "calibration", path, 100)
    assert caught.value.field == "calibration" and "\n" not in str(caught.value)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        token_text(words, 1000, "evaluation", tmp_path / "none.txt", 100)


def test_text_that_the_tokenizer_does_not_know_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("x" * 4000)
    with pytest.raises(UserError, match="tokenizer does not know such text"):
        token_text(letters, 1000, "calibration", tmp_path / "t.txt", 100)


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(2000))
    with pytest.raises(UserError, match="token 1999, the model knows 0 to 999") as caught:
        token_text(words, 1000, "calibration", tmp_path / "t.npy", 100)
    assert caught.value.nearest == 999
    np.save(tmp_path / "t.npy", np.zeros((3, 3)))
    with pytest.raises(UserError, match="not a row of token numbers"):
        token_text(words, 1000, "calibration", tmp_path / "t.npy", 2)
    (tmp_path / "t.npy").write_bytes(b"not numpy")
    with pytest.raises(DamagedFileError):
        token_text(words, 1000, "calibration", tmp_path / "t.npy", 2)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 500), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_segments_are_pieces_of_the_text_that_do_not_overlap(size, length, count, seed):
    pieces = segments(np.arange(size, dtype=np.int32), length, count, seed)
    assert pieces.dtype == np.int32
    assert len(pieces) == min(count, max(1, size // length))
    assert (np.diff(pieces, axis=1) == 1).all()
    assert len(np.unique(pieces)) == pieces.size
    assert np.array_equal(pieces, segments(np.arange(size, dtype=np.int32), length, count, seed))


def test_seeds_draw_different_pieces():
    text = np.arange(200_000, dtype=np.int32)
    first, second = (set(segments(text, 512, 64, seed).ravel().tolist()) for seed in (0, 1))
    assert len(first & second) < 0.4 * len(first)
