"""Texts that others write, verified round by round in a batch; and the rule that keeps the distribution."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.run import Engine, Limits, Sampler, generate
from haversack.run._batch import Batch
from haversack.run._drafting import draft_chain
from haversack.run._jobs import Ask
from haversack.run._rounds import Rounds
from haversack.run._sampler import Session
from haversack.run._verify import kept_share, remainder, verify_chain

PROMPT = np.asarray([5, 9, 40, 7, 200, 3], np.int32)


# ---- the rule


def logits_of(shares: list[float]) -> Any:
    return np.log(np.asarray(shares, np.float32))


def test_the_specification_s_numbers_of_the_rule() -> None:
    p, q = np.asarray([0.5, 0.5]), np.asarray([0.9, 0.1])
    assert kept_share(p[0], q[0]) == pytest.approx(0.5556, abs=1e-4)
    assert remainder(p, q).tolist() == [0.0, 1.0]
    accepted = sum(q[token] * kept_share(p[token], q[token]) for token in range(2))
    assert accepted == pytest.approx(0.6)
    out = [q[x] * kept_share(p[x], q[x]) + (1 - accepted) * remainder(p, q)[x] for x in range(2)]
    assert out == pytest.approx([0.5, 0.5])


def test_the_rule_s_output_has_the_model_s_frequencies() -> None:
    """p = (.5, .5), q = (.9, .1): 20,000 seeds, of which what is drafted and what decides are functions."""
    from haversack.run._verify import DRAFTED, number_at, pick

    p, q = logits_of([0.5, 0.5]), np.asarray([0.9, 0.1])
    counts, accepted = np.zeros(2), 0
    for seed in range(20_000):
        session = Session(Sampler(temperature=1.0, seed=seed), np.asarray([0], np.int32), 8)
        draft = pick(q, number_at(session, DRAFTED, 0))
        drawn = verify_chain([draft], np.stack([p, p]), session, [q])
        counts[drawn[0][0]] += 1
        accepted += len(drawn) - 1
    assert accepted / 20_000 == pytest.approx(0.6, abs=0.012)
    chi = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi < 6.63  # p > .01 with one degree of freedom


def test_a_chain_ends_at_the_first_token_that_the_model_does_not_say() -> None:
    rows = np.zeros((4, 5), np.float32)
    rows[np.arange(4), [3, 1, 2, 4]] = 9
    for chain, expected in (
        ([3, 1, 2], [3, 1, 2, 4]),
        ([3, 0, 2], [3, 1]),
        ([0, 1, 2], [3]),
        ([], [3]),
    ):
        session = Session(Sampler(), np.asarray([0], np.int32), 8)
        found = verify_chain(chain, rows[: len(chain) + 1], session)
        assert [token for token, _ in found] == expected
        assert session.tokens.tolist() == [0, *expected]


# ---- in a batch


class Heard:
    """What a text's `tell` hears, in order."""

    def __init__(self) -> None:
        self._events: deque[tuple[str, Any]] = deque()
        self._some = threading.Semaphore(0)

    def __call__(self, kind: str, value: Any) -> None:
        self._events.append((kind, value))
        self._some.release()

    def next(self, kind: str) -> Any:
        assert self._some.acquire(timeout=30)
        found, value = self._events.popleft()
        assert found == kind, (found, value)
        return value


@pytest.fixture(scope="module")
def small(alike: Path) -> Iterator[Engine]:
    with Engine.open(alike) as engine:
        yield engine


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder) as engine:
        yield engine


def plain(engine: Engine, prompt: Any, count: int, sampler: Sampler | None = None) -> list[int]:
    answer = generate(engine, prompt, Limits(count, end=()), sampler)
    for _ in answer:
        pass
    return answer.tokens


def begun(
    batch: Batch, prompt: Any, sampler: Sampler, most: int, rejection: bool = False
) -> tuple[Any, Heard]:
    heard = Heard()
    ask = Ask(prompt, Limits(most, end=()), sampler, rounds=Rounds(len(prompt), heard, rejection))
    (job,) = batch.submit([ask])
    heard.next("read")
    return job, heard


@pytest.mark.parametrize("cache_type", ["f32", "int8"])
@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=1.0, seed=4)], ids=["greedy", "drawn"])
def test_rounds_give_the_plain_tokens_beside_other_answers(
    folder: Path, cache_type: str, sampler: Sampler
) -> None:
    """Chains that are right, partly right and wrong, of two texts at once, while others are answered."""
    with Engine.open(folder, cache_type=cache_type) as engine:
        prompts = [PROMPT, np.arange(1, 90, dtype=np.int32)]
        expected = [plain(engine, prompt, 40, sampler) for prompt in prompts]
        with Batch(engine, contexts=4, prefix_bytes=1 << 20) as batch:
            asks = [Ask(prompts[1], Limits(30, end=()), sampler) for _ in range(6)]
            others = batch.submit(asks)
            texts = [begun(batch, prompt, sampler, 40) for prompt in prompts]
            numbers = np.random.default_rng(1)
            written: list[list[int]] = [[], []]
            while any(len(one) < 40 for one in written):
                for (job, _), tokens, whole in zip(texts, written, expected, strict=True):
                    if len(tokens) < 40:
                        chain = whole[len(tokens) : len(tokens) + int(numbers.integers(0, 9))][
                            : 39 - len(tokens)
                        ]
                        if chain and numbers.random() < 0.5:
                            chain[-1] = (chain[-1] + 1) % 288
                        batch.verify(job, np.asarray(chain, np.int32))
                for (_, heard), tokens in zip(texts, written, strict=True):
                    if len(tokens) < 40:
                        verdict = heard.next("verdict")
                        tokens += [token for token, _ in verdict.drawn]
            assert written == expected
            assert all(other.wait(60).tokens == expected[1][:30] for other in others)
            assert batch.state().running == 2
            batch.cancel([job for job, _ in texts])
            for _, heard in texts:
                assert heard.next("over") == "cancelled"


def test_a_text_may_begin_in_the_middle_of_its_answer(engine: Engine) -> None:
    sampler = Sampler(temperature=1.0, seed=9, repetition_penalty=1.2)
    whole = plain(engine, PROMPT, 20, sampler)
    with Batch(engine, contexts=2, prefix_bytes=1 << 20) as batch:
        for place in (1, 7, 19):
            heard = Heard()
            text = np.asarray([*PROMPT, *whole[:place]], np.int32)
            (job,) = batch.submit([Ask(text, Limits(20, end=()), sampler, rounds=Rounds(len(PROMPT), heard))])
            heard.next("read")
            batch.verify(job, np.asarray(whole[place : place + 4][: 19 - place], np.int32))
            verdict = heard.next("verdict")
            assert [token for token, _ in verdict.drawn] == whole[place : place + 5]
            batch.cancel([job])
            heard.next("over")


def test_by_rejection_the_server_knows_what_the_device_drew(engine: Engine, small: Engine) -> None:
    """Tokens and acceptance are those of verifying on the device itself."""
    with Batch(engine, contexts=2, draft=small) as batch:
        for seed in range(6):
            sampler = Sampler(temperature=1.0, top_k=30, seed=seed)
            here, there = (Session(sampler, PROMPT, 24) for _ in range(2))
            drafts, cache = small.cache(64), engine.cache(64)
            job, heard = begun(batch, PROMPT, sampler, 24, rejection=True)
            while here.left > 4:
                chain, shares = draft_chain(small, drafts, here, 3, coupled=False)
                rows, _ = engine.step(
                    np.concatenate([here.tokens[cache.length :], np.asarray(chain, np.int32)]),
                    cache=cache,
                    want="all",
                )
                found = verify_chain(chain, rows[-len(chain) - 1 :], here, shares)
                cache.truncate(here.length - 1)
                drafts.truncate(min(drafts.length, cache.length))
                batch.verify(job, np.asarray(chain, np.int32))
                verdict = heard.next("verdict")
                assert verdict.drawn == found
                for token, _ in verdict.drawn:
                    there.add(token)
            assert there.tokens.tolist() == here.tokens.tolist()
            batch.cancel([job])
            heard.next("over")


def test_a_prompt_of_one_token_and_a_full_context(folder: Path) -> None:
    with Engine.open(folder, context_length=8) as engine:
        one = np.asarray([5], np.int32)
        whole = plain(engine, one, 8)
        with Batch(engine, contexts=1) as batch:
            job, heard = begun(batch, one, Sampler(), 8)
            batch.verify(job, np.asarray(whole[:7], np.int32))
            assert [token for token, _ in heard.next("verdict").drawn] == whole[:8]
            assert len(whole) == 8  # seven fill the context, and one more is written


def test_who_waits_for_a_slot_gets_it_when_a_text_is_over(engine: Engine) -> None:
    with Batch(engine, contexts=1) as batch:
        job, heard = begun(batch, PROMPT, Sampler(), 8)
        (other,) = batch.submit([Ask(PROMPT, Limits(3, end=()), Sampler())])
        assert not other.ended.wait(0.1)
        batch.cancel([job])
        assert heard.next("over") == "cancelled"
        assert other.wait(30).tokens == plain(engine, PROMPT, 3)


def test_texts_are_over_when_the_batch_is(engine: Engine) -> None:
    batch = Batch(engine, contexts=2)
    _, heard = begun(batch, PROMPT, Sampler(), 8)
    batch.close()
    assert heard.next("over") == "stopped"
