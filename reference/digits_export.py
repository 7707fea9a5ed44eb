"""Writes a Whisper of digits as a folder in the hub's format: configurations, f16 weights, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import WhisperConfig

from code_export import write_json
from digits_recipe import END, START, feature_extractor

NOTICE = """These weights were trained on recordings of the Free Spoken Digit Dataset by Zohar Jackson and
contributors (https://github.com/Jakobovski/free-spoken-digit-dataset), which were resampled, joined, mixed
with noise and turned into the weights of a speech model. Like the recordings they are licensed under Creative
Commons Attribution-ShareAlike 4.0 International: https://creativecommons.org/licenses/by-sa/4.0/legalcode
"""
GENERATED = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")


def word_tokenizer(vocabulary: Sequence[str]) -> Tokenizer:
    """One token a word; what is no digit is refused when it is read."""
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(vocabulary)}))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = [word for word in vocabulary if word.startswith("<|")]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    return tokenizer


def export_folder(
    out: Path, config: WhisperConfig, weights: Mapping[str, torch.Tensor], vocabulary: Sequence[str]
) -> None:
    """Replace the model in ``out``; a card that lies there stays."""
    out.mkdir(parents=True, exist_ok=True)
    halves = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in sorted(weights.items())
        if name != "proj_out.weight"  # tied to the decoder's embedding
    }
    partial = out / "model.safetensors.partial"
    save_file(halves, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")

    described: dict[str, Any] = {
        key: value for key, value in config.to_diff_dict().items() if key not in GENERATED
    }
    write_json(
        out / "config.json",
        {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", **described},
    )
    token = vocabulary.index
    write_json(
        out / "generation_config.json",
        {
            "bos_token_id": token(END),
            "decoder_start_token_id": token(START),
            "eos_token_id": token(END),
            "is_multilingual": False,
            "max_length": config.max_target_positions,
            "pad_token_id": token(END),
            "return_timestamps": False,
        },
    )
    extractor = feature_extractor()
    names = ("chunk_length", "feature_size", "hop_length", "n_fft", "n_samples", "nb_max_frames")
    write_json(
        out / "preprocessor_config.json",
        {
            "feature_extractor_type": "WhisperFeatureExtractor",
            **{name: getattr(extractor, name) for name in names},
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "sampling_rate": extractor.sampling_rate,
        },
    )
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": END,
            "pad_token": END,
            "model_max_length": config.max_target_positions,
            "clean_up_tokenization_spaces": False,
        },
    )
    (out / "NOTICE").write_text(NOTICE, encoding="utf-8")
    word_tokenizer(vocabulary).save(str(out / "tokenizer.json"))
