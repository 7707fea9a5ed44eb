"""Makes the recordings that speech models are tested against: configs, drawn weights' seeds, and what
`transformers` answers.

    python tests/models/record_speech.py     # needs torch and transformers; writes speech_recordings/

Each case hears a window of drawn sound: a recording holds some of the encoder's states, logits after a few
tokens, and the texts written greedily and with beams; of Whisper also the segments of longer sound with times
and the language that was found.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

RECORDINGS = Path(__file__).parent / "speech_recordings"
BEAMS = (1, 3)
SAMPLES, LONG = 16_000, 43_000
TOKENS = [9, 11, 20, 3]
WHISPER = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "vocab_size": 92,
    "d_model": 48,
    "num_mel_bins": 80,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 96,
    "max_source_positions": 50,
    "max_target_positions": 40,
    "activation_function": "gelu",
    "bos_token_id": 30,
    "eos_token_id": 30,
    "pad_token_id": 30,
    "decoder_start_token_id": 31,
}
# 30 ends a text, 31 starts one, 39 says that no times follow, 40 and on are the times.
WRITING = {
    "decoder_start_token_id": 31,
    "eos_token_id": 30,
    "pad_token_id": 30,
    "suppress_tokens": [7, 8, 36],
    "begin_suppress_tokens": [5, 30],
    "lang_to_id": {"<|en|>": 32, "<|de|>": 33},
    "task_to_id": {"transcribe": 34, "translate": 35},
    "is_multilingual": True,
    "no_timestamps_token_id": 39,
    "max_initial_timestamp_index": 20,
    "return_timestamps": False,
    "max_length": 40,
}
MOONSHINE = {
    "model_type": "moonshine",
    "architectures": ["MoonshineForConditionalGeneration"],
    "vocab_size": 90,
    "hidden_size": 48,
    "intermediate_size": 64,
    "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 2,
    "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4,
    "max_position_embeddings": 60,
    "partial_rotary_factor": 0.7,
    "decoder_start_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
SAYING = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_length": 8}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whisper": (WHISPER, WRITING),
    "whisper-large": (
        {**WHISPER, "num_mel_bins": 128, "tie_word_embeddings": False, "activation_function": "gelu_new"},
        {**WRITING, "language": "de", "length_penalty": 0.6},
    ),
    "whisper-english": (
        {**WHISPER, "encoder_layers": 1, "d_model": 36, "decoder_layers": 3, "activation_function": "relu"},
        {
            **{k: v for k, v in WRITING.items() if k not in ("lang_to_id", "task_to_id", "is_multilingual")},
            "forced_decoder_ids": [[1, 39]],
            "begin_suppress_tokens": None,
            "early_stopping": True,
        },
    ),
    "moonshine": (MOONSHINE, SAYING),
    "moonshine-wide": (
        {
            **MOONSHINE,
            "hidden_size": 60,
            "encoder_num_attention_heads": 6,
            "decoder_num_attention_heads": 6,
            "partial_rotary_factor": 0.8,
            "attention_bias": True,
            "encoder_hidden_act": "gelu_new",
            "decoder_hidden_act": "gelu",
            "tie_word_embeddings": False,
        },
        {**SAYING, "suppress_tokens": [4, 6]},
    ),
}


def record_module() -> Any:
    """record.py, beside this file."""
    spec = importlib.util.spec_from_file_location("record", Path(__file__).with_name("record.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(name: str, salt: str = "") -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The weights of a case as a checkpoint keeps them, and sound f32 [LONG]."""
    from haversack.models import read_speech

    record = record_module()
    architecture = read_speech(CASES[name][0])
    weights = record.draw_weights(architecture.checkpoint_tensors(), record.seed_of(name + salt))
    for tensor, values in weights.items():
        if values.ndim == 2 and "embed" not in tensor:
            values *= 2.0
    for convolution in architecture.encoder.stem:
        one = weights[convolution.matrix.weight]
        weights[convolution.matrix.weight] = np.ascontiguousarray(one.reshape(convolution.shape))
    rng = np.random.Generator(np.random.Philox(record.seed_of(name + salt) + 1))
    noise = rng.integers(-(2**20), 2**20, size=(4, LONG)).sum(axis=0) / 2**23
    shape = np.abs(np.arange(LONG) % 6000 - 3000) / 3000
    return weights, (noise * shape).astype(np.float32)


def rows_of(config: dict[str, Any], sound: np.ndarray) -> np.ndarray:
    """What the encoder takes of sound: a spectrogram [frames, bands] by our front end, or samples [n]."""
    from haversack.models.audio.log_mel import log_mel

    return log_mel(sound, config["num_mel_bins"]) if config["model_type"] == "whisper" else sound


def reference(name: str, weights: dict[str, np.ndarray], sound: np.ndarray) -> dict[str, Any]:
    """What transformers answers."""
    import torch
    import transformers

    config, writing = CASES[name]
    transformers.utils.logging.set_verbosity_error()
    values = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    values._attn_implementation = "eager"
    model = getattr(transformers, config["architectures"][0])(values).eval()
    own = {key: torch.from_numpy(array.copy()) for key, array in weights.items()}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected and set(missing) <= {"proj_out.weight"}, (missing, unexpected)
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig(**writing)
    whisper = config["model_type"] == "whisper"

    def given(part: np.ndarray) -> Any:
        rows = rows_of(config, part)
        return torch.from_numpy(np.ascontiguousarray(rows.T if whisper else rows))[None]

    found: dict[str, Any] = {}
    with torch.no_grad():
        window = given(sound[:SAMPLES])
        found["states"] = model.model.encoder(window).last_hidden_state[0].numpy()
        ids = torch.tensor([[writing["decoder_start_token_id"], *TOKENS]])
        found["logits"] = model(window, decoder_input_ids=ids).logits[0].numpy()
        for beams in BEAMS:
            once = {"force_unique_generate_call": True} if whisper else {}
            said = model.generate(window, num_beams=beams, **once)[0].tolist()
            found[f"text-{beams}"] = np.asarray(said, np.int32)
            if whisper:
                said = model.generate(
                    given(sound), num_beams=beams, return_timestamps=True, return_segments=True
                )
                found |= _segments(beams, said["segments"][0])
    return found


def _segments(beams: int, segments: list[Any]) -> dict[str, Any]:
    """Begins and ends [n, 2] in seconds, and their tokens without times, a row each, padded with -1."""
    texts = [[t for t in one["tokens"].tolist() if t < 40] for one in segments]
    tokens = np.full((len(texts), max(map(len, texts))), -1, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    bounds = np.array([[float(one["start"]), float(one["end"])] for one in segments])
    return {f"bounds-{beams}": bounds, f"said-{beams}": tokens}


def kept(values: np.ndarray) -> np.ndarray:
    """The part of an array that a recording keeps: some rows, some columns."""
    rows = np.linspace(0, len(values) - 1, min(len(values), 12)).round().astype(int)
    columns = np.linspace(0, values.shape[1] - 1, min(values.shape[1], 24)).round().astype(int)
    return values[rows][:, columns]


def record(name: str) -> None:
    """Write the recording of one case."""
    said = reference(name, *draw(name))
    stored = {key: kept(said[key]) if key in ("states", "logits") else said[key] for key in said}
    np.savez_compressed(
        RECORDINGS / f"{name}.npz",
        config=np.frombuffer(json.dumps(CASES[name]).encode(), np.uint8),
        **stored,
        **{f"{key}_largest": np.abs(said[key]).max() for key in ("states", "logits")},
    )


if __name__ == "__main__":
    RECORDINGS.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or CASES:
        record(chosen)
        print(chosen)
