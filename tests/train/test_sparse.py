"""Sparse updates: the published memory to the hundredth, the best scheme in a budget, refusals."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tests.models.graph.nets import data, residual_net

from haversack.core.errors import DamagedFileError, UserError
from haversack.models.graph import load_mcu
from haversack.models.graph.training import with_head
from haversack.train.networks._graph import GraphNetwork
from haversack.train.parameters._sparse_memory import RATIOS, Conv, kept_channels
from haversack.train.parameters.sparse import (
    Contributions,
    Scheme,
    Sparse,
    analysed,
    best_scheme,
    convolutions,
    evolved_scheme,
    expected,
    features_of,
    learned_channels,
    memory_report,
)

PUBLISHED = {
    "mcunet-5fps": [
        (Scheme(22, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 0.125, 0.25)), 99.84),
        (Scheme.last(12, 42), 448.05),
        (Scheme.last(6, 42), 276.34),
        (Scheme.last(42, 42), 1400.39),
        (Scheme(42), 121.28),
        (Scheme(20, (23, 24, 27, 30, 33, 39), (0, 0.25, 0.5, 0.5, 0, 0)), 49.75),
        (Scheme(21, (21, 23, 24, 26, 27, 30), (1, 0, 1, 0, 0.5, 1)), 74.81),
        (Scheme(24, (21, 24, 27, 30, 33, 39), (0.25, 1, 1, 1, 0.5, 0.5)), 124.97),
        (Scheme(23, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 1, 0.5)), 148.41),
    ],
    "mbv2-w0.35": [
        (Scheme(25, (27, 30, 33, 36, 39, 42, 45, 48), (1, 1, 1, 1, 1, 0.125, 0.5, 1)), 99.41),
        (Scheme.last(51, 51), 1306.44),
    ],
    "proxyless-w0.3": [
        (Scheme(25, (36, 39, 42, 45, 48, 51, 54, 57), (1, 0.5, 1, 1, 0.25, 0.5, 1, 1)), 98.53),
        (Scheme.last(60, 60), 1210.73),
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_memory_is_what_was_published(name: str) -> None:
    graph = load_mcu(data("models", "mcu", f"{name}.pkl"))
    convs, features = convolutions(graph), features_of(graph)
    for scheme, kib in PUBLISHED[name]:
        assert round(memory_report(convs, scheme, features).kib, 2) == kib, scheme
    if name == "mcunet-5fps":
        report = memory_report(convs, PUBLISHED[name][0][0], features)
        assert (report.weights, report.activations) == (573_184, 244_736)


def test_the_count_of_a_small_network_by_hand() -> None:
    """A 3x3 convolution of 6 channels in 4 x 4 places, its input 8 x 8 x 3; a depthwise one behind it."""
    first = Conv("a", "b", False, 3, 6, 64, 96, 9)
    second = Conv("c", "d", True, 6, 6, 16, 96, 9)
    found = memory_report((first, second), Scheme(2, (0, 1), (0.5, 1.0)), 10)
    assert found.activations == 10 * 8 + 96 + 96 + 64 * 1 * 8 + 16 * 6 * 8
    assert found.weights == 32 * 6 * 2 + 6 * 1 * 9 * 8 + 6 * 9 * 8


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        (Scheme(3, (1,), (1.0,)), r"layer 1 is outside the 3 whose biases learn \(allowed 2 to 4\)"),
        (Scheme(5, (5,), (1.0,)), "layer 5 is outside"),
        (Scheme(5, (3, 2), (1.0, 1.0)), "layers=3-2 are not rising without repeats; give them as 2-3"),
        (Scheme(5, (2, 2), (1.0, 1.0)), "give them as 2"),
        (Scheme(5, (2,), (1.5,)), "ratio 1.5 is not from 0 to 1"),
        (Scheme(5, (2,), (-0.1,)), "ratio -0.1 is not from 0 to 1"),
        (Scheme(5, (2,), (float("nan"),)), "ratio nan is not from 0 to 1"),
        (Scheme(5, (2, 3), (1.0,)), "2 layers have 1 ratios"),
        (Scheme(6), "biases=6 is not possible: the network has 5 convolutions"),
        (Scheme(-1), "biases=-1 is not possible"),
    ],
)
def test_what_is_no_scheme_is_refused(scheme: Scheme, said: str) -> None:
    with pytest.raises(UserError, match=said):
        scheme.check(5)
    assert Scheme(5, (2,), (0.0,)).check(5), "a ratio of 0 keeps none"


def test_largest_smallest_and_any_channels() -> None:
    weight = np.zeros((4, 1, 1, 5), np.int8)
    weight[0, 0, 0] = [3, -9, 1, 9, 5]
    assert kept_channels(weight, 2, "magnitude+", 0) == (1, 3)
    assert kept_channels(weight, 2, "magnitude-", 0) == (0, 2)
    drawn = {kept_channels(weight, 2, "random", seed) for seed in range(20)}
    assert len(drawn) > 3
    assert all(len(set(each)) == 2 and sorted(each) == list(each) for each in drawn)
    assert kept_channels(weight, 2, "random", 7) == kept_channels(weight, 2, "random", 7)


def test_what_learns_follows_the_scheme() -> None:
    graph = residual_net()
    convs = convolutions(graph)
    found = learned_channels(graph, Scheme(3, (3, 5), (0.5, 1.0)))
    assert list(found) == [convs[3].weight, convs[3].bias, convs[4].bias, convs[5].weight, convs[5].bias]
    assert len(found[convs[3].weight] or ()) == 6 and found[convs[5].weight] is None
    assert learned_channels(graph, Scheme(1, (5,), (0.0,))) == {convs[5].bias: None}


def made_up(count: int, seed: int) -> tuple[tuple[Conv, ...], Contributions]:
    random = np.random.default_rng(seed)
    convs = tuple(
        Conv(
            f"w{i}",
            f"b{i}",
            bool(random.integers(2)),
            8,
            8,
            int(random.integers(4, 64)),
            int(random.integers(8, 400)),
            9,
        )
        for i in range(count)
    )
    bias = {depth: float(random.uniform(-0.1, 1)) for depth in range(1, count + 1)}
    weight = {(i, r): float(random.uniform(-0.2, 1)) for i in range(count) for r in RATIOS}
    return convs, Contributions({0: 0.0, **bias}, weight)


@pytest.mark.parametrize("seed", range(6))
def test_the_exact_search_is_the_best_of_all_schemes(seed: int) -> None:
    convs, gains = made_up(4, seed)
    whole = memory_report(convs, Scheme.last(4, 4), 16).kib
    for share in (0.2, 0.5, 0.8, 1.0):
        budget = whole * share
        best = 0.0
        for depth in range(5):
            for ratios in itertools.product((0.0, *RATIOS), repeat=depth):
                scheme = Scheme(depth, tuple(range(4 - depth, 4)), ratios)
                if memory_report(convs, scheme, 16).kib <= budget:
                    best = max(best, gains.of(scheme))
        found = best_scheme(convs, 16, gains, budget)
        assert memory_report(convs, found, 16).kib <= budget
        assert gains.of(found) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_evolution_is_never_better_than_the_exact_search(seed: int) -> None:
    convs, gains = made_up(12, seed)
    budget = memory_report(convs, Scheme.last(12, 12), 16).kib * 0.3
    exact, evolved = best_scheme(convs, 16, gains, budget), evolved_scheme(convs, 16, gains, budget, seed)
    assert memory_report(convs, evolved, 16).kib <= budget
    assert gains.of(evolved) <= gains.of(exact) + 1e-12
    assert gains.of(evolved) > 0.5 * gains.of(exact), "and it does search"
    assert evolved == evolved_scheme(convs, 16, gains, budget, seed)


def test_a_real_network_s_best_scheme_keeps_to_its_budget() -> None:
    graph = load_mcu(data("models", "mcu", "mcunet-5fps.pkl"))
    convs, features = convolutions(graph), features_of(graph)
    gains = expected(convs)
    last = 0.0
    for kib in (1, 25, 50, 100, 200, 2000):
        found = best_scheme(convs, features, gains, kib)
        assert memory_report(convs, found, features).kib <= kib
        assert gains.of(found) >= last
        last = gains.of(found)
    published = PUBLISHED["mcunet-5fps"][0][0]
    assert gains.of(best_scheme(convs, features, gains, 99.85)) >= gains.of(published)
    with pytest.raises(
        UserError, match=r"below what the classifier alone takes, 0\.16 KiB; give at least 0\.16"
    ):
        best_scheme(convs, features, gains, 0.1)


def test_contributions_are_measured_one_by_one_and_kept(tmp_path: Path) -> None:
    """An accuracy that adds up is found out exactly, and the search on it finds its best."""
    asked: list[Scheme] = []

    def measure(scheme: Scheme) -> float:
        asked.append(scheme)
        weights = zip(scheme.layers, scheme.ratios, strict=True)
        return 0.4 + 0.01 * scheme.biases + sum(0.02 * layer * ratio for layer, ratio in weights)

    found = analysed(measure, (1, 2, 3), (1, 2), (0.5, 1.0))
    assert len(asked) == 1 + 3 + 4
    assert found.bias == pytest.approx({1: 0.01, 2: 0.02, 3: 0.03})
    assert found.weight == pytest.approx({(1, 0.5): 0.01, (1, 1.0): 0.02, (2, 0.5): 0.02, (2, 1.0): 0.04})
    path = tmp_path / "gains.json"
    found.write(path)
    assert Contributions.read(path) == found
    for content in ("[]", "{", '{"bias": [[1, "a"]], "weight": []}', '{"bias": [[1, NaN]], "weight": []}'):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DamagedFileError, match="contribution"):
            Contributions.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        Contributions.read(tmp_path / "absent.json")


def network() -> GraphNetwork:
    return GraphNetwork(residual_net(), "made")


def test_the_method_prepares_what_its_scheme_says(tmp_path: Path) -> None:
    net = network()
    learned = Sparse(biases=3, layers="3-5", ratios="0.5-1").prepare(net, 0)
    convs = convolutions(net.graph)
    part = learned.wanted[convs[3].weight]
    assert part is not None and part.axis == 3 and len(part.indices) == 6
    assert list(learned.wanted)[-2:] == ["head.weight", "head.bias"]
    assert Sparse(biases=2, layers="4-5").scheme(net.graph).ratios == (1.0, 1.0)
    gains = tmp_path / "gains.json"
    gains.write_text(json.dumps({"bias": [[1, 1.0]], "weight": []}), encoding="utf-8")
    assert Sparse(contributions=str(gains)).scheme(net.graph) == Scheme(1)
    assert Sparse(kib=0.2).offers(net) == ("sparse:kib=400", "sparse:kib=100", "sparse:kib=50")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Sparse(layers="3"), "give biases=N as well"),
        (Sparse(biases=2, layers="a-b"), "layers=a-b are no numbers"),
        (Sparse(biases=2, layers="1"), "layer 1 is outside"),
        (Sparse(kib=0.0), "below what the classifier alone takes"),
    ],
)
def test_the_method_refuses_what_is_no_scheme(method: Sparse, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        method.prepare(network(), 0)
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="channels=most is not supported"):
        Sparse(channels="most")


def test_a_network_without_a_graph_is_refused() -> None:
    class Other:
        name = "other"

    with pytest.raises(UserError, match="sparse updates need a graph of convolutions"):
        Sparse().prepare(Other(), 0)  # type: ignore[arg-type]
    assert Sparse().offers(Other()) == ()  # type: ignore[arg-type]


def test_a_head_is_no_convolution() -> None:
    assert len(convolutions(with_head(residual_net(), 4, 0))) == 6
    assert len(convolutions(residual_net())) == 6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_analysis_by_training_finds_that_more_than_the_classifier_helps() -> None:
    """Rows that the frozen features do not tell apart: a scheme that learns below them is worth something."""
    from haversack.train._network import Batch
    from haversack.train.parameters._sparse_analysis import accuracy_of

    random = np.random.default_rng(0)
    labels = np.arange(64) % 2
    shades = np.where(labels, 20, -20)[:, None, None, None] * np.array([1, -1, 0])
    rows = Batch(np.clip(random.normal(shades, 30, (64, 8, 8, 3)), -128, 127).astype(np.int8), labels)
    measure = accuracy_of(network, rows, rows, classes=2, epochs=4, rate=0.01)
    found = analysed(measure, (2, 6), (4, 5), (0.5, 1.0))
    assert set(found.bias) == {2, 6} and len(found.weight) == 4
    assert all(-1 <= gain <= 1 for gain in (*found.bias.values(), *found.weight.values()))
    assert measure(Scheme.last(6, 6)) > measure(Scheme(0))
    chosen = best_scheme(convolutions(network().graph), 8, found, 5.0)
    assert found.of(chosen) >= max(0.0, *found.bias.values())
    with pytest.raises(UserError, match=r"the loss of sparse:biases=6.* is not finite; lower the rate"):
        accuracy_of(network, rows, rows, classes=2, rate=1e38)(Scheme.last(6, 6))
