"""The rules of Hera on numbers that are known, and what a router learns from groups."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, HaversackError, UserError
from haversack.formats.safetensors import SafetensorsFile, write_safetensors
from haversack.share._hera_agents import Planner, Scorer
from haversack.share._hera_baselines import Constant
from haversack.share._hera_episodes import Episode, Step, run_episode, states_of
from haversack.share._hera_household import Household
from haversack.share._hera_net import BagNet, Packed, fit
from haversack.share._hera_router import Floored, StepRouter, cloud_share, episodes_of
from haversack.share._hera_states import asked, nearest_admissible, normalised, past_and_seen
from haversack.share._router_files import RECORD
from haversack.share._routing import Asked, Router
from haversack.share.hera import (
    Group,
    Hera,
    class_weight,
    cross_entropy_slope,
    group,
    imitation_labels,
    penalised,
    preference,
    preferred,
    returns,
    router_of,
)


def step(chosen: str, reward: float = 0.0, key: str = "s", at: int = 0, **other: object) -> Step:
    fields = {
        "task_id": "t",
        "episode": 0,
        "step": at,
        "state_key": key,
        "task": "do it",
        "text": f"room {at}",
        "admissible": ("a", "b"),
        "device_action": "a",
        "cloud_action": "b" if chosen == "cloud" else None,
        "chosen": chosen,
        "action": "b" if chosen == "cloud" else "a",
        "p_cloud": 0.5,
        "reward": reward,
        "cost": 0.0,
        "latency_ms": 0.0,
    }
    return Step(**{**fields, **other})  # type: ignore[arg-type]


def episode(*chosen: str, reward: float, keys: str | None = None) -> Episode:
    last = len(chosen) - 1
    steps = [
        step(one, reward if at == last else 0.0, (keys or "abcdefgh")[at], at)
        for at, one in enumerate(chosen)
    ]
    return Episode(tuple(steps), reward > 0)


@pytest.mark.parametrize(
    ("gained", "calls", "wanted"),
    [((1, 1), (0, 1), 0), ((0.2, 0.8), (0, 3), 1), ((0.5, 0.52), (4, 2), 1), ((0, 0), (2, 2), 0)],
)
def test_preference_table(gained: tuple[float, float], calls: tuple[float, float], wanted: int) -> None:
    assert preference(gained, calls) == wanted


def test_success_at_exactly_epsilon_counts_as_equal() -> None:
    assert preference((0.5, 0.75), (0, 1), epsilon=0.25) == 0
    assert preference((0.75, 0.5), (3, 1), epsilon=0.25) == 1
    assert preference((0.75, 0.49), (3, 1), epsilon=0.25) == 0


def test_penalised_success_pays_for_calls() -> None:
    assert penalised((0.5, 0.55), (0, 4), 0.01) == 1
    assert penalised((0.5, 0.55), (0, 6), 0.01) == 0
    assert penalised((0.5, 0.5), (1, 1), 0.01) == 0


def test_imitation_labels_of_the_specification() -> None:
    assert imitation_labels(["a", "b", "c", "d"], ["a", "x", "c", "y"]) == [0, 1, 0, 1]


def test_actions_are_normalised_before_they_are_compared() -> None:
    device = ["Go  North.", "mix eggs with milk", "put apple in box"]
    cloud = ["go north", "mix the milk and the eggs", "put box in apple"]
    assert imitation_labels(device, cloud, frozenset({"mix"})) == [0, 0, 1]
    assert imitation_labels(device, cloud) == [0, 1, 1]
    with pytest.raises(ValueError):
        imitation_labels(["a"], [])


def test_class_weight_is_capped_both_ways() -> None:
    assert class_weight([1, 0, 0]) == 2
    assert class_weight([1] + [0] * 50) == 5
    assert class_weight([1] * 50 + [0]) == pytest.approx(0.2)


def test_returns_count_the_own_call() -> None:
    assert returns(episode("cloud", "device", "cloud", reward=1.0).steps) == [(1, 2), (1, 1), (1, 1)]


def test_groups_hold_what_a_plain_count_holds() -> None:
    draw = np.random.default_rng(5)
    episodes = [
        episode(
            *(("device", "cloud")[draw.integers(2)] for _ in range(4)),
            reward=float(draw.integers(2)),
            keys="".join("xyz"[draw.integers(3)] for _ in range(4)),
        )
        for _ in range(40)
    ]
    found = group(episodes)
    for key in "xyz":
        for decision, name in enumerate(("device", "cloud")):
            wanted = [
                (one.steps[-1].reward, sum(s.chosen == "cloud" for s in one.steps[at:]))
                for one in episodes
                for at, s in enumerate(one.steps)
                if s.state_key == key and s.chosen == name
            ]
            assert found[key].success[decision] == [gained for gained, _ in wanted]
            assert found[key].calls[decision] == [calls for _, calls in wanted]


def test_a_group_with_one_decision_gives_no_label() -> None:
    router = StepRouter(Hera(), 0)
    learned = router.fit_outcomes([s for s in episode("device", "device", reward=1.0).steps])
    assert learned.steps == 0
    assert "both decisions" in learned.notes[0]


def test_few_episodes_are_doubted() -> None:
    once = Group(([0.0], [1.0]), ([0.0], [1.0]))
    often = Group(([0.0] * 40, [1.0] * 40), ([0.0] * 40, [1.0] * 40))
    assert preferred(often, Hera()) > 0.99
    assert 0.5 < preferred(once, Hera()) < 0.8
    assert preferred(once, Hera(prior=0.0)) > preferred(once, Hera(prior=8.0))
    assert often.weight == 20 and once.weight == 0.5


@pytest.mark.parametrize("reward", ["lexicographic", "penalised"])
@pytest.mark.parametrize(
    ("gained", "calls"),
    [((1, 1), (0, 3)), ((0.2, 0.8), (0, 3)), ((0.8, 0.2), (3, 0)), ((0.5, 0.5), (6, 2)), ((0, 0), (2, 2))],
)
def test_many_episodes_prefer_what_their_means_prefer(
    gained: tuple[float, float], calls: tuple[float, float], reward: str
) -> None:
    count = 4000
    success = tuple([1.0] * round(p * count) + [0.0] * (count - round(p * count)) for p in gained)
    group_ = Group(success, tuple([float(one)] * count for one in calls))  # type: ignore[arg-type]
    method = Hera(reward=reward, call_cost=0.02)
    wanted = (
        preference(gained, calls, tie=0.5) if reward == "lexicographic" else penalised(gained, calls, 0.02)
    )
    equal = reward == "penalised" and gained == (0, 0)
    assert preferred(group_, method) == pytest.approx(0.5 if equal else wanted, abs=0.02)


def test_the_chance_of_a_preference_is_that_of_drawn_means() -> None:
    """Against draws of both means from their normal distributions."""
    draw = np.random.default_rng(3)
    device, cloud = [1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0]
    one = Group((device, cloud), ([2.0, 0.0, 3.0, 1.0, 1.0], [1.0, 2.0, 1.0]))
    method = Hera(prior=2.0)
    near = [(sum(v) + 2 * 0.5) / (len(v) + 2) for v in (device, cloud)]
    level = (4 + 1) / (8 + 2)
    gains = [
        draw.normal(m, np.sqrt(level * (1 - level) / (len(v) + 2)), 200_000)
        for m, v in zip(near, (device, cloud), strict=True)
    ]
    scatter = np.var([2, 0, 3, 1, 1, 1, 2, 1]) + 0.25
    counts = [draw.normal(np.mean(v), np.sqrt(scatter / len(v)), 200_000) for v in one.calls]
    more, fewer = gains[1] - gains[0], counts[0] - counts[1]
    wanted = np.where(np.abs(more) > 0.05, more > 0, fewer > 0.5).mean()
    assert preferred(one, method) == pytest.approx(float(wanted), abs=0.01)


def test_the_network_learns_by_its_true_gradient() -> None:
    net = BagNet.new(3, hidden=5)
    draw = np.random.default_rng(0)
    net.parameters["out"] = draw.normal(size=5).astype(np.float32)
    bags = [np.array([1, 7, 9], np.int32), np.array([7], np.int32), np.array([2, 3], np.int32)]
    packed = Packed.of(bags)
    wanted = np.array([0.3, -1.0, 2.0], np.float32)
    scores, hidden = net._forward(packed)
    assert np.allclose(scores, [net.score(bag) for bag in bags], atol=1e-5)
    found = net.gradients(packed, hidden, wanted)
    for name, places in {
        "embedding": [(7, 2), (2, 0), (9, 4), (100, 1)],
        "bias": [(1,)],
        "out": [(3,)],
        "offset": [(0,)],
    }.items():
        for at in places:
            values = []
            for sign in (1, -1):
                moved = net.copy()
                moved.parameters[name][at] += np.float32(sign * 1e-2)
                values.append(float(moved.scores(bags) @ wanted))
            assert found[name][at] == pytest.approx((values[0] - values[1]) / 2e-2, abs=2e-2)


def test_holding_near_the_anchor_keeps_parameters_near() -> None:
    bags = [[np.array([at, at + 1], np.int32)] for at in range(40)]
    slope = cross_entropy_slope([at % 2 for at in range(40)], [1.0] * 40)
    anchor = BagNet.new(1)
    away = []
    for hold in (0.0, 1.0):
        net = anchor.copy()
        fit(net, bags, slope, epochs=20, rate=1e-2, seed=0, anchor=anchor, hold=hold)
        away.append(sum(float(((net.parameters[n] - v) ** 2).sum()) for n, v in anchor.parameters.items()))
    assert away[1] < 0.2 * away[0]


def rooms(text: str) -> Asked:
    return asked("fetch it from the kitchen", [], f"you are in the {text}", ("a", "b"))


def test_a_router_learns_what_groups_prefer_not_where_actions_differ() -> None:
    """Actions differ everywhere; only in the kitchen does the device's lead to failure."""
    episodes = []
    for at in range(60):
        in_kitchen, chosen = at % 2 == 0, ("device", "cloud")[at // 2 % 2]
        text = f"you are in the {'kitchen' if in_kitchen else 'hall'} number {at % 6}"
        reward = 0.0 if in_kitchen and chosen == "device" else 1.0
        episodes.append(Episode((step(chosen, reward, text, 0, text=text, task=rooms("").text),), reward > 0))
    router = StepRouter(Hera(outcome_epochs=100, rate=1e-2, hold=0.0), seed=1)
    learned = router.fit_outcomes([one for each in episodes for one in each.steps])
    assert (learned.steps, learned.positive) == (6, 3)
    assert router.route(rooms("kitchen number 2")) > 0.9
    assert router.route(rooms("hall number 1")) < 0.45, "nothing but a call is saved there"


def test_imitation_needs_both_actions_and_says_when_labels_are_of_one_class() -> None:
    router = StepRouter()
    with pytest.raises(UserError, match="--record both"):
        router.fit_imitation([step("device")])
    learned = router.fit_imitation([step("cloud", 1.0, device_action="b")])
    assert "agree on every step" in learned.notes[0]
    assert router.route(rooms("hall")) == 0.0
    learned = router.fit_imitation([step("cloud", 1.0, device_action="a")])
    assert "differ on every step" in learned.notes[0]
    assert router.route(rooms("hall")) == 1.0


def test_imitation_prefers_solved_episodes() -> None:
    solved = [step("cloud", 1.0, device_action="a", at=0)]
    failed = [step("cloud", 0.0, device_action="b", at=0, episode=1)]
    assert StepRouter().fit_imitation([*solved, *failed]).steps == 1
    assert StepRouter().fit_imitation(failed).steps == 1
    assert [one.success for one in episodes_of([*solved, *failed])] == [True, False]


@pytest.fixture(scope="module")
def learned() -> StepRouter:
    """A router after both stages on a few houses."""
    houses = [Household(at) for at in range(12)]
    device, cloud = Scorer.learn(houses[:6], seed=0, epochs=3), Planner()
    traces = [run_episode(env, device, cloud, Constant(1.0), both=True) for env in houses]
    router = StepRouter(Hera(rounds=1, rollouts=3), seed=2)
    router.fit_imitation([one for each in traces for one in each.steps])
    before = router.net.copy()
    found = router.fit_rl(lambda: houses, device, cloud)
    assert found.steps > 0 and 0 <= found.positive <= found.steps
    assert len(found.rounds) == 1
    assert any((router.net.parameters[n] != v).any() for n, v in before.parameters.items())
    return router


def test_learning_is_the_same_under_a_seed(learned: StepRouter) -> None:
    houses = [Household(at) for at in range(12)]
    device, cloud = Scorer.learn(houses[:6], seed=0, epochs=3), Planner()
    traces = [run_episode(env, device, cloud, Constant(1.0), both=True) for env in houses]
    again = StepRouter(Hera(rounds=1, rollouts=3), seed=2)
    again.fit_imitation([one for each in traces for one in each.steps])
    again.fit_rl(lambda: houses, device, cloud)
    for name, values in learned.net.parameters.items():
        assert np.array_equal(values, again.net.parameters[name])


def test_a_file_gives_the_same_router(learned: StepRouter, tmp_path: Path) -> None:
    path = tmp_path / "steps.router"
    assert learned.save(path) == path.stat().st_size
    again: Router = StepRouter.load(path)
    state = rooms("kitchen")
    assert again.p_cloud(state) == learned.p_cloud(state)
    assert again.kind == "step"
    file = SafetensorsFile.open(path)
    record = json.loads(file.metadata[RECORD])
    assert (record["kind"], record["threshold"], record["version"]) == ("step", learned.threshold, 1)
    tensors = {
        name: np.frombuffer(file.bytes(name), "<f4").reshape(entry.shape)
        for name, entry in file.tensors.items()
    }
    assert router_of(record, tensors, path).p_cloud(state) == learned.p_cloud(state)


def test_a_constant_router_survives_its_file(tmp_path: Path) -> None:
    router = StepRouter()
    router.constant = 1.0
    router.save(tmp_path / "r")
    assert StepRouter.load(tmp_path / "r").route(rooms("hall")) == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version"),
        ({"kind": "query"}, "no step router"),
        ({"method": {"rounds": 9999}}, "parameters"),
        ({"method": {"system": 1}}, "parameters"),
        ({"constant": 3.0}, "chance"),
    ],
)
def test_files_that_do_not_hold_are_refused(
    learned: StepRouter, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    learned.save(tmp_path / "good")
    file = SafetensorsFile.open(tmp_path / "good")
    record = {**json.loads(file.metadata[RECORD]), **change}
    tensors = [(n, "f32", e.shape, bytes(file.bytes(n))) for n, e in file.tensors.items()]
    write_safetensors(tmp_path / "bad", tensors, {RECORD: json.dumps(record)})
    with pytest.raises(HaversackError, match=said):
        StepRouter.load(tmp_path / "bad")


def test_tensors_that_do_not_hold_are_refused(learned: StepRouter, tmp_path: Path) -> None:
    learned.save(tmp_path / "good")
    file = SafetensorsFile.open(tmp_path / "good")
    values = {n: np.frombuffer(file.bytes(n), "<f4").reshape(e.shape).copy() for n, e in file.tensors.items()}
    for name, bad in {
        "offset": np.array([np.nan], np.float32),
        "out": values["out"][:-1],
        "embedding": values["embedding"][:10],
    }.items():
        changed = {**values, name: bad}
        listed = [(n, "f32", v.shape, v.tobytes()) for n, v in changed.items()]
        write_safetensors(tmp_path / "bad", listed, file.metadata)
        with pytest.raises(DamagedFileError, match=name):
            StepRouter.load(tmp_path / "bad")
    (tmp_path / "bad").write_bytes((tmp_path / "good").read_bytes()[:5000])
    with pytest.raises(DamagedFileError):
        StepRouter.load(tmp_path / "bad")


def test_a_threshold_gives_the_share_that_is_asked_for(learned: StepRouter, tmp_path: Path) -> None:
    houses = [Household(at) for at in range(20, 40)]
    done = [run_episode(env, Planner(), Planner(), Constant(1.0)) for env in houses]
    steps = [one for each in done for one in each.steps]
    states = [state for _, state in states_of(steps)]
    for share in (0.2, 0.45):
        learned.method = Hera(share=share)
        learned.calibrate(states)
        assert cloud_share(learned, steps, learned.threshold) == pytest.approx(share, abs=0.05)
    learned.save(tmp_path / "r")
    assert StepRouter.load(tmp_path / "r").threshold == learned.threshold


def test_rollouts_keep_both_sides_possible(learned: StepRouter) -> None:
    constant = StepRouter()
    constant.constant = 1.0
    assert Floored(constant, 0.1).p_cloud(rooms("hall")) == 0.9
    assert 0.1 <= Floored(learned, 0.1).p_cloud(rooms("kitchen")) <= 0.9


def test_share_at_a_threshold(learned: StepRouter) -> None:
    steps = list(episode("cloud", "cloud", reward=1.0).steps)
    assert cloud_share(learned, steps, 0.0) == 1.0
    assert cloud_share(learned, steps, 1.1) == 0.0


@pytest.mark.parametrize("bad", [{"epsilon": -1.0}, {"floor": 0.6}, {"rate": float("nan")}, {"rounds": 51}])
def test_parameters_are_held_to_their_bounds(bad: dict[str, float]) -> None:
    with pytest.raises(UserError) as caught:
        Hera(**bad)  # type: ignore[arg-type]
    assert caught.value.field == next(iter(bad))


def test_a_history_that_ends_with_an_action_is_all_past() -> None:
    open_ended = asked("t", [("hall", "go")], "kitchen", ())
    assert past_and_seen(open_ended) == ((("hall", "go"),), "kitchen")
    assert past_and_seen(Asked("t", (("hall", "go"),))) == ((("hall", "go"),), "")
    assert past_and_seen(Asked("t")) == ((), "")


def test_a_reply_is_held_to_the_allowed_actions() -> None:
    allowed = ("open fridge", "open fridge door", "go north")
    assert nearest_admissible("Go north.\nThen open it", allowed) == "go north"
    assert nearest_admissible("I would open the fridge door now", allowed) == "open fridge door"
    assert nearest_admissible("fridge", allowed) == "open fridge"
    assert nearest_admissible("sing", allowed) is None
    assert nearest_admissible("", allowed) is None
    assert normalised("  Open THE fridge ") == "open fridge"
