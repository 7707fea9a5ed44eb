"""Token trees: a small model drafts likely continuations, the large one verifies all of them in one pass.

Paper: Xu, Yin, Jin, Zhang, Wei, Xu and Liu, "LLMCad: Fast and Scalable On-device Large Language Model
Inference" (2023; EdgeLLM in IEEE TMC).
What is here: the tree grows where confidence, the product of the small model's probabilities along a branch,
says that it pays: a token above `branch_threshold` beside the likeliest opens a branch, and the branch that
is most behind its share of confidence gets the next step. When the likeliest branch is less likely than the
threshold alpha, the large model reads the whole tree in one pass, each node seeing its own branch, and the
longest path of its own tokens is kept. alpha is halved when a branch was right to its end and raised by how
much of it was wrong. While the pass waits for weights, the small model drafts on (`speculate`): it computes
only while the large one cannot, in the very thread that waits, and what the pass leaves of it is kept.
What we changed: one pass over a masked tree instead of a batch of branches. Places that a pass has beside the
tree go to tokens that the small model held likely and that opened no branch, as long as their chance is worth
what one more token adds to a pass: they take no step of the small model. `adaptive=paper` is the printed
rule, alpha / T_c^((N_all - N_correct) / N_all) [recalled], which a weakly aligned draft drives so high that
trees end early; `bounded`, the default, keeps alpha below what a drafted token costs beside a pass, as the
run itself measures it [inferred]. Where drafting gives fewer tokens a second than plain passes, it rests for
some. At most two children, ten branches and 64 nodes [inferred].
Sampling: `tokens` keeps the tokens of plain decoding with the same seed; `rejection` keeps the distribution
(run/_verify.py), with costs by the models' sizes instead of the clock and nothing drafted beside a pass, so
that a seed gives the same tokens again.
Cost: one pass of the large model and some steps of the small one for one to many tokens; a pass over n tokens
instead of one, which is nothing where weights come from storage and little more than one where they do not.
Limits: gains where reading weights is most of a pass. Both models must have the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.run._draft_costs import Costs, Pause
from haversack.run._drafting import open_draft
from haversack.run._tree_draft import Drafter, room
from haversack.run._verify import Drawn, Rejection, Verdict, verify_same
from haversack.run._weights import nbytes

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine
    from haversack.run._sampler import Session
    from haversack.run._token_tree import TokenTree

F32 = npt.NDArray[np.float32]

LEAST, MOST = 1e-6, 0.9
"""Bounds of alpha [inferred]."""
BESIDE = 128
"""Nodes that may be drafted beside a pass."""
WIDER = 0.002
"""Chance of being right below which a token is not put to the model even where it costs nothing."""


def next_threshold(alpha: float, confidence: float, drafted: int, correct: int) -> float:
    """alpha after a pass: halved when all `drafted` tokens of the best-matching branch were correct, else
    alpha / T_c^((drafted - correct) / drafted), where `confidence` is T_c, the largest confidence of a branch
    when drafting stopped."""
    if drafted == 0:
        return alpha
    if correct == drafted:
        return 0.5 * alpha
    return float(alpha / confidence ** ((drafted - correct) / drafted))


def bounded_threshold(alpha: float, ratio: float) -> float:
    """alpha within its bounds, and not above `ratio`, what a drafted token costs in passes (0: unknown)."""
    return min(max(alpha, LEAST), max(LEAST, min(MOST, ratio or MOST)))


def best_matching(tree: TokenTree, nodes: list[int], path: list[int]) -> int:
    """The length of the branch that `path` lies on, of those among `nodes`; of the likeliest where several
    do."""
    end = path[-1] if path else 0
    shown = set(nodes)
    below = [node for node in nodes if tree.seen[node, end] and shown.isdisjoint(tree.children[node])]
    return tree.depths[max(below, key=lambda node: tree.confidences[node])]


class Learned:
    """What one answer leaves for the next where tokens do not depend on it: costs, rests, alpha."""

    def __init__(self, costs: Costs, alpha: float) -> None:
        self.costs, self.pause, self.alpha = costs, Pause(costs), alpha


@dataclass(frozen=True)
class Tree(Method):
    name = "tree"
    stage = "run"
    slot = "decode"
    paper = "Xu et al., LLMCad: Fast and Scalable On-device Large Language Model Inference (2023)"
    summary = "A small model drafts a tree of likely continuations, the model verifies it in one pass."
    system = 5
    requires = frozenset({"draft-model", "tree-mask"})
    excludes = frozenset({"encoder-decoder"})

    draft: str = parameter("", help="bundled name or folder of the draft model")
    branch_threshold: float = parameter(0.3, help="probability above which a token opens a branch")
    children: int = parameter(2, allowed=range(1, 9), help="most tokens that follow one")
    branches: int = parameter(10, allowed=range(1, 65), help="most branches")
    nodes: int = parameter(
        64, allowed=range(2, 257), help="most tokens of a pass, the last of the text included"
    )
    alpha: float = parameter(0.01, help="confidence below which drafting stops: at first, or for good")
    adaptive: str = parameter(
        "bounded", allowed=("bounded", "paper", "none"), help="how alpha follows from what was accepted"
    )
    speculate: bool = parameter(True, help="draft on while a pass waits for weights")
    ratio: float = parameter(
        0.0, help="drafted tokens that take as long as a pass; 0: as the run itself measures it"
    )
    pause: str = parameter(
        "auto", allowed=("auto", "never"), help="whether drafting rests where it does not pay"
    )
    sampling: str = parameter(
        "tokens",
        allowed=("tokens", "rejection"),
        help="what sampling keeps: the tokens, or the distribution",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < float("inf"):
            raise UserError(
                f"ratio={self.ratio:g} is not supported (allowed 0 and more); use ratio=0.",
                field="ratio",
                given=self.ratio,
                nearest=0.0,
            )
        for name, default in (("branch_threshold", 0.3), ("alpha", 0.01)):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise UserError(
                    f"{name}={value:g} is not supported (allowed between 0 and 1); use {name}={default:g}.",
                    field=name,
                    given=value,
                    nearest=default,
                )

    @property
    def spare(self) -> int:
        """Entries that the small model's cache has beyond those of the text."""
        return self.nodes + BESIDE

    def prepare(self, engine: Engine) -> None:
        """Open the draft beside the model. Raises UserError when it has another vocabulary."""
        open_draft(engine, self.draft)

    def tokens(self, engine: Engine, cache: Cache, logits: F32, session: Session) -> Iterator[Drawn]:
        """(token, log-probability) of the answer, one after the other, until the cache is full.

        `logits` f32 [1, vocabulary] follow the prompt that `cache` holds.
        """
        small = engine.draft
        assert small is not None
        drafter = Drafter(self, small, session, cache.capacity, BESIDE)
        counts = session.drafting = drafter.counts
        if drafter.exact and isinstance(engine.learned, Learned):
            known = engine.learned
        else:
            known = Learned(Costs(self._fixed(engine, drafter.exact)), self.alpha)
        if drafter.exact:
            engine.learned = known
        costs, pause, alpha = known.costs, known.pause, known.alpha
        rejection = Rejection(session.sampler.seed)
        yield session.draw(logits[-1])
        while cache.length < cache.capacity:
            resting = pause.resting and self.pause == "auto"
            if resting and drafter.exact:
                yield self._plain(engine, cache, drafter, known)
                continue
            if self.adaptive == "bounded":
                alpha = bounded_threshold(alpha, costs.ratio)
            most = 1 if resting else min(self.nodes, cache.capacity - cache.length)
            deepest = min(session.left - 1, room(engine, cache.length))
            before, spent = counts.steps, counts.drafting_s
            tree = drafter.grow(deepest, most, alpha)
            steps = counts.steps - before
            costs.drafted(counts.drafting_s - spent, steps)
            confidence = tree.confidence
            if most > 1:
                drafter.fill(most, max(costs.wider, WIDER))
            nodes = tree.best(most)
            began = perf_counter()
            verdict = self._verified(engine, cache, drafter, nodes, rejection)
            correct = len(verdict.path)
            if self.adaptive != "none" and len(nodes) > 1:
                alpha = next_threshold(alpha, confidence, best_matching(tree, nodes, verdict.path), correct)
                alpha = known.alpha = min(max(alpha, LEAST), MOST)
            counts.thresholds.append(alpha)
            drafter.settle(verdict)
            seconds = perf_counter() - began
            costs.passed(seconds, len(nodes))
            counts.passed(len(nodes) - 1, correct, seconds)
            counts.plain += resting
            pause.passed(correct + 1, len(nodes) - 1, steps)
            yield from verdict.drawn

    def _plain(self, engine: Engine, cache: Cache, drafter: Drafter, known: Learned) -> Drawn:
        """A pass without drafts."""
        began, session = perf_counter(), drafter.session
        drafter.drop()
        rows, _ = engine.step(session.tokens[-1:], None, None, cache)
        assert rows is not None
        drawn = session.draw(rows[-1])
        seconds = perf_counter() - began
        known.costs.passed(seconds, 1)
        known.pause.passed(1, 0, 0)
        drafter.counts.passed(0, 0, seconds)
        drafter.counts.plain += 1
        return drawn

    def _verified(
        self, engine: Engine, cache: Cache, drafter: Drafter, nodes: list[int], rejection: Rejection
    ) -> Verdict:
        """One pass over `nodes` of the tree, and what it left; `cache` keeps the accepted path alone."""
        tree, start = drafter.tree, cache.length
        with self._beside(engine, drafter, nodes):
            rows, _ = engine.step(
                [tree.tokens[node] for node in nodes],
                tree.positions(start, nodes),
                tree.mask(nodes) if len(nodes) > 1 else None,
                cache,
                want="all",
            )
        assert rows is not None
        if drafter.exact:
            verdict = verify_same(tree, nodes, rows, drafter.session)
        else:
            verdict = rejection.verify(tree, rows, drafter.session, drafter.drafted)
        places = [nodes.index(node) for node in (0, *verdict.path)]
        cache.gather(np.concatenate([np.arange(start), start + np.asarray(places)]))
        return verdict

    def _fixed(self, engine: Engine, exact: bool) -> tuple[float, float] | None:
        """What a drafted token and a pass cost where the clock is not asked: as `ratio` says, or by bytes of
        weights when sampling by rejection."""
        if self.ratio:
            return 1.0, self.ratio
        if exact or engine.draft is None:
            return None
        small, large = (
            float(nbytes(one.model.source, list(one.architecture.tensors())))
            for one in (engine.draft, engine)
        )
        return small, large

    @contextmanager
    def _beside(self, engine: Engine, drafter: Drafter, nodes: list[int]) -> Iterator[None]:
        """While the model waits for weights, the small one drafts on."""
        held: Any = engine.held
        if not self.speculate or not drafter.exact or not hasattr(held, "meanwhile"):
            yield
            return
        drafter.asked(nodes)
        held.meanwhile = drafter.beside
        try:
            yield
        finally:
            held.meanwhile = None
