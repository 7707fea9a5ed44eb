"""Models of different strength, trained here in seconds, on tasks whose answers can be checked.

Lists: "median of 3 1 4" and ten other functions of short lists of digits; a device's model has learned the
easy functions and that it does not know the others, the cloud's all of them. Digits: the handwritten digits
of scikit-learn, as an image in two halves; devices have learned from a few examples each, the cloud from all.
Documents: lines "pump seven pressure: 4.31", and a reader that has learned which line answers a question.
Everything is split into a part for training, one for choosing and one for the rows.
"""

from __future__ import annotations

import functools
import importlib.metadata
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cached
from haversack.bench._rows import Unavailable
from haversack.share.collaboration._network import Ask, FunctionEngine, Node

F64 = NDArray[np.float64]
EASY = ("first", "last", "length", "maximum", "minimum")
HARD = ("second", "median", "range", "distinct", "sum", "repeats")
FUNCTIONS = (*EASY, *HARD)
LONGEST = 7
UNKNOWN = 10


def sklearn(module: str) -> Any:
    """A module of scikit-learn. Raises Unavailable without it."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise Unavailable("needs scikit-learn: pip install 'haversack[workshop]'") from error


def value_of(function: str, numbers: Sequence[int]) -> int:
    """The right answer, a digit."""
    ordered = sorted(numbers)
    return {
        "first": numbers[0],
        "last": numbers[-1],
        "length": len(numbers),
        "maximum": ordered[-1],
        "minimum": ordered[0],
        "second": ordered[-2],
        "median": ordered[(len(ordered) - 1) // 2],
        "range": ordered[-1] - ordered[0],
        "distinct": len(set(numbers)),
        "sum": sum(numbers) % 10,
        "repeats": max(numbers.count(one) for one in numbers),
    }[function]


def lists(count: int, seed: int, functions: Sequence[str] = FUNCTIONS) -> tuple[list[str], NDArray[np.int64]]:
    """(questions, answers) about lists."""
    rng = np.random.default_rng(seed)
    texts, answers = [], []
    for _ in range(count):
        function = functions[int(rng.integers(len(functions)))]
        numbers = [int(one) for one in rng.integers(0, 10, int(rng.integers(3, LONGEST + 1)))]
        texts.append(f"What is the {function} of {' '.join(map(str, numbers))}?")
        answers.append(value_of(function, numbers))
    return texts, np.array(answers)


def list_features(texts: Sequence[str]) -> F64:
    """One-hot function and digits by place [n, 11 + 7 * 11]."""
    found = np.zeros((len(texts), len(FUNCTIONS) + LONGEST * 11))
    for row, text in enumerate(texts):
        match = re.search(r"the (\w+) of ([\d ]+)\?", text)
        assert match is not None, text
        found[row, FUNCTIONS.index(match[1])] = 1
        numbers = [int(one) for one in match[2].split()]
        for place in range(LONGEST):
            digit = numbers[place] if place < len(numbers) else 10
            found[row, len(FUNCTIONS) + place * 11 + digit] = 1
    return found


def _kept(name: str, version: int, make: Any) -> Any:
    """A trained model from the cache."""

    def write(goal: Path) -> None:
        (goal / "model.pickle").write_bytes(pickle.dumps(make()))

    known = {"version": version, "sklearn": importlib.metadata.version("scikit-learn")}
    folder = cached(f"llms-over-networks-{name}", known, write)
    return pickle.loads((folder / "model.pickle").read_bytes())  # our own cache


@functools.cache
def list_model(which: str) -> Any:
    """`device` (easy functions, and that it does not know the others), or `cloud` (all)."""

    def make() -> Any:
        network = sklearn("neural_network").MLPClassifier
        if which == "device":
            texts, answers = lists(4000, 1, EASY)
            others, _ = lists(1500, 4, HARD)  # of these it has learned that it does not know
            texts, answers = texts + others, np.concatenate([answers, np.full(len(others), UNKNOWN)])
            shape: tuple[int, ...] = (64,)
        else:
            texts, answers = lists(60_000, 2)
            shape = (512, 256)
        model = network(shape, max_iter=20 if which == "cloud" else 60, random_state=0, batch_size=128)
        return model.fit(list_features(texts), answers)

    return _kept(f"lists-{which}", 2, make)


def probabilities(model: Any, features: F64) -> F64:
    """[n, 10], classes that a model never saw at 0; what is missing to 1 is `UNKNOWN`."""
    found = np.zeros((len(features), UNKNOWN + 1))
    found[:, model.classes_] = model.predict_proba(features)
    return found[:, :UNKNOWN]


class Digits:
    """The digits: images f64 [n, 64] in 0..1, labels, and places of three parts."""

    def __init__(self) -> None:
        data = sklearn("datasets").load_digits()
        order = np.random.default_rng(0).permutation(len(data.target))
        self.images = data.data[order] / 16.0
        self.labels = data.target[order]
        self.training, self.choosing = np.arange(900), np.arange(900, 1200)
        self.test = np.arange(1200, len(order))


@functools.cache
def digits() -> Digits:
    """The digits, once."""
    return Digits()


EXAMPLES = (40, 60, 80, 120, 200)
"""Images that each voter has learned from."""
HALVES = {"upper": slice(0, 32), "lower": slice(32, 64), "both": slice(0, 64)}


@functools.cache
def digit_model(which: str) -> Any:
    """`voter-N` (few examples), or `cloud-upper`, `cloud-lower`, `cloud-both` (900)."""

    def make() -> Any:
        data = digits()
        if which.startswith("voter-"):
            number = int(which.removeprefix("voter-"))
            rng = np.random.default_rng(number)
            some = rng.choice(data.training, EXAMPLES[number - 1], replace=False)
            linear = sklearn("linear_model").LogisticRegression(C=1.0, max_iter=300)
            return linear.fit(data.images[some], data.labels[some])
        part = HALVES[which.removeprefix("cloud-")]
        network = sklearn("neural_network").MLPClassifier((512, 512), max_iter=40, random_state=0)
        return network.fit(data.images[data.training][:, part], data.labels[data.training])

    return _kept(f"digits-{which}", 2, make)


def size_of(model: Any) -> int:
    """Learned numbers of a model."""
    arrays = [*getattr(model, "coefs_", ()), *getattr(model, "intercepts_", ())]
    arrays = arrays or [model.coef_, model.intercept_]
    return sum(int(one.size) for one in arrays)


def drawn(row: F64, seed: int, key: str) -> tuple[str, float]:
    """An answer from probabilities: the best for seed 0, else a sample that depends on seed and question."""
    if seed:
        rng = np.random.default_rng([seed, *key.encode()[:64]])
        at = int(rng.choice(10, p=row / row.sum()))
    else:
        at = int(row.argmax())
    return str(at), float(row[at])


def list_node(name: str, model: Any, texts: Sequence[str], **given: Any) -> Node:
    """A node that answers questions about lists; what it says of them is computed once."""
    rows = dict(zip(texts, probabilities(model, list_features(texts)), strict=True))

    def say(ask: Ask) -> tuple[str, float]:
        found = re.search(r"What is the \w+ of [\d ]+\?", ask.prompt)
        assert found is not None, ask.prompt
        row = rows.get(found[0])
        if row is None:
            row = probabilities(model, list_features([found[0]]))[0]
        return drawn(row, ask.seed, found[0])

    return Node(name, FunctionEngine(say), schema="number", **given)


def digit_node(name: str, rows: F64, **given: Any) -> Node:
    """A node that has the image at hand: "Which digit is image N?"."""

    def say(ask: Ask) -> tuple[str, float]:
        found = re.search(r"image (\d+)", ask.prompt)
        assert found is not None, ask.prompt
        return drawn(rows[int(found[1])], ask.seed, found[0])

    return Node(name, FunctionEngine(say), schema="number", **given)


THINGS = ("pump", "valve", "motor", "fan", "boiler", "tank", "filter", "mixer")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "seventeen", "eleven", "twelve", "thirty")
QUANTITIES = ("pressure", "temperature", "speed", "level", "current", "torque", "flow", "vibration")


def document(seed: int, count: int = 600) -> tuple[str, list[tuple[str, str]]]:
    """(text, questions with answers): every line a reading, its words sometimes in another order."""
    rng = np.random.default_rng(seed)
    keys = [(a, b, c) for a in THINGS for b in NUMBERS for c in QUANTITIES]
    picked = [keys[at] for at in rng.permutation(len(keys))[:count]]
    lines, asked = [], []
    for thing, number, quantity in picked:
        value = f"{rng.integers(100, 9999) / 100:.2f}"
        orders = (
            f"{thing} {number} {quantity}: {value}",
            f"{quantity} of {thing} {number} was {value} at noon",
            f"reading {value} for the {quantity} at {thing} {number}",
        )
        lines.append(orders[int(rng.integers(3))])
        asked.append((f"What is the {quantity} of {thing} number {number}?", value))
    some = rng.permutation(count)[:12]
    return "\n".join(lines), [asked[at] for at in some]


@functools.lru_cache(maxsize=1 << 17)
def line_features(question: str, line: str) -> tuple[float, ...]:
    """What the reader sees of a question and a line."""
    one, other = set(re.findall(r"\w+", question.lower())), set(re.findall(r"\w+", line.lower()))
    pairs = {text[at : at + 3] for text in one for at in range(len(text) - 2)}
    others = {text[at : at + 3] for text in other for at in range(len(text) - 2)}
    named = [bool(one & other & set(group)) for group in (THINGS, NUMBERS, QUANTITIES)]
    shared = len(pairs & others) / max(len(pairs), 1)
    return (*map(float, named), float(sum(named)), shared, len(one & other) / max(len(other), 1), 1.0)


@functools.cache
def reader() -> Any:
    """Which line answers a question: a logistic regression on pairs from other documents."""

    def make() -> Any:
        x, y = [], []
        rng = np.random.default_rng(0)
        for seed in range(900, 906):
            text, asked = document(seed, 120)
            lines = text.split("\n")
            for question, value in asked:
                for at in {*(int(one) for one in rng.integers(0, len(lines), 30))}:
                    x.append(line_features(question, lines[at]))
                    y.append(value in lines[at].split() or f"{value}" in lines[at])
                right = next(
                    line for line in lines if re.search(rf"(?<![\d.]){re.escape(value)}(?!\d)", line)
                )
                x.append(line_features(question, right))
                y.append(True)
        return sklearn("linear_model").LogisticRegression(C=10.0, max_iter=1000).fit(np.array(x), np.array(y))

    return _kept("reader", 1, make)


def best_line(question: str, text: str) -> tuple[str, float]:
    """(the line that answers best, how likely it does)."""
    lines = [line for line in text.split("\n") if re.search(r"\d+\.\d+", line)]
    if not lines:
        return "", 0.0
    model = reader()
    scores = (
        np.array([line_features(question, line) for line in lines]) @ model.coef_[0] + model.intercept_[0]
    )
    at = int(scores.argmax())
    return lines[at], float(0.5 * (1 + np.tanh(0.5 * scores[at])))


def reading_in(line: str) -> str:
    """The number of a line."""
    found = re.search(r"\d+\.\d+", line)
    return found[0] if found else "unknown"
