"""Automata of constraints: native code and twin allow the same, and what they allow can be drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from haversack.bench.serving._schemas import drawn_schema
from haversack.kernels._native import native
from haversack.kernels.automaton import (
    ANY_NUMBER,
    AutomatonTwin,
    TextTwin,
    Trie,
    automaton,
    measure_twin,
    text_of,
)
from haversack.models._bundled import model_folder
from haversack.models._tokenizer import Tokenizer
from haversack.run._json_schema import Compiler, of_automaton
from haversack.run._regex import Builder, parse
from haversack.run._terms import Term, Terms

both = pytest.mark.skipif(native() is None, reason="numpy twins only: nothing native to compare")
Grammar = Callable[[Terms], Term]
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def trie() -> Trie:
    tokenizer = Tokenizer.open(model_folder("code") / "tokenizer.json")
    return Trie([tokenizer.bytes_of(token) for token in range(tokenizer.size)])


def pieces(seed: int) -> Trie:
    """A vocabulary of every byte and of drawn pieces, some of them twice, some tokens without bytes."""
    rng = np.random.default_rng(seed)
    written = [bytes([byte]) for byte in range(256)]
    letters = list(b'{}[]",:0123456789 abcdefgnrtlsu\\e\n-.')
    for _ in range(600):
        written.append(bytes(rng.choice(letters, rng.integers(1, 9)).astype(np.uint8)))
    tokens: list[bytes | None] = [written[at] for at in rng.permutation(len(written))]
    tokens[5:5] = [b"", None, b"true", b'{"name": ' * 9]
    return Trie(tokens)


def of_schema(schema: Any) -> Grammar:
    return lambda terms: Compiler(schema, terms).compile()


def of_pattern(pattern: str) -> Grammar:
    def made(terms: Terms) -> Term:
        builder = Builder()
        root = of_automaton(terms, builder.automaton(parse(builder, pattern)), "pattern", in_json=False)
        terms.settle()
        return root

    return made


def one_of(terms: Terms, *texts: str) -> Term:
    """One of some texts, each for itself, so that several may be under way at once."""
    return terms.choice([terms.literal(text) for text in texts])


TREE = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}]}},
    "additionalProperties": {"$ref": "#"},
}
HOSTILE: dict[str, Grammar] = {
    "anything": of_schema(True),
    "recursion everywhere": of_schema(TREE),
    "branches that begin alike": of_schema(
        {"anyOf": [{"type": "array", "items": {"anyOf": [True, TREE]}}, {"type": "object"}, True]}
    ),
    "far counters": of_schema(
        {"type": "array", "items": {"type": "string", "minLength": 90, "maxLength": 1 << 39}, "minItems": 70}
    ),
    "counters side by side": lambda terms: terms.sequence(
        terms.repeat(one_of(terms, "a", "ab", "abc"), 3, 200), terms.repeat(one_of(terms, "c", "bc"), 0, 90)
    ),
    "many stacks": lambda terms: terms.repeat(
        terms.nest(terms.sequence(terms.literal("["), terms.repeat(one_of(terms, "]", "[", "[]"), 1, 9))), 2
    ),
    "bytes of characters": of_pattern("^[^a-z\\u00e0-\\u04ff]{2,30}$"),
    "choice": lambda terms: terms.one_of([b"yes", b"yesterday", b"no", b"n" * 200, "naïve".encode()]),
}


def texts(
    grammar: Grammar, trie: Trie, ends: list[int], configurations: int = PLENTY
) -> tuple[Any, TextTwin]:
    """A text by the native code and one by the twin, of the same grammar."""
    terms = Terms(trie)
    root = grammar(terms)
    if not terms.settled:
        terms.settle()
    one = automaton(terms.table, root.number, trie, ends, configurations, PLENTY)
    least, depth = terms.table.least.copy(), terms.table.depth.copy()
    terms.table.least[:], terms.table.depth[:] = -1, -1
    measure_twin(terms.table, trie)
    assert np.array_equal(terms.table.least, least) and np.array_equal(terms.table.depth, depth)
    return text_of(one), TextTwin(AutomatonTwin(terms.table, root.number, trie, ends, configurations, PLENTY))


def check_alike(one: Any, two: TextTwin, rng: np.random.Generator, room: int) -> int:
    """Draws along both; the number of tokens."""
    ends = two._automaton.ends
    for drawn in range(room):
        left = room - drawn
        assert one.least == two.least and one.accepts == two.accepts and one.ended == two.ended
        mask = two.allowed(ANY_NUMBER)
        assert np.array_equal(one.allowed(ANY_NUMBER), mask)
        narrow = int(min(two.least, 1 << 50)) + int(rng.integers(0, 4))
        for count in (left, narrow, 0):
            wanted = two.allowed(count)
            assert np.array_equal(one.allowed(count), wanted), count
        assert not one.allowed(left).flags.writeable
        chosen = np.flatnonzero(two.allowed(left) if rng.random() < 0.9 else mask)
        chosen = chosen[~np.isin(chosen, ends)]
        if not len(chosen):
            assert two.accepts
            return drawn
        for token in rng.integers(-1, len(mask) + 1, 3).tolist():
            if token in ends or (0 <= token < len(mask) and mask[token]):
                continue
            assert not one.advance(token) and not two.advance(token)
        token = int(rng.choice(chosen))
        assert one.advance(token) and two.advance(token)
    return room


@both
@pytest.mark.parametrize("part", range(4))
def test_native_code_and_twin_allow_the_same_by_drawn_schemas(part: int, trie: Trie) -> None:
    drawn = 0
    for seed in range(part * 8, part * 8 + 8):
        vocabulary = trie if seed % 2 else pieces(seed)
        rng = np.random.default_rng(seed)
        drawn += check_alike(*texts(of_schema(drawn_schema(seed)), vocabulary, [0, 5]), rng, 40)
    assert drawn > 100


@both
@pytest.mark.parametrize("name", HOSTILE)
def test_native_code_and_twin_allow_the_same_by_hostile_grammars(name: str, trie: Trie) -> None:
    for seed, vocabulary in enumerate((trie, pieces(3))):
        one, two = texts(HOSTILE[name], vocabulary, [0])
        check_alike(one, two, np.random.default_rng(seed), 50)


@both
@pytest.mark.parametrize("configurations", [2, 60])
def test_they_allow_the_same_while_they_forget(configurations: int, trie: Trie) -> None:
    for seed in (1, 2, 6):
        one, two = texts(of_schema(drawn_schema(seed)), trie, [0], configurations)
        check_alike(one, two, np.random.default_rng(seed), 40)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_mask_holds_what_can_be_drawn(name: str) -> None:
    """A token is allowed where its bytes can be drawn one by one, which asks for no walk."""
    trie, rng = pieces(7), np.random.default_rng(7)
    bytes_of = {data: token for token, data in enumerate(trie.tokens) if data and len(data) == 1}
    terms = Terms(trie)
    root = HOSTILE[name](terms)
    terms.settle()
    made = automaton(terms.table, root.number, trie, [], PLENTY, PLENTY)
    drawn: list[int] = []
    for _ in range(6):
        here = text_of(made)
        assert all(here.advance(token) for token in drawn)
        mask = here.allowed(ANY_NUMBER)
        for token in rng.permutation(len(trie.tokens))[:150].tolist():
            single = text_of(made)
            assert all(single.advance(before) for before in drawn)
            data = trie.tokens[token] or b""
            assert mask[token] == (bool(data) and all(single.advance(bytes_of[bytes([b])]) for b in data))
        if not mask.any():
            assert here.ended
            break
        drawn.append(int(rng.choice(np.flatnonzero(mask))))


@both
def test_what_is_kept_is_bounded(trie: Trie) -> None:
    """Long texts by a grammar that always meets something new stay within the bound, and still advance."""
    terms = Terms(trie)
    root = HOSTILE["far counters"](terms)
    bound = 1 << 20
    made = automaton(terms.table, root.number, trie, [0], PLENTY, bound)
    rng, largest = np.random.default_rng(0), 0
    held = [text_of(made) for _ in range(3)]
    for turn in range(600):
        text = held[turn % 3]
        chosen = np.flatnonzero(text.allowed(5000 - turn))
        chosen = chosen[chosen != 0]
        assert text.advance(int(rng.choice(chosen)))
        largest = max(largest, made.nbytes)
    assert made.generation > 1 and largest < 2 * bound


@both
def test_arrays_that_do_not_fit_are_refused(trie: Trie) -> None:
    module = native()
    assert module is not None
    terms = Terms(trie)
    root = of_schema({"type": "integer"})(terms)
    with pytest.raises(ValueError, match="no such term"):
        automaton(terms.table, len(terms.all), trie, [], PLENTY, PLENTY)
    with pytest.raises(ValueError, match="not all in the vocabulary"):
        automaton(terms.table, root.number, trie, [trie.size], PLENTY, PLENTY)
    terms.table.parts[0] = len(terms.all)
    with pytest.raises(ValueError, match="do not fit"):
        automaton(terms.table, root.number, trie, [], PLENTY, PLENTY)
    with pytest.raises(ValueError, match="do not fit"):
        module.trie(trie.parents, trie.bytes[1:], trie.node_of)
    with pytest.raises(ValueError):
        module.trie(trie.parents[::-1].copy(), trie.bytes, trie.node_of)


def test_the_split_is_greedy() -> None:
    trie = Trie([b"a", b"b", b"ab", None, b"abab", b"bbb", b""])
    texts = (b"a", b"ab", b"aba", b"ababab", b"abbbb", b"abbbbb")
    assert [trie.split(text) for text in texts] == [1, 1, 2, 2, 2, 3]
    assert trie.usable == 1 << 97 | 1 << 98
