"""What methods with a draft model share: opening it, and the counts of an answer that commands print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from haversack.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from haversack.run._cache import Cache
    from haversack.run._engine import Engine
    from haversack.run._sampler import Session

    F32 = npt.NDArray[np.float32]


def open_draft(engine: Engine, draft: str) -> None:
    """Open the model `draft` beside the engine's. Raises UserError when it has another tokenizer."""
    from haversack.run._source import open_model

    model = open_model(draft)
    ours, theirs = (_tokenizer_bytes(one) for one in (engine.model, model))
    same = model.architecture.vocabulary == engine.architecture.vocabulary
    if not same or (ours != theirs and _table(engine.model) != _table(model)):
        raise UserError(
            f"the draft {draft} has another tokenizer than {engine.model.path.name}; a draft must share it.",
            field="draft",
            given=draft,
        )
    engine.draft_model = model


def draft_chain(
    small: Engine,
    drafts: Cache,
    session: Session,
    count: int,
    *,
    coupled: bool,
    enough: Callable[[int, F32], bool] | None = None,
) -> tuple[list[int], list[F32]]:
    """Up to `count` tokens that `small` drafts one after the other behind the text of `session`, and, unless
    `coupled`, the distributions f32 [vocabulary] they were drawn from.

    `drafts` is the small model's cache of the text, which it reads as far as it has not. Coupled drafts are
    greedy or use the numbers of the plain run. `enough` hears of every token and the logits it was drawn
    from, and ends the chain behind it.
    """
    import numpy as np

    from haversack.run._verify import DRAFTED, number_at, pick

    chain: list[int] = []
    shares: list[F32] = []
    history = session.tokens
    while len(chain) < count:
        following = np.concatenate([history, np.asarray(chain, np.int32)])
        rows, _ = small.step(following[drafts.length :], None, None, drafts)
        assert rows is not None
        step = session.drawn + len(chain)
        if coupled:
            chain.append(session.sampler.draw(rows[-1], following, step)[0])
        else:
            shares.append(session.sampler.distribution(rows[-1], following))
            chain.append(pick(shares[-1], number_at(session, DRAFTED, step)))
        if enough is not None and enough(chain[-1], rows[-1]):
            break
    return chain, shares


def _tokenizer_bytes(model: Any) -> bytes:
    path: Path = model.path / "tokenizer.json"
    return path.read_bytes() if path.is_file() else b""


def _table(model: Any) -> dict[str, int]:
    table: dict[str, int] = model.tokenizer().table()
    return table


class Drafts(Protocol):
    """What a decode method that drafts tells of an answer. `told`: where `run --json` says it."""

    told: ClassVar[str]

    def brief(self) -> str: ...
    def words(self) -> str: ...
    def stats(self) -> dict[str, Any]: ...


@dataclass
class Drafting:
    """Counts of one answer. A pass is a step of the large model after the prompt.

    `drafted` tokens were put to the model, `accepted` of them were right, and a pass says one token itself.
    `speculated` tokens were drafted while the model waited for its weights, and `kept` of those were still of
    use after the pass. Times are seconds: of the small model alone (`drafting_s`), of the passes
    (`verifying_s`), and, within those, of drafting beside their reads (`beside_s`).
    """

    told: ClassVar[str] = "drafting"

    passes: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    speculated: int = 0
    kept: int = 0
    plain: int = 0
    sizes: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    drafting_s: float = 0.0
    verifying_s: float = 0.0
    beside_s: float = 0.0

    def passed(self, drafted: int, accepted: int, seconds: float) -> None:
        """Count a pass over `drafted` tokens beside the last one, `accepted` of which were right."""
        self.passes += 1
        self.tokens += accepted + 1
        self.drafted += drafted
        self.accepted += accepted
        self.sizes.append(drafted)
        self.verifying_s += seconds

    @property
    def tokens_a_pass(self) -> float:
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def acceptance(self) -> float | None:
        """The share of drafted tokens that was right; None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    def brief(self) -> str:
        """A few words; none when nothing was drafted."""
        return f"{self.tokens_a_pass:.1f} tokens a pass" if self.passes else ""

    def words(self) -> str:
        """One line for people, the acceptance first."""
        if not self.passes:
            return "drafting: no pass was needed"
        share = "nothing drafted" if self.acceptance is None else f"{self.acceptance:.0%} of drafts accepted"
        said = (
            f"drafting: {share}, {self.tokens_a_pass:.2f} tokens a pass ({self.passes} passes, "
            f"{sum(self.sizes) / len(self.sizes):.1f} drafts each, {max(self.sizes)} at most); "
            f"{self.drafting_s:.2f} s drafting, {self.verifying_s:.2f} s verifying"
        )
        if self.speculated:
            said += f", in which {self.speculated} more drafts were made and {self.kept} kept"
        if self.plain:
            said += f"; {self.plain} passes without drafts, which did not pay"
        return said

    def stats(self) -> dict[str, Any]:
        """The same for `run --json`."""
        return {
            "passes": self.passes,
            "tokens_a_pass": round(self.tokens_a_pass, 4),
            "acceptance": None if self.acceptance is None else round(self.acceptance, 4),
            "drafted": self.drafted,
            "accepted": self.accepted,
            "small_steps": self.steps,
            "largest": max(self.sizes, default=0),
            "speculated": self.speculated,
            "kept": self.kept,
            "plain": self.plain,
            "threshold": self.thresholds[-1] if self.thresholds else None,
            "drafting_s": round(self.drafting_s, 6),
            "verifying_s": round(self.verifying_s, 6),
        }
