"""A tokenizer.json that was cut, flipped or forged: refused in one sentence or usable; never a crash."""

import json
import random

import pytest
import tokenizers

from haversack.core.errors import DamagedFileError, UserError
from haversack.models._tokenizer import Tokenizer

TEXT = "def read_json(path):\n    return 1  # caf\u00e9 \U0001f600"


@pytest.fixture(scope="module")
def whole():
    """A small byte-level tokenizer, as bytes."""
    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator([TEXT] * 20, vocab_size=300, special_tokens=["<end>"])
    return library.to_str().encode()


def survives(data):
    """Open, encode, decode: either an error in one sentence or text. Returns whether it was refused."""
    try:
        tokenizer = Tokenizer.of_bytes(data, "tokenizer.json")
        assert isinstance(tokenizer.decode(tokenizer.encode(TEXT)), str)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return True
    return False


def test_the_whole_one_gives_the_text_back(whole):
    tokenizer = Tokenizer.of_bytes(whole)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_every_truncation_is_refused(whole):
    for length in sorted({0, 1, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 60)}):
        assert survives(whole[:length].rstrip()), length


def test_any_flipped_bit_is_survived(whole):
    refused = 0
    for offset in random.Random(1).sample(range(len(whole)), 150):
        data = bytearray(whole)
        data[offset] ^= 1 << (offset % 8)
        refused += survives(bytes(data))
    assert refused > 20, "structure that breaks is noticed"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"model":' + b"[" * 200_000,
        b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[["a","b"]]}}',
        b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}',
        b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":99999999999999999999},"merges":[]}}',
        b'{"version":"1.0","model":{"type":"Oracle","vocab":{}}}',
    ],
)
def test_a_forged_one_is_refused(data):
    with pytest.raises(DamagedFileError) as caught:
        Tokenizer.of_bytes(data)
    assert "\n" not in str(caught.value)


def test_a_regular_expression_that_would_never_end_is_bounded(whole):
    record = json.loads(whole)
    record["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = Tokenizer.of_bytes(json.dumps(record).encode())
    try:
        assert isinstance(tokenizer.encode("a" * 40 + "b"), list)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_file_that_is_absent_or_a_folder_is_named(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            Tokenizer.open(path)
