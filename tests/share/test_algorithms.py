"""Every algorithm of the taxonomy by its name: what it asks, what it answers."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.share import networks

from haversack.core.budget import Budget
from haversack.core.errors import UserError
from haversack.core.link import Link, Segment
from haversack.share._routing import Asked
from haversack.share.collaboration import (
    cascades,
    contexts,
    debates,
    documents,
    hybrids,
    markets,
    plans,
    roles,
    votes,
)
from haversack.share.collaboration._algorithm import algorithms, create
from haversack.share.collaboration._clock import run_virtual
from haversack.share.collaboration._network import Ask, Network, Node
from haversack.share.collaboration._session import Task
from haversack.share.collaboration.modalities import (
    Action,
    LinThompson,
    LinUcb,
    ModalityChoice,
    actions_of,
    reward_of,
)

node, pair, slow = networks.node, networks.pair, networks.slow


# algorithms


def test_every_algorithm_is_found_by_name_and_code() -> None:
    known = algorithms()
    codes = {kind.code for kind in known.values()}
    assert {f"V{at}" for at in range(1, 12)} | {f"H{at}" for at in range(1, 13)} <= codes
    assert {"HY1", "HY2", "HY3"} <= codes
    for name, kind in known.items():
        assert kind.name == name and kind.summary and kind.__doc__
        assert type(create(kind.code)) is kind
    assert type(create("hy")) is hybrids.Swarm


def test_algorithms_are_written_and_composed_as_text() -> None:
    made = create("cascade(tiers=vote(nodes=a+b+c,n=3)+cloud,tau=0.75,verifier=confidence)")
    assert isinstance(made, cascades.Cascade) and made.tau == (0.75,)
    assert made.tiers == (votes.Vote(("a", "b", "c"), 3), "cloud")
    assert create("V2(tau=0.5+0.9,tiers=a+b+c)") == cascades.Cascade(("a", "b", "c"), (0.5, 0.9))
    assert create("plan(reverse=yes,most=3)") == plans.Plan(reverse=True, most=3)
    for wrong in (
        "cascad",
        "cascade(",
        "cascade(tau)",
        "cascade(tau=x)",
        "cascade(taw=1)",
        "vote(n=vote())",
        "unknown(a=1)",
        "",
        "cascade)",
        "vote(nodes=a+)",
        "plan(reverse=perhaps)",
    ):
        with pytest.raises(UserError):
            create(wrong)


def test_a_composed_algorithm_answers() -> None:
    nodes = [node(name, text) for name, text in (("a", "x"), ("b", "x"), ("c", "y"))]
    network = Network([*nodes, node("cloud", "right", tier="cloud")])
    inner = votes.Vote(("a", "b", "c"))
    result = cascades.Cascade((inner, "cloud"), (0.9,)).run(Task("q", answer="Right."), network)
    assert result.answer == "right" and result.right and result.calls_of("cloud") == 1
    result = cascades.Cascade((inner, "cloud"), (0.5,)).run(Task("q"), network)
    assert result.answer == "x" and result.calls_of("cloud") == 0


@pytest.mark.parametrize(
    ("rating", "where"), [("1", "d"), ("5", "c"), ("3.", "c"), ("no idea", "c"), ("7", "c")]
)
def test_a_model_that_is_asked_to_route(rating: str, where: str) -> None:
    network = pair(device=lambda ask: rating if ask.prompt.startswith("How likely") else "d")
    assert cascades.Routing(judge="device").run(Task("q"), network).answer == where


def test_routing_by_a_router_falls_back_to_the_device() -> None:
    class Always:
        kind = "query"

        def p_cloud(self, asked: Asked) -> float:
            return 1.0

    made = cascades.Routing(router=Always())
    assert made.run(Task("q"), pair()).answer == "c"
    result = made.run(Task("q", budget=Budget(cost_usd=0.0)), pair())
    assert (result.answer, result.counts.cost_usd) == ("d", 0.0) and "cost" in result.degraded
    steps = cascades.StepRouting(router=Always())
    session_free = Task("t", history=(("seen", "done"),))
    assert steps.run(session_free, pair()).answer == "c"


@pytest.mark.parametrize("verifier", ["confidence", "consistency", "self", "scorer"])
def test_a_cascade_escalates_what_its_verifier_doubts(verifier: str) -> None:
    def device(good: bool) -> Any:
        def say(ask: Ask) -> tuple[str, float]:
            if "Is the proposed answer right?" in ask.prompt:
                return ("yes" if good or ask.seed == 1 else "no"), 1.0
            return ("d" if good else f"d{ask.seed % 4}"), (0.9 if good else 0.2)

        return say

    for good in (True, False):
        made = cascades.Cascade(verifier=verifier, scorer=lambda question, answer, p=good: 0.9 if p else 0.1)
        result = made.run(Task("q"), pair(device=device(good)))
        assert result.answer == ("d" if good else "c"), verifier


def test_a_cascade_keeps_the_weak_answer_when_the_strong_is_too_dear() -> None:
    result = cascades.Cascade().run(Task("q", budget=Budget(cost_usd=1e-9)), pair(confidence=0.1))
    assert result.answer == "d" and result.degraded


def test_offline_answers_from_the_device_before_the_deadline_and_owes_a_better_answer() -> None:
    down = Link([Segment(100, 0.0, 50), Segment(100, 10.0, 50)])
    phone = node("device", "d", decode_tokens_s=10.0)
    network = Network([phone, node("cloud", "c", tier="cloud")], {("device", "cloud"): down})
    queue, cache = cascades.Queue(), cascades.AnswerCache()
    made = cascades.Offline(queue=queue, cache=cache)
    result = made.run(Task("q", budget=Budget(latency_ms=3000)), network)
    assert result.answer == "d" and result.seconds <= 3.0 and len(queue.tasks) == 1
    well = Network([phone, node("cloud", "c", tier="cloud")])
    done = run_virtual(queue.retry(made, well))
    assert [one.answer for _, one in done] == ["c"] and not queue.tasks
    assert cache.get("q") == "c"


def test_a_cache_of_equal_questions_tells_numbers_apart() -> None:
    cache = cascades.AnswerCache(size=2)
    cache.put("How many legs do 3 spiders have?", "24")
    assert cache.get("how many legs do 3 spiders have ?") == "24"
    assert cache.get("How many legs do 4 spiders have?") is None
    assert cache.get("Who wrote it?") is None
    cache.put("a b", "1")
    cache.put("c d", "2")
    assert cache.get("How many legs do 3 spiders have?") is None, "the oldest went"


def test_a_robust_vote_survives_liars() -> None:
    honest = [node(f"h{at}", "a") for at in range(3)]
    liars = [node(f"l{at}", "b", accuracy=0.99) for at in range(2)]
    network = Network([*(Node(one.name, one.engine, accuracy=0.6) for one in honest), *liars])
    names = tuple(network.nodes)
    assert votes.Vote(names, weights="accuracy").run(Task("q"), network).answer == "b"
    assert votes.Vote(names, weights="accuracy", faulty=2).run(Task("q"), network).answer == "a"


def test_error_correlation() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.random(20_000) < 0.7, rng.random(20_000) < 0.7
    found = votes.error_correlation(np.stack([one, one, two, np.ones(20_000, bool)]))
    np.testing.assert_allclose(found[0], [1, 1, 0, 0], atol=0.02)


def test_best_of_and_blend() -> None:
    network = pair(device=lambda ask: (f"answer {ask.seed}", ask.seed / 10))
    assert votes.BestOf().run(Task("q"), network).answer == "answer 5"
    assert (
        votes.BestOf(scorer=lambda question, answer: -len(answer)).run(Task("q"), network).answer
        == "answer 5"
    )

    def judge(ask: Ask) -> str:
        if "Candidate answers" in ask.prompt:
            return "fused " + ask.prompt.split("1. ")[1].split()[0]
        a, b = re.findall(r"Answer [AB]:\n(\w+)", ask.prompt)
        return "A" if a > b else "B"

    nodes = [node("x", "b"), node("y", "c"), node("z", "a"), node("cloud", judge, tier="cloud")]
    assert votes.Blend(("x", "y", "z")).run(Task("q"), Network(nodes)).answer == "c"
    assert votes.Blend(("x", "y", "z"), top=2).run(Task("q"), Network(nodes)).answer == "fused c"


def test_topologies() -> None:
    counts = {name: len(debates.edges_of(name, 6)) for name in debates.TOPOLOGIES}
    assert counts == {"complete": 30, "star": 10, "chain": 5, "ring": 12, "tree": 10, "random": 12}
    for name in debates.TOPOLOGIES:
        assert all(a != b and 0 <= a < 6 and 0 <= b < 6 for a, b in debates.edges_of(name, 6))
        debates.edges_of(name, 2)
    assert debates.edges_of("random", 6, 2, 1) == debates.edges_of("random", 6, 2, 1)
    needed = frozenset({(0, 1), (1, 2)})
    kept = debates.pruned(debates.edges_of("complete", 3), lambda edges: [str(needed <= edges)])
    assert kept == needed


def keyed(own: str) -> Any:
    """An agent that knows one fact, and believes facts that it reads."""

    def say(ask: Ask) -> str:
        facts = re.findall(r"fact:(\w+)", f"{own} {ask.prompt}")
        return "fact:" + max(facts) if facts else "unknown"

    return say


def test_a_debate_carries_evidence_and_ends_by_consensus() -> None:
    nodes = [node("a", keyed("")), node("b", keyed("fact:x")), node("c", keyed(""))]
    network = Network(nodes)
    assert votes.Vote(("a", "b", "c"), abstain="").run(Task("q"), network).answer == "unknown"
    assert votes.Vote(("a", "b", "c")).run(Task("q"), network).answer == "fact:x", (
        "who does not know abstains"
    )
    made = debates.Debate(("a", "b", "c"), rounds=4, abstain="")
    result = made.run(Task("q"), network)
    assert result.answer == "fact:x" and result.calls_of("a", "b", "c") == 6, "one round is enough"
    chain = dataclasses.replace(made, topology="chain").run(Task("q"), network)
    assert chain.answer == "fact:x" and chain.calls_of("a", "b", "c") > 3
    quick = debates.Debate(("a", "b", "c")).run(Task("q"), network)
    assert quick.answer == "fact:x" and quick.calls_of("a", "b", "c") == 3, "who does not know abstains"
    judged = debates.Debate(("a", "b"), rounds=1, judge="c", edges=frozenset({(0, 1)}))
    assert judged.run(Task("q"), network).answer == "fact:x"


def test_mixture_pipeline_reflection_blackboard() -> None:
    network = pair(cloud=lambda ask: "joined" if "Several models" in ask.prompt else "OK")
    assert debates.Mixture().run(Task("q"), network).answer == "joined"
    assert roles.Pipeline().run(Task("q"), network).answer == "d"
    assert roles.Reflection().run(Task("q"), network).calls_of("cloud") == 1
    harsh = pair(
        cloud="wrong: try again", device=lambda ask: "better" if "critic says" in ask.prompt else "d"
    )
    assert roles.Reflection(most=2).run(Task("q"), harsh).answer == "better"
    assert roles.Pipeline().run(Task("q"), harsh).answer == "better"
    board = pair(device="clue: 7", cloud=lambda ask: "FINAL: 7" if "clue" in ask.prompt else "PASS")
    assert roles.Blackboard().run(Task("q"), board).answer == "7"
    assert roles.Blackboard().run(Task("q"), pair(device="PASS", cloud="pass")).degraded


def test_map_reduce_and_hierarchy() -> None:
    def worker(ask: Ask) -> str:
        found = re.search(r"key=(\w+)", ask.prompt)
        return f"key is {found[1]}" if found else "NONE"

    def reducer(ask: Ask) -> str:
        found = re.search(r"key is (\w+)", ask.prompt)
        return found[1] if found else "unknown"

    text = "nothing here\n" * 300 + "key=gold\n" + "nothing here\n" * 300
    network = pair(device=worker, cloud=reducer)
    result = roles.MapReduce(size=500).run(Task("which key?", context=text), network)
    assert result.answer == "gold" and result.total_bytes < len(text) / 10
    manager = pair(
        device=lambda ask: ask.prompt.upper(),
        cloud=lambda ask: ask.prompt if "Results" in ask.prompt else "- a\n- b",
    )
    assert "a: A\n- b: B" in roles.Hierarchy().run(Task("q"), manager).answer


@given(st.text(max_size=400), st.integers(16, 100), st.integers(0, 8))
def test_pieces_hold_the_whole_text(text: str, size: int, overlap: int) -> None:
    pieces = roles.pieces_of(text, size, overlap)
    assert all(len(piece) <= size for piece in pieces)
    assert "".join(roles.pieces_of(text, size)) == text


def test_awards_equal_the_best_of_all_choices() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        bids = [
            [markets.Bid(f"w{at}", float(rng.random()), float(rng.random())) for at in range(3)]
            for _ in range(4)
        ]
        money = float(rng.random() * 2)
        chosen = markets.award(bids, money)
        quality = sum(bid.quality for bid in chosen if bid)
        assert sum(bid.cost for bid in chosen if bid) <= money + 1e-9
        best = 0.0
        for choice in np.ndindex(4, 4, 4, 4):
            some = [bids[at][pick - 1] for at, pick in enumerate(choice) if pick]
            if sum(bid.cost for bid in some) <= money:
                best = max(best, sum(bid.quality for bid in some))
        assert quality == pytest.approx(best)


def test_contract_net_and_experts() -> None:
    cheap = markets.Bid("a", 0.9, 0.001)
    made = markets.ContractNet(
        "cloud",
        ("a", "b"),
        most=1,
        bidder=lambda worker, part: cheap if worker == "a" else markets.Bid("b", 0.95, 5.0),
    )
    nodes = [node("a", "from a"), node("b", "from b"), node("cloud", "c", tier="cloud")]
    assert made.run(Task("q"), Network(nodes)).answer == "from a"
    asked = [
        node("a", '{"quality": 0.2, "cost": 0}'),
        node("b", 'I bid {"quality": 0.8, "cost": 0.001}'),
        nodes[2],
    ]
    assert (
        '"quality": 0.8'
        in markets.ContractNet("cloud", ("a", "b"), most=1).run(Task("q"), Network(asked)).answer
    )
    for junk in (
        "",
        "{}",
        '{"quality": 2, "cost": 0}',
        '{"quality": 1, "cost": -1}',
        '{"quality": 1, "cost": NaN}',
    ):
        assert markets.read_bid("a", junk) is None
    beliefs = markets.Beliefs(seed=1)
    experts = markets.Experts(("a", "b"), beliefs)
    network = Network(
        [
            node("a", lambda ask: "1" if "sum" in ask.prompt else "x"),
            node("b", lambda ask: "1" if "noun" in ask.prompt else "x"),
        ]
    )
    for at in range(60):
        topic = "sum" if at % 2 else "noun"
        experts.run(Task(topic, topic=topic, answer="1"), network)
    late = [experts.run(Task(t, topic=t, answer="1"), network).right for t in ("sum", "noun") * 20]
    assert np.mean(late) > 0.85


def test_minion_and_minions_never_send_the_document() -> None:
    text = "".join(f"fact {at}: nothing of note happens here today\n" for at in range(400))
    text = text.replace("fact 250: nothing", "fact 250: the code is 7319, nothing")

    def device(ask: Ask) -> tuple[str, float]:
        found = re.search(r"code is (\d+)", ask.prompt)
        if "short JSON" in ask.prompt:
            return json.dumps({"found": bool(found), "text": found[0] if found else ""}), 0.9
        return (found[0] if found else "not there"), 0.9

    def cloud(ask: Ask) -> str:
        found = re.search(r"code is (\d+)", ask.prompt)
        if found:
            return f"ANSWER: {found[1]}"
        return "- Find the code." if "instructions" in ask.prompt else "ASK: what is the code?"

    network = pair(device=device, cloud=cloud)
    for made in (documents.Minion(), documents.Minions()):
        result = made.run(Task("What is the code?", context=text, answer="7319"), network)
        assert result.right and result.total_bytes < 0.1 * len(text), made.name
    stubborn = pair(device="{", cloud="- again")
    assert documents.Minions(rounds=2).run(Task("q", context=text), stubborn).calls_of("cloud") == 3


def test_plan_refine_draft() -> None:
    heard: list[str] = []

    def cloud(ask: Ask) -> str:
        heard.append(ask.prompt)
        if "Write the steps" in ask.prompt:
            return "- look up PII_EMAIL_1\n- add"
        if "marked to be checked" in ask.prompt:
            return 'sure: {"1": "Two is right.", "0": "not allowed"}'
        return "KEEP 2\nand so on"

    def device(ask: Ask) -> tuple[str, float]:
        if "Reply yes or no" in ask.prompt:
            return ("no" if "Two" in ask.prompt.split("Is this")[1] else "yes"), 0.9
        if "Done so far" in ask.prompt:
            return ("found" if "jane@example.com" in ask.prompt else "?"), 0.9
        return "One is right. Two is wrong. Three is right.", 0.9

    network = pair(device=device, cloud=cloud)
    task = Task("mail jane@example.com", context="secret book")
    plans.Plan().run(task, network)
    assert "jane" not in "".join(heard) and "secret" not in "".join(heard)
    refined = plans.Refine(window=0).run(Task("q"), network)
    assert refined.answer == "One is right. Two is right. Three is right."
    assert "One is" not in heard[-1], "only what is unsure is sent"
    assert plans.Draft().run(Task("q"), network).answer == "One is and so on"
    assert plans.accepted("a b c", "OK") == "a b c" and plans.accepted("a b", "else") == "else"
    assert plans.edited(["a"], "no json", {0}) == ["a"]


def test_context_policies_and_their_cost() -> None:
    heard: list[str] = []
    history = tuple((f"question {at} about {'tea' if at == 2 else 'x'}", f"answer {at}") for at in range(6))
    network = pair(device="short summary", cloud=lambda ask: heard.append(ask.prompt) or "c")
    sizes = {}
    for policy in contexts.POLICIES:
        views = contexts.Views({"cloud": 5})
        contexts.Context(policy=policy, k=1, views=views).run(Task("more tea?", history=history), network)
        sizes[policy] = len(heard[-1])
        assert views.seen["cloud"] == 7
    assert sizes["full"] > sizes["summary"] > sizes["last"] == sizes["delta"]
    assert "tea" in heard[3].split("more tea")[0] and "question 5" not in heard[3]
    views = contexts.Views()
    assert views.resync_tokens("cloud", history) > 0
    views.asked("cloud", history)
    assert views.resync_tokens("cloud", history) == 0


def test_a_guard_hides_blocks_or_allows() -> None:
    heard: list[str] = []
    network = pair(cloud=lambda ask: heard.append(ask.prompt) or f"wrote to {ask.prompt.split()[-1]}")
    task = Task("write to jane@example.com", privacy="redacted")
    assert contexts.Guard().run(task, network).answer == "wrote to jane@example.com"
    assert "jane" not in heard[0]
    assert contexts.Guard(action="block").run(task, network).answer == "d"
    assert (
        contexts.Guard(cascades.Offline("cloud", "device")).run(task, network).answer.endswith("example.com")
    )
    assert all("jane" not in one for one in heard)


def test_swarm_asks_the_cloud_only_when_votes_differ() -> None:
    same = [node(f"n{at}", "x") for at in range(3)]
    cloud = node("cloud", "c", tier="cloud")
    swarm = hybrids.Swarm(("n0", "n1", "n2"))
    assert swarm.run(Task("q"), Network([*same, cloud])).answer == "x"
    mixed = [*same[:2], node("n2", "y")]
    result = swarm.run(Task("q"), Network([*mixed, cloud]))
    assert result.answer == "c" and result.calls_of("cloud") == 1
    poor = swarm.run(Task("q", budget=Budget(privacy="device")), Network([*mixed, cloud]))
    assert poor.answer == "x" and poor.degraded
    assert hybrids.ClusterDebate(("n0", "n1", "n2")).run(Task("q"), Network([*mixed, cloud])).answer == "c"
    assert hybrids.TwoTier(("n0", "n1", "n2")).run(Task("q"), Network([*mixed, cloud])).answer == "c"


def test_a_bandit_learns_what_to_show_to_whom() -> None:
    """The text says whether the picture is needed; sending it costs."""

    def cloud(ask: Ask) -> str:
        return "right" if "easy" in ask.prompt or "picture" in ask.modalities else "wrong"

    for bandit in (LinUcb(4, 2, alpha=0.3), LinThompson(4, 2, alpha=0.3)):
        network = pair(device="wrong", cloud=cloud)
        actions = actions_of(("device", "cloud"), ("picture",))
        assert actions[3] == Action("cloud", ("picture",))
        context = lambda task: np.array([1.0, float("easy" in task.prompt)])  # noqa: E731
        made = ModalityChoice(actions, bandit, context, weights=(0.0, 0.0, 0.05))
        rng = np.random.default_rng(0)
        for _ in range(150):
            kind = "easy" if rng.random() < 0.5 else "hard"
            made.run(Task(kind, modalities={"picture": "p" * 4000}, answer="right"), network)
        bandit.alpha = 0.0
        chosen: list[int] = []
        greedy = ModalityChoice(actions, bandit, context, learning=False, chosen=chosen)
        for kind in ("easy", "hard"):
            greedy.run(Task(kind, modalities={"picture": "p" * 4000}, answer="right"), network)
        assert chosen == [2, 3]
    assert reward_of(1.0, 2.0, 0.1, 2048, (0.1, 1.0, 0.01)) == pytest.approx(1 - 0.2 - 0.1 - 0.02)
