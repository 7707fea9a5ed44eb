"""Folders that `transformers` itself saved: config, names and tied tensors as it writes them today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models.parity import BAR, NAMES, answer, difference

from haversack.formats.safetensors import write_safetensors

KNOWN = [name for name in NAMES if not name.startswith("smallthinker")]
"""Families that `transformers` has."""


@pytest.mark.parametrize("name", KNOWN)
def test_what_transformers_saves_is_read(name: str, record: Any, drawn: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="saving needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="saving needs transformers")
    config, weights, prompt, stored = drawn(name)
    tensors = [(key, "f32", values.shape, values.tobytes()) for key, values in weights.items()]
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    assert difference(answer(tmp_path / "saved", prompt, 1), stored) <= BAR
