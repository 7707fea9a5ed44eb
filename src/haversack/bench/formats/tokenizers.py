"""Tokenizers made of a checkpoint's older files beside the library that such files come from.

Vocabularies are trained on the held-out text of `code`; strings are pieces of it, cut anywhere, with runs of
spaces, control characters, emoji, Chinese and combining marks between. None spells a control token (`<s>`):
such a text is the token itself here, as in transformers, and letters for sentencepiece.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.formats._bench import bench, needs

STRINGS = 4_000
STRANGE = (
    *("", " ", "    ", "\t", "\n\n", "\x00", "\u200b", "\u00a0", "\u3000", "é", "e\u0301", "İ", "ﬁ", "ａｂ"),
    *("日本語", "한글", "עברית", "😀", "👨\u200d👩\u200d👧", "1234567", "don't", "▁", "ababa"),
)
SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "bpe": {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "unigram": {},
}


def text() -> str:
    """Some of the text that quality is measured on."""
    from haversack.models._calibration import default_text

    return default_text("evaluation")[:200_000]


def strings(source: str, seed: int) -> list[str]:
    """Pieces of `source` with strange ones between."""
    rng = np.random.default_rng(seed)
    found: list[str] = []
    while len(found) < STRINGS:
        parts = []
        for _ in range(int(rng.integers(0, 6))):
            at = int(rng.integers(0, len(source)))
            parts.append(source[at : at + int(rng.integers(0, 24))])
            parts.append(str(rng.choice(STRANGE)))
        joined = "".join(parts)
        if not any(token in joined for token in ("<s>", "</s>", "<unk>")):
            found.append(joined)
    return found


def equal(own: Callable[[str], Any], other: Callable[[str], Any], texts: list[str]) -> tuple[float, str]:
    """The share of `texts` with the same tokens, and the first that differs."""
    differing = [one for one in texts if list(own(one)) != list(other(one))]
    note = f"{len(texts)} strings" + (f"; differs on {differing[0]!r:.80}" if differing else "")
    return 1 - len(differing) / len(texts), note


def made(files: dict[str, bytes]) -> Any:
    """The tokenizer of a folder with these files."""
    from haversack.models import Tokenizer

    with TemporaryDirectory() as scratch:
        for name, data in files.items():
            Path(scratch, name).write_bytes(data)
        return Tokenizer.of_folder(Path(scratch))


def _row(kind: str, claim: str, bar: Bar, quick: bool = False) -> Row:
    return Row(
        f"tokenizer-{kind}",
        f"{claim}: share of {STRINGS} strings with the same tokens",
        "share",
        "quality",
        bar,
        judged="ours",
        quick=quick,
    )


@bench.measure(
    _row("bpe", "a bpe tokenizer.model equals sentencepiece", Bar("==", 1.0), quick=True),
    _row(
        "unigram",
        "a unigram tokenizer.model equals sentencepiece but where two cuts are equally likely",
        Bar(">=", 0.999),
        quick=True,
    ),
    seconds=20,
    quick_seconds=15,
)
def sentencepieces(run: Run) -> Outcomes:
    needs("sentencepiece")
    import sentencepiece

    source = text()
    found = {}
    for kind, settings in SENTENCEPIECE.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for line in source.splitlines() if line.strip()),
            model_writer=model,
            vocab_size=1500,
            model_type=kind,
            hard_vocab_limit=False,
            minloglevel=2,
            **settings,
        )
        config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
        files = {"tokenizer.model": model.getvalue(), "tokenizer_config.json": json.dumps(config).encode()}
        reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        share, note = equal(made(files).encode, reference.encode, strings(source, run.seed))
        found[f"tokenizer-{kind}"] = Outcome.single(share, note=note)
    return found


@bench.measure(
    _row(
        "wordpiece",
        "a vocab.txt equals the tokenizer of BERT that transformers has in plain Python",
        Bar("==", 1.0),
    ),
    seconds=20,
)
def word_pieces(run: Run) -> Outcomes:
    needs("transformers")
    import tokenizers
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    source = text()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer()
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=2000, special_tokens=special, show_progress=False
    )
    model.train_from_iterator(source.splitlines(), trainer)
    numbers = model.get_vocab()
    lines = "".join(f"{token}\n" for token in sorted(numbers, key=numbers.__getitem__)).encode()
    own = made({"vocab.txt": lines, "config.json": b'{"model_type": "bert"}'})
    with TemporaryDirectory() as scratch:
        path = Path(scratch, "vocab.txt")
        path.write_bytes(lines)
        reference = BertTokenizerLegacy(vocab_file=str(path))
        share, note = equal(own.encode, lambda text: reference(text)["input_ids"], strings(source, run.seed))
    return {"tokenizer-wordpiece": Outcome.single(share, note=note)}
