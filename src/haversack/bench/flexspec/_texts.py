"""Texts of the bench: the general one that drafts learn from, those that versions learn from, and prompts.

General: the Python source that ships for calibration; its prompts are the held-out packages that ship for
evaluation. Versions: the same Python in a house style of its own (camel case, tabs, no comments), Tiny
Shakespeare, WikiText-2. Of each text the first nine tenths are learned from, prompts come from the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.bench._rows import Unavailable

I32 = npt.NDArray[np.int32]

VERSIONS = ("house style", "Tiny Shakespeare", "WikiText-2")
SETS = {"Tiny Shakespeare": "tiny-shakespeare", "WikiText-2": "wikitext-2-valid"}
PROMPT = 64
LEARNED = 0.9


@dataclass(frozen=True)
class Corpus:
    """Tokens i32 [n] that are learned from, and that prompts come from."""

    learned: I32
    prompts: I32


def house_style(source: str) -> str:
    """Python source in camel case, indented by tabs, without lines that are comments."""
    lines = []
    for line in source.splitlines():
        if line.lstrip().startswith("#"):
            continue
        spaces = len(line) - len(line.lstrip(" "))
        lines.append("\t" * (spaces // 4) + " " * (spaces % 4) + line.lstrip(" "))
    return re.sub(r"(?<=[a-z0-9])_([a-z])", lambda found: found[1].upper(), "\n".join(lines)) + "\n"


def corpora(folder: Path) -> dict[str, Corpus]:
    """By name, "general" and VERSIONS, in the tokens of the model in `folder`. Raises Unavailable where a
    data set is absent."""
    from haversack.core._datasets import local_path
    from haversack.models import Tokenizer
    from haversack.models._calibration import default_text

    missing = [name for name in SETS.values() if local_path(name) is None]
    if missing:
        raise Unavailable(f"the data set {missing[0]} is absent (docs/data.md)")
    tokenizer = Tokenizer.of_folder(folder)

    def tokens(text: str) -> I32:
        pieces = [text[start : start + 16384] for start in range(0, len(text), 16384)]
        return np.concatenate(
            [np.asarray(tokenizer.encode(each, special=False), np.int32) for each in pieces]
        )

    general = default_text("calibration")
    found = {"general": Corpus(tokens(general), tokens(default_text("evaluation")))}
    texts = {"house style": house_style(general)}
    for name, data in SETS.items():
        path = local_path(data)
        assert path is not None
        texts[name] = path.read_text(encoding="utf-8")
    for name in VERSIONS:
        all_of_it = tokens(texts[name])
        edge = int(LEARNED * len(all_of_it))
        found[name] = Corpus(all_of_it[:edge], all_of_it[edge:])
    return found


def prompts(corpus: Corpus, count: int, seed: int) -> list[I32]:
    """`count` prompts of 64 tokens at places drawn by the seed."""
    most = len(corpus.prompts) - PROMPT
    starts = np.random.default_rng([seed, most]).integers(0, most, count)
    return [corpus.prompts[start : start + PROMPT] for start in starts]
