"""Device and cloud: routing and cascades at equal cost, a document that stays on the device, what to upload,
and a link that is down a third of the time."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.llms_over_networks import _models as toys
from haversack.bench.llms_over_networks._bench import NETWORK, ROUTERS, bench
from haversack.core.budget import Budget
from haversack.core.link import Link, Segment
from haversack.share._outcomes import Outcomes as Paired
from haversack.share._prices import Price
from haversack.share.collaboration._clock import run_virtual
from haversack.share.collaboration._network import Ask, FunctionEngine, Network, Node
from haversack.share.collaboration._session import Task
from haversack.share.collaboration.calibration import calibration_error
from haversack.share.collaboration.cascades import Cascade, Offline, Routing, cascade_cost
from haversack.share.collaboration.documents import Minions
from haversack.share.collaboration.modalities import Action, LinUcb, ModalityChoice
from haversack.share.learning_routers import Seen, learn, report
from haversack.share.query_routers import scores_of, threshold_for

WATCHED = (*NETWORK, *ROUTERS, "bench/llms_over_networks/vertical.py")
SHARE = 0.4
COSTS = (1.0, 20.0)
PRICES = (0.3, 0.1, 0.03, 0.01)
"""Of a KiB, in right answers."""
F64 = NDArray[np.float64]
CLOUD_PRICE = Price(5.0, 15.0)


@functools.cache
def answered(count: int, seed: int) -> tuple[list[str], NDArray[np.int64], F64, F64]:
    """(questions, answers, device's probabilities [n, 10], cloud's) of list questions."""
    texts, answers = toys.lists(count, seed)
    features = toys.list_features(texts)
    both = [toys.probabilities(toys.list_model(which), features) for which in ("device", "cloud")]
    return texts, answers, both[0], both[1]


def paired(count: int, seed: int) -> Paired:
    """The same as outcomes of a weak and a strong model."""
    texts, answers, device, cloud = answered(count, seed)
    right = [(rows.argmax(1) == answers).astype(np.float64) for rows in (device, cloud)]
    return Paired(tuple(texts), right[0], right[1], ("device", "cloud"), ("",) * count)


def wifi(seed: int = 0) -> dict[tuple[str, str], Link]:
    """A link both ways."""
    trace = [Segment(1, 20.0, 40.0, 0.002)]
    return {("device", "cloud"): Link(trace, seed), ("cloud", "device"): Link(trace, seed + 1)}


@bench.measure(
    Row(
        "v1-over-random",
        "V1, a learned router at 40 % cloud share: accuracy over that of random routing at the same share",
        "accuracy",
        "quality",
        Bar(">=", 1.05),
        quick=True,
    ),
    Row(
        "v1-area",
        "V1, area between its curve and random routing, of the oracle's",
        "part of the oracle's area",
        "quality",
        Bar(">=", 0.6),
        judged="ours",
        quick=True,
    ),
    Row(
        "v2-over-v1",
        "V2, a cascade by the device's own confidence: accuracy over V1's at equal cost",
        "accuracy",
        "quality",
        Bar(">=", 1.0),
        quick=True,
    ),
    seconds=90,
    quick_seconds=20,
    watches=WATCHED,
)
def routing(run: Run) -> Outcomes:
    """V1 and V2 on list questions; the router, its threshold and tau are of other questions."""
    count = 600 if run.quick else 2400
    seed = 1000 + run.seed % 100_000
    chosen, test = paired(1500, 3), paired(count, seed)
    learned = learn("classifier", Seen.of(chosen), SHARE)
    found = report(learned.router, Seen.of(test), SHARE, learned.threshold)
    texts, answers, device, _ = answered(count, seed)
    network = Network(
        [
            toys.list_node("device", toys.list_model("device"), texts),
            toys.list_node("cloud", toys.list_model("cloud"), texts, tier="cloud"),
        ],
        wifi(),
    )
    tasks = [Task(text, answer=str(answer)) for text, answer in zip(texts, answers, strict=True)]
    # V1: cost (1 - s) 1 + s 20; V2: 1 + s' 20; equal at s' = 19 s / 20.
    router = Routing(router=learned.router, threshold=threshold_for(scores_of(learned.router, texts), SHARE))
    routed = [router.run(task, network) for task in tasks]
    share = sum(one.calls_of("cloud") for one in routed) / count
    escalated = share * (COSTS[1] - COSTS[0]) / COSTS[1]
    sure = answered(1500, 3)[2].max(1)
    tau = float(np.quantile(sure, escalated))
    cascaded = [Cascade(tau=(tau,)).run(task, network) for task in tasks]
    second = sum(one.calls_of("cloud") for one in cascaded) / count
    one, two = (float(np.mean([result.right for result in results])) for results in (routed, cascaded))
    costs = ((1 - share) * COSTS[0] + share * COSTS[1], cascade_cost(COSTS, (second,)))
    error = calibration_error(device.max(1), (device.argmax(1) == answers).astype(np.float64))
    sizes = [toys.size_of(toys.list_model(which)) for which in ("device", "cloud")]
    right = f"right in {found['weak']:.3f} and {found['strong']:.3f}"
    models = f"models of {sizes[0]:,} and {sizes[1]:,} numbers, {right}"
    spent = f"costs {costs[1]:.2f} and {costs[0]:.2f} (device 1, cloud 20)"
    why = "V1 has learned what the cloud cannot do either, the device's confidence knows itself alone"
    return {
        "v1-over-random": Outcome.single(
            found["outcome"], found["random"], name="classifier", against="random routing", note=models
        ),
        "v1-area": Outcome.single(found["area_of_oracle"], note=f"oracle at 40 %: {found['oracle']:.3f}"),
        "v2-over-v1": Outcome.single(
            two,
            one,
            name="cascade",
            against="V1",
            note=f"{spent}; the device's ECE is {error:.3f}; {why}",
        ),
    }


@bench.measure(
    Row(
        "v6-bytes",
        "V6, MinionS over a document that the device holds: bytes to the cloud over uploading it",
        "bytes",
        "bytes",
        Bar("<=", 0.1),
        quick=True,
    ),
    Row(
        "v6-quality",
        "V6, answers right, over those of a cloud that was given the document",
        "answers right",
        "quality",
        Bar(">=", 0.95),
    ),
    seconds=60,
    quick_seconds=15,
    watches=(*WATCHED, "share/collaboration/documents.py", "share/collaboration/roles.py"),
)
def documents(run: Run) -> Outcomes:
    """Questions about readings in documents of some 23,000 characters."""
    minions = Minions(size=2500, overlap=80, most=1, rounds=1)
    sent = {"minions": 0, "upload": 0}
    right = {"minions": 0, "upload": 0}
    total = 0
    for seed in range(2 if run.quick else 10):
        text, asked = toys.document(run.seed % 1000 + seed)
        network = Network([_local(), _remote()], wifi(seed))
        for question, value in asked:
            task = Task(question, context=text, answer=value)
            result = minions.run(task, network)
            whole = Offline("cloud", "device").run(Task(question, context=text, answer=value), network)
            for name, one in (("minions", result), ("upload", whole)):
                sent[name] += one.counts.left_bytes
                right[name] += bool(one.right)
            total += 1
    return {
        "v6-bytes": Outcome.single(
            sent["minions"] / total,
            sent["upload"] / total,
            name="MinionS",
            against="whole document",
            note="a question",
        ),
        "v6-quality": Outcome.single(
            right["minions"] / total, right["upload"] / total, name="MinionS", against="whole document"
        ),
    }


def _local() -> Node:
    """A device that reads a piece at a time."""

    def say(ask: Ask) -> tuple[str, float]:
        question = re.search(r"What is .+?\?", ask.prompt)
        assert question is not None
        line, chance = toys.best_line(question[0], ask.prompt.split("Part of a document:")[-1])
        found = {"found": chance > 0.2, "text": f"{line} ({chance:.2f})" if line else ""}
        return json.dumps(found), chance

    return Node("device", FunctionEngine(say), prefill_tokens_s=200.0, decode_tokens_s=20.0)


def _remote() -> Node:
    """A cloud that writes the instruction, and reads findings or whole documents."""

    def say(ask: Ask) -> tuple[str, float | None]:
        question = re.search(r"What is .+?\?", ask.prompt)
        assert question is not None
        if (
            "instructions, one a line, each beginning" in ask.prompt
            and "found in its document" not in ask.prompt
        ):
            return f"- {question[0]}", None
        text = ask.prompt.split("found in its document:")[-1]
        line, chance = toys.best_line(question[0], text)
        prefix = "ANSWER: " if "found in its document" in ask.prompt else ""
        return prefix + toys.reading_in(line), chance

    return Node("cloud", FunctionEngine(say), "cloud", CLOUD_PRICE, 2000.0, 60.0)


@bench.measure(
    Row(
        "v8-bytes",
        "V8, model and modalities chosen together: bytes uploaded over always uploading all to the cloud",
        "bytes",
        "bytes",
        Bar("<=", 0.6),
    ),
    Row(
        "v8-quality",
        "V8, answers right, over always uploading all",
        "answers right",
        "quality",
        Bar(">=", 0.98),
    ),
    seconds=90,
    watches=(*WATCHED, "share/collaboration/modalities.py"),
)
def modalities(run: Run) -> Outcomes:
    """Digits in two halves. LinUCB learns on 2,000 draws of the choosing part and is greedy on the test
    part."""
    data = toys.digits()
    device = toys.probabilities(toys.digit_model("voter-3"), data.images)
    rows = {part: _shown_to(part) for part in toys.HALVES}
    network = Network([toys.digit_node("device", device), _viewer(rows)], wifi())
    actions = (
        Action("device", ()),
        *(Action("cloud", halves) for halves in (("upper",), ("lower",), ("upper", "lower"))),
    )
    ordered = np.sort(device, 1)
    contexts = np.concatenate(
        [
            np.ones((len(device), 1)),
            ordered[:, -1:],
            (ordered[:, -1:] - ordered[:, -2:-1]),
            ordered[:, -1:] ** 4,
            np.eye(10)[device.argmax(1)] * (1 - ordered[:, -1:]),
        ],
        1,
    )

    def task(at: int) -> Task:
        halves = {
            name: " ".join(str(round(16 * value)) for value in data.images[at][part])
            for name, part in toys.HALVES.items()
            if name != "both"
        }
        return Task(f"Which digit is image {at}?", modalities=halves, answer=str(data.labels[at]))

    def context(one: Task) -> F64:
        return contexts[int(one.prompt.split()[-1].rstrip("?"))]

    def trained(price: float) -> ModalityChoice:
        """Greedy, after 2,000 tasks at so much a KiB."""
        bandit = LinUcb(len(actions), contexts.shape[1], alpha=0.3)
        choice = ModalityChoice(actions, bandit, context, weights=(0.0, 0.0, price))
        rng = np.random.default_rng(run.seed)
        for at in rng.choice(data.choosing, 2000):
            choice.run(task(int(at)), network)
        bandit.alpha = 0.0
        return ModalityChoice(actions, bandit, context, learning=False)

    # The dearest bytes at which the choosing part keeps 0.99 of what the cloud alone has right there.
    wanted = 0.99 * float((rows["both"][data.choosing].argmax(1) == data.labels[data.choosing]).mean())
    for price in PRICES:
        greedy = trained(price)
        kept = [bool(greedy.run(task(int(at)), network).right) for at in data.choosing]
        if float(np.mean(kept)) >= wanted:
            break
    ours = [greedy.run(task(int(at)), network) for at in data.test]
    everything = ModalityChoice(actions[-1:], LinUcb(1, contexts.shape[1]), context, learning=False)
    always = [everything.run(task(int(at)), network) for at in data.test]
    alone = float((device[data.test].argmax(1) == data.labels[data.test]).mean())
    sent = [float(np.mean([one.counts.left_bytes for one in results])) for results in (ours, always)]
    right = [float(np.mean([one.right for one in results])) for results in (ours, always)]
    calls = float(np.mean([one.calls_of("cloud") for one in ours]))
    return {
        "v8-bytes": Outcome.single(
            sent[0],
            sent[1],
            name="LinUCB",
            against="all to the cloud",
            note=f"cloud asked for {calls:.2f} of the tasks; {price:g} a KiB",
        ),
        "v8-quality": Outcome.single(
            right[0],
            right[1],
            name="LinUCB",
            against="all to the cloud",
            note=f"the device alone: {alone:.3f}",
        ),
    }


def _shown_to(part: str) -> F64:
    data = toys.digits()
    return toys.probabilities(toys.digit_model(f"cloud-{part}"), data.images[:, toys.HALVES[part]])


def _viewer(rows: dict[str, F64]) -> Node:
    """A cloud that sees only what is sent."""

    def say(ask: Ask) -> tuple[str, float]:
        at = int(ask.prompt.split("image ")[1].rstrip("?"))
        part = "both" if len(ask.modalities) == 2 else next(iter(ask.modalities))
        return toys.drawn(rows[part][at], ask.seed, str(at))

    return Node("cloud", FunctionEngine(say), "cloud", CLOUD_PRICE, schema="number")


@bench.measure(
    Row(
        "outage-quality",
        "a cascade with the link down 30 % of the time: answers right, over the device alone",
        "answers right",
        "quality",
        Bar(">=", 1.0),
        quick=True,
    ),
    Row(
        "outage-deadline",
        "the longest task with the link down 30 % of the time, over its deadline",
        "seconds of virtual time",
        "quality",
        Bar("<=", 1.0),
        quick=True,
    ),
    seconds=30,
    quick_seconds=10,
    watches=WATCHED,
)
def outage(run: Run) -> Outcomes:
    """Tasks one after the other over a link that is down for 3 s of every 10, each with a deadline of 2 s."""
    count = 200 if run.quick else 800
    texts, answers, device, _ = answered(count, 2000 + run.seed % 100_000)
    trace = [Segment(7, 10.0, 60.0, 0.005), Segment(3, 0.0, 60.0)]
    links = {("device", "cloud"): Link(trace, 1), ("cloud", "device"): Link(trace, 2)}
    network = Network(
        [
            toys.list_node("device", toys.list_model("device"), texts, decode_tokens_s=20.0),
            toys.list_node("cloud", toys.list_model("cloud"), texts, tier="cloud", decode_tokens_s=60.0),
        ],
        links,
    )
    tau = float(np.quantile(answered(1500, 3)[2].max(1), SHARE))
    algorithm = Offline(Cascade(tau=(tau,)), "device", reserve_s=0.3)

    async def play() -> list[Any]:
        results = []
        for text, answer in zip(texts, answers, strict=True):
            task = Task(text, answer=str(answer), budget=Budget(latency_ms=2000))
            results.append(await algorithm.go(task, network))
            await asyncio.sleep(0.137)
        return results

    results = run_virtual(play())
    right = float(np.mean([one.right for one in results]))
    alone = float((device.argmax(1) == answers).mean())
    longest = max(one.seconds for one in results)
    lost = float(np.mean([bool(one.degraded) for one in results]))
    return {
        "outage-quality": Outcome.single(
            right,
            alone,
            name="cascade",
            against="device alone",
            note=f"{lost:.2f} of the tasks went without the cloud",
        ),
        "outage-deadline": Outcome.single(longest, 2.0, name="longest", against="deadline"),
    }
