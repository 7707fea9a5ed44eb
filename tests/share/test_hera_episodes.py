"""Episodes of device and cloud: budgets, a cloud that is not there, traces that are kept and read back."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from haversack.core.budget import Budget
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.ledger import Ledger
from haversack.share._hera_agents import Decision, Planner, Prompted, Scorer, Unreachable, walkthrough
from haversack.share._hera_baselines import Constant, Entropy, OracleAgreement, Sampled
from haversack.share._hera_curve import Point, area, at_share, front, of_tasks, share_for, sweep
from haversack.share._hera_episodes import (
    Episode,
    EpisodeBudget,
    read_traces,
    replayed,
    run_episode,
    states_of,
    write_traces,
)
from haversack.share._hera_household import PREPARATIONS, Household
from haversack.share._hera_states import Env
from haversack.share._routing import Asked

CLOUD = Planner(noise=0.0)


class First:
    """A device that always does the first thing that is allowed."""

    def begin(self, env: Env, seed: int) -> None:
        pass

    def ceiling(self, asked: Asked) -> Mapping[str, float]:
        return {}

    def act(self, asked: Asked) -> Decision:
        return Decision(asked.admissible[0])


class Failing(Planner):
    """A cloud whose link is lost after so many calls, and comes back."""

    def __init__(self, lost: range) -> None:
        super().__init__(noise=0.0)
        self.asked, self.lost = 0, lost

    def act(self, asked: Asked) -> Decision:
        self.asked += 1
        if self.asked - 1 in self.lost:
            raise Unreachable("no link")
        return super().act(asked)


def test_the_cloud_alone_solves_and_every_step_is_charged() -> None:
    book = Ledger()
    env = Household(3)
    done = run_episode(env, First(), CLOUD, Constant(1.0), ledger=book)
    assert done.success and done.steps[-1].reward == 1.0
    assert [step.action for step in done.steps] == [action for _, action in walkthrough(env)]
    assert book.total("cost_usd") == pytest.approx(CLOUD.cost_usd * len(done.steps))
    assert sum(step.cost for step in done.steps) == pytest.approx(book.total("cost_usd"))


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_cap_on_calls_is_never_passed(calls: int) -> None:
    done = run_episode(Household(3), First(), CLOUD, Constant(1.0), budget=EpisodeBudget(calls))
    assert done.cloud_calls == calls
    assert [step.chosen for step in done.steps[:calls]] == ["cloud"] * calls
    assert all(step.capped and step.chosen == "device" for step in done.steps[calls:])


def test_a_spent_budget_stops_the_episode_when_asked_to() -> None:
    done = run_episode(
        Household(3), First(), CLOUD, Constant(1.0), budget=EpisodeBudget(2, when_spent="stop")
    )
    assert done.stopped and not done.success and len(done.steps) == 2


def test_money_is_looked_at_before_the_call_and_over_episodes() -> None:
    book = Ledger()
    budget = EpisodeBudget(limits=Budget(cost_usd=5 * CLOUD.cost_usd))
    for number in range(3):
        run_episode(Household(number), First(), CLOUD, Constant(1.0), budget=budget, ledger=book)
    assert book.total("cost_usd") == pytest.approx(5 * CLOUD.cost_usd)


def test_bytes_and_privacy_keep_the_cloud_from_being_asked() -> None:
    for limits in (Budget(uplink_kib=0.1), Budget(privacy="device")):
        book = Ledger()
        done = run_episode(
            Household(3), First(), CLOUD, Constant(1.0), budget=EpisodeBudget(limits=limits), ledger=book
        )
        assert done.cloud_calls == 0 and book.total("uplink_bytes") == 0


def test_bad_budgets_are_refused() -> None:
    with pytest.raises(UserError, match="when_spent"):
        EpisodeBudget(when_spent="wait")
    with pytest.raises(UserError, match="below 0"):
        EpisodeBudget(-1)


def test_a_lost_link_is_marked_and_the_device_goes_on() -> None:
    done = run_episode(Household(3), First(), Failing(range(1, 3)), Constant(1.0))
    assert [step.offline for step in done.steps[:4]] == [False, True, True, False]
    assert [step.chosen for step in done.steps[:4]] == ["cloud", "device", "device", "cloud"]
    without = run_episode(Household(3), First(), None, Constant(1.0))
    assert all(step.offline and step.chosen == "device" for step in without.steps)


def test_the_device_is_asked_beside_without_being_executed() -> None:
    alone = run_episode(Household(3), First(), CLOUD, Constant(1.0))
    beside = run_episode(Household(3), First(), CLOUD, Constant(1.0), both=True)
    assert [one.action for one in alone.steps] == [one.action for one in beside.steps]
    assert all(one.device_action == one.admissible[0] for one in beside.steps)
    assert all(one.device_action is None for one in alone.steps)


def test_states_of_a_trace_are_those_that_were_routed() -> None:
    seen: list[Asked] = []

    class Spy:
        kind = "step"

        def p_cloud(self, asked: Asked) -> float:
            seen.append(asked)
            return 0.5

    done = [run_episode(Household(at), First(), CLOUD, Spy(), episode=at) for at in range(2)]
    assert [state for one in done for _, state in states_of(one.steps)] == seen


def test_what_is_hidden_never_leaves_and_comes_back_in_the_action() -> None:
    sent: list[str] = []

    def complete(prompt: str) -> tuple[str, Mapping[str, float]]:
        sent.append(prompt)
        return "open NAME-1", {}

    def hide(text: str) -> tuple[str, Callable[[str], str]]:
        return text.replace("fridge", "NAME-1"), lambda answer: answer.replace("NAME-1", "fridge")

    state = Asked("Look into the fridge.", (("A fridge is here.", ""),), ("go north", "open fridge"))
    agent = Prompted(complete, lambda prompt: {"uplink_bytes": len(prompt)}, hide=hide)
    assert agent.act(state).action == "open fridge"
    assert sent and not any("fridge" in one for one in sent)
    assert agent.ceiling(state)["uplink_bytes"] == len(sent[0])


def test_switching_models_reads_again_what_the_other_read() -> None:
    alone = run_episode(Household(3), First(), CLOUD, Constant(1.0))
    text = len(alone.steps[0].task) + sum(len(one.text) for one in alone.steps)
    read = sum(one.prefill for one in alone.steps)
    assert text / 4 <= read <= text / 4 + len(alone.steps)
    turns = iter([1.0, 0.0] * 100)

    class Turns:
        kind = "step"

        def p_cloud(self, asked: Asked) -> float:
            return next(turns)

    mixed = run_episode(
        Household(3), Prompted(lambda p: (CLOUD.act(CURRENT[0]).action, {})), CLOUD, Spying(Turns())
    )
    assert sum(one.prefill for one in mixed.steps) > 1.5 * read


CURRENT: list[Asked] = [Asked("")]


class Spying:
    """Keeps what is asked, so that a device without privileges can do what the planner would."""

    kind = "step"

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def p_cloud(self, asked: Asked) -> float:
        CURRENT[0] = asked
        return float(self.inner.p_cloud(asked))  # type: ignore[attr-defined]


def test_replay_accepts_the_same_world_and_refuses_another() -> None:
    done = run_episode(Household(3), First(), CLOUD, Sampled(0.5))
    replayed(Household(3), done.steps)
    with pytest.raises(UserError, match="not deterministic"):
        replayed(Household(4), done.steps)

    class Drifting(Household):
        count = 0

        @property
        def state_key(self) -> str:
            Drifting.count += 1
            return f"{super().state_key} {Drifting.count}"

    drifting = run_episode(Drifting(3), First(), CLOUD, Constant(1.0))
    with pytest.raises(UserError, match="another key"):
        replayed(Drifting(3), drifting.steps)


def test_traces_are_read_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    done = [run_episode(Household(at), First(), CLOUD, Sampled(0.5), episode=at) for at in range(3)]
    assert write_traces(path, done[:1]) + write_traces(path, done[1:]) == sum(len(one.steps) for one in done)
    assert read_traces(path) == [step for one in done for step in one.steps]


def test_a_line_that_a_kill_cut_is_dropped_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    done = run_episode(Household(1), First(), CLOUD, Constant(1.0))
    write_traces(path, [done])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert read_traces(path) == list(done.steps)
    write_traces(path, [done])
    assert read_traces(path) == [*done.steps, *done.steps]


def _write_forever(path: Path, ready: object) -> None:
    done = run_episode(Household(1), First(), CLOUD, Constant(1.0))
    while True:
        write_traces(path, [done])
        ready.set()  # type: ignore[attr-defined]


def test_a_killed_writer_leaves_whole_steps(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path, ready = tmp_path / "t.jsonl", context.Event()
    process = context.Process(target=_write_forever, args=(path, ready))
    process.start()
    assert ready.wait(30)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = run_episode(Household(1), First(), CLOUD, Constant(1.0))
    steps = [{**asdict(step), "latency_ms": 0} for step in read_traces(path)]
    expected = [{**asdict(step), "latency_ms": 0} for step in done.steps]
    assert steps == (expected * (len(steps) // len(expected) + 1))[: len(steps)]
    assert len(steps) >= len(expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": "both"}, "neither"),
        ({"reward": "1"}, "reward"),
        ({"reward": float("inf")}, "finite"),
        ({"step": True}, "step"),
        ({"admissible": "go"}, "admissible"),
        ({"device_action": 3}, "device_action"),
    ],
)
def test_traces_that_do_not_hold_name_their_line(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [run_episode(Household(1), First(), CLOUD, Constant(1.0))])
    lines = path.read_text().splitlines()
    record = json.loads(lines[1])
    lines[1] = json.dumps({**record, **change})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DamagedFileError, match=f"line 2 .*{said}"):
        read_traces(path)
    del record["state_key"]
    lines[1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DamagedFileError, match="no state_key"):
        read_traces(path)


@pytest.mark.parametrize("data", [b"[]\n", b"{\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_hostile_traces_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(DamagedFileError, match="line 1"):
        read_traces(tmp_path / "t")
    with pytest.raises(UserError, match="cannot be read"):
        read_traces(tmp_path / "none")


@pytest.mark.parametrize("number", range(20))
def test_every_house_can_be_solved_knowing_and_searching(number: int) -> None:
    env = Household(number)
    for knowing in (True, False):
        way = walkthrough(env, knowing)
        assert env.success, (number, knowing)
        assert len(way) <= env.most_steps
        assert all(action in state.admissible for state, action in way)


def test_a_wrong_preparation_cannot_be_mended() -> None:
    env = Household(5)
    env.reset()
    while env.held != env.house.thing or env.room != "kitchen":
        assert env.best is not None
        env.step(env.best)
    wrong = next(verb for verb in PREPARATIONS if verb not in env.house.recipe)
    moved = env.step(f"{wrong} {env.house.thing} with {PREPARATIONS[wrong]}")
    assert moved.done and moved.reward == 0 and "spoiled" in moved.observation
    assert env.best is None
    with pytest.raises(UserError, match="over"):
        env.step("go north")


def test_state_keys_forget_the_way_but_nothing_else() -> None:
    """Two ways to one state share its key; states of one key have the same text and the same ways on."""
    by_key: dict[str, tuple[str, tuple[str, ...]]] = {}
    again = 0
    env = Household(8)
    for seed in range(30):
        walked = run_episode(Household(8), First(), Planner(noise=0.5), Sampled(0.5, seed), seed=seed)
        observation = env.reset()
        for step in walked.steps:
            shown = (observation.partition("You are")[2], env.admissible)
            again += env.state_key in by_key
            assert by_key.setdefault(env.state_key, shown) == shown
            observation = env.step(step.action).observation
    assert again > 20


def test_an_unknown_action_costs_a_step_and_changes_nothing() -> None:
    env = Household(3)
    env.reset()
    key = env.state_key
    moved = env.step("dance")
    assert env.state_key == key and not moved.done and "Nothing happens" in moved.observation
    with pytest.raises(UserError, match="rooms"):
        Household(1, rooms=99)


def test_oracle_and_entropy() -> None:
    env, device = Household(3), Scorer.learn([Household(at) for at in range(100, 106)], seed=0, epochs=4)
    looking = Planner(noise=0.0)
    looking.begin(env, 0)
    done = run_episode(env, device, CLOUD, OracleAgreement(device, looking), both=True)
    for step in done.steps:
        assert step.chosen == "device" or step.device_action != step.cloud_action
    assert done.success, "the device acts only where it does what the planner would"
    chances = [Entropy(device).p_cloud(state) for _, state in states_of(done.steps)]
    assert all(0 <= one <= 1 for one in chances) and len(set(chances)) > 1


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(0.5, success, share, 0.0, 0.0) for share, success in pairs]


def test_curves_by_hand() -> None:
    listed = points((0, 0.2), (0.5, 0.8), (0.6, 0.7), (1, 0.9))
    assert [one.share for one in front(listed)] == [0, 0.5, 1]
    assert at_share(listed, 0.25) == pytest.approx(0.5)
    assert at_share(listed, 0.75) == pytest.approx(0.85)
    assert area(listed) == pytest.approx((0.5 + 0.85) / 2, abs=0.01)
    assert share_for(listed, 0.5) == pytest.approx(0.25)
    assert share_for(listed, 0.95) == float("inf")
    assert share_for(listed, 0.1) == 0


def test_a_router_of_tasks_equals_running_it() -> None:
    houses = [Household(at) for at in range(8)]
    device = First()
    alone = [run_episode(env, device, CLOUD, Constant(0.0)) for env in houses]
    cloud = [run_episode(env, device, CLOUD, Constant(1.0)) for env in houses]
    chances = [0.9, 0.1, 0.8, 0.3, 0.2, 0.7, 0.6, 0.4]
    by_task = {env.task: chance for env, chance in zip(houses, chances, strict=True)}

    class Taskwise:
        kind = "query"

        def p_cloud(self, asked: Asked) -> float:
            return by_task[asked.text]

    run = sweep(houses, device, CLOUD, Taskwise(), (0.5,))[0]
    quick = of_tasks(chances, alone, cloud)[4]
    assert (quick.success, quick.share, quick.calls) == (run.success, run.share, run.calls)


def test_figures_of_the_paper_are_relative() -> None:
    """92.5 % at 46.3 % beside 86.2 % at 62.1 %."""
    ours, theirs = points((0.463, 0.925))[0], points((0.621, 0.862))[0]
    assert ours.success / theirs.success == pytest.approx(1.073, abs=5e-4)
    assert ours.share / theirs.share == pytest.approx(0.746, abs=5e-4)


def test_an_episode_without_steps_is_counted_as_such() -> None:
    assert Point.of(0.5, [Episode((), False)]).share == 0
