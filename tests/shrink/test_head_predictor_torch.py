"""The predictor of output rows is trained: it leaves most rows out and keeps the likeliest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.shrink.test_q4_0 import SMALLTHINKER, packed

from haversack.core.errors import UserError
from haversack.core.pack import Pack
from haversack.run import Engine, Limits, generate
from haversack.run._head_predictor import PREDICTOR_NAME

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are no work for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_keeps_what_is_likeliest_and_leaves_most_rows_out() -> None:
    """Of a vocabulary whose logits have a few large directions, as real ones have."""
    from haversack.shrink._head_predictor_torch import Training, trained

    rng = np.random.default_rng(0)
    spectrum = (0.7 ** np.arange(64)).astype(np.float32)
    output = rng.standard_normal((512, 64)).astype(np.float32) * spectrum
    states = rng.standard_normal((3000, 64)).astype(np.float32)
    found = trained("m", states[:2000], output, 32, how=Training(steps=120, recall=0.995))
    later = states[2000:]
    likeliest = (later @ output.T).argmax(axis=1)
    scores = found.scores(later)
    assert (scores[np.arange(1000), likeliest] > found.limit).mean() > 0.98
    assert (scores > found.limit).mean() < 0.4
    again = trained("m", states[:2000], output, 32, how=Training(steps=120, recall=0.995))
    assert again.to_bytes() == found.to_bytes()


def test_a_pack_made_with_one_decodes_with_it(tmp_path: Path) -> None:
    goal = packed(tmp_path, SMALLTHINKER, "q4_0:predictor=32", "none")
    assert PREDICTOR_NAME in Pack.open(goal).record.files
    with Engine.open(goal, decode="sparse-head", residency="streamed:smallthinker") as engine:
        made = generate(engine, [5, 6, 7], Limits(max_tokens=8, end=()))
        for _ in made:
            pass
        assert engine.head_predictor is not None and engine.head_predictor.computed > 0
    assert len(made.tokens) == 8
    with pytest.raises(UserError, match="predictor=5 is not supported"):
        packed(tmp_path / "bad", SMALLTHINKER, "q4_0:predictor=5", "none")
