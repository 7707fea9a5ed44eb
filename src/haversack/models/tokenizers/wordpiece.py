"""WordPiece from `vocab.txt`, one token a line (Wu et al., 2016; Devlin et al., 2018: BERT and its kin).

Text is cleaned, lowered and stripped of accents as tokenizer_config.json says, Chinese characters stand
alone, words are cut at spaces and punctuation, and each word is covered from the left by the longest tokens;
a word that cannot be covered, or of more than 100 characters, is unknown.
"""

from __future__ import annotations

from pathlib import Path

from haversack.core.errors import DamagedFileError
from haversack.models.tokenizers._settings import Added, Settings, document, read_text, template

CLASSES = ("", "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
MODEL_TYPES = ("", "bert", "distilbert", "electra", "mobilebert")
WORD_MOST = 100
_DEFAULTS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def convert(path: Path, settings: Settings) -> bytes:
    """The tokenizer.json of the vocabulary `path`. Raises UserError for other classes, DamagedFileError."""
    if settings.kind not in CLASSES or (not settings.kind and settings.model_type not in MODEL_TYPES):
        raise settings.refuse(CLASSES[1:])
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocabulary = {token: number for number, token in enumerate(lines)}
    names = {role: settings.role(role, default) or default for role, default in _DEFAULTS.items()}
    for role in ("unk_token", "cls_token", "sep_token"):
        if names[role] not in vocabulary:
            raise DamagedFileError(path, f"it lacks the {role} {names[role]!r}", field="tokenizer")
    lower = settings.flag("do_lower_case", True)
    accents = settings.values.get("strip_accents")
    first, last = (names["cls_token"], 0), (names["sep_token"], 0)
    return document(
        {
            "type": "WordPiece",
            "unk_token": names["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": WORD_MOST,
            "vocab": vocabulary,
        },
        settings.added(vocabulary, {role: Added(text) for role, text in names.items()}),
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.flag("tokenize_chinese_chars", True),
            "strip_accents": None if accents is None else settings.flag("strip_accents", lower),
            "lowercase": lower,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=template(
            [first, ("$A", 0), last],
            [first, ("$A", 0), last, ("$B", 1), (names["sep_token"], 1)],
            vocabulary,
        ),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )
