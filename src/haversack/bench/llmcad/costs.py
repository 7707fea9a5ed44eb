"""What token trees save, by counting: a pass of the large model takes as long as 50 or 200 small steps.

Everything is run and counted, nothing is timed: time is passes x ratio + steps of the small model + drafted
tokens x what one more token adds to a pass (measured here, beside a step of the small model). Drafting beside
a pass takes its steps from the pass, one after the other, as the engine does it; all sides pay alike. Linear
drafts are those of the best of four lengths, at each ratio, on the very prompts that are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.llmcad._bench import LINEAR, RATIOS, answered, bench, opened, prompts

TOKENS = 64
ALPHAS = (0.1, 0.02, 0.005, 0.001)
OURS = "tree"
PARTS = {
    OURS: "",
    "nothing drafted beside a pass": "speculate=false",
    "no branches": "children=1",
    "the printed threshold": "adaptive=paper",
    **{f"alpha {alpha}": f"adaptive=none,alpha={alpha}" for alpha in ALPHAS},
}
PUBLISHED = "2.9-9.3x (IoT), 3.47-4.67x (phones)"
FALLBACK, ROLLBACK = 0.5, 3.0


class Counted:
    """Weights in memory whose first block is waited for as long as `ratio` steps of the small model."""

    def __init__(self, held: Any, ratio: float) -> None:
        self.held, self.ratio = held, ratio
        self.top = held.top
        self.meanwhile: Any = None
        self.beside = self.late = 0

    def weights(self, block: int, names: Sequence[str] = ()) -> Any:
        """See Held. A step beside the pass is begun as long as the pass lasts."""
        steps = 0
        while block == 0 and self.meanwhile is not None and steps < self.ratio and self.meanwhile(np.inf):
            steps += 1
        self.beside += steps
        return self.held.weights(block, names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.held, name)


@dataclass
class Count:
    """What a side did for all prompts."""

    tokens: int = 0
    passes: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def cost(self, ratio: float, more: float) -> float:
        """Steps of the small model that all of it took as long as."""
        return self.passes * ratio + self.steps + more * self.drafted


def counted(decode: str, ratio: float, asked: list[Any], plain: list[list[int]] | None) -> Count:
    """Run `decode` on `asked`. Raises ValueError when a token is not the plain one."""
    found = Count()
    with opened(decode) as engine:
        engine.held = held = Counted(engine.held, ratio)
        for index, prompt in enumerate(asked):
            answer = answered(engine, prompt, TOKENS)
            if plain is not None and answer.tokens != plain[index]:
                raise ValueError(f"{decode} gives other tokens")
            counts = answer.drafting
            found.tokens += TOKENS - 1
            found.passes += TOKENS - 1 if counts is None else counts.passes
            if counts is not None:
                found.steps += counts.steps
                found.drafted += counts.drafted
                found.accepted += counts.accepted
        found.steps -= held.beside
    return found


def more_a_token() -> float:
    """What one more token adds to a pass of the large model, in steps of the small one."""
    with opened("tree") as engine:
        large, small = engine.cache(256), engine.draft.cache(256)
        times: dict[str, list[float]] = {"one": [], "many": [], "step": []}
        for name, one, cache, count in (
            ("one", engine, large, 1),
            ("many", engine, large, 33),
            ("step", engine.draft, small, 1),
        ) * 15:
            cache.truncate(0)
            began = perf_counter()
            one.step(np.arange(5, 5 + count), cache=cache, want="all")
            times[name].append(perf_counter() - began)
        medians = {name: float(np.median(values)) for name, values in times.items()}
    return max(0.0, (medians["many"] - medians["one"]) / 32 / medians["step"])


def rows() -> list[Row]:
    found = []
    for ratio in RATIOS:
        found += [
            Row(
                f"passes-{ratio}",
                f"tokens a pass of the large model, beside plain decoding, tree for a ratio of {ratio}",
                "tokens/pass",
                "bytes",
                Bar(">=", 2.5),
                quick=ratio == 50,
            ),
            Row(
                f"counted-{ratio}",
                f"tokens for the time of a pass, a pass as long as {ratio} steps of the small model",
                "tokens/pass time",
                "quality",
                Bar(">=", 2.3),
                published=PUBLISHED,
                quick=ratio == 50,
            ),
            Row(
                f"counted-linear-{ratio}",
                f"the same beside the best of four lengths of linear drafts, ratio {ratio}",
                "tokens/pass time",
                "quality",
                Bar(">=", 1.05),
                published="1.34-2.00x",
            ),
            Row(
                f"counted-beside-{ratio}",
                f"the same beside a tree that drafts nothing while a pass waits, ratio {ratio}",
                "tokens/pass time",
                "quality",
                Bar(">=", 1.1),
                published="up to 1.51x",
            ),
            Row(
                f"counted-fixed-{ratio}",
                f"the bounded threshold beside the best of four fixed ones, ratio {ratio}",
                "tokens/pass time",
                "quality",
                Bar(">=", 0.9),
                published="1.08-1.20x better than a fixed one",
            ),
            Row(
                f"counted-printed-{ratio}",
                f"the bounded threshold beside the printed rule, ratio {ratio}",
                "tokens/pass time",
                "quality",
            ),
            Row(
                f"counted-branches-{ratio}",
                f"the tree beside one whose branches get no steps of their own, ratio {ratio}",
                "tokens/pass time",
                "quality",
                published="2.6-4.3x (tree and verification)",
            ),
        ]
    return found


@bench.measure(*rows(), seconds=400, quick_seconds=20)
def counts(run: Run) -> Outcomes:
    asked = prompts(run, 4 if run.quick else 24)
    more = more_a_token()
    with opened("one-by-one") as engine:
        plain = [answered(engine, prompt, TOKENS).tokens for prompt in asked]
    found: dict[str, Outcome] = {}
    for ratio in RATIOS[:1] if run.quick else RATIOS:
        sides = {OURS: ""} if run.quick else PARTS
        counts = {
            name: counted(f"tree:ratio={ratio},pause=never{',' + part if part else ''}", ratio, asked, plain)
            for name, part in sides.items()
        }
        if not run.quick:
            counts |= {name: counted(decode, ratio, asked, plain) for name, decode in LINEAR.items()}
        speeds = {name: count.tokens * ratio / count.cost(ratio, more) for name, count in counts.items()}
        ours = counts[OURS]
        note = (
            f"{len(asked)} prompts, {TOKENS} tokens; {ours.accepted / ours.drafted:.0%} of "
            f"{ours.drafted / ours.passes:.1f} drafts a pass accepted, {ours.steps / ours.passes:.1f} steps "
            f"of the small model before a pass; one more token adds {more:.2f} steps to a pass"
        )
        found[f"passes-{ratio}"] = Outcome.single(
            ours.tokens / ours.passes, 1.0, name=OURS, against="plain", note=note
        )
        found[f"counted-{ratio}"] = Outcome.single(speeds[OURS], 1.0, name=OURS, against="plain", note=note)
        if run.quick:
            continue
        linear = max(LINEAR, key=speeds.__getitem__)
        fixed = max((f"alpha {alpha}" for alpha in ALPHAS), key=speeds.__getitem__)
        hidden = ours.cost(ratio, more) / (ours.cost(ratio, more) - ours.steps)
        against = {
            "linear": (linear, "; ".join(f"{name} {speeds[name]:.2f}" for name in LINEAR)),
            "beside": (
                "nothing drafted beside a pass",
                f"all drafting hidden would be {hidden:.2f}x",
            ),
            "fixed": (fixed, "; ".join(f"alpha {alpha} {speeds[f'alpha {alpha}']:.2f}" for alpha in ALPHAS)),
            "printed": ("the printed threshold", ""),
            "branches": ("no branches", ""),
        }
        for short, (name, said) in against.items():
            found[f"counted-{short}-{ratio}"] = Outcome.single(
                speeds[OURS], speeds[name], name=OURS, against=name, note=said
            )
    return found


@bench.measure(
    Row(
        "bild",
        "tokens that a fallback without exact verification (as in BiLD) shares with plain decoding, and its "
        "tokens a pass in the note",
        "share of tokens",
        "quality",
        published="Rouge-L to the target 3.4-96.5",
    ),
    seconds=30,
)
def bild(run: Run) -> Outcomes:
    """The small model writes until it is unsure; the large one takes back what it finds very unlikely."""
    asked = prompts(run, 8)
    same = passes = written = 0
    with opened("tree") as engine, opened("one-by-one") as exact:
        for prompt in asked:
            plain = answered(exact, prompt, TOKENS).tokens
            tokens, count = _bild(engine, [int(token) for token in prompt])
            same += sum(one == other for one, other in zip(tokens, plain, strict=True))
            passes, written = passes + count, written + len(tokens)
    note = (
        f"falls back below {FALLBACK}, takes back tokens less likely than exp(-{ROLLBACK}); "
        f"{written / passes:.2f} tokens a pass"
    )
    return {"bild": Outcome.single(same / written, 1.0, name="fallback", against="exact", note=note)}


def _bild(engine: Any, prompt: list[int]) -> tuple[list[int], int]:
    """(tokens, passes of the large model) of fallback and rollback."""
    from haversack.kernels import log_softmax

    text, passes = list(prompt), 0
    large, small = engine.cache(512), engine.draft.cache(512)
    engine.step(text[:-1], cache=large, want="none")
    while len(text) - len(prompt) < TOKENS:
        checked = large.length
        small.truncate(min(small.length, checked))
        while len(text) - checked < 10:
            logits, _ = engine.draft.step(text[small.length :], cache=small)
            shares = np.exp(log_softmax(logits)[0])
            if shares.max() < FALLBACK:
                break
            text.append(int(shares.argmax()))
        rows, _ = engine.step(text[checked:], cache=large, want="all")
        passes += 1
        logs = log_softmax(rows)
        for place in range(len(rows)):
            following = checked + place + 1
            if following == len(text) or logs[place, text[following]] < -ROLLBACK:
                text = [*text[:following], int(rows[place].argmax())]
                large.truncate(following)
                break
    return text[len(prompt) : len(prompt) + TOKENS], passes
