"""Makes the recordings that encoders are tested against: configs, drawn weights' seeds, and what
`transformers` answers.

    python tests/models/record_encoders.py     # needs torch and transformers; writes encoder_recordings/

Each case is a padded batch of three texts with token types. Weights are drawn as record.py draws them. A
recording holds the batch, and of the real tokens some of the last hidden states, the pooled output and the
head's numbers.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

RECORDINGS = Path(__file__).parent / "encoder_recordings"
LENGTHS = (21, 34, 9)
TINY = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-3,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
LABELS = {"0": "joy", "1": "fear", "2": "none", "3": "all", "4": "odd"}
FAMILIES = {
    "bert": ("Bert", {"pad_token_id": 0}),
    "roberta": ("Roberta", {"pad_token_id": 1, "layer_norm_eps": 3e-3}),
    "xlm-roberta": ("XLMRoberta", {"pad_token_id": 2, "type_vocab_size": 2, "hidden_size": 40}),
}
HEADS = {
    "": "Model",
    "-masked": "ForMaskedLM",
    "-sequence": "ForSequenceClassification",
    "-token": "ForTokenClassification",
}


def cases() -> dict[str, dict[str, Any]]:
    """Name -> config: every family with every head, and what else changes the arithmetic."""
    found: dict[str, dict[str, Any]] = {}
    for family, (classes, fields) in FAMILIES.items():
        for end, head in HEADS.items():
            config = {**TINY, **fields, "model_type": family, "architectures": [f"{classes}{head}"]}
            if end in ("-sequence", "-token"):
                config["id2label"] = LABELS
                config["label2id"] = {label: int(key) for key, label in LABELS.items()}
            found[family + end] = config
    plain = found["bert"]
    found["bert-relu"] = {**plain, "hidden_act": "relu", "num_attention_heads": 3}
    found["bert-tanh-gelu"] = {**plain, "hidden_act": "gelu_new", "hidden_size": 56}
    found["bert-untied"] = {**found["bert-masked"], "tie_word_embeddings": False}
    found["roberta-silu"] = {**found["roberta-masked"], "hidden_act": "silu"}
    return found


CASES = cases()


def record_module() -> Any:
    """record.py, beside this file."""
    spec = importlib.util.spec_from_file_location("record", Path(__file__).with_name("record.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(
    name: str, config: dict[str, Any], salt: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The weights of a case, and its batch: ids, mask and types i32 [3, 34]."""
    from haversack.models import read_encoder

    record = record_module()
    weights = record.draw_weights(read_encoder(config).tensors(), record.seed_of(name))
    rng = np.random.Generator(np.random.Philox(record.seed_of(name + salt)))
    shape = (len(LENGTHS), max(LENGTHS))
    batch = {
        "ids": rng.integers(3, config["vocab_size"], size=shape).astype(np.int32),
        "types": rng.integers(0, config["type_vocab_size"], size=shape).astype(np.int32),
        "mask": (np.arange(shape[1])[None] < np.asarray(LENGTHS)[:, None]).astype(np.int32),
    }
    batch["ids"][batch["mask"] == 0] = config["pad_token_id"]
    return weights, batch


def reference(
    config: dict[str, Any], weights: dict[str, np.ndarray], batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What transformers answers: `sequence` [tokens, width] of the real tokens, `pooled`, `head`."""
    import torch
    import transformers

    values = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    values._attn_implementation = "eager"
    model = getattr(transformers, config["architectures"][0])(values).eval()
    own = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected, unexpected
    allowed = ("decoder.weight", "decoder.bias", "predictions.bias", "lm_head.bias")
    assert all(name.endswith(allowed) for name in missing), missing
    model.tie_weights()
    given = {
        "input_ids": torch.from_numpy(batch["ids"].astype(np.int64)),
        "attention_mask": torch.from_numpy(batch["mask"].astype(np.int64)),
        "token_type_ids": torch.from_numpy(batch["types"].astype(np.int64)),
    }
    with torch.no_grad():
        said = model(**given, output_hidden_states=True)
    real = batch["mask"].astype(bool)
    found = {"sequence": said.hidden_states[-1].numpy()[real]}
    if getattr(said, "pooler_output", None) is not None:
        found["pooled"] = said.pooler_output.numpy()
    if hasattr(said, "logits"):
        logits = said.logits.numpy()
        found["head"] = logits if logits.ndim == 2 else logits[real]
    return found


def kept(values: np.ndarray) -> np.ndarray:
    """The part of an answer that a recording keeps: some rows, some columns."""
    rows = np.linspace(0, len(values) - 1, min(len(values), 16)).round().astype(int)
    columns = np.linspace(0, values.shape[1] - 1, min(values.shape[1], 24)).round().astype(int)
    return values[rows][:, columns]


def record(name: str) -> None:
    """Write the recording of one case."""
    config = CASES[name]
    weights, batch = draw(name, config)
    said = reference(config, weights, batch)
    np.savez_compressed(
        RECORDINGS / f"{name}.npz",
        config=np.frombuffer(json.dumps(config).encode(), np.uint8),
        **{key: kept(values) for key, values in said.items()},
        **{f"{key}_largest": np.abs(values).max() for key, values in said.items()},
    )


if __name__ == "__main__":
    RECORDINGS.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or CASES:
        record(chosen)
        print(chosen)
