"""One episode, step by step: who acts, within which budget, what it took; and the traces that are kept of
it."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from haversack.core.budget import Budget
from haversack.core.errors import DamagedFileError, UserError, not_allowed
from haversack.core.ledger import Ledger
from haversack.share._hera_agents import Agent, Decision, Unreachable
from haversack.share._hera_states import Env, asked
from haversack.share._routing import Asked, Router

TRACE_MOST = 1 << 30
LINE_MOST = 1 << 20
WHEN_SPENT = ("device", "stop")
DEMANDS = {
    "uplink_bytes": ("uplink_kib", 1024.0),
    "energy_mj": ("energy_mj", 1.0),
    "cost_usd": ("cost_usd", 1.0),
}


@dataclass(frozen=True)
class EpisodeBudget:
    """Hard caps, looked at before the cloud is asked: its `cloud_calls` of one episode, and `limits` on
    what the ledger's totals may come to. `when_spent`: go on with the device alone, or `stop` the
    episode."""

    cloud_calls: int | None = None
    limits: Budget = field(default_factory=Budget)
    when_spent: str = "device"

    def __post_init__(self) -> None:
        if self.when_spent not in WHEN_SPENT:
            raise not_allowed("when_spent", self.when_spent, WHEN_SPENT)
        if self.cloud_calls is not None and self.cloud_calls < 0:
            raise UserError(
                f"cloud_calls={self.cloud_calls} is below 0; use 0 for none.",
                field="cloud_calls",
                given=self.cloud_calls,
                nearest=0,
            )


@dataclass(frozen=True)
class Step:
    """A line of a trace. `text`: what was seen; `chosen`: whose action was done; `device_action` and
    `cloud_action`: what each would do, where it was asked; `reward` 1 on the step that solved the task;
    `cost` in USD. `offline`: the cloud was wanted and could not be asked; `capped`: a budget kept it from
    being asked. `prefill`: tokens, about, that the acting model had not read yet."""

    task_id: str
    episode: int
    step: int
    state_key: str
    task: str
    text: str
    admissible: tuple[str, ...]
    device_action: str | None
    cloud_action: str | None
    chosen: str
    action: str
    p_cloud: float
    reward: float
    cost: float
    latency_ms: float
    offline: bool = False
    capped: bool = False
    prefill: int = 0


@dataclass(frozen=True)
class Episode:
    """What came of it: its `steps`, whether it was solved, whether a spent budget `stopped` it, and what
    was seen at the end."""

    steps: tuple[Step, ...]
    success: bool
    stopped: bool = False
    last: str = ""

    @property
    def cloud_calls(self) -> int:
        return sum(step.chosen == "cloud" for step in self.steps)


def run_episode(
    env: Env,
    device: Agent,
    cloud: Agent | None,
    router: Router,
    tau: float = 0.5,
    budget: EpisodeBudget | None = None,
    *,
    ledger: Ledger | None = None,
    seed: int = 0,
    episode: int = 0,
    sample: bool = False,
    both: bool = False,
) -> Episode:
    """Run `env` from its beginning to its end. The cloud acts where the router's chance is at least
    `tau`; with `sample` it is drawn with that chance. `both` asks the device at every step, without
    executing.

    Without a cloud, or while it is unreachable, the device acts and the step is marked `offline`.
    """
    budget, ledger = budget or EpisodeBudget(), ledger if ledger is not None else Ledger()
    draw = random.Random(f"{env.task_id} {seed} {episode} route")
    observation = env.reset()
    for agent in (device, cloud):
        if agent is not None:
            agent.begin(env, seed + episode)
    past: list[tuple[str, str]] = []
    read = {"device": 0, "cloud": 0}
    steps: list[Step] = []
    calls, done, stopped = 0, False, False
    while not done:
        state = asked(env.task, past, observation, env.admissible)
        if not state.admissible:
            break
        began = time.perf_counter()
        chance = router.p_cloud(state)
        wanted = draw.random() < chance if sample else chance >= tau
        capped = wanted and cloud is not None and not _may_ask(cloud, state, budget, ledger, calls)
        if capped and budget.when_spent == "stop":
            stopped = True
            break
        offline, taken, chosen = wanted and cloud is None, None, "device"
        if wanted and not capped and cloud is not None:
            try:
                taken, chosen = cloud.act(state), "cloud"
                calls += 1
            except Unreachable:
                offline = True
        beside = device.act(state) if both or taken is None else None
        taken = taken or beside
        assert taken is not None
        _count(ledger, taken, f"{env.task_id} step {len(past)}")
        key, prefill = env.state_key, _unread(env.task, past, observation, read[chosen])
        read[chosen] = len(past) + 1
        moved = env.step(taken.action)
        steps.append(
            Step(
                *(env.task_id, episode, len(past), key, env.task, observation, state.admissible),
                device_action=beside.action if beside is not None else None,
                cloud_action=taken.action if chosen == "cloud" else None,
                chosen=chosen,
                action=taken.action,
                p_cloud=chance,
                reward=moved.reward,
                cost=float(taken.spent.get("cost_usd", 0.0)),
                latency_ms=1000 * (time.perf_counter() - began),
                offline=offline,
                capped=capped,
                prefill=prefill,
            )
        )
        past.append((observation, taken.action))
        observation, done = moved.observation, moved.done
    return Episode(tuple(steps), env.success, stopped, observation)


def _may_ask(cloud: Agent, state: Asked, budget: EpisodeBudget, ledger: Ledger, calls: int) -> bool:
    if budget.limits.privacy == "device" or (budget.cloud_calls is not None and calls >= budget.cloud_calls):
        return False
    if not budget.limits.limits():
        return True
    demand = ledger.demand()
    for counter, amount in cloud.ceiling(state).items():
        if counter in DEMANDS:
            name, unit = DEMANDS[counter]
            demand[name] += amount / unit
    return budget.limits.fits(demand)


def _count(ledger: Ledger, taken: Decision, what: str) -> None:
    for counter, amount in taken.spent.items():
        if amount:
            ledger.add(counter, amount, what)


def _unread(task: str, past: Sequence[tuple[str, str]], observation: str, read: int) -> int:
    """Tokens, about four characters each, that a model which knows the first `read` pairs has not read."""
    new = sum(len(seen) + len(action) for seen, action in past[read:]) + len(observation)
    return -(-(new + (len(task) if read == 0 else 0)) // 4)


def states_of(steps: Iterable[Step]) -> Iterator[tuple[Step, Asked]]:
    """Each step beside the state that it was taken in, its episode's history read off the steps before it."""
    past: list[tuple[str, str]] = []
    at: tuple[str, int] | None = None
    for step in steps:
        if (step.task_id, step.episode) != at or step.step == 0:
            at, past = (step.task_id, step.episode), []
        yield step, asked(step.task, tuple(past), step.text, step.admissible)
        past.append((step.text, step.action))


def replayed(env: Env, steps: Sequence[Step]) -> None:
    """Do an episode's actions again. Raises UserError where a state has another key or another text than
    it had: such keys name no states, and nothing may be grouped by them."""
    observation = env.reset()
    for step in steps:
        if env.state_key != step.state_key or observation != step.text:
            what = "key" if env.state_key != step.state_key else "text"
            raise UserError(
                f"{step.task_id}: replayed, step {step.step} has another {what} than in its trace; the "
                "world is not deterministic, so its states cannot be grouped.",
                field="state_key",
                given=step.state_key,
                nearest=env.state_key,
            )
        observation = env.step(step.action).observation


def write_traces(path: Path, episodes: Iterable[Episode]) -> int:
    """Append episodes, a step a JSON line; a last line that a kill cut short is dropped first. Returns the
    number of lines."""
    lines = [json.dumps(asdict(step), ensure_ascii=False) for episode in episodes for step in episode.steps]
    with path.open("ab+") as file:
        end = file.seek(0, 2)
        if end:
            file.seek(max(0, end - LINE_MOST))
            tail = file.read()
            file.truncate(end - (len(tail) - (tail.rfind(b"\n") + 1)))
        file.write("".join(line + "\n" for line in lines).encode())
    return len(lines)


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str | None": (str, type(None)),
}


def read_traces(path: Path) -> list[Step]:
    """The steps of a file, checked line by line. Raises DamagedFileError naming the line and the field."""
    try:
        if path.stat().st_size > TRACE_MOST:
            raise UserError(f"{path} is larger than 1 GiB; split it.", field="traces", given=str(path))
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", field="traces", given=str(path)
        ) from error
    lines = data.split(b"\n")
    return [_step(path, number, line) for number, line in enumerate(lines[:-1], start=1) if line.strip()]


def _step(path: Path, number: int, line: bytes) -> Step:
    def bad(what: str) -> DamagedFileError:
        return DamagedFileError(path, f"line {number} {what}", field="traces")

    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise bad("is not JSON") from error
    if not isinstance(record, dict):
        raise bad("is no object")
    values: dict[str, Any] = {}
    for one in fields(Step):
        if one.name not in record:
            if one.name in ("offline", "capped", "prefill"):
                continue
            raise bad(f"has no {one.name}")
        value = record[one.name]
        if one.name == "admissible":
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise bad("has admissible actions that are no list of texts")
            value = tuple(value)
        else:
            allowed = _TYPES[str(one.type)]
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise bad(f"has a {one.name} that is not {one.type}")
            if isinstance(value, float) and not math.isfinite(value):
                raise bad(f"has a {one.name} that is not finite")
        values[one.name] = value
    if values["chosen"] not in ("device", "cloud"):
        raise bad("was chosen neither by device nor by cloud")
    return Step(**values)
