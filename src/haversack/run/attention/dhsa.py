"""DHSA: a prompt's queries see a fixed number of keys, chosen by chunks whose borders depend on the text.

Paper: Xiong et al., "Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs"
(arXiv 2510.24606, 2025).
What is here: borders by a trained predictor and non-maximum suppression, found from the first layer's keys
and shared by all layers (`border_block`: a later one's, with equal distances before it;
`share_borders=false`: each its own); chunk vectors whose length is normalised by its square root; chunk
scores, of which a block of queries takes the best until its budget is full; exact softmax attention over what
was taken, in a kernel that reads nothing else. A model's windows and soft caps hold. Modes: `dhsa`; `block`,
equal blocks of `key_block` keys by their means; `sliding`, the last keys alone; `dense`; and the later,
kernel-friendly forms [code], `dhsa_topk` (the first and the nearest key block always, the rest by their
means) and `dhsa_vs` (half of the budget for columns, half for diagonals, by the attention of the last
queries).
What we changed: the released selection may take a key twice, which then weighs twice; here the choice is a
set. A block's own keys are all seen, so that no query sees nothing, and count in the budget. A chunk that
reaches beyond a block of queries is judged by its part before the block's end, so that the bits of a prompt
do not depend on how many tokens pass a layer at once. `dhsa_vs` votes every 256 tokens, with the last 16
queries of them, and takes diagonals as wide as a key block. Borders are the best gaps, as many as may be: the
threshold of 1.1 [code] is left to `threshold`, for it leaves small models with a handful of long chunks.
`heads=apart` scores and chooses for each key head, instead of averaging heads before scoring.
Cost: budget x length products of query and key instead of length^2 / 2; length / query_block x chunks for the
scores; the predictor, once a prompt. Below a length that `haversack bench 09` prints, dense attention is
faster.
Limits: prompts that fit the budget, and prompts too short for the predictor, are read densely, and so are the
last `tail` tokens (the instruction) and every token that is written. Reads one prompt at a time. Layers with
a window keep the whole text all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.kernels import CacheLayer, Visible, attention, chosen_attention
from haversack.models._architecture import Architecture, Attention
from haversack.run._products import F32
from haversack.run._step import Step

if TYPE_CHECKING:
    from haversack.run._engine import Engine

I64 = npt.NDArray[np.int64]
CHUNKS = 8
"""Most chunks for each block of queries."""
UNSURE = -100.0
"""The score of a gap where no border may be."""


def choose_borders(
    logits: F32, query_block: int, threshold: float, apart: int = 8, edge: int = 4, tail: int = 0
) -> I64:
    """Borders 0 .. n, i64 [chunks + 1], from the logits f32 [n] of the gaps behind n tokens.

    Gaps above `threshold`, best first, become borders unless one within `apart` gaps has been taken; at most
    CHUNKS for each block of queries. None lies within `edge` gaps of either end or in the last `tail` tokens,
    which begin with a border of their own.
    """
    n = len(logits)
    begin = max(n - tail, 0)
    last = max(min(n - edge, begin - 1) if tail else n - edge, edge)
    scores = np.full(n, UNSURE, np.float32)
    scores[edge:last] = logits[edge:last]
    likely = np.flatnonzero(scores > threshold)
    blocked = np.zeros(n, bool)
    taken: list[int] = []
    most = n // query_block * CHUNKS
    for gap in likely[np.argsort(-scores[likely], kind="stable")].tolist():
        if len(taken) >= most:
            break
        if not blocked[gap]:
            taken.append(gap)
            blocked[max(gap - apart, 0) : gap + apart + 1] = True
    forced = [begin] if tail and begin else []
    return np.unique(np.array([0, *(gap + 1 for gap in taken), *forced, n], np.int64))


@dataclass(frozen=True)
class DHSA(Method):
    name = "dhsa"
    stage = "run"
    slot = "attention"
    paper = "Xiong et al., Dynamic Hierarchical Sparse Attention (arXiv 2510.24606)"
    summary = "A prompt's queries see a budget of keys, in chunks whose borders a small network finds."
    system = 9
    provides = frozenset({"tree-mask"})
    excludes = frozenset({"static-shapes", "encoder-decoder"})

    mode: str = parameter(
        "dhsa",
        allowed=("dhsa", "dhsa_topk", "dhsa_vs", "block", "sliding", "dense"),
        help="how keys are chosen",
    )
    budget: int = parameter(2048, help="keys that a query sees at most")
    density: float = parameter(0.0, help="the budget as a share of the prompt instead, 0: budget holds")
    query_block: int = parameter(128, allowed=(16, 32, 64, 128, 256), help="queries that share a choice")
    key_block: int = parameter(
        32, allowed=(8, 16, 32, 64, 128), help="keys of a block or band, where borders are not predicted"
    )
    local: int = parameter(128, help="nearest keys that are always seen")
    sinks: int = parameter(128, help="first keys that are always seen")
    tail: int = parameter(64, help="last tokens of a prompt, which see all keys")
    threshold: float | None = parameter(
        None, help="logit above which a gap may be a border; none: the best gaps, as many as may be"
    )
    apart: int = parameter(8, help="gaps around a border that can be none")
    borders: str = parameter("predicted", allowed=("predicted", "fixed"), help="where chunks of dhsa begin")
    pooling: str = parameter("sqrt", allowed=("sqrt", "mean", "max"), help="how dhsa makes chunk vectors")
    heads: str = parameter("together", allowed=("together", "apart"), help="one choice, or one a key head")
    share_borders: bool = parameter(True, help="borders of one layer serve those after it")
    border_block: int = parameter(0, help="the block whose keys borders come from; equal distances before it")
    share_selection: bool = parameter(False, help="layers of one kind share the choice of the first of them")
    predictor: str = parameter("", help="the predictor's file, where the pack has none")

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"budget": self.least, "local": 0, "sinks": 0, "tail": 0, "apart": 0, "density": 0}
        least["border_block"] = 0
        for field, allowed in least.items():
            given = getattr(self, field)
            if not given >= allowed:
                why = (
                    f" for sinks={self.kept_sinks}, local={self.kept_local} and blocks of {self.query_block}"
                )
                raise UserError(
                    f"{field}={given} is not supported (allowed {allowed} and more"
                    f"{why if field == 'budget' else ''}); use {field}={allowed}.",
                    field=field,
                    given=given,
                    nearest=allowed,
                )
        if self.density > 1:
            raise UserError(
                f"density={self.density} is not supported (allowed 0 to 1); use density=1.",
                field="density",
                given=self.density,
                nearest=1,
            )

    @property
    def kept_sinks(self) -> int:
        """First keys that are always seen: the later forms keep one key block."""
        return self.key_block if self.mode in ("dhsa_topk", "dhsa_vs") else self.sinks

    @property
    def kept_local(self) -> int:
        """Nearest keys that are always seen."""
        return self.key_block if self.mode in ("dhsa_topk", "dhsa_vs") else self.local

    @property
    def least(self) -> int:
        """The smallest budget: what is always seen."""
        return self.kept_sinks + max(self.kept_local, self.query_block)

    @property
    def predicts(self) -> bool:
        """True when borders come from the predictor."""
        return self.mode == "dhsa" and self.borders == "predicted"

    def budget_of(self, prompt: int) -> int:
        """Keys that a query of a prompt of so many tokens sees at most."""
        return max(int(self.density * prompt), self.least) if self.density else self.budget

    def prepare(self, engine: Engine) -> None:
        """Open the predictor that the mode needs. Raises UserError when there is none or it is another
        model's."""
        from haversack.run.attention._prompt import Reader

        engine.reader = Reader(self, engine.model)

    def attend(self, query: F32, cache: CacheLayer, step: Step, layer: Attention) -> F32:
        """query f32 [n, heads, head width] over the cache -> f32 [n, heads, head width]."""
        chosen = None if step.prompt is None else step.prompt.choose(query, cache, step, layer)
        seen = step.visible(layer.window)
        if chosen is None:
            dense: F32 = attention(query, cache, seen, layer.scale, layer.softcap)
            return dense
        out, rows = np.empty(query.shape, np.float32), int(chosen.bounds[-1])
        chosen_attention(query[:rows], cache, chosen, layer.scale, layer.softcap, out=out[:rows])
        if rows < len(query):
            start = None if seen.start is None else seen.start[rows:]
            rest = Visible(step.start + rows, start)
            attention(query[rows:], cache, rest, layer.scale, layer.softcap, out=out[rows:])
        return out

    def visible(self, step: Step, layer: Attention) -> Visible | None:
        """What each token sees, where it sees all; None for a prompt's tokens."""
        return step.visible(layer.window) if step.prompt is None else None

    def planned(
        self, architecture: Architecture, prompt: int, cache_type: str
    ) -> tuple[tuple[str, int], ...]:
        """Memory lines of reading a prompt of so many tokens."""
        from haversack.run.attention._prompt import planned_nbytes

        return (("sparse attention", planned_nbytes(self, architecture, prompt, cache_type)),)
