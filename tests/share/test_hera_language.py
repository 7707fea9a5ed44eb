"""A language model as router, on a tiny checkpoint of the hub's format: the same code as for a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.run._embed import embed
from haversack.run._engine import Engine
from haversack.run._source import open_model
from haversack.share._hera_agents import Planner, Prompted, of_engine
from haversack.share._hera_baselines import Constant, Sampled
from haversack.share._hera_episodes import run_episode, states_of
from haversack.share._hera_household import Household
from haversack.share._hera_lm import (
    HEAD,
    LanguageRouter,
    chance,
    head_file,
    learn_language,
    read_head,
    read_of,
)
from haversack.share._hera_states import last_tokens
from haversack.share.hera import Hera


@pytest.fixture(scope="module")
def traces() -> list[Any]:
    cloud = Planner()
    done = [run_episode(Household(at), Planner(0.5), cloud, Constant(1.0), both=True) for at in range(3)]
    done += [
        run_episode(Household(0), Planner(0.5), cloud, Sampled(0.5, at), seed=at, episode=at)
        for at in range(4)
    ]
    return [step for one in done for step in one.steps]


@pytest.fixture(scope="module")
def folder(tiny: Path, traces: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    goal = tmp_path_factory.mktemp("language") / "router"
    method = Hera(imitation_epochs=1, outcome_epochs=1)
    found = learn_language(open_model(tiny), traces, goal, method)
    assert found["imitation"]["steps"] > 0 and found["outcomes"]["states"] > 0
    return goal


def test_deciding_equals_learning(tiny: Path, traces: list[Any]) -> None:
    """The torch side's logit with factors that changed, and the engine's on the merged checkpoint."""
    import torch

    from haversack.share._hera_lm_torch import LanguageLearning, fit_language

    states = [state for _, state in states_of(traces)][:6]
    learning = LanguageLearning(open_model(tiny), seed=1)
    with torch.no_grad():
        for second in learning.second:
            second.normal_(0, 0.05, generator=torch.Generator().manual_seed(7))
    losses = fit_language(
        learning, states, [0, 1, 0, 1, 0, 1], [1.0] * 6, epochs=6, rate=1e-3, head_rate=5e-2, batch=6
    )
    assert losses[-1] < losses[0]
    goal = tiny.parent / "merged-router"
    learning.save(goal)
    router = LanguageRouter.open(goal)
    for state in states:
        wanted = float(torch.sigmoid(learning.logit(state).detach()))
        assert router.p_cloud(state) == pytest.approx(wanted, abs=2e-3)
    assert np.ptp([router.p_cloud(state) for state in states]) > 0.01


def test_only_factors_and_classifier_learn(tiny: Path) -> None:
    from haversack.share._hera_lm_torch import LanguageLearning

    learning = LanguageLearning(open_model(tiny), rank=2)
    numbers = sum(value.numel() for value in learning.parameters())
    whole = sum(value.numel() for value in learning.tensors.values())
    assert numbers < whole
    assert not any(value.requires_grad for value in learning.tensors.values())


def test_a_fresh_router_says_one_half_and_the_classifier_reads_the_last_token(
    tiny: Path, tmp_path: Path
) -> None:
    from haversack.share._hera_lm_torch import LanguageLearning

    learning = LanguageLearning(open_model(tiny))
    learning.save(tmp_path / "r")
    router = LanguageRouter.open(tmp_path / "r")
    state = next(states_of(run_episode(Household(1), Planner(), Planner(), Constant(1.0)).steps))[1]
    assert router.p_cloud(state) == 0.5
    engine = Engine.open(tiny)
    text = read_of(state, engine.context_length, engine.model.tokenizer())
    hidden = embed(engine, [text], pooling="last", normalized=False)[0]
    weight = np.linspace(-1, 1, len(hidden)).astype(np.float32)
    (tmp_path / "r" / HEAD).write_bytes(head_file(weight, 0.25))
    again = LanguageRouter.open(tmp_path / "r")
    assert again.p_cloud(state) == pytest.approx(chance(hidden, weight, 0.25), abs=1e-5)


def test_long_states_keep_their_end(tiny: Path) -> None:
    engine = Engine.open(tiny)
    tokenizer = engine.model.tokenizer()
    text = "word " * 5000 + "Allowed actions: go north"
    short = last_tokens(text, 100, tokenizer)
    assert short.endswith("go north")
    assert 50 < len(tokenizer.encode(short)) <= 100
    assert last_tokens(short, 100, tokenizer) == short


def test_it_routes_episodes(folder: Path) -> None:
    router = LanguageRouter.open(folder)
    done = run_episode(Household(2), Planner(), Planner(), router, 0.0)
    assert done.success and all(step.chosen == "cloud" for step in done.steps)


def test_folders_that_do_not_hold_are_refused(folder: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learn-steps"):
        LanguageRouter.open(tiny)
    (tmp_path / HEAD).write_bytes(head_file(np.zeros(3, np.float32), 0.0))
    weight, bias = read_head(tmp_path / HEAD)
    assert len(weight) == 3 and bias == 0.0
    kept = (folder / HEAD).read_bytes()
    try:
        (folder / HEAD).write_bytes((tmp_path / HEAD).read_bytes())
        with pytest.raises(DamagedFileError, match="width"):
            LanguageRouter.open(folder)
        (folder / HEAD).write_bytes(head_file(np.full(3, np.nan, np.float32), 0.0))
        with pytest.raises(DamagedFileError, match="no number"):
            LanguageRouter.open(folder)
    finally:
        (folder / HEAD).write_bytes(kept)


def test_a_pack_or_checkpoint_acts_within_what_is_allowed(tiny: Path) -> None:
    agent = Prompted(of_engine(Engine.open(tiny), max_tokens=4))
    done = run_episode(Household(2, most_steps=3), agent, None, Constant(0.0))
    assert all(step.action in step.admissible for step in done.steps)
