"""What makes the card of `code-moe`: the evaluation, beside a plain model in PyTorch, and the text."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.run import Engine

ROOT = Path(__file__).resolve().parents[2]

NUMBERS: dict[str, Any] = {
    "tokens": 1001,
    "parameters": 15_000_001,
    "active": 4_000_003,
    "bits_per_byte": 1.2,
    "dense_bits_per_byte": 1.25,
    "dense_parameters": 3_999_007,
    "parse_share": 0.615,
    "evenness": [0.91, 0.92, 0.93, 0.94],
    "most": [0.11, 0.12, 0.13, 0.14],
    "least": [0.01, 0.02, 0.03, 0.04],
    "zeros": [0.61, 0.62, 0.63, 0.64],
}


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that writes the card."""
    pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")
    monkeypatch.setattr(sys, "path", [str(ROOT / "reference"), *sys.path])
    return importlib.import_module("code_moe_card")


def test_the_card_is_what_the_evaluation_found(writer: Any, tmp_path: Path) -> None:
    log = {"step": 800, "minutes": 61.0, "cpu_minutes": 50.0}
    for name in ("run", "dense"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text(json.dumps(log) + "\n", encoding="utf-8")
    text = writer.card(NUMBERS, tmp_path / "run", tmp_path / "dense")
    for number in ("15,000,001", "4,000,003", "1.2000 bits", "1.2500", "3,999,007", "61.5%", "1,001 tokens"):
        assert number in text, number
    for shares in ("91%, 92%, 93%, 94%", "11%, 12%, 13%, 14%", "1%, 2%, 3%, 4%", "61%, 62%, 63%, 64%"):
        assert shares in " ".join(text.split()), shares


def test_evaluation_counts_what_a_plain_model_does(writer: Any, tmp_path: Path) -> None:
    """Sizes, the experts taken and the zeros inside them, against PyTorch on drawn weights."""
    import torch
    from safetensors.torch import save_file

    evaluation = importlib.import_module("code_moe_evaluate")
    torch_twin = importlib.import_module("haversack.models.language.smallthinker_torch")
    shape = torch_twin.SmallThinkerShape(50, 32, 2, 2, 1, 16, 4, 2, 32, window=16)
    model = torch_twin.SmallThinker(shape)
    model.initialize(1)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith(("o_proj.weight", "down.weight", "embed_tokens.weight")):
                values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(shape.hub_config(0) | {"torch_dtype": "float32"}))
    tokens = np.random.default_rng(3).integers(0, 50, (2, 300)).astype(np.int32)
    with Engine.open(tmp_path) as engine:
        assert evaluation.sizes(engine) == {
            "parameters": sum(value.numel() for value in model.parameters()),
            "active": model.active_parameters(),
        }
        found = evaluation.watched(engine, tokens)
        made = evaluation.completed(engine, -1, [[1, 2, 3]])[0]
    for index, (zeros, counts) in enumerate(plain_watch(model, torch.from_numpy(tokens).long())):
        assert found["zeros"][index] == pytest.approx(zeros, abs=1e-3)
        assert found["most"][index] == pytest.approx(max(counts) / sum(counts), abs=1e-3)
        assert found["least"][index] == pytest.approx(min(counts) / sum(counts), abs=1e-3)
    with torch.inference_mode():
        text = torch.tensor([[1, 2, 3, *made]])
        assert model(text)[0, 2:-1].argmax(-1).tolist() == made
    assert evaluation.evenness(np.array([5, 5, 5, 5])) == pytest.approx(1)
    assert evaluation.evenness(np.array([8, 8, 0, 0])) == pytest.approx(0.5)


def plain_watch(model: Any, tokens: Any) -> list[tuple[float, list[int]]]:
    """Of each block the share of zeros inside the experts taken, and how often each was."""
    found = []

    def watch(mixture: Any, inputs: Any) -> None:
        x, residual = inputs
        ratings = (residual @ mixture.primary_router.weight.T).flatten(0, 1)
        chosen = ratings.topk(mixture.top).indices
        inner = [(expert.gate(x).relu() * expert.up(x)).flatten(0, 1) for expert in mixture.experts]
        taken = [rows[(chosen == number).any(-1)] for number, rows in enumerate(inner)]
        zeros = sum(int((rows == 0).sum()) for rows in taken)
        found.append((zeros / sum(rows.numel() for rows in taken), [len(rows) for rows in taken]))

    hooks = [
        block.block_sparse_moe.register_forward_pre_hook(lambda mixture, inputs: watch(mixture, inputs))
        for block in model.model.layers
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("dense", "words"),
    [
        (
            1.25,
            "4.0% fewer",
        ),
        (1.21, "0.8% fewer"),
        (1.19, "0.8% more"),
    ],
)
def test_the_card_says_when_the_twin_is_as_good(dense: float, words: str, writer: Any) -> None:
    said = writer.verdict({**NUMBERS, "dense_bits_per_byte": dense})
    assert words in said and ("aim of 2% is met" if dense == 1.25 else "aim of 2% is missed") in said


def test_a_card_without_a_twin_says_so(writer: Any, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        json.dumps({"step": 800, "minutes": 61.0, "cpu_minutes": 50.0}) + "\n", encoding="utf-8"
    )
    alone = {name: value for name, value in NUMBERS.items() if not name.startswith("dense")}
    text = writer.card(alone, tmp_path, None)
    assert "not yet compared with a dense twin" in text and "is not trained to its end yet" in text


def test_the_twin_is_of_the_active_size(writer: Any) -> None:
    import train_code_moe  # type: ignore[import-not-found]  # in reference/

    recipe = train_code_moe.RECIPE
    twin = train_code_moe.dense_twin(recipe)
    assert twin.shape.feed_forward == recipe.shape.top * recipe.shape.feed_forward
    assert (twin.shape.experts, twin.shape.top) == (1, 1)
    assert (twin.schedule, twin.stages, twin.seed) == (recipe.schedule, recipe.stages, recipe.seed)
