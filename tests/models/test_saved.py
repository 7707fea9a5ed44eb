"""Folders that `transformers` itself saved: config, names and tied tensors as it writes them today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models.parity import BAR, NAMES, answer, difference


@pytest.mark.parametrize("name", NAMES)
def test_what_transformers_saves_is_read(name: str, record: Any, drawn: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="saving needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="saving needs transformers")
    config, weights, prompt, stored = drawn(name)
    kind = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    model = transformers.AutoModelForCausalLM.from_config(kind, dtype=torch.float32)
    model.load_state_dict(
        {key: torch.from_numpy(values.copy()) for key, values in weights.items()}, strict=False
    )
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert difference(answer(tmp_path, prompt, 1), stored) <= BAR
