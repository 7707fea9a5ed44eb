"""Answers that share steps are those that each would get alone; nobody starves, nothing stays behind."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.run import Engine, Limits, Sampler, generate
from haversack.run._batch import Batch, Busy
from haversack.run._jobs import Adjustments, Ask

RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(3, 280, size).astype(np.int32) for size in (1, 7, 300, 40, 2, 120, 9, 33, 5, 64)]
SAMPLERS = [Sampler(), Sampler(0.8, seed=5), Sampler(1.2, top_k=40, top_p=0.9, min_p=0.02, seed=-3),
            Sampler(0.7, repetition_penalty=1.3, seed=1 << 60)]  # fmt: skip


def asks(count: int = len(PROMPTS), tokens: int = 24, **fields: Any) -> list[Ask]:
    return [
        Ask(PROMPTS[i], Limits(tokens - i, (), ()), SAMPLERS[i % len(SAMPLERS)], **fields)
        for i in range(count)
    ]


def alone(engine: Engine, ask: Ask) -> tuple[list[int], str, str]:
    answer = generate(engine, ask.prompt, ask.limits, ask.sampler)
    for _ in answer:
        pass
    return answer.tokens, answer.text, answer.stop


class Steps:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[int] = []
        self.rows: list[int] = []
        self.cached: list[int] = []
        self.ended: list[Any] = []

    def first_token(self, seconds: float) -> None: ...

    def step(self, texts: int, rows: int, seconds: float, gaps: Any) -> None:
        self.texts.append(texts)
        self.rows.append(rows)

    def began(self, prompt: int, cached: int, waited: float) -> None:
        self.cached.append(cached)

    def over(self, job: Any) -> None:
        self.ended.append(job)


@pytest.mark.parametrize("prefix_bytes", [0, 1 << 20])
@pytest.mark.parametrize("cache_type", ["f32", "int8"])
@pytest.mark.parametrize("kind", ["folder", "pack"])
def test_answers_equal_those_given_alone(kind: str, cache_type: str, prefix_bytes: int, request: Any) -> None:
    with Engine.open(request.getfixturevalue(kind), cache_type=cache_type) as engine:
        expected = [alone(engine, ask) for ask in asks()]
        steps = Steps()
        with Batch(engine, contexts=4, prefix_bytes=prefix_bytes, watch=steps) as batch:
            for _ in range(2):  # the second time with prefixes
                jobs = batch.submit(asks())
                found = [(job.wait(60).tokens, job.text, job.stop) for job in jobs]
                assert found == expected
        assert max(steps.texts) == 4 and max(steps.rows) <= 256
        assert (max(steps.cached) >= 288) == (prefix_bytes > 0)


def test_stop_texts_ends_and_the_context(folder: Any) -> None:
    with Engine.open(folder, context_length=60) as engine:
        free = alone(engine, Ask(PROMPTS[1], Limits(40, (), ()), Sampler(0.9, seed=2)))
        stop = free[1][5:8]
        cases = [
            Ask(PROMPTS[1], Limits(40, (stop,), ()), Sampler(0.9, seed=2)),
            Ask(PROMPTS[1], Limits(40, (), (free[0][7],)), Sampler(0.9, seed=2)),
            Ask(PROMPTS[3], Limits(400, (), ())),
            Ask(PROMPTS[1], Limits(1, (), ())),
        ]
        expected = [alone(engine, case) for case in cases]
        assert [why for _, _, why in expected] == ["stop-text", "end-of-text", "context", "max-tokens"]
        with Batch(engine, contexts=2) as batch:
            jobs = batch.submit(cases)
            assert [(job.wait(60).tokens, job.text, job.stop) for job in jobs] == expected


def test_choices_of_one_prompt_read_it_once(folder: Any) -> None:
    with Engine.open(folder) as engine:
        steps = Steps()
        with Batch(engine, contexts=4, prefix_bytes=1 << 20, watch=steps) as batch:
            same = [Ask(PROMPTS[2], Limits(8, (), ()), Sampler(1.0, seed=seed)) for seed in range(4)]
            jobs = [job.wait(60) for job in batch.submit(same, together=True)]
            assert [job.cached for job in jobs] == [0, 288, 288, 288]
            assert len({tuple(job.tokens) for job in jobs}) == 4
            assert [job.tokens for job in jobs] == [alone(engine, ask)[0] for ask in same]


def test_a_long_prompt_does_not_hold_up_who_writes(folder: Any) -> None:
    """While 500 tokens are read, a running answer gets a token in each of those steps."""
    long = RNG.integers(3, 280, 500).astype(np.int32)
    with Engine.open(folder) as engine:
        steps = Steps()
        began = threading.Event()
        with Batch(engine, contexts=3, watch=steps, deliver=lambda events: began.set()) as batch:
            (writer,) = batch.submit([Ask(PROMPTS[1], Limits(300, (), ()), tell=True)])
            assert began.wait(30)
            reader, other = batch.submit([Ask(long, Limits(2, (), ())), Ask(PROMPTS[4], Limits(2, (), ()))])
            reader.wait(60)
            # The short prompt that came after the long one did not wait for it.
            assert other.wait(60).last < reader.last
            assert writer.stop is None or len(writer.tokens) == 300
            writer.wait(60)
        mixed = [(t, r) for t, r in zip(steps.texts, steps.rows, strict=True) if r > t]
        assert len(mixed) >= 500 // 64 and all(rows <= 64 + texts for texts, rows in mixed)


def test_nobody_starves(folder: Any) -> None:
    """Answers begin in the order they came, however many are submitted by one client."""
    with Engine.open(folder) as engine:
        order: list[int] = []
        steps = Steps()
        steps.over = lambda job: order.append(job.number)  # type: ignore[method-assign]
        with Batch(engine, contexts=2, queue=100, watch=steps) as batch:
            many = batch.submit([Ask(PROMPTS[1], Limits(5, (), ())) for _ in range(40)])
            (late,) = batch.submit([Ask(PROMPTS[1], Limits(5, (), ()))])
            for job in (*many, late):
                job.wait(60)
        assert [number - many[0].number for number in order] == sorted(
            number - many[0].number for number in order
        )


def test_the_queue_is_bounded_and_takes_all_or_none(folder: Any) -> None:
    with Engine.open(folder) as engine, Batch(engine, contexts=1, queue=3) as batch:
        slow = Ask(PROMPTS[1], Limits(400, (), ()))
        jobs = batch.submit([slow])
        while batch.state().running == 0:
            time.sleep(0.001)
        jobs += batch.submit([slow, slow])
        with pytest.raises(Busy):
            batch.submit([slow, slow])
        jobs += batch.submit([slow])
        assert batch.state().waiting == 3
        batch.cancel(jobs)
        for job in jobs:
            job.wait(60)
        assert batch.submit([Ask(PROMPTS[1], Limits(2, (), ()))])[0].wait(60).stop == "max-tokens"
        with pytest.raises(UserError, match="the context holds"):
            batch.submit([Ask(np.ones(600, np.int32))])


def test_cancelled_and_late_answers_free_their_slots(folder: Any) -> None:
    with Engine.open(folder) as engine:
        began = threading.Event()
        with Batch(engine, contexts=2, deliver=lambda events: began.set()) as batch:
            slow = Limits(500, (), ())
            one, two, three = batch.submit(
                [
                    Ask(PROMPTS[1], slow, tell=True),
                    Ask(PROMPTS[4], slow, deadline=time.monotonic() + 0.005),
                    Ask(PROMPTS[3], Limits(3, (), ())),
                ]
            )
            assert began.wait(30)
            batch.cancel([one])
            assert [job.wait(60).stop for job in (one, two, three)] == ["cancelled", "deadline", "max-tokens"]
            state = batch.state()
            assert (state.running, state.waiting, sorted(batch._free)) == (0, 0, [0, 1])
            assert all(cache.length == 0 for cache in batch.together.caches)


def test_what_breaks_one_answer_leaves_the_others(folder: Any) -> None:
    class Broken:
        def __init__(self) -> None:
            raise UserError("this schema never ends.", field="response_format")

    with Engine.open(folder) as engine:
        expected = alone(engine, asks(1)[0])[0]
        with Batch(engine, contexts=3) as batch:
            bad = Ask(PROMPTS[1], Limits(5, (), ()), constraint=Broken)
            wrong = Ask(np.asarray([99999], np.int32), Limits(5, (), ()))
            good, broken = batch.submit([asks(1)[0], bad])
            assert good.wait(60).tokens == expected
            with pytest.raises(UserError, match="never ends"):
                broken.wait(60)
            with pytest.raises(UserError, match="the model knows"):
                batch.submit([wrong])[0].wait(60)
            assert batch.submit(asks(1))[0].wait(60).tokens == expected
            assert sorted(batch._free) == [0, 1, 2]


def test_closing_ends_what_runs_and_what_waits(folder: Any) -> None:
    with Engine.open(folder) as engine:
        batch = Batch(engine, contexts=1)
        jobs = batch.submit([Ask(PROMPTS[1], Limits(500, (), ())) for _ in range(3)])
        batch.close()
        assert [job.wait(1).stop for job in jobs] == ["stopped"] * 3
        with pytest.raises(Busy):
            batch.submit([Ask(PROMPTS[1])])
        assert not batch._thread.is_alive()


def test_penalties_and_biases_are_exact(folder: Any) -> None:
    """Against the formula, written out: logits - frequency * count - presence * (count > 0) + bias."""
    with Engine.open(folder) as engine:
        given = Adjustments(presence=0.7, frequency=0.4, bias=((9, -100.0), (11, 3.5)))
        with Batch(engine, contexts=1) as batch:
            (job,) = batch.submit([Ask(PROMPTS[1], Limits(30, (), ()), Sampler(), given, top=3)])
            job.wait(60)
        cache = engine.cache(200)
        logits, _ = engine.step(PROMPTS[1], cache=cache)
        counts: dict[int, int] = {}
        for drawn in job.drawn:
            assert logits is not None and drawn.token is not None
            row = logits[-1].astype(np.float64)
            changed = row.copy()
            for token, count in counts.items():
                changed[token] -= 0.4 * count + 0.7
            changed[9] -= 100
            changed[11] += 3.5
            assert drawn.token == int(changed.argmax())
            shares = row - row.max()
            shares -= np.log(np.exp(shares).sum())  # of the model, not of what was changed
            assert drawn.log_probability == pytest.approx(shares[drawn.token], abs=1e-5)
            likeliest = np.argsort(-shares)[:3].tolist()
            assert [token for token, _ in drawn.top] == likeliest
            counts[drawn.token] = counts.get(drawn.token, 0) + 1
            logits, _ = engine.step([drawn.token], cache=cache)


def test_embeddings_are_the_mean_of_hidden_states(folder: Any) -> None:
    with Engine.open(folder) as engine:
        with Batch(engine, contexts=2) as batch:
            jobs = batch.submit([Ask(PROMPTS[i], embed=True) for i in (2, 3, 1)] + [asks(1)[0]])
            found = [job.wait(60).embedding for job in jobs[:3]]
        for index, total in zip((2, 3, 1), found, strict=True):
            prompt = PROMPTS[index]
            _, hidden = engine.step(prompt, cache=engine.cache(400), want="hidden")
            np.testing.assert_allclose(total / len(prompt), hidden.mean(axis=0), rtol=1e-5, atol=1e-6)
