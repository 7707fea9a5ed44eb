"""A tokenizer.json made from the older files of a checkpoint: one file here a kind of vocabulary.

What the hub's older checkpoints hold instead (`vocab.txt`; `vocab.json` with `merges.txt`; SentencePiece's
`tokenizer.model`) becomes the same document that newer ones ship, as bytes: a pack gets it written, a
checkpoint folder that is run gets it in memory. Only JSON is made here; no library is needed.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from haversack.core.errors import UserError
from haversack.models.tokenizers._settings import Settings, conversion_command

__all__ = ["TOKENIZER_SOURCES", "can_be_made", "tokenizer_json"]

# Files that tell a kind of vocabulary (all are needed) and the file here that reads it, in this order.
_KINDS = (
    (("tokenizer.model",), "sentencepiece"),
    (("spiece.model",), "sentencepiece"),
    (("sentencepiece.bpe.model",), "sentencepiece"),
    (("vocab.json", "merges.txt"), "byte_level"),
    (("vocab.txt",), "wordpiece"),
)
TOKENIZER_SOURCES = tuple(dict.fromkeys(name for names, _ in _KINDS for name in names))
"""Files that a tokenizer.json can be made of."""


def can_be_made(folder: Path) -> bool:
    """True when the folder holds the files of one of the kinds of vocabulary."""
    return any(all((folder / name).is_file() for name in names) for names, _ in _KINDS)


def tokenizer_json(folder: Path) -> bytes:
    """The tokenizer.json of a checkpoint folder: the file, or one made of the older files there.

    Raises UserError when the folder has neither (with the command that makes one) or its tokenizer is of a
    class that is not converted, DamagedFileError for files that do not hold.
    """
    made = folder / "tokenizer.json"
    if made.is_file():
        return made.read_bytes()
    for names, kind in _KINDS:
        if all((folder / name).is_file() for name in names):
            settings = Settings.open(folder)
            convert = import_module(f"{__name__}.{kind}").convert
            document: bytes = convert(folder / names[0], settings)
            return document
    found = [name for name in (*TOKENIZER_SOURCES, "tekken.json") if (folder / name).is_file()]
    what = f" (only {', '.join(found)})" if found else ""
    raise UserError(
        f"{folder} has no tokenizer.json{what}, and none of the files one is made of "
        f"(tokenizer.model; vocab.json with merges.txt; vocab.txt); download them too, or run: "
        f"{conversion_command(folder)}",
        field="tokenizer",
        given=str(folder),
    )
