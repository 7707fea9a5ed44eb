"""FlexSpec's draft: its anchor byte by byte, the bridge as it was trained, resumed to the same bits."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.models._family import anchor_sha256, family_of
from haversack.run import Engine
from haversack.run._source import open_model
from haversack.train._texts import Rows, Texts
from haversack.train._training import Learning
from haversack.train.draft import Bridge, bridge_shapes, draft_config, train_draft

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

TOKENS = np.random.default_rng(9).integers(0, 256, 24).astype(np.int32)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_anchor_and_family_are_the_targets(base: Path, draft: Path) -> None:
    target, found = HubFolder.open(base), HubFolder.open(draft)
    architecture = read_architecture(found.config)
    assert len(architecture.blocks) == 2
    bridge = set(architecture.blocks[1].tensors())
    for name in architecture.tensors():
        assert (bytes(found.bytes(name)) == bytes(target.bytes(name))) == (name not in bridge), name
    family = family_of(found, architecture)
    assert family is not None and (family.name, family.anchor_layers) == ("t0", 1)
    assert family.anchor_sha256 == anchor_sha256(target, read_architecture(target.config), 1)
    assert (draft / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not draft.with_name("draft.training").exists()


@pytest.mark.parametrize("rank", [None, 8])
def test_the_engine_runs_it_as_it_was_trained(
    base: Path, texts: Texts, quick: Learning, tmp_path: Path, rank: int | None
) -> None:
    """Logits of the engine and of PyTorch, from the folder's own tensors, to 1e-4."""
    from haversack.train._model_torch import FloatModel

    goal = tmp_path / "draft"
    drafted = train_draft(base, texts, goal, bridge=Bridge(rank=rank), learning=quick)
    assert drafted is not None and (goal / "low_rank.json").is_file() == (rank is not None)
    model = FloatModel(open_model(goal))
    with torch.no_grad():
        states = model.normed(model.below(model.tokens(TOKENS[None]), 2))
        wanted = (states @ model.head.T).numpy()
    with Engine.open(goal) as engine:
        rows, _ = engine.step(TOKENS, cache=engine.cache(32), want="all")
    assert rows is not None
    assert np.abs(rows - wanted).max() <= 1e-4 * np.abs(wanted).max()
    ours = {name for name in HubFolder.open(goal).tensors if ".led." in name}
    assert len(ours) == (0 if rank is None else 6)


def test_learning_brings_it_nearer_to_the_target(base: Path, texts: Texts, tmp_path: Path) -> None:
    learning = Learning(steps=80, rows=4, length=32, warm_up_steps=5, matrix_rate=0.01, threads=1)
    bridge = Bridge(start="block")
    few = train_draft(base, texts, tmp_path / "few", bridge=bridge, learning=replace(learning, steps=1))
    many = train_draft(base, texts, tmp_path / "many", bridge=bridge, learning=learning)
    assert few is not None and many is not None
    assert many.report.held_out["divergence"] < 0.85 * few.report.held_out["divergence"]
    assert many.report.held_out["agreement"] > few.report.held_out["agreement"]
    assert many.report.loss[1] < many.report.loss[0]


def test_a_fitted_start_is_nearer_than_a_block(
    base: Path, texts: Texts, quick: Learning, tmp_path: Path
) -> None:
    found = []
    for start in ("block", "fitted"):
        learning = replace(quick, steps=1, matrix_rate=1e-9, rate=1e-9)
        goal = tmp_path / start
        done = train_draft(base, texts, goal, bridge=Bridge(start=start, mse=0.0), learning=learning)
        assert done is not None
        found.append(done.report.held_out["divergence"])
    assert found[1] < 0.95 * found[0]


def test_it_is_the_same_under_a_seed(
    base: Path, draft: Path, texts: Texts, quick: Learning, tmp_path: Path
) -> None:
    train_draft(base, texts, tmp_path / "draft", learning=quick)
    assert digest(tmp_path / "draft") == digest(draft)
    assert (tmp_path / "draft" / "family.json").read_bytes() == (draft / "family.json").read_bytes()
    train_draft(base, texts, tmp_path / "other", learning=replace(quick, seed=1))
    assert digest(tmp_path / "other") != digest(draft)


def test_an_interrupted_training_goes_on_to_the_same_bits(
    base: Path, draft: Path, texts: Texts, quick: Learning, tmp_path: Path
) -> None:
    goal = tmp_path / "draft"
    assert train_draft(base, texts, goal, learning=quick, stop_after=5) is None
    assert not goal.exists()
    with pytest.raises(UserError, match=r"beginning of another training .steps was 12 and is 20") as refused:
        train_draft(base, texts, goal, learning=replace(quick, steps=20))
    assert refused.value.field == "steps"
    assert train_draft(base, texts, goal, learning=quick) is not None
    assert digest(goal) == digest(draft)
    assert (goal / "family.json").read_bytes() == (draft / "family.json").read_bytes()


def test_a_damaged_state_is_said_to_be_one(base: Path, texts: Texts, quick: Learning, tmp_path: Path) -> None:
    goal = tmp_path / "draft"
    train_draft(base, texts, goal, learning=quick, stop_after=2)
    state = tmp_path / "draft.training" / "state.pt"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(DamagedFileError, match=r"Remove .* to start anew"):
        train_draft(base, texts, goal, learning=quick)


def test_the_divergence_is_its_definition() -> None:
    from haversack.train._losses_torch import divergence, next_token

    generator = torch.Generator().manual_seed(0)
    hidden, wanted = (torch.randn(700, 8, generator=generator, requires_grad=True) for _ in range(2))
    head, other = (torch.randn(30, 8, generator=generator, requires_grad=True) for _ in range(2))
    found = divergence(hidden, head, wanted.detach(), other.detach(), temperature=0.7)
    found.backward()
    ours = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    p = (wanted @ other.T / 0.7).log_softmax(-1).detach()
    q = (hidden @ head.T).log_softmax(-1)
    exact = (p.exp() * (p - q)).sum(-1).mean()
    exact.backward()
    assert float(found.detach()) == pytest.approx(float(exact.detach()), rel=1e-5)
    for grad, theirs in zip(ours, (hidden.grad, head.grad), strict=True):
        assert torch.allclose(grad, theirs, atol=1e-6)
    hidden.grad = head.grad = None
    targets = torch.randint(0, 30, (700,), generator=generator)
    found = next_token(hidden, head, targets)
    found.backward()
    ours = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    exact = torch.nn.functional.cross_entropy(hidden @ head.T, targets)
    exact.backward()
    assert float(found.detach()) == pytest.approx(float(exact.detach()), rel=1e-5)
    for grad, theirs in zip(ours, (hidden.grad, head.grad), strict=True):
        assert torch.allclose(grad, theirs, atol=1e-6)


def test_half_of_the_steps_see_a_changed_target(base: Path, texts: Texts, quick: Learning) -> None:
    from haversack.models._blocks_torch import PLAIN
    from haversack.train._model_torch import FloatModel
    from haversack.train.draft_torch import BridgeModule, Distillation

    model = FloatModel(open_model(base))
    shapes = bridge_shapes(model.architecture, 1, None)
    module = BridgeModule(shapes, {name: model.weights[name] for name in shapes})
    lesson = Distillation(model, 1, module, texts, Bridge(), quick)
    tokens = model.tokens(TOKENS[None])
    plain = lesson.states(tokens, PLAIN, module.weights())[1]
    hooks = [lesson.evolved(step) for step in range(4)]
    assert hooks[0] is hooks[2] is PLAIN
    seen = [lesson.states(tokens, each, module.weights())[1] for each in (hooks[1], hooks[3])]
    for each in seen:
        change = float((each - plain).norm() / plain.norm())
        assert 1e-3 < change < 0.3
    assert not torch.equal(*seen)
    assert torch.equal(seen[0], lesson.states(tokens, lesson.evolved(1), module.weights())[1])
    upper = {name for block in model.architecture.blocks[1:] for name in block.tensors()}
    assert set(lesson.upper) <= upper


def test_rows_follow_from_seed_and_step() -> None:
    tokens = np.arange(1000, dtype=np.int32)
    rows = Rows(tokens, 3, 20, 1)
    steps = [rows.at(step) for step in range(16)]
    assert all(np.array_equal(step, Rows(tokens, 3, 20, 1).at(i)) for i, step in enumerate(steps))
    starts = [int(row[0]) for step in steps for row in step]
    assert all(np.array_equal(row, np.arange(row[0], row[0] + 21)) for step in steps for row in step)
    assert len(set(starts[:48])) == 48 and min(starts) >= 0 and max(starts) <= 979
    assert [int(row[0]) for row in Rows(tokens, 3, 20, 2).at(0)] != starts[:3]


def test_configs_of_drafts() -> None:
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "hidden_size": 8}
    assert draft_config(config, 2) == {
        "num_hidden_layers": 3,
        "layer_types": ["a", "b", "c"],
        "hidden_size": 8,
    }


@pytest.mark.parametrize(
    ("bridge", "field"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 60}, "rank"),
        ({"anchor_layers": 4}, "anchor_layers"),
        ({"anchor_layers": 0}, "anchor_layers"),
        ({"mse": -1.0}, "mse"),
        ({"evolution": float("nan")}, "evolution"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bridges_that_cannot_be(base: Path, texts: Texts, tmp_path: Path, bridge: Any, field: str) -> None:
    with pytest.raises(UserError) as refused:
        train_draft(base, texts, tmp_path / "draft", bridge=Bridge(**bridge))
    assert refused.value.field == field and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"steps": 0}, {"rate": 0.0}, {"compute": "int8"}, {"length": 0}])
def test_learning_that_cannot_be(settings: Any) -> None:
    with pytest.raises(UserError) as refused:
        Learning(**settings)
    assert refused.value.field == next(iter(settings))


def test_what_is_no_float_checkpoint_is_refused(base: Path, texts: Texts, tmp_path: Path) -> None:
    from haversack.core.pack import PackWriter

    source = HubFolder.open(base)
    with PackWriter(tmp_path / "a.pack") as writer:
        for name, entry in source.tensors.items():
            writer.add_tensor(name, entry.kind, entry.shape, [source.bytes(name)])
        writer.finish({"architecture": source.config})
    with pytest.raises(UserError, match="give the original checkpoint"):
        train_draft(tmp_path / "a.pack", texts, tmp_path / "draft")


def test_folders_of_others_are_left_alone_and_texts_are_needed(
    base: Path, texts: Texts, tmp_path: Path
) -> None:
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "letters.txt").write_text("mine")
    with pytest.raises(UserError, match="did not write it"):
        train_draft(base, texts, tmp_path / "draft")
    with pytest.raises(UserError, match="no texts"):
        train_draft(base, [], tmp_path / "other")
