"""The bench of FlexSpec: its simulated rounds are those of real runs, and its checks can fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from haversack.bench.flexspec import control
from haversack.core.link import Segment
from haversack.run import Engine, Limits, generate
from haversack.share._controller import best_length

PROMPT = "def read_json(path):\n    with open(path) as f:"


@pytest.fixture(scope="module")
def text() -> control.Text:
    with Engine.open(control.TARGET) as large, Engine.open(control.DRAFT) as small:
        prompt = np.asarray(large.model.tokenizer().encode(PROMPT), np.int32)
        answer = generate(large, prompt, Limits(48, end=()))
        for _ in answer:
            pass
        return control._drafted(small, prompt, np.asarray(answer.tokens, np.int32))


@pytest.mark.parametrize("length", [1, 4, 16])
def test_what_holds_is_what_a_real_run_accepts(length: int, text: control.Text) -> None:
    decode = f"linear-draft:length={length}"
    with Engine.open(control.TARGET, decode=decode, draft=control.DRAFT) as engine:
        prompt = engine.model.tokenizer().encode(PROMPT)
        answer = generate(engine, prompt, Limits(48, end=()))
        for _ in answer:
            pass
    place, rounds, accepted = 1, 0, 0  # the first token is the model's own
    while place < 48:
        held = int(min(text.holding[place], length, 48 - place - 1))
        rounds, accepted, place = rounds + 1, accepted + held, place + held + 1
    assert (answer.drafting.passes, answer.drafting.accepted) == (rounds, accepted)


def test_a_draft_s_probabilities_are_those_of_its_own_chain(text: control.Text) -> None:
    with Engine.open(control.DRAFT) as small:
        rows = []
        prompt = small.model.tokenizer().encode(PROMPT)
        cache = small.cache(len(prompt) + 20)
        tokens = list(prompt)
        for _ in range(6):
            logits, _ = small.step(tokens[cache.length :], cache=cache)
            row = control.softmax(logits)[0]
            rows.append(float(row.max()))
            tokens.append(int(row.argmax()))
    assert text.sure[0, :6] == pytest.approx(rows, abs=1e-6)


def test_more_tokens_are_written_over_a_faster_channel_and_the_same_twice(text: control.Text) -> None:
    fast, slow = [Segment(60, 10, 20)], [Segment(60, 0.2, 300)]
    logs = {
        name: control.write([text], trace, 1, 0, None, by="confidence")
        for name, trace in (("fast", fast), ("again", fast), ("slow", slow))
    }
    assert logs["fast"].total == logs["again"].total > 1.5 * logs["slow"].total
    assert np.mean(logs["slow"].lengths) > np.mean(logs["fast"].lengths)


def test_a_round_that_breaks_its_budget_is_seen(text: control.Text) -> None:
    watts = {"draft_w": 3.0, "transmit_w": 1.2, "idle_w": 0.3}
    log = control.write([text], [Segment(30, 10, 60)], 1, 0, None, joule_budget=0.05, **watts)
    assert all(control.keeps(state, length) for state, length in zip(log.states, log.lengths, strict=True))
    state = dataclasses.replace(log.states[-1], joule_budget=0.0)
    assert control.keeps(state, best_length(state))
    assert not control.keeps(state, 1 + best_length(state) % control.KMAX)
