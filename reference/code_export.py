"""Writes a model as a folder in the hub's format: configuration, f16 weights, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from code_tokenizer import END_OF_TEXT
from haversack.models.language.llama_torch import LlamaShape
from haversack.models.language.smallthinker_torch import SmallThinkerShape


def export_folder(
    out: Path,
    shape: LlamaShape | SmallThinkerShape,
    weights: dict[str, torch.Tensor],
    tokenizer: Tokenizer,
) -> None:
    """Replace the model in ``out``; a card that lies there stays."""
    out.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END_OF_TEXT)
    halves = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in weights.items()}
    partial = out / "model.safetensors.partial"
    save_file(halves, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")
    write_json(out / "config.json", shape.hub_config(end))
    write_json(out / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "model_max_length": shape.context,
            "clean_up_tokenization_spaces": False,
        },
    )
    tokenizer.save(str(out / "tokenizer.json"))


def write_json(path: Path, content: dict[str, object]) -> None:
    """Indented, with a last line break."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
