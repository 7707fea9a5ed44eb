"""TextWorld games: the pure-Python state beside the compiled game, and the graph of states beside the
library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from haversack.core.errors import UserError
from haversack.share._hera_agents import Planner, walkthrough
from haversack.share._hera_baselines import Constant
from haversack.share._hera_episodes import replayed, run_episode
from haversack.share._hera_textworld import CompiledGame, TextWorldGame, make_game


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cooking game as JSON and compiled, and a coin game as JSON."""
    from textworld import GameOptions
    from textworld.generator import compile_game

    goal = tmp_path_factory.mktemp("games")
    cooking = make_game(3, "cooking")
    cooking.save(str(goal / "cooking-3.json"))
    (goal / "compiled").mkdir()
    options = GameOptions()
    options.path = str(goal / "compiled" / "cooking-3.z8")
    compile_game(cooking, options)
    make_game(4, "coin").save(str(goal / "coin-4.json"))
    return goal


@pytest.fixture
def cooking(folder: Path) -> TextWorldGame:
    return TextWorldGame.load(folder / "cooking-3.json")


def test_the_planner_wins_and_replay_agrees(cooking: TextWorldGame, folder: Path) -> None:
    done = run_episode(cooking, Planner(0.0), Planner(0.0), Constant(1.0))
    assert done.success and done.steps[-1].action == "eat meal"
    replayed(TextWorldGame.load(folder / "cooking-3.json"), done.steps)
    coin = TextWorldGame.load(folder / "coin-4.json")
    walkthrough(coin)
    assert coin.success


@pytest.mark.parametrize("kept", [1, 40])
def test_remembered_states_are_those_of_the_library(
    cooking: TextWorldGame, folder: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same walk twice, the second from memory, and beside it the library without ours; also where
    only the first state is kept."""
    from haversack.share import _hera_textworld

    monkeypatch.setattr(_hera_textworld, "KEPT", kept)
    cooking = TextWorldGame.load(folder / "cooking-3.json")
    from textworld.generator.game import GameProgression

    actions = [action for _, action in walkthrough(cooking)]
    for _ in range(2):
        plain: Any = GameProgression(cooking.game)
        cooking.reset()
        for action in actions:
            named = dict(
                zip(
                    cooking._words.gen_commands_from_actions(plain.valid_actions),
                    plain.valid_actions,
                    strict=True,
                )
            )
            assert set(cooking.admissible) <= set(named)
            assert len(cooking.admissible) >= 1
            plain.update(named[action])
            moved = cooking.step(action)
            assert (moved.reward, cooking.success) == (float(plain.completed), plain.completed)
            assert {str(one) for one in plain.state.facts} == {
                str(o) for o in cooking._progression(cooking._at).state.facts
            }


def test_a_wrong_cut_loses(cooking: TextWorldGame) -> None:
    """What the recipe does not ask for spoils the food, and the game says so."""
    verbs = ("cook", "slice", "dice", "chop")
    way = [action for _, action in walkthrough(cooking)]
    before = way[: next(at for at, action in enumerate(way) if action.split()[0] in verbs)]

    def after(action: str | None) -> bool:
        cooking.reset()
        for one in before:
            cooking.step(one)
        if action is not None:
            cooking.step(action)
        return cooking.best is None

    assert not after(None)
    others = [one for one in cooking.admissible if one.split()[0] in verbs and one != way[len(before)]]
    spoiling = [one for one in others if after(one)]
    assert spoiling
    assert after(spoiling[0]) and not cooking.success
    assert not after(way[len(before)])


def test_the_recipe_is_part_of_the_task(cooking: TextWorldGame) -> None:
    assert "cookbook" in cooking.task and "Take the" in cooking.task


def test_looking_is_left_out_and_unknown_commands_cost_a_step(cooking: TextWorldGame) -> None:
    cooking.reset()
    assert not any(one.startswith(("look", "inventory", "examine")) for one in cooking.admissible)
    key = cooking.state_key
    cooking.step("sing")
    assert cooking.state_key == key and cooking.taken == 1


def test_the_compiled_game_shows_and_does_the_same(cooking: TextWorldGame, folder: Path) -> None:
    compiled = CompiledGame(folder / "compiled" / "cooking-3.z8")
    try:
        assert compiled.task == cooking.task
        seen, shown = cooking.reset(), compiled.reset()
        done = False
        while not done:
            assert shown == seen
            assert compiled.admissible == cooking.admissible
            best = cooking.best
            assert best is not None and compiled.best in cooking.admissible
            one, other = cooking.step(best), compiled.step(best)
            seen, shown, done = one.observation, other.observation, one.done
            assert (one.reward, one.done) == (other.reward, other.done)
        assert compiled.success
        again = run_episode(compiled, Planner(0.0), Planner(0.0), Constant(1.0))
        assert again.success
        replayed(compiled, again.steps)
    finally:
        compiled.close()


def test_files_that_are_no_games_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="no TextWorld game"):
        TextWorldGame.load(tmp_path / "bad.json")
    with pytest.raises(UserError, match="no compiled"):
        CompiledGame(tmp_path / "bad.z8")
    with pytest.raises(UserError, match="challenge"):
        make_game(1, "chess")
