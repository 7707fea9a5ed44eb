"""Small encoders in hub folders, for the tests of run and of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "tree",
    "house",
    "river",
    "stone",
    "sees",
    "finds",
    "likes",
    "old",
    "new",
    "red",
    "blue",
    "big",
    "small",
    "and",
    "or",
    ".",
]
FEELINGS = {"0": "joy", "1": "fear", "2": "none"}
SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}


def tokenizer(family: str) -> Any:
    """A WordPiece tokenizer over WORDS with the family's special tokens around a text or a pair."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    special = SPECIAL[family]
    begin, end, unknown = ("[CLS]", "[SEP]", "[UNK]") if family == "bert" else ("<s>", "</s>", "<unk>")
    pieces = [*special, *WORDS, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    made = tokenizers.Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=unknown)
    )
    made.add_special_tokens(list(special))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    second = ":1" if family == "bert" else ":0"
    between = f"{end}:0" if family == "bert" else f"{end} {end}"
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {between} $B{second} {end}{second}",
        special_tokens=[(token, pieces.index(token)) for token in (begin, end)],
    )
    return made


def write_encoder(folder: Path, family: str, head: str = "Model", seed: int = 3, **fields: Any) -> Path:
    """A folder with a random encoder of `family` (bert or roberta) and `head` (the end of its class)."""
    from haversack.formats.safetensors import write_safetensors
    from haversack.models import read_encoder

    made = tokenizer(family)
    config = {
        "model_type": family,
        "architectures": [f"{'Bert' if family == 'bert' else 'Roberta'}{head}"],
        "vocab_size": made.get_vocab_size() + 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
        "pad_token_id": 0 if family == "bert" else 1,
        "type_vocab_size": 2 if family == "bert" else 1,
        "layer_norm_eps": 1e-5,
        **({"id2label": FEELINGS} if "Classification" in head else {}),
        **fields,
    }
    rng = np.random.default_rng(seed)
    tensors = []
    for name, shape in read_encoder(config).tensors().items():
        values = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))
        if len(shape) == 1:
            values = values + np.float32(name.endswith("weight"))
        tensors.append((name, "f32", shape, np.ascontiguousarray(values, np.float32).data))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made.save(str(folder / "tokenizer.json"))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_pooling(folder: Path, mode: str, *, normalize: bool, longest: int | None = None) -> None:
    """The files of a sentence encoder, as sentence-transformers writes them."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    if normalize:
        modules.append(
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
        )
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": width, f"pooling_mode_{mode}": True})
    )
    if longest is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
