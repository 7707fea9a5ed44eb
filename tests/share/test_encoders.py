"""An encoder behind /v1/embeddings: its own vectors, whoever asks at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.encoders import write_encoder

from haversack.run._encoder import Encoder

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
TEXTS = ["the old cat sees a dog .", "a tree", "the small blue river .", "the big red house ."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "bert", "bert")


def test_vectors_are_the_encoder_s(serving: Any, folder: Path) -> None:
    with Encoder.open(folder) as encoder:
        expected = encoder.embed(TEXTS)
    with (
        serving.serving(folder) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        made = client.embeddings.create(model="bert", input=TEXTS)
        np.testing.assert_array_equal(np.float32([one.embedding for one in made.data]), expected)
        with ThreadPoolExecutor(8) as pool:
            one_by_one = pool.map(
                lambda text: client.embeddings.create(model="bert", input=text).data[0].embedding,
                TEXTS * 4,
            )
            np.testing.assert_array_equal(np.float32(list(one_by_one)), np.tile(expected, (4, 1)))
        with pytest.raises(openai.BadRequestError) as told:
            client.completions.create(model="bert", prompt="a")
        assert told.value.code == "no_text"
        for wrong in ("", "the " * 5000, [99_999_999]):
            with pytest.raises(openai.BadRequestError):
                client.embeddings.create(model="bert", input=wrong)
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            client.embeddings.create(model="bert", input="a", dimensions=3)
