"""EdgeMoE's packs: every expert at its own bits, chosen on calibration text and bound to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.experts import OLMOE, draw

from haversack.core import index
from haversack.core.errors import UserError
from haversack.core.expert_store import STORE_NAME, ExpertStore
from haversack.core.pack import Pack, PackWriter, TensorEntry, check_pack
from haversack.models import read_architecture
from haversack.models._experts import experts_of, identity
from haversack.run import Engine
from haversack.run._paths import PROFILE_NAME, Profile
from haversack.shrink._expert_loss import ModelLoss, profile_of
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, stored_kinds


class Source:
    """The drawn model as a source of f32 tensors."""

    def __init__(self, path: Path) -> None:
        self.path, self.config = path, OLMOE
        self.files = (path / "weights",)
        self.weights = draw(OLMOE)
        at, self.tensors = 0, {}
        with (path / "weights").open("wb") as file:
            for name, values in self.weights.items():
                self.tensors[name] = TensorEntry(
                    name, "f32", values.shape, None, "rows-1", "weights", at, values.nbytes
                )
                file.write(values.tobytes())
                at += values.nbytes

    def bytes(self, name: str) -> memoryview:
        return memoryview(self.weights[name]).cast("B")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def walk() -> LanguageWalk:
    return LanguageWalk(read_architecture(OLMOE))


@pytest.fixture(scope="module")
def texts(source: Any) -> np.ndarray:
    """What the model itself writes: text that it knows better than a rounded one does."""
    rng, rows = np.random.default_rng(1), []
    with Engine.open(source) as engine:
        for first in (5, 60, 200, 111):
            cache, row = engine.cache(64), [first]
            while len(row) < 64:
                logits = engine.step(row[-1:], cache=cache)[0][0].astype(np.float64) * 2
                chances = np.exp(logits - logits.max())
                row.append(int(rng.choice(len(chances), p=chances / chances.sum())))
            rows.append(row)
    return np.array(rows, np.int32)


@pytest.fixture(scope="module")
def loss(source: Any, walk: LanguageWalk, texts: np.ndarray) -> ModelLoss:
    assert walk.all_experts is not None
    return ModelLoss(source, walk, walk.all_experts, texts)


@pytest.fixture(scope="module")
def between(loss: ModelLoss) -> float:
    """A budget between what all experts lose at 2 bits and at 4."""
    two, four = (loss(dict.fromkeys(loss.experts.tensors, bits)) for bits in (2, 4))
    assert two > four > loss.reference
    return (two + four) / 2 / loss.reference - 1


def packed(source: Any, walk: LanguageWalk, goal: Path, choice: str, texts: np.ndarray) -> Pack:
    method: Any = index.create("shrink", "precision", choice)
    with PackWriter(goal) as writer:
        compress(source, walk, method, writer, texts=texts, policy=Policy(), folder=goal.parent)
        writer.finish({"architecture": OLMOE, "plan": {"precision": choice}})
    return Pack.open(goal)


def widths(pack: Pack) -> dict[tuple[int, int], str]:
    with ExpertStore.open(pack.path / STORE_NAME) as store:
        assert all(len({t.kind for t in record.tensors}) == 1 for record in store.records.values())
        return {key[:2]: record.tensors[0].kind for key, record in store.records.items()}


def test_a_budget_gives_experts_their_own_bits(
    source: Any, walk: LanguageWalk, texts: np.ndarray, between: float, tmp_path: Path
) -> None:
    pack = packed(source, walk, tmp_path / "a.pack", f"edgemoe:max_loss={between}", texts)
    assert check_pack(pack.path) == []
    found = widths(pack)
    assert len(found) == 18 and set(found.values()) == {"int2", "int4"}
    assert pack.record.provenance["identity"] == identity(source, walk.architecture)
    profile = Profile.of_bytes(pack.read_file(PROFILE_NAME))
    profile.require(identity(pack, walk.architecture), 3, 6)
    assert profile.tokens == texts.size
    tight = packed(source, walk, tmp_path / "b.pack", "edgemoe:max_loss=0", texts)
    assert sum(e.nbytes for e in pack.tensors.values()) < sum(e.nbytes for e in tight.tensors.values())
    with Engine.open(pack.path) as engine:
        plain, _ = engine.step(texts[0], cache=engine.cache(64), want="all")
    with Engine.open(pack.path, residency="streamed:edgemoe,buffer_kib=90") as engine:
        streamed, _ = engine.step(texts[0], cache=engine.cache(64), want="all")
    assert np.array_equal(plain, streamed)


def test_the_plan_keeps_its_loss_on_the_text_it_was_made_on(
    source: Any, walk: LanguageWalk, texts: np.ndarray, loss: ModelLoss, between: float
) -> None:
    method: Any = index.create("shrink", "precision", f"edgemoe:max_loss={between}")
    learned = method.for_walk(walk).learn(source, walk, texts)
    plan = learned.plan
    assert plan.reference == loss.reference
    assert plan.loss == pytest.approx(loss(plan.bits), rel=1e-6) and plan.increase <= between
    assert 2 < plan.mean_bits < 4
    again = method.for_walk(walk).learn(source, walk, texts)
    assert again.plan == plan and again.profile == learned.profile
    everything = dict.fromkeys(learned.experts.tensors, 32)
    assert loss(everything) == pytest.approx(loss.reference, rel=1e-6)


def test_the_loss_is_the_engine_s(source: Any, texts: np.ndarray, loss: ModelLoss) -> None:
    total = 0.0
    with Engine.open(source) as engine:
        for row in texts:
            logits = engine.step(row, cache=engine.cache(64), want="all")[0][:-1].astype(np.float64)
            chances = logits - logits.max(axis=1, keepdims=True)
            chances -= np.log(np.exp(chances).sum(axis=1, keepdims=True))
            total -= float(np.take_along_axis(chances, row[1:, None].astype(np.int64), axis=1).sum())
    assert loss.reference == pytest.approx(total / (texts.size - len(texts)), rel=1e-5)


def test_states_kept_of_the_base_plan_change_no_loss(
    source: Any, walk: LanguageWalk, texts: np.ndarray
) -> None:
    experts = walk.all_experts
    assert experts is not None
    base = dict.fromkeys(experts.tensors, 4)
    fresh, warm = (ModelLoss(source, walk, experts, texts) for _ in range(2))
    warm(base)
    for expert in [(0, 1), (1, 4), (2, 0)]:
        plan = {**base, expert: 2}
        assert warm(plan) == fresh(plan)


def test_errors_are_of_experts_that_tokens_choose(
    source: Any, walk: LanguageWalk, texts: np.ndarray, loss: ModelLoss, between: float, tmp_path: Path
) -> None:
    errors = loss.errors()
    profile = profile_of(source, walk, loss.experts, texts)
    assert {key for key in errors if errors[key] > 0} == {
        key for key in errors if profile.frequencies[key] > 0
    }
    choice = f"edgemoe:max_loss={between},importance=error"
    assert set(widths(packed(source, walk, tmp_path / "e.pack", choice, texts)).values()) == {"int2", "int4"}


@pytest.mark.parametrize(("bits", "kind"), [(2, "int2"), (4, "int4"), (8, "int8"), (16, "f16"), (32, "f32")])
def test_the_same_bits_for_all(
    source: Any, walk: LanguageWalk, texts: np.ndarray, tmp_path: Path, bits: int, kind: str
) -> None:
    choice = f"edgemoe:bits={bits}"
    pack = packed(source, walk, tmp_path / "a.pack", choice, texts)
    assert set(widths(pack).values()) == {kind}
    kinds = stored_kinds(walk, index.create("shrink", "precision", choice), Policy())  # type: ignore[arg-type]
    assert {name: entry.kind for name, entry in pack.tensors.items()} == {
        name: one.kind for name, one in kinds.items()
    }
    assert sum(entry.nbytes for entry in pack.tensors.values()) == sum(
        one.nbytes(*(shape if len(shape := walk.shape(name)) == 2 else (1, shape[0])))
        for name, one in kinds.items()
    )


def test_what_follows_from_the_model_and_the_text_alone(
    source: Any, walk: LanguageWalk, texts: np.ndarray, between: float, tmp_path: Path
) -> None:
    choice = f"edgemoe:max_loss={between}"
    one, two = (packed(source, walk, tmp_path / f"{n}.pack", choice, texts) for n in "ab")
    assert (one.path / STORE_NAME).read_bytes() == (two.path / STORE_NAME).read_bytes()


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "llama", **{k: v for k, v in OLMOE.items() if "expert" not in k}}
    config["model_type"] = "llama"
    dense = LanguageWalk(read_architecture(config))
    assert experts_of(dense.architecture) is None
    method: Any = index.create("shrink", "precision", "edgemoe")
    assert "the model has no experts" in method.refused(dense).values()
    with pytest.raises(UserError, match=r"edgemoe cannot take .*the model has no experts"):
        stored_kinds(dense, method, Policy())
    with pytest.raises(UserError, match=r"max_loss=-1\.0 is no loss"):
        index.create("shrink", "precision", "edgemoe:max_loss=-1")
    with pytest.raises(UserError, match="bits=5 is not supported"):
        index.create("shrink", "precision", "edgemoe:bits=5")
