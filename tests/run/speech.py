"""Small speech models in hub folders, and sound, for the tests of run, shrink, plan and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz "
END, START, NO_TIMES = 30, 31, 39
TIMES = 51  # 0 to 1 s
WHISPER = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "vocab_size": NO_TIMES + 1 + TIMES,
    "d_model": 64,
    "num_mel_bins": 80,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 128,
    "max_source_positions": 50,
    "max_target_positions": 24,
    "eos_token_id": END,
    "decoder_start_token_id": START,
}
WRITING = {
    "decoder_start_token_id": START,
    "eos_token_id": END,
    "lang_to_id": {"<|en|>": 32, "<|de|>": 33},
    "task_to_id": {"transcribe": 34, "translate": 35},
    "is_multilingual": True,
    "no_timestamps_token_id": NO_TIMES,
    "begin_suppress_tokens": [END],
    "suppress_tokens": [27, 28, 29, 31, 32, 33, 34, 35, 36, 37, 38],
}
MOONSHINE = {
    "model_type": "moonshine",
    "architectures": ["MoonshineForConditionalGeneration"],
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 2,
    "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4,
    "max_position_embeddings": 64,
    "partial_rotary_factor": 0.75,
    "decoder_start_token_id": START,
    "eos_token_id": END,
}
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whisper": (WHISPER, WRITING),
    "moonshine": (MOONSHINE, {"decoder_start_token_id": START, "eos_token_id": END}),
}


def tokenizer() -> Any:
    """A byte-level tokenizer of letters, special tokens and times."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    pieces = [letter.replace(" ", "\u0120") for letter in LETTERS]
    made = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [f"<|extra{i}|>" for i in range(len(pieces), END)]
    special += ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>"]
    special += ["<|translate|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    made.add_special_tokens(special)
    made.add_tokens([f"<|{0.02 * i:.2f}|>" for i in range(TIMES)])
    return made


def write_speech(folder: Path, family: str, seed: int = 13, **fields: Any) -> Path:
    """A folder with a random speech model of `family`; `fields` change its config."""
    from haversack.formats.safetensors import write_safetensors
    from haversack.models import read_speech

    config = {**CONFIGS[family][0], **fields}
    architecture = read_speech(config)
    shapes = dict(architecture.checkpoint_tensors())
    for convolution in architecture.encoder.stem:
        shapes[convolution.matrix.weight] = convolution.shape
    rng = np.random.default_rng(seed)
    tensors = []
    for name, shape in shapes.items():
        inputs = int(np.prod(shape[1:]))
        scale = 1.0 if "embed" in name else 3.0 / np.sqrt(inputs) if len(shape) > 1 else 0.2
        values = rng.standard_normal(shape, np.float32) * np.float32(scale)
        if len(shape) == 1 and name.endswith("weight"):
            values = values + np.float32(1)
        tensors.append((name, "f32", shape, np.ascontiguousarray(values, np.float32).data))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(CONFIGS[family][1]), encoding="utf-8")
    made = tokenizer()
    if family == "moonshine":
        made = json.loads(made.to_str())
        made["added_tokens"] = made["added_tokens"][: END + 2 - len(LETTERS)]
        (folder / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    else:
        made.save(str(folder / "tokenizer.json"))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def sound(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Noise and a tone that come and go, f32 [n]."""
    at = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    noise = 0.05 * rng.standard_normal(len(at)) + 0.3 * np.sin(2 * np.pi * 440 * at)
    return (noise * np.abs(np.sin(2 * np.pi * (0.7 * at + seed)))).astype(np.float32)
