"""Several models at once: votes, debates with and without new evidence, sparse topologies, swarms with a
cloud."""

from __future__ import annotations

import functools
import re

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.llms_over_networks import _models as toys
from haversack.bench.llms_over_networks._bench import NETWORK, bench
from haversack.share.collaboration._network import Ask, FunctionEngine, Network, Node
from haversack.share.collaboration._session import Result, Task
from haversack.share.collaboration.debates import Debate, Edges, edges_of, pruned
from haversack.share.collaboration.hybrids import Swarm
from haversack.share.collaboration.votes import Vote, error_correlation

WATCHED = (
    *NETWORK,
    "bench/llms_over_networks/horizontal.py",
    "share/collaboration/votes.py",
    "share/collaboration/debates.py",
    "share/collaboration/hybrids.py",
)
F64 = NDArray[np.float64]
VOTERS = 5
AGENTS = 10


def mean_right(results: list[Result]) -> float:
    """The share of right answers."""
    return float(np.mean([bool(one.right) for one in results]))


@functools.cache
def digit_rows(which: str) -> F64:
    """What a digit model says of every image."""
    data = toys.digits()
    part = toys.HALVES[which.removeprefix("cloud-")] if which.startswith("cloud-") else slice(0, 64)
    return toys.probabilities(toys.digit_model(which), data.images[:, part])


def digit_tasks(places: NDArray[np.int64]) -> list[Task]:
    """Questions about images."""
    data = toys.digits()
    return [Task(f"Which digit is image {at}?", answer=str(data.labels[at])) for at in places]


@bench.measure(
    Row(
        "h1-vote",
        "H1, the majority of five models over the mean of one of them",
        "accuracy",
        "quality",
        Bar(">=", 1.03),
        quick=True,
    ),
    Row(
        "h1-weighted",
        "H1, votes weighed by log(p / (1 - p)) of each model's known accuracy over the plain majority",
        "accuracy",
        "quality",
        Bar(">=", 1.0),
        quick=True,
    ),
    Row(
        "hy-quality",
        "HY, five devices vote and the cloud decides where they disagree: accuracy over the cloud's on all",
        "accuracy",
        "quality",
        Bar(">=", 0.97),
        quick=True,
    ),
    Row(
        "hy-calls",
        "HY, calls of the cloud over asking it always",
        "calls",
        "bytes",
        Bar("<=", 0.4),
        quick=True,
    ),
    seconds=40,
    quick_seconds=15,
    watches=WATCHED,
)
def votes(run: Run) -> Outcomes:
    """Digits; voters have learned from 40 to 200 images of their own. Accuracies and h are of the choosing
    part."""
    data = toys.digits()
    names = tuple(f"voter-{at}" for at in range(1, VOTERS + 1))
    known = {
        name: float((digit_rows(name)[data.choosing].argmax(1) == data.labels[data.choosing]).mean())
        for name in names
    }
    nodes = [toys.digit_node(name, digit_rows(name), accuracy=known[name]) for name in names]
    network = Network([*nodes, toys.digit_node("cloud", digit_rows("cloud-both"), tier="cloud")])
    tasks = digit_tasks(data.test[:200] if run.quick else data.test)
    right = np.stack([digit_rows(name)[data.test].argmax(1) == data.labels[data.test] for name in names])
    single = float(right[:, : len(tasks)].mean())
    plain = [Vote(names).run(task, network) for task in tasks]
    weighted = [Vote(names, weights="accuracy").run(task, network) for task in tasks]
    swarm = [Swarm(names, h=0.75).run(task, network) for task in tasks]
    cloud = float(
        np.mean([digit_rows("cloud-both")[at].argmax() == data.labels[at] for at in data.test[: len(tasks)]])
    )
    correlated = error_correlation(right)
    between = float(correlated[np.triu_indices(VOTERS, 1)].mean())
    calls = sum(one.calls_of("cloud") for one in swarm) / len(tasks)
    return {
        "h1-vote": Outcome.single(
            mean_right(plain),
            single,
            name="vote of 5",
            against="one model",
            note=f"their errors correlate by {between:.2f}",
        ),
        "h1-weighted": Outcome.single(
            mean_right(weighted), mean_right(plain), name="weighted", against="plain"
        ),
        "hy-quality": Outcome.single(mean_right(swarm), cloud, name="swarm", against="cloud alone"),
        "hy-calls": Outcome.single(
            calls, 1.0, name="swarm", against="cloud alone", note="entropy above 0.75 bits"
        ),
    }


def parts(seed: int, agents: int = AGENTS) -> tuple[list[str], list[Task]]:
    """(a piece of a document for each agent, tasks): the sum of two readings, which two different agents
    hold."""
    text, asked = toys.document(seed, 240)
    lines = text.split("\n")
    pieces = ["\n".join(lines[at::agents]) for at in range(agents)]
    tasks = []
    for (one, first), (other, second) in zip(asked[::2], asked[1::2], strict=True):
        total = f"{float(first) + float(second):.2f}"
        tasks.append(Task(f"{one} {other} Add both readings.", answer=total))
    return pieces, tasks


def holder(name: str, piece: str, brief: bool = False) -> Node:
    """An agent that reads its piece and what others found, adds where it has both, and, unless `brief`, tells
    what it knows."""

    def say(ask: Ask) -> tuple[str, float | None]:
        asked = re.findall(r"What is .+?\?", ask.prompt)[:2]
        heard = (
            ask.prompt.split("Other agents answered:")[-1] if "Other agents answered:" in ask.prompt else ""
        )
        known, told = [], []
        for question in asked:
            line, chance = toys.best_line(question, f"{piece}\n{heard}")
            if chance > 0.5:
                known.append(float(toys.reading_in(line)))
                told.append(line.lstrip("- "))
        answer = f"{sum(known):.2f}" if len(known) == 2 else "unknown"
        if brief:
            return answer, None
        context = [line for line in piece.split("\n")[:6] if line not in told]  # what else it has read
        return "\n".join([answer, *told, *context]), None

    return Node(name, FunctionEngine(say))


def debated(seed: int, debate: Debate) -> list[Result]:
    """A debate over the tasks of one document."""
    pieces, tasks = parts(seed)
    nodes = [holder(f"agent-{at}", piece) for at, piece in enumerate(pieces)]
    return [debate.run(task, Network(nodes)) for task in tasks]


def agents() -> tuple[str, ...]:
    """Names of the agents."""
    return tuple(f"agent-{at}" for at in range(AGENTS))


@functools.cache
def learned_edges() -> Edges:
    """Edges that are kept when the answers of other documents' debates stay what they are."""

    def consensus(edges: Edges) -> list[str]:
        debate = Debate(agents(), rounds=2, edges=edges)
        return [result.answer.split("\n")[0] for result in debated(500, debate)]

    return pruned(edges_of("ring", AGENTS) | edges_of("star", AGENTS), consensus)


@bench.measure(
    Row(
        "h4-evidence",
        "H4, a debate of ten agents who each hold a part of the document, less the vote of the same agents",
        "accuracy",
        "quality",
        Bar(">=", 0.0),
        judged="ours",
        quick=True,
    ),
    Row(
        "h4-repeats",
        "H4 where messages carry nothing new (the five digit models), over their vote; informs",
        "accuracy",
        "quality",
        quick=True,
    ),
    Row(
        "sparse-bytes",
        "a sparse topology, its edges learned on another document, over the complete one: bytes",
        "bytes",
        "bytes",
        Bar("<=", 0.5),
    ),
    Row(
        "sparse-quality",
        "the same sparse topology over the complete one: accuracy",
        "accuracy",
        "quality",
        Bar(">=", 0.98),
    ),
    Row(
        "topologies",
        "bytes of a debate of random edges (degree 2) over complete; the note has all topologies",
        "bytes",
        "bytes",
    ),
    seconds=150,
    quick_seconds=25,
    watches=WATCHED,
)
def debates(run: Run) -> Outcomes:
    """Sums of two readings that two agents hold."""
    seeds = [run.seed % 1000 + at for at in range(2 if run.quick else 8)]
    names = agents()
    complete = [one for seed in seeds for one in debated(seed, Debate(names, rounds=3))]
    voted = []
    for seed in seeds:
        pieces, tasks = parts(seed)
        network = Network([holder(f"agent-{at}", piece, brief=True) for at, piece in enumerate(pieces)])
        voted += [Vote(names).run(task, network) for task in tasks]
    found: dict[str, Outcome] = {
        "h4-evidence": Outcome.single(
            mean_right(complete) - mean_right(voted),
            name="debate less vote",
            note=f"debate {mean_right(complete):.3f}, vote {mean_right(voted):.3f}",
        ),
        "h4-repeats": _repeats(run.quick),
    }
    if run.quick:
        return found
    others = {}
    for topology in ("random", "ring", "star", "tree", "chain"):
        debate = Debate(names, rounds=3, topology=topology)
        others[topology] = [one for seed in seeds for one in debated(seed, debate)]
    others["learned"] = [
        one for seed in seeds for one in debated(seed, Debate(names, rounds=3, edges=learned_edges()))
    ]
    size = {name: float(np.mean([one.total_bytes for one in results])) for name, results in others.items()}
    whole = float(np.mean([one.total_bytes for one in complete]))
    note = ", ".join(
        f"{name} {size[name] / whole:.2f} of the bytes at {mean_right(results):.3f}"
        for name, results in others.items()
    )
    return found | {
        "sparse-bytes": Outcome.single(size["learned"], whole, name="learned", against="complete", note=note),
        "sparse-quality": Outcome.single(
            mean_right(others["learned"]), mean_right(complete), name="learned", against="complete"
        ),
        "topologies": Outcome.single(size["random"], whole, name="degree 2", against="complete", note=note),
    }


def _repeats(quick: bool) -> Outcome:
    """The digit models debate: they can only repeat themselves, or follow the others where they are
    unsure."""
    data = toys.digits()
    names = tuple(f"voter-{at}" for at in range(1, VOTERS + 1))

    def follower(name: str) -> Node:
        rows = digit_rows(name)

        def say(ask: Ask) -> tuple[str, float]:
            at = int(re.findall(r"image (\d+)", ask.prompt)[0])
            row = rows[at].copy()
            for heard in re.findall(r"^- (\d)$", ask.prompt, re.MULTILINE):
                row[int(heard)] += 0.2
            return str(int(row.argmax())), float(row.max() / row.sum())

        return Node(name, FunctionEngine(say), schema="number")

    network = Network([follower(name) for name in names])
    tasks = digit_tasks(data.test[:80] if quick else data.test)
    debate = [Debate(names, rounds=2).run(task, network) for task in tasks]
    vote = [Vote(names).run(task, network) for task in tasks]
    extra = float(np.mean([one.total_bytes for one in debate])) / float(
        np.mean([one.total_bytes for one in vote])
    )
    return Outcome.single(
        mean_right(debate),
        mean_right(vote),
        name="debate",
        against="vote",
        note=f"{extra:.1f} times the bytes",
    )
