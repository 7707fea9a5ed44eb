"""The byte-level BPE tokenizer shared by `code` and `code-draft`, learned from the training text.

Pieces, before merging: a line break with the indentation after it (so that a depth of indentation is one
token), a word of letters and underscores with the one space or dot before it, one digit with the space before
it, a run of punctuation. Every byte is in the alphabet, so every string comes back unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
PIECES = r"[\r\n]+[ \t]*|[ .]?[\p{L}_]+| ?\p{N}| ?[^\s\p{L}\p{N}_]+|[ \t]+|\s+"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of exactly ``vocabulary`` entries; entry 0 is the end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(END_OF_TEXT, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> numpy.ndarray:
    """All texts in their order, an end-of-text token before each and after the last: int64 [n]."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    encoded = tokenizer.encode_batch([text for _, text in texts])
    pieces = [piece for encoding in encoded for piece in ([end], encoding.ids)]
    return numpy.concatenate([numpy.asarray(piece, dtype=numpy.int64) for piece in pieces] + [[end]])
