"""Scoring: every token once, with the promised context, at the cost that the model's own probabilities
say.
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.models._evaluation import agreement, bits_per_byte, next_token_logits, token_bits, windows

VOCABULARY = 17


class CountingModel:
    """A real little model: the next token's logits are the counts of tokens in the cache so far, times
    `weight`.

    It answers only from its cache, so a token fed twice, left out or fed at a wrong position changes its
    answer.
    """

    def __init__(self, weight=0.7):
        self.weight = weight
        self.contexts = []

    def cache(self, capacity):
        return {"seen": [], "capacity": capacity}

    def step(self, tokens, positions, mask, cache, want):
        assert mask is None and positions.dtype == np.int32
        assert positions.tolist() == list(range(len(cache["seen"]), len(cache["seen"]) + len(tokens)))
        rows = []
        for token in tokens:
            cache["seen"].append(int(token))
            rows.append(self.weight * np.bincount(cache["seen"], minlength=VOCABULARY))
        assert len(cache["seen"]) <= cache["capacity"]
        if want == "none":
            return None, None
        self.contexts += range(len(cache["seen"]) - len(tokens) + 1, len(cache["seen"]) + 1)
        return np.asarray(rows, np.float32), None


def tokens_of(seed, count):
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 400), st.integers(1, 400))
def test_windows_cover_every_token_but_the_first_once(count, window, stride):
    window = max(window, 2)
    stride = min(stride, window - 1)
    scored = [token for view in windows(count, window, stride) for token in range(view.scored, view.stop)]
    assert scored == list(range(1, count))
    for view in windows(count, window, stride):
        assert 0 <= view.start < view.scored < view.stop <= view.start + window
        assert view.start == 0 or view.scored - view.start >= window - stride


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(2, 900), st.integers(2, 700), st.integers(1, 700))
def test_the_cost_is_what_the_models_own_probabilities_say(seed, count, window, stride):
    stride = min(stride, window - 1)
    tokens = tokens_of(seed, count)
    expected = 0.0
    for view in windows(count, window, stride):
        for at in range(view.scored, view.stop):
            logits = 0.7 * np.bincount(tokens[view.start : at], minlength=VOCABULARY)
            expected += np.log2(np.exp(logits).sum()) - logits[tokens[at]] / np.log(2)
    model = CountingModel()
    found = bits_per_byte(model, tokens, 2 * count, window, stride)
    assert abs(found - expected / (2 * count)) < 1e-5 * max(1.0, expected)
    assert len(model.contexts) == count - 1
    if count > window:
        assert min(model.contexts[window - 1 :]) >= window - stride


def test_a_model_that_knows_nothing_pays_the_logarithm_of_its_vocabulary():
    logits = np.full((5, VOCABULARY), 3.0, np.float32)
    assert np.allclose(token_bits(logits, tokens_of(1, 5)), np.log2(VOCABULARY))


def test_large_logits_do_not_overflow():
    logits = np.array([[1e4, 0.0], [-1e4, 1e4]], np.float32)
    bits = token_bits(logits, np.array([0, 0], np.int32))
    assert bits[0] == 0 and np.isclose(bits[1], 2e4 / np.log(2))


def test_agreement_counts_equal_choices():
    tokens = tokens_of(3, 700)
    assert agreement(CountingModel(), CountingModel(0.1), tokens, 256, 128) == 1.0
    ours = [rows.argmax(-1) for rows, _ in next_token_logits(CountingModel(), tokens, 256, 128)]
    theirs = [rows.argmax(-1) for rows, _ in next_token_logits(CountingModel(-1.0), tokens, 256, 128)]
    expected = np.mean(np.concatenate(ours) == np.concatenate(theirs))
    assert agreement(CountingModel(), CountingModel(-1.0), tokens, 256, 128) == expected < 1
