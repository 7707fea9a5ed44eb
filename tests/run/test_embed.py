"""Vectors of texts from decoders: those of transformers' hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.run import Engine
from haversack.run._embed import embed

TEXTS = ["the one and the other", "there", "in the end"]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_they_equal_the_reference(folder: Path, pooling: str) -> None:
    torch = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(str(folder), dtype=torch.float32)
    with Engine.open(folder) as engine:
        tokenizer = engine.model.tokenizer()
        ours = embed(engine, TEXTS, pooling=pooling, normalized=False)
        for vector, text in zip(ours, TEXTS, strict=True):
            with torch.no_grad():
                states = model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].numpy()
            wanted = states.mean(axis=0) if pooling == "mean" else states[-1]
            assert np.allclose(vector, wanted, atol=1e-4)
        alone = embed(engine, TEXTS[1:2], pooling=pooling)
        assert np.array_equal(embed(engine, TEXTS, pooling=pooling)[1:2], alone)
        assert np.allclose(np.linalg.norm(alone, axis=1), 1)


def test_what_cannot_be_embedded_is_refused(folder: Path) -> None:
    with Engine.open(folder, context_length=16) as engine:
        for texts, options in (([], {}), ("a text", {}), (["a"], {"pooling": "max"}), (["no end " * 20], {})):
            with pytest.raises(UserError):
                embed(engine, texts, **options)
