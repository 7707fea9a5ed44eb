"""What methods with a draft model share: opening it, and the counts of an answer that commands print."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core.errors import UserError

if TYPE_CHECKING:
    from haversack.run._engine import Engine


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


def _tokenizer_bytes(model: Any) -> bytes:
    path: Path = model.path / "tokenizer.json"
    return path.read_bytes() if path.is_file() else b""


def _table(model: Any) -> dict[str, int]:
    table: dict[str, int] = model.tokenizer().table()
    return table


@dataclass
class Drafting:
    """Counts of one answer. A pass is a step of the large model after the prompt.

    `drafted` tokens were put to the model, `accepted` of them were right, and a pass says one token itself.
    `speculated` tokens were drafted while the model waited for its weights, and `kept` of those were still of
    use after the pass. Times are seconds: of the small model alone (`drafting_s`), of the passes
    (`verifying_s`), and, within those, of drafting beside their reads (`beside_s`).
    """

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
